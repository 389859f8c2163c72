package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"mvm/services/soap"
	"mvm/wsdl"
)

// An OS-level VM is the business of the node that has it: it is called by its id,
// or by NODE:ID where several nodes have one of that id. Nodes are called by their
// id or name.

// consoleUpgrade is what the connection to a console becomes.
const consoleUpgrade = "mvm-console"

// VM is an OS-level VM and the node that has it, as they were when it was found.
type VM struct {
	*wsdl.VirtualMachine
	Host *wsdl.Node

	service *wsdl.VMClient
}

// VMs lists the VMs of all nodes, by node and id. The error is about those nodes
// that did not answer; the VMs of the others come with it.
func (c *Client) VMs(ctx context.Context) ([]*VM, error) {
	nodes, err := c.vmHosts(ctx)
	if err != nil {
		return nil, err
	}
	return ofAll(ctx, c, nodes, func(ctx context.Context, n *wsdl.Node, service *wsdl.VMClient) ([]*VM, error) {
		answer, err := service.ListVMsContext(ctx, &wsdl.ListVMs{})
		if err != nil {
			return nil, err
		}
		var vms []*VM
		for _, vm := range answer.Vm {
			vms = append(vms, &VM{vm, n, service})
		}
		return vms, nil
	})
}

// VM finds one VM by its id, or by NODE:ID.
func (c *Client) VM(ctx context.Context, name string) (*VM, error) {
	nodes, err := c.vmHosts(ctx)
	if err != nil {
		return nil, err
	}
	id := name
	if i := strings.LastIndexByte(name, ':'); i >= 0 { // an id has none
		id = name[i+1:]
		if nodes, err = nodesNamed(nodes, name[:i]); err != nil {
			return nil, err
		}
	}
	found, err := ofAll(ctx, c, nodes, func(ctx context.Context, n *wsdl.Node, service *wsdl.VMClient) ([]*VM, error) {
		answer, err := service.GetVMContext(ctx, &wsdl.GetVM{Id: id})
		switch {
		case wsdl.CodeOf(err) == wsdl.FaultCodeNotFound || wsdl.CodeOf(err) == wsdl.FaultCodeWrongNode:
			return nil, nil
		case err != nil:
			return nil, err
		}
		return []*VM{{answer.Vm, n, service}}, nil
	})
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		var names []string
		for _, vm := range found {
			names = append(names, vm.name()+" ("+nodeName(vm.Host)+")")
		}
		return nil, usagef("%s is a VM of several nodes: write %s", name, strings.Join(names, " or "))
	case err != nil:
		return nil, fmt.Errorf("no node that answers has the VM %s; %w", name, err)
	}
	return nil, wsdl.NewFault(wsdl.FaultCodeNotFound, fmt.Sprintf("there is no VM %s", name), "`mvm vm ls` lists those that there are")
}

// CreateVM has a VM made on a node; with node "" on the one that has most memory
// free, and with the others in turn while one after the other is busy. A request
// with an id may be repeated: a node that has the VM is asked first.
func (c *Client) CreateVM(ctx context.Context, node string, r *wsdl.CreateVM) (*VM, error) {
	nodes, err := c.vmHosts(ctx)
	if err != nil {
		return nil, err
	}
	if node != "" {
		if nodes, err = nodesNamed(nodes, node); err != nil {
			return nil, err
		}
	} else if r.Id != "" {
		switch vm, err := c.VM(ctx, r.Id); {
		case err == nil:
			nodes = []*wsdl.Node{vm.Host}
		case wsdl.CodeOf(err) != wsdl.FaultCodeNotFound:
			return nil, err
		}
	}
	return firstOf(c, nodes, func(service *wsdl.VMClient) (*wsdl.VirtualMachine, error) {
		ctx, cancel := context.WithTimeout(ctx, makingLimit)
		defer cancel()
		answer, err := service.CreateVMContext(ctx, r)
		if err != nil {
			return nil, err
		}
		return answer.Vm, nil
	})
}

// makingLimit is for a node to make a VM, which it gives up itself a little earlier:
// the image is fetched, and a distribution without KVM starts for minutes.
const makingLimit = 16 * time.Minute

func noHosts() error {
	return wsdl.NewFault(wsdl.FaultCodeUnavailable, "no node of the grid can have VMs", "install QEMU on one of them (Debian: qemu-system-x86) and start its node again")
}

// firstOf has the first node make a VM that is not busy.
func firstOf(c *Client, nodes []*wsdl.Node, make func(*wsdl.VMClient) (*wsdl.VirtualMachine, error)) (*VM, error) {
	if len(nodes) == 0 {
		return nil, noHosts()
	}
	slices.SortStableFunc(nodes, func(a, b *wsdl.Node) int { return cmp.Compare(wsdl.Or(b.FreeMemory, 0), wsdl.Or(a.FreeMemory, 0)) })
	var err error
	for _, n := range nodes {
		service := c.vmService(n)
		var vm *wsdl.VirtualMachine
		if vm, err = make(service); err == nil {
			return &VM{vm, n, service}, nil
		}
		switch wsdl.CodeOf(err) {
		case wsdl.FaultCodeBusy, wsdl.FaultCodeWrongNode, wsdl.FaultCodeUnavailable:
			continue
		}
		break
	}
	return nil, err
}

// vmHosts are the nodes that can have VMs.
func (c *Client) vmHosts(ctx context.Context) ([]*wsdl.Node, error) {
	nodes, err := c.Nodes(ctx)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(nodes, func(n *wsdl.Node) bool { return n.State == "lost" || n.Accelerator == "" }), nil
}

func (c *Client) vmService(n *wsdl.Node) *wsdl.VMClient {
	return wsdl.NewVMClient(c.caller, n.Url+"/services/vm")
}

// nodesNamed are the nodes that somebody calls by id or name.
func nodesNamed(nodes []*wsdl.Node, name string) ([]*wsdl.Node, error) {
	var found []*wsdl.Node
	for _, n := range nodes {
		if n.Id == name || n.Name == name {
			found = append(found, n)
		}
	}
	switch {
	case len(found) == 0:
		return nil, wsdl.NewFault(wsdl.FaultCodeNotFound, fmt.Sprintf("there is no node %s that can have VMs", name), "`mvm nodes` lists the nodes, and which have QEMU")
	case len(found) > 1:
		return nil, usagef("%s is the name of %d nodes: write the ID of one, as `mvm nodes` lists it", name, len(found))
	}
	return found, nil
}

// nodeName is what people call a node.
func nodeName(n *wsdl.Node) string { return cmp.Or(n.Name, n.Id) }

// ofAll asks nodes at once, each for as long as the client's patience.
func ofAll[Found any](ctx context.Context, c *Client, nodes []*wsdl.Node, ask func(context.Context, *wsdl.Node, *wsdl.VMClient) ([]Found, error)) ([]Found, error) {
	found, failed := make([][]Found, len(nodes)), make([]error, len(nodes))
	asked, enough := context.WithTimeout(ctx, c.patience)
	defer enough()
	var asking sync.WaitGroup
	for i, n := range nodes {
		asking.Go(func() {
			var err error
			if found[i], err = ask(asked, n, c.vmService(n)); err != nil {
				failed[i] = fmt.Errorf("node %s does not tell: %w", nodeName(n), err)
			}
		})
	}
	asking.Wait()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return slices.Concat(found...), errors.Join(failed...)
}

// name is how the VM is called where others may have its id.
func (vm *VM) name() string { return vm.Node + ":" + vm.Id }

// Suspend stops its processors; Resume lets them go on. vm is then as it was
// answered.
func (vm *VM) Suspend(ctx context.Context) error {
	answer, err := vm.service.SuspendVMContext(ctx, &wsdl.SuspendVM{Id: vm.Id})
	if err == nil {
		vm.VirtualMachine = answer.Vm
	}
	return err
}

// Resume lets its processors go on.
func (vm *VM) Resume(ctx context.Context) error {
	answer, err := vm.service.ResumeVMContext(ctx, &wsdl.ResumeVM{Id: vm.Id})
	if err == nil {
		vm.VirtualMachine = answer.Vm
	}
	return err
}

// Stop asks the guest to end within grace, of 60 s at most, and ends it if it does
// not. A VM that belongs to a job's attempt needs force.
func (vm *VM) Stop(ctx context.Context, grace time.Duration, force bool) error {
	answer, err := vm.service.StopVMContext(ctx, &wsdl.StopVM{Id: vm.Id, GraceMillis: wsdl.Of(grace.Milliseconds()), Force: force})
	if err == nil {
		vm.VirtualMachine = answer.Vm
	}
	return err
}

// Destroy ends it at once and removes all that it had. A VM that belongs to a job's
// attempt needs force.
func (vm *VM) Destroy(ctx context.Context, force bool) error {
	_, err := vm.service.DestroyVMContext(ctx, &wsdl.DestroyVM{Id: vm.Id, Force: force})
	return err
}

// Clone makes a second VM beside it that goes on from where it is.
func (vm *VM) Clone(ctx context.Context, r *wsdl.CloneVM) (*VM, error) {
	r.Id = vm.Id
	answer, err := vm.service.CloneVMContext(ctx, r)
	if err != nil {
		return nil, err
	}
	return &VM{answer.Vm, vm.Host, vm.service}, nil
}

// Migrate moves it, running, to another node that can have VMs.
func (c *Client) Migrate(ctx context.Context, vm *VM, node string) (*wsdl.MigrateVMResponse, error) {
	nodes, err := c.vmHosts(ctx)
	if err == nil {
		nodes, err = nodesNamed(nodes, node)
	}
	if err != nil {
		return nil, err
	}
	return vm.service.MigrateVMContext(ctx, &wsdl.MigrateVM{Id: vm.Id, Node: nodes[0].Id})
}

// Console connects to its serial port: what is read begins with the last of what
// the guest wrote before, and ends when the guest does, or when somebody else takes
// the console with force. who is what others are told of who has it. Only one may.
func (vm *VM) Console(ctx context.Context, who string, force bool) (net.Conn, error) {
	base, err := url.Parse(vm.Host.Url)
	if err != nil {
		return nil, err
	}
	query := url.Values{"who": {who}}
	if force {
		query.Set("force", "true")
	}
	at := base.JoinPath("services", "vm", vm.Id, "console")
	at.RawQuery = query.Encode()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, at.String(), nil)
	if err != nil {
		return nil, err
	}
	conn, err := soap.Upgrade(ctx, request, consoleUpgrade)
	var refused *soap.RefusedUpgrade
	switch {
	case errors.As(err, &refused):
		return nil, refusedPlainly(refused.Response)
	case err != nil && ctx.Err() == nil:
		return nil, wsdl.NewFault(wsdl.FaultCodeUnavailable, fmt.Sprintf("node %s is not reached: %v", nodeName(vm.Host), err), "see whether it runs")
	}
	return conn, err
}

// refusedPlainly is the fault in a node's answer that is not SOAP.
func refusedPlainly(response *http.Response) error {
	said, _ := io.ReadAll(io.LimitReader(response.Body, 4096))
	code := wsdl.FaultCodeUnavailable
	switch response.StatusCode {
	case http.StatusNotFound:
		code = wsdl.FaultCodeNotFound
	case http.StatusConflict:
		code = wsdl.FaultCodeConflict
	case http.StatusBadRequest:
		code = wsdl.FaultCodeInvalidRequest
	case http.StatusUnauthorized, http.StatusForbidden:
		code = wsdl.FaultCodeForbidden
	}
	message, advice, _ := strings.Cut(strings.TrimSpace(string(said)), "; ")
	return wsdl.NewFault(code, cmp.Or(message, "the node answers "+response.Status), advice)
}
