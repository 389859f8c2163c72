// Package worker is a node whole with its services that is a worker and nothing
// else: no broker, no state, no etcd. It is what runs in the guest of an OS-level
// VM, in the process that is PID 1, and whose only network is its host's.
//
// What always holds: all that leaves the guest goes through the uplink, and all
// that comes in was published there.
//
// It must never need what its host did not give it.
package worker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"mvm/node"
	"mvm/services/bootstrap"
	"mvm/services/image"
	"mvm/services/soap"
	"mvm/wsdl"
)

// Uplink is the way out of the guest: link.Inside.
type Uplink interface {
	Dial(ctx context.Context, address string) (net.Conn, error)
	Publish(ctx context.Context, port int, moved func(address string)) (address string, err error)
	Withdraw(ctx context.Context, port int) error
	ServeDials(listener net.Listener) error
}

// Config says what a worker is made of.
type Config struct {
	node.Guest
	Dir    string // for its data; the agent's socket is in it as well
	Uplink Uplink
	Log    *logrus.Logger // nil is logrus's standard logger
}

// worker is a running one.
type worker struct {
	Config
	soap *soap.Client

	mu    sync.Mutex // guards what follows
	url   string     // as others reach it
	node  *node.Node // nil at first
	front wsdl.GetBrokerResponse
	asked time.Time
}

// Run serves until ctx ends.
func Run(ctx context.Context, config Config) error {
	if config.Log == nil {
		config.Log = logrus.StandardLogger()
	}
	w := &worker{Config: config}
	dial := func(ctx context.Context, _, address string) (net.Conn, error) {
		return config.Uplink.Dial(ctx, address)
	}
	w.soap = soap.NewClient(soap.ClientConfig{DialContext: dial})
	defer w.soap.Close()
	if err := os.MkdirAll(config.Dir, 0o700); err != nil {
		return err
	}
	socket := filepath.Join(config.Dir, "uplink")
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	dials, err := net.Listen("unix", socket)
	if err != nil {
		return fmt.Errorf("listen for those who dial through the host: %w", err)
	}
	defer dials.Close()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer listener.Close()
	address, withdraw, err := w.publish(ctx, listener.Addr().String(), w.moved)
	if err != nil {
		return fmt.Errorf("publish the node's services: %w", err)
	}
	defer withdraw()
	base := "http://" + address
	w.mu.Lock()
	w.url = base
	w.mu.Unlock()

	images, err := image.New(image.Config{Dir: filepath.Join(config.Dir, "image")})
	if err != nil {
		return err
	}
	n, err := node.New(node.Config{
		ID: config.ID, Name: config.Name, Dir: filepath.Join(config.Dir, "node"), URL: base, Roles: []wsdl.Role{wsdl.RoleWorker},
		Version: config.Version, Slots: config.Slots, JoinURL: config.Join, Caller: w.soap, Images: images, Log: config.Log,
		HTTP:    &http.Client{Transport: &http.Transport{DialContext: dial, MaxIdleConnsPerHost: 4, IdleConnTimeout: time.Minute}},
		Publish: w.publish, Uplink: socket, PeerID: config.PeerID,
	})
	if err != nil {
		return err
	}
	w.mu.Lock()
	w.node = n
	now := w.url
	w.mu.Unlock()
	if now != base { // the VM has moved meanwhile
		n.Moved(now)
	}
	face, err := w.face(n, images)
	if err != nil {
		return err
	}
	w.soap.Near(base, face)

	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var parts sync.WaitGroup
	var failed error
	parts.Go(func() { failed = face.Serve(serving, listener) })
	parts.Go(func() { _ = config.Uplink.ServeDials(dials) })
	parts.Go(func() { w.sweep(serving, images) })
	err = n.Run(ctx) // it ends first: its last reports still find their way
	stop()
	_ = dials.Close()
	parts.Wait()
	return errors.Join(err, failed)
}

// base is where others reach this node.
func (w *worker) base() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.url
}

// moved hears that the VM has moved to a host which publishes it elsewhere.
func (w *worker) moved(address string) {
	w.mu.Lock()
	w.url = "http://" + address
	n := w.node
	w.mu.Unlock()
	if n != nil {
		n.Moved("http://" + address)
	}
}

// publish has the host listen for what listens here.
func (w *worker) publish(ctx context.Context, local string, moved func(address string)) (string, func(), error) {
	_, text, err := net.SplitHostPort(local)
	if err != nil {
		return "", nil, err
	}
	port, err := net.LookupPort("tcp", text)
	if err != nil {
		return "", nil, err
	}
	address, err := w.Uplink.Publish(ctx, port, moved)
	withdraw := func() {
		const limit = 2 * time.Second // who is gone listens for nobody
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		_ = w.Uplink.Withdraw(ctx, port)
	}
	return address, withdraw, err
}

// face makes the services that every node publishes; what this one has no role
// for it says whom to ask about.
func (w *worker) face(n *node.Node, images *image.Store) (*soap.Server, error) {
	var contracts []wsdl.Contract
	boot, err := bootstrap.New(bootstrap.Config{
		Node:        n.ID(),
		Base:        w.base,
		Broker:      func() string { return w.where().Url },
		BrokerNode:  func() string { return w.where().Node },
		Image:       func() string { return w.where().Image },
		Information: func() string { return w.where().Information },
		Services: func() []*wsdl.Service {
			var published []*wsdl.Service
			for _, c := range contracts {
				at := w.base() + "/services/" + c.Name
				published = append(published, &wsdl.Service{Name: c.Name, Url: at, Wsdl: at + "?wsdl", Node: n.ID(), Description: c.Description})
			}
			return published
		},
		Reach: w.reach,
	})
	if err != nil {
		return nil, err
	}
	contracts = []wsdl.Contract{
		wsdl.BootstrapContract(boot),
		wsdl.ImageContract(image.NewService(images, w.base, image.Images{Home: func() string { return w.where().Image }, Caller: w.soap})),
		wsdl.QueueContract(n.Queue()),
		soap.Elsewhere(wsdl.BrokerContract(nil), func() string { return w.where().Url }),
	}
	face, err := soap.NewServer(soap.Config{Contracts: contracts, Log: w.Log, Quiet: []string{"GET /healthz", "GET /metrics"}})
	if err != nil {
		return nil, err
	}
	face.Router().Handle("/bootstrap", boot.Text()).Methods(http.MethodGet, http.MethodHead)
	face.Router().Handle("/services/image/blobs/{digest}", images.Handler()).Methods(http.MethodGet, http.MethodHead)
	return face, nil
}

// where is what the joined grid says of its services, a little while ago at most.
func (w *worker) where() wsdl.GetBrokerResponse {
	const fresh, limit = 5 * time.Second, time.Second
	w.mu.Lock()
	defer w.mu.Unlock()
	if time.Since(w.asked) < fresh {
		return w.front
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if answer, err := wsdl.NewBootstrapClient(w.soap, w.Join+"/services/bootstrap").GetBrokerContext(ctx, &wsdl.GetBroker{}); err == nil {
		w.front, w.asked = *answer, time.Now()
	}
	return w.front
}

// reach tries whether a node answers at a base address.
func (w *worker) reach(ctx context.Context, base string) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/healthz", nil)
	if err != nil {
		return err
	}
	response, err := w.soap.HTTP().Do(request)
	if err != nil {
		return err
	}
	_ = response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("it answers %s", response.Status)
	}
	return nil
}

// sweep removes blobs that nobody needs any more, from time to time.
func (w *worker) sweep(ctx context.Context, images *image.Store) {
	const pause = 10 * time.Minute
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-time.After(pause):
			if _, err := images.Sweep(now); err != nil {
				w.Log.WithError(err).Warn("sweep of blobs")
			}
		}
	}
}
