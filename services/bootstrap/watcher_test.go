package bootstrap

import (
	"context"
	"errors"
	"testing"

	"mvm/wsdl"
)

// grid answers what a node calls when it joins.
type grid struct {
	broker string // "" until there is one
	asked  int
}

func (g *grid) Call(_ context.Context, url, _ string, _, response any) error {
	if answer, ok := response.(*wsdl.GetBrokerResponse); ok {
		if g.asked++; g.broker == "" || url != "there" {
			return errors.New("there is none yet")
		}
		*answer = wsdl.GetBrokerResponse{Node: "n1", Url: g.broker, Image: "images", Information: "information"}
	}
	return nil
}

// A node that joins knows where the grid's services are as soon as they are anywhere,
// and asks no more then.
func TestWatcher(t *testing.T) {
	g, registrations := &grid{}, 0
	w := &Watcher{Caller: g, Bootstrap: "there", Registered: func() { registrations++ }}
	call := func(response any) {
		t.Helper()
		if err := w.Call(t.Context(), "anywhere", "", nil, response); err != nil {
			t.Fatal(err)
		}
	}
	call(&wsdl.JoinResponse{})
	call(&wsdl.RegisterResponse{})
	if registrations != 1 || g.asked != 1 || w.Place() != (Place{}) {
		t.Errorf("%d registrations, asked %d times, it knows %+v", registrations, g.asked, w.Place())
	}
	g.broker = "broker"
	want := Place{"n1", "broker", "images", "information"}
	for range 3 {
		call(&wsdl.HeartbeatResponse{})
		if w.Place() != want || g.asked != 2 {
			t.Errorf("asked %d times, it knows %+v", g.asked, w.Place())
		}
	}
	alone := &Watcher{Caller: g, Registered: func() {}}
	if err := alone.Call(t.Context(), "here", "", nil, &wsdl.HeartbeatResponse{}); err != nil || g.asked != 2 {
		t.Errorf("a node that joins no grid has asked it: %v", err)
	}
}
