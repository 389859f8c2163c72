package queuevm

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// AddPeers makes links, while the VM runs, to those peers that it has none to
// yet, and returns as Connect does. Both nodes of a pair must be told of each
// other. A VM without a proxy has no peers.
func (vm *VM) AddPeers(ctx context.Context, peers []Peer) error {
	vm.mu.Lock()
	var fresh []*peer
	for _, d := range peers {
		if p := vm.peers[d.ID]; p != nil && p.Address != "" {
			continue
		}
		switch {
		case vm.closed:
			vm.mu.Unlock()
			return ErrDown
		case vm.listener == nil:
			vm.mu.Unlock()
			return errors.New("add a peer: this queue-level VM was started without a proxy")
		case d.ID == "" || d.ID == vm.config.Self || d.Address == "":
			vm.mu.Unlock()
			return fmt.Errorf("add the peer %q at %q: this node is %q", d.ID, d.Address, vm.config.Self)
		}
		p := vm.peer(d.ID)
		p.Peer = d
		if !slices.Contains(fresh, p) {
			fresh = append(fresh, p)
		}
	}
	if !vm.connected && len(fresh) > 0 {
		vm.connected = true
		close(vm.told)
	}
	vm.mu.Unlock()
	first := make(chan error, len(fresh))
	for _, p := range fresh {
		vm.tasks.Add(1)
		go func() {
			defer vm.tasks.Done()
			vm.keep(ctx, p, first)
		}()
	}
	for range fresh {
		select {
		case err := <-first:
			if err != nil {
				return err
			}
		case <-vm.done:
			return ErrDown
		}
	}
	return nil
}
