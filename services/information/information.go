// Package information is the information service: nodes register with it, keep
// their lease by heartbeats, and learn from the answers which attempts are live
// on them; everyone else asks it which nodes there are.
//
// What always holds: a heartbeat is answered only for the incarnation that is
// registered, its lease is kept before the answer is given, and the answer names
// no attempt whose end the broker had committed before. So a node that got no
// answer for the lease's time holds nothing any more, and one that is lost got
// none for at least the lease and its margin.
//
// It must never decide what is live (the broker does), or call a node.
package information

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"time"

	"github.com/sirupsen/logrus"

	"mvm/services/store"
	"mvm/wsdl"
)

// State is what the service needs of the state store; *store.Store is one.
type State interface {
	PutNode(ctx context.Context, id, incarnation string, value, load []byte, ttl time.Duration) error
	KeepNode(ctx context.Context, id, incarnation string, load []byte) error
	Nodes(ctx context.Context) ([]store.NodeRecord, error)
	LiveOn(ctx context.Context, node string) ([]store.Attempt, error)
	ForgetLost(ctx context.Context, after time.Duration) (int, error)
}

// Config sets the service up. Only Store is required.
type Config struct {
	Store     State
	Lease     time.Duration // for how long after it sent a heartbeat a node may keep what the answer named; default 10 s
	Heartbeat time.Duration // how often nodes send one; default a fifth of Lease
	// Margin is how much longer than Lease a node must be silent to be lost:
	// the time it takes to kill what it held, and the clocks' drift. Default 3 s.
	Margin time.Duration
	// Forget is how long a lost node stays known. Default 24 h.
	Forget    time.Duration
	BrokerURL func() string  // the broker service's address; "" or nil: not known here
	Log       *logrus.Logger // nil: discarded
}

// Service is the information service. Its methods may be called concurrently.
type Service struct {
	wsdl.InformationWithoutContext
	c Config
}

var _ wsdl.InformationPortType = (*Service)(nil)

// New checks the configuration.
func New(c Config) (*Service, error) {
	if c.Store == nil {
		return nil, errors.New("information service: it needs a state store")
	}
	defaults := func(d *time.Duration, otherwise time.Duration) {
		if *d == 0 {
			*d = otherwise
		}
	}
	defaults(&c.Lease, 10*time.Second)
	defaults(&c.Heartbeat, c.Lease/5)
	defaults(&c.Margin, 3*time.Second)
	defaults(&c.Forget, 24*time.Hour)
	if c.Heartbeat <= 0 || c.Margin < 0 || c.Forget < 0 || c.Lease < 2*c.Heartbeat {
		return nil, fmt.Errorf("information service: a lease of %v with heartbeats every %v: a node must be able to miss one; make the lease at least twice the heartbeat", c.Lease, c.Heartbeat)
	}
	if c.BrokerURL == nil {
		c.BrokerURL = func() string { return "" }
	}
	if c.Log == nil {
		c.Log = logrus.New()
		c.Log.SetOutput(io.Discard)
	}
	s := &Service{c: c}
	s.Server = s
	return s, nil
}

// Run forgets nodes that have been lost for long, until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	often := time.NewTicker(max(time.Second, min(s.c.Forget/10, time.Minute)))
	defer often.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-often.C:
			n, err := s.c.Store.ForgetLost(ctx, s.c.Forget)
			if err != nil && ctx.Err() == nil {
				s.c.Log.WithError(err).Warn("lost nodes could not be forgotten; trying again")
			}
			if n > 0 {
				s.c.Log.WithField("nodes", n).Infof("forgot nodes that were lost for %v", s.c.Forget)
			}
		}
	}
}

// load is the part of a node that heartbeats change: kept apart, so that they
// do not rewrite the whole record, and no reader takes a node for changed.
type load struct {
	Slots  *int32 `json:"slots,omitempty"`
	Memory *int64 `json:"memory,omitempty"`
	Cores  *int32 `json:"cores,omitempty"`
	VMs    int64  `json:"vms,omitempty"` // MiB
	Disk   *int64 `json:"disk,omitempty"`
	Held   []held `json:"held"` // null: no heartbeat has told yet
}

// held is an attempt that a node holds.
type held struct {
	Job    string `json:"job"`
	Number int    `json:"n"`
}

// encode cannot fail: only plain fields are in it.
func (l load) encode() []byte {
	b, _ := json.Marshal(l)
	return b
}

// states of a node, as Query tells them
const (
	up   = "up"
	lost = "lost"
)

// recordLimit bounds a node's record, in bytes of JSON.
const recordLimit = 64 << 10

// RegisterContext makes a node known and alive. Registering again, also under
// the same incarnation, is how a node comes back after it lost its lease.
func (s *Service) RegisterContext(ctx context.Context, request *wsdl.Register) (*wsdl.RegisterResponse, error) {
	n := request.Node
	if err := check(n); err != nil {
		return nil, err
	}
	record := *n
	record.State, record.FreeSlots, record.FreeMemory, record.FreeCores, record.VmMemory, record.FreeDisk = "", nil, nil, nil, 0, nil
	value, err := json.Marshal(&record)
	if err != nil {
		return nil, fmt.Errorf("node %s: %w", n.Id, err)
	}
	if len(value) > recordLimit {
		return nil, wsdl.Faultf(wsdl.FaultCodeTooLarge, "node %s describes itself in %d bytes, more than %d", n.Id, len(value), recordLimit)
	}
	l := load{Slots: n.FreeSlots, Memory: n.FreeMemory, Cores: n.FreeCores, VMs: n.VmMemory, Disk: n.FreeDisk}
	if err := s.c.Store.PutNode(ctx, n.Id, n.Incarnation, value, l.encode(), s.c.Lease+s.c.Margin); err != nil {
		return nil, fault("register node "+n.Id, err,
			"another node has registered under this id since; if that was not a later start of this one, give this node another data folder")
	}
	s.c.Log.WithFields(logrus.Fields{"node": n.Id, "incarnation": n.Incarnation, "url": n.Url}).Info("node registered")
	return &wsdl.RegisterResponse{
		LeaseMillis:     s.c.Lease.Milliseconds(),
		HeartbeatMillis: s.c.Heartbeat.Milliseconds(),
		Broker:          s.c.BrokerURL(),
	}, nil
}

// check refuses what no one could use. What is too long or odd for a key, the
// store refuses.
func check(n *wsdl.Node) error {
	bad := func(element, found, expected string) error {
		f := wsdl.NewFault(wsdl.FaultCodeInvalidRequest, "Register: the node is refused", "")
		f.Problem = []*wsdl.Problem{{Element: "Register/node/" + element, Found: found, Expected: expected,
			Message: fmt.Sprintf("%s is %q, expected %s", element, found, expected)}}
		return f
	}
	switch {
	case n == nil:
		return wsdl.NewFault(wsdl.FaultCodeInvalidRequest, "Register: node is missing", "")
	case n.Incarnation == "" || len(n.Incarnation) > 128:
		return bad("incarnation", n.Incarnation, "1 to 128 characters, random at each start")
	case n.Cores < 0:
		return bad("cores", fmt.Sprint(n.Cores), "a count")
	case n.Memory < 0:
		return bad("memory", fmt.Sprint(n.Memory), "MiB")
	case n.VmMemory < 0:
		return bad("vmMemory", fmt.Sprint(n.VmMemory), "MiB")
	case wsdl.Or(n.Slots, 0) < 0:
		return bad("slots", fmt.Sprint(*n.Slots), "a count")
	}
	u, err := url.Parse(n.Url)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" {
		return bad("url", n.Url, "a base address such as http://host:port")
	}
	return nil
}

// HeartbeatContext keeps a node's lease, then says what is live on it.
func (s *Service) HeartbeatContext(ctx context.Context, request *wsdl.Heartbeat) (*wsdl.HeartbeatResponse, error) {
	l := load{Slots: request.FreeSlots, Memory: request.FreeMemory, Cores: request.FreeCores, VMs: max(0, request.VmMemory), Disk: request.FreeDisk, Held: []held{}}
	for _, a := range request.Attempt {
		if a != nil && a.Incarnation == request.Incarnation {
			l.Held = append(l.Held, held{a.Job, int(a.Number)})
		}
	}
	if len(l.encode()) > recordLimit {
		l.Held = nil // as good as not told
	}
	if err := s.c.Store.KeepNode(ctx, request.Node, request.Incarnation, l.encode()); err != nil {
		return nil, fault("heartbeat of node "+request.Node, err, "register again")
	}
	// Read after the lease was kept: what is named here is held no longer than
	// that lease and its margin.
	live, err := s.c.Store.LiveOn(ctx, request.Node)
	if err != nil {
		return nil, fault("heartbeat of node "+request.Node, err, "")
	}
	response := &wsdl.HeartbeatResponse{LeaseMillis: s.c.Lease.Milliseconds(), HeartbeatMillis: s.c.Heartbeat.Milliseconds()}
	for _, a := range live {
		if a.Incarnation == request.Incarnation {
			response.Attempt = append(response.Attempt, &wsdl.Attempt{
				Job: a.Job, Number: int32(a.Number), Node: a.Node, Incarnation: a.Incarnation})
		}
	}
	return response, nil
}

// QueryContext lists the known nodes, lost ones too, by id.
func (s *Service) QueryContext(ctx context.Context, request *wsdl.Query) (*wsdl.QueryResponse, error) {
	records, err := s.c.Store.Nodes(ctx)
	if err != nil {
		return nil, fault("query", err, "")
	}
	response := &wsdl.QueryResponse{}
	for _, r := range records {
		n, err := Decode(r)
		if err != nil {
			return nil, err
		}
		if request.Role != nil && !slices.ContainsFunc(n.Role, func(r *wsdl.Role) bool { return wsdl.Or(r, "") == *request.Role }) {
			continue
		}
		if request.Language != nil && !slices.ContainsFunc(n.Compiler, func(c *wsdl.Compiler) bool {
			return wsdl.Or(c.Language, "") == *request.Language
		}) {
			continue
		}
		response.Node = append(response.Node, n)
	}
	return response, nil
}

// Decode reads a node from its record: as it registered, with what its last
// heartbeat said is free, and its state. The result is the caller's.
func Decode(r store.NodeRecord) (*wsdl.Node, error) {
	n := new(wsdl.Node)
	if err := json.Unmarshal(r.Value, n); err != nil {
		return nil, fmt.Errorf("the record of node %s cannot be read: %w", r.ID, err)
	}
	n.State = lost
	if r.Alive {
		n.State = up
		var l load
		if err := json.Unmarshal(r.Load, &l); err != nil {
			return nil, fmt.Errorf("the load of node %s cannot be read: %w", r.ID, err)
		}
		n.FreeSlots, n.FreeMemory, n.FreeCores, n.VmMemory, n.FreeDisk = l.Slots, l.Memory, l.Cores, l.VMs, l.Disk
	}
	return n, nil
}

// Held reads from a node's record which attempts its last heartbeat said it
// holds. It is false while none has told under this incarnation, or when the
// node is lost.
func Held(r store.NodeRecord) ([]store.Attempt, bool) {
	var l load
	if !r.Alive || json.Unmarshal(r.Load, &l) != nil || l.Held == nil {
		return nil, false
	}
	all := make([]store.Attempt, 0, len(l.Held))
	for _, h := range l.Held {
		all = append(all, store.Attempt{Job: h.Job, Number: h.Number, Node: r.ID, Incarnation: r.Incarnation})
	}
	return all, true
}

// Told reads from a node's record what its last heartbeat said of its room besides
// what attempts hold, in MiB: the memory of VMs that are no attempt's, and its free
// disk, nil where it has not told.
func Told(r store.NodeRecord) (vmMemory int64, freeDisk *int64) {
	var l load
	if !r.Alive || json.Unmarshal(r.Load, &l) != nil {
		return 0, nil
	}
	return l.VMs, l.Disk
}

// fault gives a store's error its code.
func fault(what string, err error, staleAdvice string) error {
	switch {
	case errors.Is(err, store.ErrStale):
		return wsdl.NewFault(wsdl.FaultCodeStale, err.Error(), staleAdvice)
	case errors.Is(err, store.ErrInvalid):
		return wsdl.NewFault(wsdl.FaultCodeInvalidRequest, err.Error(), "")
	}
	// Whatever else: the state is not to be had now.
	return wsdl.NewFault(wsdl.FaultCodeUnavailable, what+": "+err.Error(), "try again")
}
