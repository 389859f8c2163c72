package node

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"mvm/wsdl"
)

// Two nodes, a program on each: what is enqueued from outside at the one comes
// out at the other, through both proxies.
func TestChannelsAcrossNodes(t *testing.T) {
	t.Run("plain", func(t *testing.T) { testChannelsAcrossNodes(t, "127.0.0.1") })
	t.Run("TLS", func(t *testing.T) { testChannelsAcrossNodes(t, "0.0.0.0") })
}

func testChannelsAcrossNodes(t *testing.T, host string) {
	g := newGrid(t)
	proxyAt := func(c *Config) { c.ProxyHost = host }
	a, b := g.with(t.TempDir(), quickParts(), proxyAt), g.with(t.TempDir(), quickParts(), proxyAt)
	if a.library(t.Context()) == "" {
		t.Skip("the programs of this test need a C compiler for libmvm.so, and Python 3")
	}
	program := `
import sys, mvm
taker, giver = mvm.open(sys.argv[1]), mvm.open(sys.argv[2])
n = 0
for item in taker:
    giver.enqueue(item + sys.argv[3].encode())
    n += 1
giver.end()
print("relayed", n)
`
	ctx := context.Background()
	peers := map[*member]*wsdl.Peer{}
	for _, m := range []*member{a, b} {
		g.set(func() { g.live[key{"j", 1}] = true })
		answer, err := m.queue.AwakenContext(ctx, &wsdl.Awaken{Attempt: m.attempt("j", 1), Broker: g.url + "/services/broker", Image: []string{g.url},
			Slots: 1, Proxy: wsdl.Of(true), Build: []*wsdl.Build{m.source("relay", wsdl.LanguagePython, program)}})
		if err != nil {
			t.Fatal(err)
		}
		if answer.Address == "" || len(answer.Fingerprint) != 64 {
			t.Fatalf("the proxy is at %q with key %q", answer.Address, answer.Fingerprint)
		}
		if !strings.HasPrefix(answer.Address, "127.0.0.1:") {
			t.Errorf("the proxy of %s is at %s, where nobody reaches it", m.id, answer.Address)
		}
		peers[m] = &wsdl.Peer{Node: m.id, Address: answer.Address, Fingerprint: answer.Fingerprint}
	}
	port := func(process int32, name string) *wsdl.ChannelEnd {
		return &wsdl.ChannelEnd{Process: wsdl.Of(process), Port: name}
	}
	channel := func(id int32, from, to *wsdl.ChannelEnd) *wsdl.Channel {
		return &wsdl.Channel{Id: wsdl.Of(id), Capacity: 65536, From: from, To: to}
	}
	done := make(chan error, 2)
	for _, half := range []struct {
		m       *member
		peer    *wsdl.Peer
		process *wsdl.ProcessSpec
		channel []*wsdl.Channel
	}{
		{a, peers[b], spec(0, "relay", "source", "next", "-a"), []*wsdl.Channel{
			channel(0, &wsdl.ChannelEnd{Outside: "in"}, port(0, "source")), channel(1, port(0, "next"), &wsdl.ChannelEnd{Peer: b.id}),
			channel(3, &wsdl.ChannelEnd{Outside: "idle"}, &wsdl.ChannelEnd{Peer: b.id})}},
		{b, peers[a], spec(1, "relay", "prev", "sink", "-b"), []*wsdl.Channel{
			channel(1, &wsdl.ChannelEnd{Peer: a.id}, port(1, "prev")), channel(2, port(1, "sink"), &wsdl.ChannelEnd{Outside: "out"}),
			channel(3, &wsdl.ChannelEnd{Peer: a.id}, port(1, "idle"))}},
	} {
		go func() {
			_, err := half.m.queue.InstantiateContext(ctx, &wsdl.Instantiate{Attempt: half.m.attempt("j", 1), WallTimeSeconds: 60,
				Process: []*wsdl.ProcessSpec{half.process}, Channel: half.channel, Peer: []*wsdl.Peer{half.peer}})
			done <- err
		}()
	}
	for range 2 {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	// By SOAP, at a node that has nothing of the job.
	other := g.with(t.TempDir(), quickParts(), proxyAt)
	status := func(m *member, id, outside string) *wsdl.QueueStatus {
		return &wsdl.QueueStatus{Name: outside, Id: id, Served: wsdl.Of(false), Type_: wsdl.Of(wsdl.QueueTypeFifo), Full: wsdl.Of(wsdl.FullPolicyBlock),
			Node: m.id, Url: m.url + "/services/queue", Producer: []*wsdl.QueueEnd{{Name: "outside:" + outside}}}
	}
	g.set(func() {
		idle := status(b, "channel:3", "idle")
		idle.Producer[0].Url = a.url + "/services/queue"
		g.queues = map[string]*wsdl.QueueStatus{"in": status(a, "channel:0", "in"), "outside:out": status(b, "channel:2", "out"), "idle": idle, "channel:3": idle}
	})
	var items []*wsdl.Binary
	for i := range 10 {
		items = append(items, wsdl.Of(wsdl.Binary(fmt.Sprint("item", i))))
	}
	put, err := other.queue.EnqueueContext(ctx, &wsdl.Enqueue{Job: "j", Queue: "in", Item: items, TimeoutMillis: 5000})
	if err != nil || wsdl.Or(put.Accepted, 0) != 10 {
		t.Fatalf("Enqueue: %+v, %v", put, err)
	}
	for got := 0; got < 10; {
		at, queue := other, "outside:out"
		if got > 0 {
			at, queue = b, "out"
		}
		answer, err := at.queue.DequeueContext(ctx, &wsdl.Dequeue{Job: "j", Queue: queue, Limit: 4, TimeoutMillis: 10000})
		if err != nil {
			t.Fatal(err)
		}
		for _, item := range answer.Item {
			if want := fmt.Sprintf("item%d-a-b", got); string(*item) != want {
				t.Errorf("item %d is %q", got, *item)
			}
			got++
		}
	}
	for _, given := range [][]*wsdl.Binary{items, nil} {
		_, err := a.queue.EnqueueContext(ctx, &wsdl.Enqueue{Job: "j", Queue: "nope", Item: given})
		var fault *wsdl.Fault
		if code(err) != "notFound" || !errors.As(err, &fault) || fault.Advice == "" {
			t.Errorf("an unknown queue, %d items: %v", len(given), err)
		}
	}
	if empty, err := b.queue.DequeueContext(ctx, &wsdl.Dequeue{Job: "j", Queue: "out", Limit: 4, TimeoutMillis: 10}); err != nil || len(empty.Item) > 0 || wsdl.Or(empty.End, true) {
		t.Errorf("an empty queue: %+v, %v", empty, err)
	}
	// What waits between two nodes is seen as one, wherever it waits.
	var many []*wsdl.Binary
	for i := range 200 {
		many = append(many, wsdl.Of(wsdl.Binary(fmt.Sprintf("%04d%01996d", i, 0))))
	}
	idle, err := a.queue.EnqueueContext(ctx, &wsdl.Enqueue{Job: "j", Queue: "idle", Item: many, TimeoutMillis: 500})
	if err != nil || wsdl.Or(idle.Accepted, 0) < 50 {
		t.Fatalf("Enqueue: %+v, %v", idle, err)
	}
	for _, m := range []*member{other, b} {
		var seen *wsdl.PeekQueueResponse
		// It may be on its way for a while, and then the answer says from where on.
		whole := false
		for begin := time.Now(); !whole && time.Since(begin) < 30*time.Second; time.Sleep(10 * time.Millisecond) {
			var err error
			if seen, err = m.queue.PeekQueueContext(ctx, &wsdl.PeekQueue{Job: "j", Queue: "channel:3", Limit: 1000, Bytes: 4}); err != nil {
				t.Fatal(err)
			}
			if whole = len(seen.Item) == int(*idle.Accepted); whole == (seen.Next != nil) {
				t.Errorf("%d of %d items are seen, and of the rest it says %v", len(seen.Item), *idle.Accepted, wsdl.Or(seen.Next, 0))
			}
		}
		if !whole {
			t.Errorf("%d of %d items are seen", len(seen.Item), *idle.Accepted)
		}
		short := 0
		for i, item := range seen.Item {
			want, got := fmt.Sprintf("%04d", i), string(wsdl.Or(item.Data, nil))
			if len(got) < len(want) { // it lies half on each node, and of the half that is shown there is less
				short++
			}
			if !strings.HasPrefix(want, got) || wsdl.Or(item.Size, 0) != 2000 || short > 1 {
				t.Errorf("item %d is %q of %d bytes", i, got, wsdl.Or(item.Size, 0))
			}
		}
	}
	few, err := b.queue.PeekQueueContext(ctx, &wsdl.PeekQueue{Job: "j", Queue: "channel:3", Limit: 3})
	if err != nil || len(few.Item) != 3 {
		t.Errorf("%+v, %v", few, err)
	}
	// The states, as people see them.
	for _, m := range []*member{a, b} {
		view, err := m.queue.InspectContext(ctx, &wsdl.Inspect{Job: "j"})
		if err != nil || len(view.Attempt) != 1 || len(view.Attempt[0].Channel) != 3 {
			t.Fatalf("Inspect: %+v, %v", view, err)
		}
		for _, c := range view.Attempt[0].Channel {
			if *c.Id == 1 && wsdl.Or(c.ProxyItems, 0) != 10 {
				t.Errorf("%d items crossed, not 10", wsdl.Or(c.ProxyItems, 0))
			}
		}
	}
	// By a plain socket.
	socket, err := b.queue.OpenSocketContext(ctx, &wsdl.OpenSocket{Job: "j", Queue: "out"})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", socket.Address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	fmt.Fprintf(conn, "MVM1 %s\n", socket.Token)
	if line, err := bufio.NewReader(conn).ReadString('\n'); err != nil || strings.Contains(strings.ToLower(line), "err") {
		t.Errorf("the proxy answers %q, %v", line, err)
	}
	conn.Close()
	if _, err := a.queue.EnqueueContext(ctx, &wsdl.Enqueue{Job: "j", Queue: "in", End: true}); err != nil {
		t.Fatal(err)
	}
	for id := range 2 {
		eventually(t, "a program has ended", func() bool { s := g.status("j", id); return s != nil && terminal(s) })
		s := g.status("j", id)
		if wsdl.Or(s.ExitCode, -1) != 0 || g.text(s, "stdout") != "relayed 10\n" {
			t.Errorf("process %d: %+v: %s%s", id, s, g.text(s, "stdout"), g.text(s, "stderr"))
		}
	}
	for _, m := range []*member{a, b} {
		m.terminate("j", 1, time.Second)
		m.clean()
	}
	eventually(t, "the traffic is reported", func() bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		for _, r := range g.reports {
			if r.Attempt.Node == a.id && r.ProxyItems >= 10 && r.ProxyBytes >= 70 {
				return true
			}
		}
		return false
	})
	if f := g.failures("j"); f != "" {
		t.Errorf("failures: %s", f)
	}
}

// A queue that fills says how much it took, and what it has is not lost.
func TestAFullQueue(t *testing.T) {
	g := newGrid(t)
	m := g.node()
	if _, err := m.awaken("j", 1, 1, m.source("main", wsdl.LanguageShell, "sleep 1000")); err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	_, err := m.queue.InstantiateContext(ctx, &wsdl.Instantiate{Attempt: m.attempt("j", 1), Process: []*wsdl.ProcessSpec{spec(0, "main")},
		Channel: []*wsdl.Channel{{Id: wsdl.Of(int32(0)), Capacity: 4096, From: &wsdl.ChannelEnd{Outside: "in"}, To: &wsdl.ChannelEnd{Process: wsdl.Of(int32(0)), Port: "source"}}}})
	if err != nil {
		t.Fatal(err)
	}
	var items []*wsdl.Binary
	for range 10 {
		items = append(items, wsdl.Of(wsdl.Binary(strings.Repeat("x", 1000))))
	}
	put, err := m.queue.EnqueueContext(ctx, &wsdl.Enqueue{Job: "j", Queue: "in", Item: items, TimeoutMillis: 50})
	if err != nil {
		t.Fatal(err)
	}
	if n := wsdl.Or(put.Accepted, -1); n < 1 || n > 4 {
		t.Errorf("a queue of 4096 bytes took %d items of 1000", n)
	}
	if put, err = m.queue.EnqueueContext(ctx, &wsdl.Enqueue{Job: "j", Queue: "in", Item: items, TimeoutMillis: 50}); err != nil || wsdl.Or(put.Accepted, -1) != 0 {
		t.Errorf("a full queue: %+v, %v", put, err)
	}
	m.terminate("j", 1, 0)
	m.clean()
}
