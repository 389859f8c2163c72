package node

import (
	"context"
	"fmt"
	"strings"
	"time"

	"mvm/wsdl"
)

const (
	rejoinFirst = 100 * time.Millisecond // pause after a failed try to join; it doubles
	rejoinLast  = 3 * time.Second
)

// keep joins, registers and sends heartbeats until ctx ends. The backend may
// be away and come back at any time.
func (n *Node) keep(ctx context.Context) {
	pause := rejoinFirst
	told := ""
	for ctx.Err() == nil {
		info, interval, err := n.register(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			if err.Error() != told { // once, not every few seconds
				told = err.Error()
				n.log.WithError(err).Warn("not joined; trying again and again")
			}
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
			pause = min(2*pause, rejoinLast)
			continue
		}
		pause, told = rejoinFirst, ""
		n.log.WithField("heartbeat", interval).Info("joined the grid")
		n.beatOn(ctx, info, interval)
	}
}

// Moved says that others reach this node at another base address from now on: the
// VM that it runs in has moved to another host.
func (n *Node) Moved(base string) {
	n.mu.Lock()
	n.url = strings.TrimSuffix(base, "/")
	n.mu.Unlock()
	n.log.WithField("url", base).Info("this node has moved")
	select {
	case n.afresh <- struct{}{}:
	default:
	}
}

// register finds the information service and registers with it.
func (n *Node) register(ctx context.Context) (info *wsdl.InformationClient, interval time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, n.callTimeout)
	defer cancel()
	address := n.config.InformationURL
	if n.config.JoinURL != "" {
		boot := strings.TrimSuffix(n.config.JoinURL, "/") + "/services/bootstrap"
		answer, err := wsdl.NewBootstrapClient(n.caller, boot).JoinContext(ctx, &wsdl.Join{Node: n.describe(ctx)})
		if err != nil {
			return nil, 0, fmt.Errorf("join through %s: %w", boot, err)
		}
		address = answer.Information
		n.mu.Lock()
		n.broker = answer.Broker
		if answer.Url != "" {
			n.url = strings.TrimSuffix(answer.Url, "/")
		}
		n.mu.Unlock()
	}
	info = wsdl.NewInformationClient(n.caller, address)
	answer, err := info.RegisterContext(ctx, &wsdl.Register{Node: n.describe(ctx)})
	if err != nil {
		return nil, 0, fmt.Errorf("register at %s: %w", address, err)
	}
	lease, interval := millis(answer.LeaseMillis), millis(answer.HeartbeatMillis)
	if lease <= 0 || interval <= 0 {
		return nil, 0, fmt.Errorf("register at %s: the answer gives a lease of %v and a heartbeat of %v", address, lease, interval)
	}
	n.mu.Lock()
	if answer.Broker != "" {
		n.broker = answer.Broker
	}
	n.stepLocked(registered{lease}, nil)
	n.mu.Unlock()
	return info, interval, nil
}

func millis(n int64) time.Duration { return time.Duration(n) * time.Millisecond }

// beatOn sends heartbeats, one at a time, until ctx ends or the service no
// longer knows the node.
func (n *Node) beatOn(ctx context.Context, info *wsdl.InformationClient, interval time.Duration) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	failed := 0
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-n.beatNow:
		case <-n.afresh:
			return
		}
		next, err := n.heartbeat(ctx, info, interval)
		switch {
		case err == nil:
			if failed > 0 {
				n.log.Info("heartbeats are answered again")
			}
			failed, interval = 0, next
		case ctx.Err() != nil:
			return
		case wsdl.CodeOf(err) == wsdl.FaultCodeStale || wsdl.CodeOf(err) == wsdl.FaultCodeWrongNode:
			n.log.WithError(err).Info("registering again")
			return
		default:
			if failed++; failed == 1 {
				n.log.WithError(err).Warn("a heartbeat was not answered")
			}
			if failed >= 5 && n.config.JoinURL != "" {
				return // the information service may be elsewhere now
			}
			timer.Reset(min(interval, 200*time.Millisecond<<min(failed, 4)))
			continue
		}
		timer.Reset(interval)
	}
}

// heartbeat sends one, and tells the ledger what is answered.
func (n *Node) heartbeat(ctx context.Context, info *wsdl.InformationClient, interval time.Duration) (time.Duration, error) {
	disk := n.freeDisk()
	n.mu.Lock()
	n.stepLocked(beatSent{}, nil)
	number, sent := n.ledger.sent, n.clock.Now()
	free := n.ledger.free()
	request := &wsdl.Heartbeat{
		Node: n.id, Incarnation: n.incarnation, FreeSlots: wsdl.Of(int32(free.Slots)),
		FreeMemory: wsdl.Of(free.Memory), FreeCores: wsdl.Of(int32(free.Cores)), VmMemory: n.ledger.vms.Memory, FreeDisk: disk,
	}
	for _, a := range n.ledger.held {
		request.Attempt = append(request.Attempt, &wsdl.Attempt{Job: a.job, Number: int32(a.number), Node: n.id, Incarnation: n.incarnation})
	}
	n.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, max(2*interval, 2*time.Second))
	defer cancel()
	answer, err := info.HeartbeatContext(ctx, request)
	if err != nil {
		return 0, err
	}
	lease, next := millis(answer.LeaseMillis), millis(answer.HeartbeatMillis)
	if lease <= 0 || next <= 0 {
		return 0, fmt.Errorf("the heartbeat's answer gives a lease of %v and a heartbeat of %v", lease, next)
	}
	e := beatAnswered{beat: number, sent: sent, at: n.clock.Now(), lease: lease}
	for _, a := range answer.Attempt {
		// What is live for another incarnation of this node is not live here.
		if (a.Node == "" || a.Node == n.id) && (a.Incarnation == "" || a.Incarnation == n.incarnation) {
			e.live = append(e.live, key{a.Job, int(a.Number)})
		}
	}
	n.mu.Lock()
	n.stepLocked(e, nil)
	for _, k := range e.live {
		if a := n.ledger.find(k); a != nil && a.phase != terminating {
			go n.runners[k].keep(a.until) // one that stands still holds up no heartbeat
		}
	}
	n.mu.Unlock()
	return next, nil
}
