package queuevm

import "errors"

// errMoved is why a link is made again that was made before Moved was called.
var errMoved = errors.New("this node is reached elsewhere, and says so")

// Moved says that the proxy is reached at another host:port from now on, as it is
// when the OS-level VM around this node has moved to another host. Its links were
// cut by that, or soon will be. It may be called at any time, and again.
//
// A peer that dials this node would try the old address until it gives up. So this
// node dials, once to each peer whatever their ids, and says in its greeting, which
// it signs, where it is: from then on the lower id dials as ever. Both of a pair may
// have moved at once only where one of them is still led to the other from its old
// address: there is nobody else who tells them.
func (vm *VM) Moved(address string) {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	vm.moved = address
	for _, p := range vm.links {
		p.untold = true
		vm.cut(p, errMoved)
		select {
		case p.up <- struct{}{}: // whoever waits for it looks again
		default:
		}
	}
}

func (vm *VM) connectedTo(p *peer) bool {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	return p.fd >= 0
}
