package node

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"path"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"mvm/osvm/link"
	"mvm/services/image"
	"mvm/services/soap"
	"mvm/wsdl"
)

// relay is to the guest of an enclosure what a grid is to a node: its bootstrap,
// its information service, its broker and the blobs. What it tells is about one
// attempt, and what it hears becomes this node's own word on that.
type relay struct {
	enclosure *enclosure
	server    *http.Server
	listener  *handed
}

// relayURL is where the guest finds it.
const relayURL = "http://" + link.RelayAddress

// relayBeat is how often a guest sends a heartbeat.
const relayBeat = 2 * time.Second

func newRelay(e *enclosure) (*relay, error) {
	n := e.runner.node
	boot, info, broker := &relayBootstrap{}, &relayInformation{enclosure: e}, &relayBroker{enclosure: e}
	boot.Server, info.Server = boot, info
	store := &uploads{ImageContext: image.NewService(n.images, func() string { return relayURL }, image.Images{Home: func() string { return "" }, Caller: n.caller})}
	store.left.Store(uploadMost)
	face, err := soap.NewServer(soap.Config{
		Contracts: []wsdl.Contract{
			wsdl.BootstrapContract(boot), wsdl.InformationContract(info),
			only(wsdl.BrokerContract(broker), "Report"), only(wsdl.ImageContract(store), "PutBlob", "StatBlob"), only(wsdl.QueueContract(nil)),
		},
		Log: n.log.Logger, Quiet: []string{"information/Heartbeat", "broker/Report"},
	})
	if err != nil {
		return nil, err
	}
	blobs := n.images.Handler()
	face.Router().HandleFunc("/services/image/blobs/{digest}", func(w http.ResponseWriter, r *http.Request) {
		// What the guest needs comes when it asks.
		if err := n.images.Fetch(r.Context(), n.http, e.runner.request.Image, path.Base(r.URL.Path)); err != nil {
			http.Error(w, err.Error(), http.StatusNotFound)
			return
		}
		blobs.ServeHTTP(w, r)
	}).Methods(http.MethodGet, http.MethodHead)
	r := &relay{enclosure: e, server: &http.Server{Handler: face, ReadHeaderTimeout: time.Minute}, listener: &handed{conns: make(chan net.Conn), done: make(chan struct{})}}
	go func() { _ = r.server.Serve(r.listener) }()
	return r, nil
}

func (r *relay) close() { _ = r.server.Close() }

// uploadMost is how many bytes a guest may give its host to keep: far above what a
// job's outputs are, and below what fills a disk before blobs that nobody names are
// swept.
const uploadMost = 4 << 30

// uploads are the blobs that a guest gives, up to its quota.
type uploads struct {
	wsdl.ImageContext
	left atomic.Int64
}

func (u *uploads) PutBlobContext(ctx context.Context, r *wsdl.PutBlob) (*wsdl.PutBlobResponse, error) {
	if r.Data != nil && u.left.Add(-int64(len(*r.Data))) < 0 {
		return nil, wsdl.NewFault(wsdl.FaultCodeTooLarge, fmt.Sprintf("this VM has given its host %d MiB to keep, which is all that it may", uploadMost>>20), "write less, or have more VMs")
	}
	return u.ImageContext.PutBlobContext(ctx, r)
}

// take serves one connection of the guest's.
func (r *relay) take(conn net.Conn) {
	select {
	case r.listener.conns <- conn:
	case <-r.listener.done:
		_ = conn.Close()
	}
}

// only has a contract serve some of its operations; of the others nothing is known.
func only(contract wsdl.Contract, names ...string) wsdl.Contract {
	contract.Operations = slices.Clone(contract.Operations)
	for i, o := range contract.Operations {
		if !slices.Contains(names, o.Name) {
			contract.Operations[i].Call = func(context.Context, any) (any, error) {
				return nil, wsdl.NewFault(wsdl.FaultCodeNotFound, "the host of this VM serves no "+o.Name, "ask its node, or the broker")
			}
		}
	}
	return contract
}

// handed is a listener of connections that somebody else accepts.
type handed struct {
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func (h *handed) Accept() (net.Conn, error) {
	select {
	case conn := <-h.conns:
		return conn, nil
	case <-h.done:
		return nil, net.ErrClosed
	}
}

func (h *handed) Close() error {
	h.once.Do(func() { close(h.done) })
	return nil
}

func (h *handed) Addr() net.Addr { return &net.UnixAddr{Name: link.RelayAddress, Net: "unix"} }

type relayBootstrap struct{ wsdl.BootstrapWithoutContext }

func (b *relayBootstrap) GetBrokerContext(context.Context, *wsdl.GetBroker) (*wsdl.GetBrokerResponse, error) {
	return &wsdl.GetBrokerResponse{Url: relayURL + "/services/broker", Image: relayURL + "/services/image", Information: relayURL + "/services/information"}, nil
}

func (b *relayBootstrap) JoinContext(_ context.Context, r *wsdl.Join) (*wsdl.JoinResponse, error) {
	return &wsdl.JoinResponse{Broker: relayURL + "/services/broker", Image: relayURL + "/services/image", Information: relayURL + "/services/information", Url: r.Node.Url}, nil
}

func (b *relayBootstrap) ListServicesContext(context.Context, *wsdl.ListServices) (*wsdl.ListServicesResponse, error) {
	return &wsdl.ListServicesResponse{}, nil
}

type relayInformation struct {
	wsdl.InformationWithoutContext
	enclosure *enclosure
}

// RegisterContext is how an enclosure hears that its guest is up.
func (i *relayInformation) RegisterContext(_ context.Context, r *wsdl.Register) (*wsdl.RegisterResponse, error) {
	if err := i.enclosure.arrive(r.Node); err != nil {
		return nil, err
	}
	return &wsdl.RegisterResponse{LeaseMillis: i.enclosure.lease().Milliseconds(), HeartbeatMillis: relayBeat.Milliseconds(), Broker: relayURL + "/services/broker"}, nil
}

// HeartbeatContext names the attempt for as long as this node carries it: should
// its lease end, this node ends the VM.
func (i *relayInformation) HeartbeatContext(_ context.Context, r *wsdl.Heartbeat) (*wsdl.HeartbeatResponse, error) {
	attempt, err := i.enclosure.hear(r.Node, r.Incarnation)
	if err != nil {
		return nil, err
	}
	return &wsdl.HeartbeatResponse{LeaseMillis: i.enclosure.lease().Milliseconds(), HeartbeatMillis: relayBeat.Milliseconds(), Attempt: []*wsdl.Attempt{attempt}}, nil
}

func (i *relayInformation) QueryContext(context.Context, *wsdl.Query) (*wsdl.QueryResponse, error) {
	return &wsdl.QueryResponse{}, nil
}

// relayBroker takes the guest's reports; only leaves it nothing else to do.
type relayBroker struct {
	wsdl.BrokerContext
	enclosure *enclosure
}

func (b *relayBroker) ReportContext(_ context.Context, r *wsdl.Report) (*wsdl.ReportResponse, error) {
	e := b.enclosure
	if r.Attempt == nil || r.Attempt.Job != e.runner.key.job || int(r.Attempt.Number) != e.number || r.Attempt.Node != e.id {
		return nil, wsdl.NewFault(wsdl.FaultCodeStale, fmt.Sprintf("this VM is for attempt %s alone", e.runner.key), "")
	}
	return &wsdl.ReportResponse{Acknowledged: e.reported(r)}, nil
}
