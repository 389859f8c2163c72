package bootstrap

import (
	"context"
	"sync"

	"mvm/wsdl"
)

// Place is where a grid's services are, as a bootstrap service tells it: the id of the
// node that has the broker, and addresses; empty what is not known.
type Place struct{ Node, Broker, Image, Information string }

// Watcher is a wsdl.Caller that sees what the grid answers a node when it joins, and
// keeps in mind where that grid's services are. What it is made of is set before the
// first call.
type Watcher struct {
	wsdl.Caller
	Bootstrap  string // the address of the service of the grid that is joined; "" on a node that joins none
	Registered func() // called after each registration

	mu     sync.Mutex // guards joined
	joined Place
}

// Call is that of the Caller.
func (w *Watcher) Call(ctx context.Context, url, operation string, request, response any) error {
	err := w.Caller.Call(ctx, url, operation, request, response)
	if err != nil {
		return err
	}
	switch response.(type) {
	case *wsdl.JoinResponse:
		w.ask(ctx)
	case *wsdl.RegisterResponse:
		w.Registered()
	case *wsdl.HeartbeatResponse:
		// The grid may have got its broker after this node joined.
		if w.Bootstrap != "" && w.Place().Broker == "" {
			w.ask(ctx)
		}
	}
	return nil
}

// ask asks the joined grid where its services are.
func (w *Watcher) ask(ctx context.Context) {
	where, err := wsdl.NewBootstrapClient(w.Caller, w.Bootstrap).GetBrokerContext(ctx, &wsdl.GetBroker{})
	if err != nil {
		return // asked again with the next heartbeat
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.joined = Place{where.Node, where.Url, where.Image, where.Information}
}

// Place is what is known; zero until a grid has told it.
func (w *Watcher) Place() Place {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.joined
}
