package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"

	"mvm/wsdl"
)

// Checkpoint is a VM's checkpoint and the node that keeps it.
type Checkpoint struct {
	*wsdl.VMCheckpoint
	Host *wsdl.Node
}

// Checkpoint keeps all that a VM is, which goes on, on its node.
func (vm *VM) Checkpoint(ctx context.Context) (*wsdl.CheckpointVMResponse, error) {
	return vm.service.CheckpointVMContext(ctx, &wsdl.CheckpointVM{Id: vm.Id})
}

// Checkpoints lists those of all nodes. The error is about those nodes that did not
// answer; the checkpoints of the others come with it.
func (c *Client) Checkpoints(ctx context.Context) ([]*Checkpoint, error) {
	nodes, err := c.vmHosts(ctx)
	if err != nil {
		return nil, err
	}
	return ofAll(ctx, c, nodes, func(ctx context.Context, n *wsdl.Node, service *wsdl.VMClient) ([]*Checkpoint, error) {
		answer, err := service.ListCheckpointsContext(ctx, &wsdl.ListCheckpoints{})
		if err != nil {
			return nil, err
		}
		var all []*Checkpoint
		for _, checkpoint := range answer.Checkpoint {
			all = append(all, &Checkpoint{checkpoint, n})
		}
		return all, nil
	})
}

// keepers are the nodes that keep a checkpoint, which is named by its digest or by
// enough of its beginning.
func (c *Client) keepers(ctx context.Context, name string) (digest string, keepers []*wsdl.Node, err error) {
	const least = 4 // digits that somebody has to write
	digits := strings.TrimPrefix(name, "sha256:")
	if len(digits) < least {
		return "", nil, usagef("%q is no checkpoint: write its digest, or at least %d of its digits", name, least)
	}
	all, err := c.Checkpoints(ctx)
	for _, one := range all {
		switch {
		case !strings.HasPrefix(strings.TrimPrefix(one.Digest, "sha256:"), digits):
			continue
		case digest != "" && digest != one.Digest:
			return "", nil, usagef("%s begins the digests of several checkpoints: write more of it", name)
		}
		digest, keepers = one.Digest, append(keepers, one.Host)
	}
	switch {
	case len(keepers) > 0:
		return digest, keepers, nil
	case err != nil:
		return "", nil, fmt.Errorf("no node that answers keeps the checkpoint %s; %w", name, err)
	}
	return "", nil, wsdl.NewFault(wsdl.FaultCodeNotFound, "no node keeps the checkpoint "+name, "`mvm vm checkpoints` lists those that there are")
}

// RestoreVM makes a VM that goes on from a checkpoint, which is named by its digest
// or enough of its beginning; with node "" where it is kept, or where there is room.
func (c *Client) RestoreVM(ctx context.Context, node, checkpoint string, r *wsdl.RestoreVM) (*VM, error) {
	digest, keepers, err := c.keepers(ctx, checkpoint)
	if err != nil {
		return nil, err
	}
	r.Checkpoint = digest
	for _, n := range keepers {
		r.Source = append(r.Source, n.Url)
	}
	restore := func(service *wsdl.VMClient) (*wsdl.VirtualMachine, error) {
		answer, err := service.RestoreVMContext(ctx, r)
		if err != nil {
			return nil, err
		}
		return answer.Vm, nil
	}
	nodes, err := c.vmHosts(ctx)
	if err != nil {
		return nil, err
	}
	if node != "" {
		if nodes, err = nodesNamed(nodes, node); err != nil {
			return nil, err
		}
		return firstOf(c, nodes, restore)
	}
	vm, err := firstOf(c, keepers, restore)
	if wsdl.CodeOf(err) != wsdl.FaultCodeBusy {
		return vm, err
	}
	return firstOf(c, slices.DeleteFunc(nodes, func(n *wsdl.Node) bool {
		return slices.ContainsFunc(keepers, func(k *wsdl.Node) bool { return k.Id == n.Id })
	}), restore)
}

// RemoveCheckpoint has no node keep a checkpoint any more.
func (c *Client) RemoveCheckpoint(ctx context.Context, checkpoint string) error {
	digest, keepers, err := c.keepers(ctx, checkpoint)
	if err != nil {
		return err
	}
	for _, n := range keepers {
		_, failed := c.vmService(n).RemoveCheckpointContext(ctx, &wsdl.RemoveCheckpoint{Digest: digest})
		err = errors.Join(err, failed)
	}
	return err
}

// ExportCheckpoint writes a checkpoint as one file, which ImportCheckpoint takes
// anywhere. What is written is whole when there is no error.
func (c *Client) ExportCheckpoint(ctx context.Context, checkpoint string, to io.Writer) (digest string, err error) {
	digest, keepers, err := c.keepers(ctx, checkpoint)
	if err != nil {
		return "", err
	}
	response, err := c.plainly(ctx, http.MethodGet, keepers[0], "/services/vm/checkpoints/"+digest, nil)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	if _, err := io.Copy(to, response.Body); err != nil {
		return "", fmt.Errorf("export the checkpoint %s: %w", digest, err)
	}
	return digest, nil
}

// ImportCheckpoint has a node keep a checkpoint out of a file; with node "" the one
// that has most memory free.
func (c *Client) ImportCheckpoint(ctx context.Context, node string, from io.Reader) (digest string, err error) {
	nodes, err := c.vmHosts(ctx)
	if err == nil && node != "" {
		nodes, err = nodesNamed(nodes, node)
	}
	if err != nil {
		return "", err
	}
	if len(nodes) == 0 {
		return "", noHosts()
	}
	most := slices.MaxFunc(nodes, func(a, b *wsdl.Node) int { return cmp.Compare(wsdl.Or(a.FreeMemory, 0), wsdl.Or(b.FreeMemory, 0)) })
	response, err := c.plainly(ctx, http.MethodPost, most, "/services/vm/checkpoints", from)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	said, err := io.ReadAll(io.LimitReader(response.Body, 1000))
	return strings.TrimSpace(string(said)), err
}

// plainly asks a node something that is not SOAP. Another answer than 200 is a
// fault.
func (c *Client) plainly(ctx context.Context, method string, n *wsdl.Node, path string, body io.Reader) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, method, n.Url+path, body)
	if err != nil {
		return nil, err
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.Proxy = nil // as for SOAP: nodes are reached directly
	transport.DisableKeepAlives = true
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		if broken := (*net.OpError)(nil); errors.As(err, &broken) {
			return nil, wsdl.NewFault(wsdl.FaultCodeUnavailable, fmt.Sprintf("node %s is not reached: %v", nodeName(n), broken), "see whether it runs")
		}
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		defer response.Body.Close()
		return nil, refusedPlainly(response)
	}
	return response, nil
}
