// Package store keeps the grid's state: the broker's journal, the nodes with
// their leases, and the attempts that are live. It is etcd v3, embedded in a
// backend node by default, or an external cluster.
//
// What always holds: a Commit that returned without error is on disk and
// survives kill -9; all of a Commit happens or nothing; what this Store
// committed, this Store's caches show before Commit returns. The embedded
// server listens on no address at all: it is reached by calls in the process.
//
// It must never be opened by a worker, import another room of the project, or
// know what the values mean that others put into it.
package store

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/namespace"
	"go.uber.org/zap"
)

// What went wrong, for errors.Is. The error itself names the key, node or
// folder.
var (
	ErrNotFound = errors.New("not found")
	ErrConflict = errors.New("a condition of the transaction does not hold")
	// ErrStale: the node is known under another incarnation, was superseded, or
	// its lease ran out. It has to register again.
	ErrStale   = errors.New("stale")
	ErrInvalid = errors.New("not valid")
	ErrFull    = errors.New("the state store is full")
	ErrLocked  = errors.New("in use by another process")
	ErrClosed  = errors.New("the store is closed")
)

// Config says which etcd to use. Exactly one of Dir and Endpoints is set.
type Config struct {
	Dir       string      // the embedded server's data folder, made when missing; one process at a time
	Endpoints []string    // an external cluster: host:port, http://host:port, https://host:port, unix://path
	TLS       *tls.Config // to Endpoints; nil: plain text

	// Quota bounds the embedded server's data, in bytes; default 2 GiB. Writes
	// beyond it fail with ErrFull until something was deleted; reads go on.
	Quota int64
	// Namespace is put before every key, so that grids can share a cluster.
	// Default "mvm/".
	Namespace string
	Log       *logrus.Logger   // takes etcd's errors; nil: discarded
	Clock     func() time.Time // for NodeRecord.Seen and Lost; default time.Now
}

// Store is an open state store. All methods may be called concurrently, from
// any goroutine, and end with an error when their context does, or when etcd
// does not answer for 15 s.
type Store struct {
	owner    string // this handle, as the alive keys name it
	clock    func() time.Time
	client   *clientv3.Client
	kv       clientv3.KV
	watcher  clientv3.Watcher
	lease    clientv3.Lease
	embedded *embedded // nil with an external cluster
	grid     *grid

	life    context.Context // ends at Close
	end     context.CancelFunc
	running sync.WaitGroup
	closing sync.Once
}

// Open returns a Store that is ready: reads and writes work, and the caches of
// nodes and live attempts are filled. ctx bounds the opening only. A Dir that
// another process has open is refused with ErrLocked. When the disk under Dir
// is nearly full, writes fail with ErrFull. When it fails, etcd logs that and
// ends the process: nothing that was acknowledged is lost.
func Open(ctx context.Context, c Config) (*Store, error) {
	if (c.Dir == "") == (len(c.Endpoints) == 0) {
		return nil, errors.New("state store: set either a data folder or the endpoints of an etcd cluster, not both or neither")
	}
	if c.Namespace == "" {
		c.Namespace = "mvm/"
	}
	if c.Quota == 0 {
		c.Quota = maxData
	}
	if c.Clock == nil {
		c.Clock = time.Now
	}
	if c.Log == nil {
		c.Log = logrus.New()
		c.Log.SetOutput(io.Discard)
	}
	s := &Store{owner: rand.Text(), clock: c.Clock}
	s.grid = newGrid(s.owner, s.clock)
	s.life, s.end = context.WithCancel(context.Background())

	log := zap.New(&logCore{log: c.Log})
	if c.Dir != "" {
		e, err := startEmbedded(ctx, c.Dir, c.Quota, log)
		if err != nil {
			s.end()
			return nil, err
		}
		s.embedded, s.client = e, e.client()
	} else {
		client, err := clientv3.New(clientv3.Config{
			Endpoints:            c.Endpoints,
			TLS:                  c.TLS,
			Context:              s.life,
			DialTimeout:          5 * time.Second,
			DialKeepAliveTime:    10 * time.Second,
			DialKeepAliveTimeout: 5 * time.Second,
			MaxCallSendMsgSize:   maxRequest,
			Logger:               log,
		})
		if err != nil {
			s.end()
			return nil, fmt.Errorf("state store: etcd at %s: %w", strings.Join(c.Endpoints, ", "), err)
		}
		s.client = client
	}
	s.kv = namespace.NewKV(s.client.KV, c.Namespace)
	s.watcher = namespace.NewWatcher(s.client.Watcher, c.Namespace)
	s.lease = s.client.Lease

	if err := s.startGrid(ctx); err != nil {
		s.Close()
		if c.Dir == "" {
			return nil, fmt.Errorf("state store: etcd at %s does not answer: %w; check that the cluster runs and that the addresses are right", strings.Join(c.Endpoints, ", "), err)
		}
		return nil, err
	}
	return s, nil
}

// Close ends watches, the client and the embedded server. What was committed
// stays. It may be called more than once.
func (s *Store) Close() {
	s.closing.Do(func() {
		s.end()
		// An external client's Close reports the end of its own context only.
		_ = s.client.Close()
		s.running.Wait()
		if s.embedded != nil {
			s.embedded.close()
		}
	})
}

// patience bounds every call to etcd, for callers whose context has no deadline:
// a cluster that is away would otherwise be waited for without end.
const patience = 15 * time.Second

func bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, patience)
}

// wrap gives an etcd error the operation and the key it was about.
func (s *Store) wrap(what, key string, err error) error {
	if err == nil {
		return nil
	}
	switch {
	case s.life.Err() != nil:
		err = ErrClosed
	case errors.Is(err, rpctypes.ErrNoSpace):
		return fmt.Errorf("state store: %s %s: %w; delete what is no longer needed, then it goes on by itself, or give it a larger quota", what, key, ErrFull)
	}
	return fmt.Errorf("state store: %s %s: %w", what, key, err)
}
