package store

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/sys/unix"
)

const (
	maxData    = 2 << 30  // bytes of backend file; then writes are refused, reads go on
	maxRequest = 16 << 20 // bytes in one transaction
	maxOps     = 8192     // operations in one transaction
)

// embedded is an etcd server inside this process, with one member and no
// listener.
type embedded struct {
	lock *os.File
	etcd *embed.Etcd

	healing sync.Mutex // guards what follows; held while space is given back
	rested  time.Time  // not before then again
}

func startEmbedded(ctx context.Context, dir string, quota int64, log *zap.Logger) (*embedded, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("state store: %w", err)
	}
	// etcd itself would wait without end for a folder that another has open.
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("state store: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("state store: folder %s is %w; stop that node, or give this one another data folder", dir, ErrLocked)
		}
		return nil, fmt.Errorf("state store: locking %s: %w", lock.Name(), err)
	}

	c := embed.NewConfig()
	c.Name = "mvm"
	c.Dir = filepath.Join(dir, "etcd")
	// Nobody listens: the advertised addresses are only names in etcd's own
	// membership record.
	c.ListenPeerUrls, c.ListenClientUrls = nil, nil
	name := url.URL{Scheme: "http", Host: "localhost:0"}
	c.AdvertisePeerUrls, c.AdvertiseClientUrls = []url.URL{name}, []url.URL{name}
	c.InitialCluster = c.InitialClusterFromName(c.Name)
	// A lone member elects itself one to five ticks after its start.
	c.TickMs, c.ElectionMs = 20, 100
	c.QuotaBackendBytes = quota
	c.MaxRequestBytes = maxRequest
	c.MaxTxnOps = maxOps
	c.SnapshotCount, c.SnapshotCatchUpEntries = 1000, 100
	c.AutoCompactionMode, c.AutoCompactionRetention = embed.CompactorModePeriodic, "5m"
	c.BootstrapDefragThresholdMegabytes = 64
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(log)

	etcd, err := startEtcd(c)
	if err != nil {
		lock.Close()
		var s unix.Statfs_t
		if unix.Statfs(dir, &s) == nil && int64(s.Bavail)*s.Bsize < reserve {
			err = fmt.Errorf("%w: %v; %d MiB are free on its disk, and it needs %d: free some space there, or choose another data folder", ErrFull, err, int64(s.Bavail)*s.Bsize>>20, int64(reserve)>>20)
		}
		return nil, fmt.Errorf("state store: etcd in %s does not start: %w", c.Dir, err)
	}
	e := &embedded{lock: lock, etcd: etcd}
	select {
	case <-etcd.Server.ReadyNotify():
		if err = e.disarm(ctx); err == nil {
			return e, nil
		}
	case <-etcd.Server.StopNotify():
		err = errors.New("it stopped")
	case err = <-etcd.Err():
	case <-ctx.Done():
		err = ctx.Err()
	}
	e.close()
	return nil, fmt.Errorf("state store: etcd in %s does not become ready: %w", c.Dir, err)
}

// startEtcd makes an error of etcd's panics: what it cannot write or read on the
// disk at its start, a full disk first of all.
func startEtcd(c *embed.Config) (etcd *embed.Etcd, err error) {
	defer func() {
		if p := recover(); p != nil {
			etcd, err = nil, fmt.Errorf("%v", p)
		}
	}()
	return embed.StartEtcd(c)
}

// disarm ends the refusal of writes that a used-up quota began in an earlier
// life, once it has given back the space of all that was deleted since. When
// that was nothing, the next write begins the refusal again.
func (e *embedded) disarm(ctx context.Context) error {
	if len(e.etcd.Server.Alarms()) == 0 {
		return nil
	}
	c := e.client()
	defer c.Close()
	now, err := c.Get(ctx, "-")
	if err != nil {
		return err
	}
	if _, err := c.Compact(ctx, now.Header.Revision, clientv3.WithCompactPhysical()); err != nil && !errors.Is(err, rpctypes.ErrCompacted) {
		return err
	}
	if err := e.etcd.Server.Backend().Defrag(); err != nil {
		return err
	}
	_, err = c.AlarmDisarm(ctx, &clientv3.AlarmMember{})
	return err
}

// heal ends the refusal of writes once space can be given back, and says whether
// a refused write may be tried again. What is old goes: the history of keys, and
// what was deleted. It holds everything up for as long as it takes to copy what
// is kept, so it rests ten times as long.
func (e *embedded) heal(ctx context.Context) bool {
	if e == nil { // an external cluster is for others to keep
		return false
	}
	e.healing.Lock()
	defer e.healing.Unlock()
	began := time.Now()
	if began.Before(e.rested) {
		return len(e.etcd.Server.Alarms()) == 0 // another has just done it
	}
	err := e.disarm(ctx)
	e.rested = time.Now().Add(10 * time.Since(began))
	return err == nil
}

// reserve is what must be free on the disk for a write to be tried, in bytes:
// etcd takes room for its log in pieces of 64 MiB, ahead, and ends the process
// when it cannot.
const reserve = 128 << 20

// room refuses writes before the disk is so full that etcd gives up.
func (e *embedded) room() error {
	if e == nil {
		return nil
	}
	dir := filepath.Dir(e.lock.Name())
	var s unix.Statfs_t
	if unix.Statfs(dir, &s) != nil {
		return nil // etcd will tell
	}
	free, least := int64(s.Bavail)*s.Bsize, min(reserve, int64(s.Blocks)*s.Bsize/10)
	if free >= least {
		return nil
	}
	return fmt.Errorf("%w: %d MiB are free on the disk of %s, and writes need %d; free some space there, then it goes on by itself", ErrFull, free>>20, dir, least>>20)
}

// client returns a client whose calls stay in the process.
func (e *embedded) client() *clientv3.Client { return v3client.New(e.etcd.Server) }

func (e *embedded) close() {
	e.etcd.Close()
	e.lock.Close()
}

// logCore hands etcd's errors to logrus and drops what is less.
type logCore struct {
	log    *logrus.Logger
	fields []zapcore.Field
}

func (c *logCore) Enabled(l zapcore.Level) bool { return l >= zapcore.ErrorLevel }

func (c *logCore) With(fields []zapcore.Field) zapcore.Core {
	return &logCore{log: c.log, fields: append(c.fields[:len(c.fields):len(c.fields)], fields...)}
}

func (c *logCore) Check(e zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return checked.AddCore(e, c)
	}
	return checked
}

func (c *logCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	values := zapcore.NewMapObjectEncoder()
	for _, f := range append(c.fields[:len(c.fields):len(c.fields)], fields...) {
		f.AddTo(values)
	}
	if early(e.Message, values.Fields) {
		return nil
	}
	c.log.WithFields(values.Fields).WithField("part", "etcd").Error(e.Message)
	return nil
}

// early says that an error only tells that the first leader is not elected yet:
// etcd tries again by itself, and nobody can do anything about it.
func early(message string, fields map[string]any) bool {
	why, _ := fields["error"].(string)
	return message == "failed to update storage version" && strings.HasSuffix(why, "missing term information")
}

func (c *logCore) Sync() error { return nil }
