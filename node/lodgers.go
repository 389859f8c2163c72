package node

import (
	"context"
	"crypto/subtle"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/mux"

	"mvm/osvm"
	"mvm/osvm/link"
	"mvm/services/soap"
)

// lodgers are the machines here that carry attempts of other nodes, which sent them
// (away.go). This node leads the guest's ports to that other one, and ends the
// machine when nobody has come for it for a while.
type lodgers struct {
	mu  sync.Mutex // guards what follows
	all map[string]*lodger
}

type lodger struct {
	machine *osvm.Machine
	token   string
	home    string // base address of the node that keeps its attempt
	slots   int
	visits  int       // connections to its port
	left    time.Time // when the last of them ended
}

// lodgerSilent is how long a machine stays that nobody comes for: who has its
// attempt comes at once, and again whenever a connection is cut.
const lodgerSilent = 30 * time.Second

// lodge takes a machine in that has arrived, until it is destroyed. The caller has it
// booked.
func (n *Node) lodge(m *osvm.Machine, expected arrival) {
	l := &lodger{machine: m, token: expected.token, home: expected.home, slots: expected.slots, left: time.Now()}
	n.lodgers.mu.Lock()
	if n.lodgers.all == nil {
		n.lodgers.all = map[string]*lodger{}
	}
	n.lodgers.all[m.ID] = l
	n.lodgers.mu.Unlock()
	go n.watchLodger(l)
}

// watchLodger ends a machine that nobody comes for, ended or not: the node whose
// attempt is in it is gone, or has given it up.
func (n *Node) watchLodger(l *lodger) {
	ticker := time.NewTicker(guestCheck)
	defer ticker.Stop()
	for {
		select {
		case <-n.living.Done():
			return
		case now := <-ticker.C:
			n.lodgers.mu.Lock()
			forsaken := l.visits == 0 && now.Sub(l.left) > lodgerSilent
			n.lodgers.mu.Unlock()
			if l.machine.Destroyed() {
				n.lodgers.mu.Lock()
				if n.lodgers.all[l.machine.ID] == l {
					delete(n.lodgers.all, l.machine.ID)
				}
				n.lodgers.mu.Unlock()
				n.booked()
				return
			}
			if forsaken {
				n.log.Warnf("the VM %s of %s is ended: the node that sent it has not come for it for %v", l.machine.ID, l.machine.Owner, lodgerSilent)
				if err := n.destroy(l.machine); err != nil {
					n.log.WithError(err).Warn("a VM that nobody comes for is left")
				}
			}
		}
	}
}

// take is what lodgers have of this machine.
func (l *lodgers) take() (sum room) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, one := range l.all {
		if one.machine.State() != osvm.Ended {
			sum.Memory += int64(one.machine.MemoryMiB)
			sum.Slots += one.slots
		}
	}
	return sum
}

// known finds the machine for one who has its token. The error has a status of HTTP.
func (l *lodgers) known(id, token string) (*lodger, int, error) {
	one := l.all[id]
	if one == nil || one.machine.Destroyed() {
		return nil, http.StatusNotFound, fmt.Errorf("there is no VM %.80q here that another node has sent for an attempt of its own", id)
	}
	if subtle.ConstantTimeCompare([]byte(token), []byte(one.token)) != 1 {
		return nil, http.StatusForbidden, fmt.Errorf("the VM %s is for the node that keeps its attempt", id)
	}
	return one, 0, nil
}

// may says whether a token is that of a machine.
func (l *lodgers) may(id, token string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, _, err := l.known(id, token)
	return err
}

// home is the base address of the node that keeps a machine's attempt, "" where that
// is this one, or nobody.
func (l *lodgers) home(m *osvm.Machine) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if one := l.all[m.ID]; one != nil && one.machine == m {
		return one.home
	}
	return ""
}

// visit notes that somebody who has the token has come for a machine.
func (l *lodgers) visit(id, authorization string) (*lodger, int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	token, _ := strings.CutPrefix(authorization, bearer)
	one, status, err := l.known(id, token)
	if err != nil {
		return nil, status, err
	}
	if one.machine.State() == osvm.Ended {
		return nil, http.StatusGone, one.machine.Reason()
	}
	one.visits++
	return one, 0, nil
}

func (l *lodgers) leave(one *lodger) {
	l.mu.Lock()
	defer l.mu.Unlock()
	one.visits--
	one.left = time.Now()
}

// Port leads to the port of a guest that another node has sent here with an attempt
// of its own: GET of a path with the variable id, with the token by which it was let
// in and an upgrade to mvm-port.
func (n *Node) Port() http.Handler { return n.leads((*osvm.Machine).Agent) }

// Card is Port for the network card of such a guest.
func (n *Node) Card() http.Handler { return n.leads((*osvm.Machine).Network) }

func (n *Node) leads(to func(*osvm.Machine, context.Context) (net.Conn, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !asks(w, r, portUpgrade, "the ports of a VM's guest are for the node whose attempt is in it") {
			return
		}
		id := mux.Vars(r)["id"]
		coming := n.arrivals.comes(id) // asked first: it is in one of the two
		one, status, err := n.lodgers.visit(id, r.Header.Get("Authorization"))
		if status == http.StatusNotFound && coming {
			status, err = http.StatusServiceUnavailable, fmt.Errorf("the VM %s is arriving", id)
		}
		if err != nil {
			sayPlainly(w, status, err)
			return
		}
		defer n.lodgers.leave(one)
		port, err := to(one.machine, n.living)
		if err != nil {
			sayPlainly(w, http.StatusServiceUnavailable, err)
			return
		}
		conn, ok := soap.AcceptUpgrade(w, portUpgrade)
		if !ok {
			_ = port.Close()
			return
		}
		stop := context.AfterFunc(n.living, func() { _ = conn.Close(); _ = port.Close() })
		defer stop()
		link.Splice(conn, port)
	})
}
