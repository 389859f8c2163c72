// Package client is the Go library of a grid's users, and the verbs of the
// command line that are built on it.
//
// It is an ordinary SOAP client: whatever it can do, any other SOAP stack can
// do with the published WSDL alone. It must never reach behind the services
// (no store, no broker, no node), and it never decides what a profile means:
// the broker does.
package client

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"time"

	"mvm/services/soap"
	"mvm/wsdl"
)

// DefaultGrid is the bootstrap that is asked when none is named: the address
// on which `mvm node` listens by default.
const DefaultGrid = "http://127.0.0.1:7480"

// GridFromEnvironment is the grid that MVM_GRID names, or DefaultGrid.
func GridFromEnvironment() string {
	if grid := os.Getenv("MVM_GRID"); grid != "" {
		return grid
	}
	return DefaultGrid
}

// Config says how a Client reaches the grid. Its zero value is right for most.
type Config struct {
	// Caller performs the calls. Default: a soap.Client.
	Caller wsdl.Caller
	// Patience is for how long a call that repeats itself (Wait, Follow) goes
	// on trying while the grid cannot be reached, and how long its first answer
	// may take. Default 15 s.
	Patience time.Duration
}

// Client speaks to one grid. It may be used concurrently.
type Client struct {
	caller    wsdl.Caller
	patience  time.Duration
	grid      string
	bootstrap *wsdl.BootstrapClient
	broker    *wsdl.BrokerClient
	brokerURL string
	image     *wsdl.ImageClient
	queue     *wsdl.QueueClient // of the node that was asked: any will do
}

// Dial asks the bootstrap service of the node at grid (http://host:port) where
// the broker and the image service are. A grid that cannot be reached is a
// *wsdl.Fault with code unavailable.
func Dial(ctx context.Context, grid string) (*Client, error) {
	return Config{}.Dial(ctx, grid)
}

// Dial is as the function Dial, with a configuration.
func (cfg Config) Dial(ctx context.Context, grid string) (*Client, error) {
	base, err := baseURL(grid)
	if err != nil {
		return nil, err
	}
	c := &Client{caller: cfg.Caller, patience: cfg.Patience, grid: base}
	if c.caller == nil {
		c.caller = soap.NewClient(soap.ClientConfig{})
	}
	if c.patience == 0 {
		c.patience = 15 * time.Second
	}
	c.bootstrap = wsdl.NewBootstrapClient(c.caller, base+"/services/bootstrap")
	// Every verb begins so, and a node answers this from memory: one that is
	// silent for longer is stopped or overwhelmed, and a person waits.
	asked, enough := context.WithTimeout(ctx, c.patience)
	defer enough()
	where, err := c.bootstrap.GetBrokerContext(asked, &wsdl.GetBroker{})
	if err != nil && ctx.Err() == nil && asked.Err() != nil {
		return nil, wsdl.NewFault(wsdl.FaultCodeUnavailable,
			fmt.Sprintf("the node at %s takes connections and has not answered for %v", base, c.patience),
			"see on its machine whether it is stopped or overwhelmed, or name another node of the grid with --grid")
	}
	if err != nil {
		return nil, err
	}
	if where.Url == "" || where.Image == "" {
		return nil, wsdl.NewFault(wsdl.FaultCodeUnavailable,
			"the node at "+base+" knows no broker yet",
			"try again once a node with the frontend role has joined the grid")
	}
	c.brokerURL = where.Url
	c.broker = wsdl.NewBrokerClient(c.caller, where.Url)
	c.image = wsdl.NewImageClient(c.caller, where.Image)
	c.queue = wsdl.NewQueueClient(c.caller, base+"/services/queue")
	return c, nil
}

// baseURL is grid as http://host:port, from what people write: host:port, a
// trailing slash, the address of a service or of /bootstrap.
func baseURL(grid string) (string, error) {
	text := strings.TrimSpace(grid)
	if !strings.Contains(text, "://") {
		text = "http://" + text
	}
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return "", usagef("%q is no address of a grid: write it as http://host:port", grid)
	}
	return u.Scheme + "://" + u.Host, nil
}

// Grid is the address of the bootstrap that was asked.
func (c *Client) Grid() string { return c.grid }

// Broker is the address of the broker service that the grid named.
func (c *Client) Broker() string { return c.brokerURL }

// Services lists what the asked node publishes.
func (c *Client) Services(ctx context.Context) ([]*wsdl.Service, error) {
	answer, err := c.bootstrap.ListServicesContext(ctx, &wsdl.ListServices{})
	if err != nil {
		return nil, err
	}
	return answer.Service, nil
}

// Nodes lists the nodes that jobs may run on.
func (c *Client) Nodes(ctx context.Context) ([]*wsdl.Node, error) {
	answer, err := c.broker.ListNodesContext(ctx, &wsdl.ListNodes{})
	if err != nil {
		return nil, err
	}
	return answer.Node, nil
}

// names gives nodes' ids the names that people gave them, where these tell them
// apart; it is empty when the grid does not say.
func (c *Client) names(ctx context.Context) map[string]string {
	names := map[string]string{}
	nodes, err := c.Nodes(ctx)
	if err != nil {
		return names
	}
	times := map[string]int{}
	for _, n := range nodes {
		times[n.Name]++
	}
	for _, n := range nodes {
		if n.Name != "" && times[n.Name] == 1 {
			names[n.Id] = n.Name
		}
	}
	return names
}

// named is the name of a node, or its id where it has none.
func named(names map[string]string, id string) string {
	if name := names[id]; name != "" {
		return name
	}
	return id
}

// patiently repeats call while the grid cannot be reached, for at most the
// client's patience since the last call that went through: a broker that
// restarts interrupts nobody. call must be idempotent.
func (c *Client) patiently(ctx context.Context, call func() error) error {
	pause := 20 * time.Millisecond
	var since time.Time
	for {
		err := call()
		if err == nil || !transient(err) || ctx.Err() != nil {
			return err
		}
		if since.IsZero() {
			since = time.Now()
		} else if time.Since(since) > c.patience {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
		pause = min(2*pause, time.Second)
	}
}

// transient tells whether the same call may work a little later.
func transient(err error) bool {
	var fault *wsdl.Fault
	return errors.As(err, &fault) && wsdl.CodeOf(err) == wsdl.FaultCodeUnavailable
}
