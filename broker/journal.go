package broker

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"mvm/services/store"
	"mvm/wsdl"
)

// Journal is what the broker needs of the state store; *store.Store is one.
type Journal interface {
	// Get reads a key; a missing one is store.ErrNotFound.
	Get(ctx context.Context, key string) (value []byte, revision int64, err error)
	// List reads every key with the prefix, in order.
	List(ctx context.Context, prefix string) ([]store.KV, error)
	// Commit does all ops or none; durable when it returns nil.
	Commit(ctx context.Context, ops ...store.Op) error
	// Nodes are the nodes that the information service knows.
	Nodes(ctx context.Context) ([]store.NodeRecord, error)
	// WatchNodes holds a token whenever something about nodes has changed.
	WatchNodes(ctx context.Context) <-chan struct{}
	// Watch tells each change, from when it returns, to keys with the prefix.
	Watch(ctx context.Context, prefix string) (<-chan store.Change, error)
	// LiveOn are the attempts that heartbeats of the node are answered with.
	LiveOn(ctx context.Context, node string) ([]store.Attempt, error)
}

// Blobs keeps bytes by digest; *image.Store is one. Digests are written sha256:HEX.
type Blobs interface {
	Put(ctx context.Context, r io.Reader) (digest string, size int64, err error)
	Open(digest string) (*os.File, int64, error)
	Has(digest string) bool
	// Pin keeps digests, which must be here, until Unpin, besides those that the
	// owner has pinned before. It survives a restart.
	Pin(owner string, digests ...string) error
	Unpin(owner string) error
	// Owners are all who have something pinned.
	Owners() []string
}

// The journal's keys:
//
//	broker/jobs/ID                          what was submitted; never changes
//	broker/tokens/TOKEN                     the id that the token got
//	broker/status/ID                        where the job stands
//	broker/results/ID                       how each process ended; with the end only
//	broker/attempts/ID/NUMBER/attempt       the members, before the first Awaken
//	broker/attempts/ID/NUMBER/go            the members' proxies, before the first Instantiate
//	broker/attempts/ID/NUMBER/report/N/SEQ  the terminal reports of member N
//	broker/attempts/ID/NUMBER/change/N      a live change: before any node hears of it, and how it ended
//	broker/sets/ID                          the newest checkpoint of the whole job
//	broker/profiles/KIND/NAME/VERSION       a registered profile; never changes
//	broker/queues/NAME                      a queue in which jobs wait, but for the
//	                                        default one as it is at first
//
// Every value is JSON, or @ and the digest of a blob that holds the JSON when
// it is big.
const (
	jobsPrefix     = "broker/jobs/"
	tokensPrefix   = "broker/tokens/"
	statusPrefix   = "broker/status/"
	resultsPrefix  = "broker/results/"
	attemptsPrefix = "broker/attempts/"
	profilesPrefix = "broker/profiles/"
	queuesPrefix   = "broker/queues/"

	// epochKey is written by each broker that takes the journal over: something
	// random, a space, and its base address. Every transaction is on the
	// condition that nobody has since.
	epochKey = "broker-epoch"

	bulky  = 256 << 10 // bytes; bigger values are blobs: etcd holds state, not bulk
	maxOps = 120       // in one transaction: etcd's default limit is 128
)

func tokenKey(token string) string { return tokensPrefix + url.PathEscape(token) }

func attemptKey(job string, number int) string {
	return fmt.Sprintf("%s%s/%08d/", attemptsPrefix, job, number)
}

func reportKey(job string, number, member int, sequence int64) string {
	return fmt.Sprintf("%sreport/%06d/%012d", attemptKey(job, number), member, sequence)
}

func profileKey(kind wsdl.ProfileKind, name string, version int) string {
	return fmt.Sprintf("%s%s/%s/%08d", profilesPrefix, kind, url.PathEscape(name), version)
}

func queueKey(name string) string { return queuesPrefix + url.PathEscape(name) }

// spec is a job as it was accepted.
type spec struct {
	Job       *wsdl.Job
	Arguments map[string]string `json:",omitempty"`
	Profiles  []pinned          `json:",omitempty"`
	Owner     string            // who submitted it
}

// pinned is the version of a registered profile that a job was compiled with.
// Wanted is the version it asked for, 0 for the newest.
type pinned struct {
	Kind    string
	Name    string
	Wanted  int `json:",omitempty"`
	Version int
}

// status is where a job stands.
type status struct {
	Name       string
	Token      string
	Priority   int
	Queue      string `json:",omitempty"` // "" = the default one
	Arrival    uint64 `json:",omitempty"` // its place by age, where its id does not say it
	Size       int    // processes
	Submitted  time.Time
	Started    time.Time
	Ended      time.Time
	Phase      wsdl.JobState
	Reason     string `json:",omitempty"`
	Revision   int64
	Attempt    int               `json:",omitempty"`
	Failures   int               `json:",omitempty"`
	Losses     int               `json:",omitempty"`
	Outcome    outcome           `json:",omitempty"`
	Cause      string            `json:",omitempty"`
	Gone       bool              `json:",omitempty"`
	ProxyBytes int64             `json:",omitempty"`
	ProxyItems int64             `json:",omitempty"`
	Arguments  map[string]string `json:",omitempty"`
	Blobs      []string          `json:",omitempty"` // what the job refers to
}

// attemptRecord is an attempt before its first Awaken.
type attemptRecord struct {
	Members []memberRecord
	Base    string `json:",omitempty"` // the broker's base address, as its nodes are told it
}

// memberRecord is the part of a member that does not change.
type memberRecord struct {
	Node        string
	Name        string `json:",omitempty"`
	Incarnation string
	URL         string
	Processes   []int
	Slots       int
	Cores       int    `json:",omitempty"`
	Memory      int64  `json:",omitempty"`
	Part        int    `json:",omitempty"`
	Restore     string `json:",omitempty"`
	Former      string `json:",omitempty"`
}

// goRecord is what the same Instantiate needs after a restart.
type goRecord struct {
	Started time.Time
	Begun   time.Time
	Used    time.Duration `json:",omitempty"`
	Proxies []proxyRecord // by member
	Builds  []build       `json:",omitempty"`
}

type proxyRecord struct {
	Address     string `json:",omitempty"`
	Fingerprint string `json:",omitempty"`
	Trunk       string `json:",omitempty"` // where the node takes trunks of the VMs' network
	TrunkKey    string `json:",omitempty"` // the fingerprint of its key
}

// result is how a job ended, in full.
type result struct {
	Processes []process
	Builds    []build `json:",omitempty"`
}

// pack turns v into a journal value. A big one goes to the image store, and
// into the bag.
func (b *Service) pack(ctx context.Context, to *bag, v any) ([]byte, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("broker: journal: %w", err)
	}
	if len(data) <= bulky {
		return data, nil
	}
	digest, _, err := b.images.Put(ctx, bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("broker: journal: %w", err)
	}
	if err := to.add(digest); err != nil {
		return nil, fmt.Errorf("broker: journal: %w", err)
	}
	return []byte("@" + digest), nil
}

// unpack reads a journal value back.
func (b *Service) unpack(value []byte, v any) error { return unpack(b.images, value, v) }

func unpack(images Blobs, value []byte, v any) error {
	if digest, ok := strings.CutPrefix(string(value), "@"); ok {
		f, _, err := images.Open(digest)
		if err != nil {
			return fmt.Errorf("broker: journal: %w", err)
		}
		defer f.Close()
		if value, err = io.ReadAll(f); err != nil {
			return fmt.Errorf("broker: journal: %w", err)
		}
	}
	if err := json.Unmarshal(value, v); err != nil {
		return fmt.Errorf("broker: journal: %w", err)
	}
	return nil
}

// load reads one key into v.
func (b *Service) load(ctx context.Context, key string, v any) error {
	value, _, err := b.journal.Get(ctx, key)
	if err != nil {
		return err
	}
	return b.unpack(value, v)
}

// write commits ops, in one transaction where they fit and else in the order
// given, so that whoever reads half of them can tell.
func (b *Service) write(ctx context.Context, ops []store.Op) error {
	for len(ops) > maxOps {
		if err := b.commit(ctx, ops[:maxOps]...); err != nil {
			return err
		}
		ops = ops[maxOps:]
	}
	return b.commit(ctx, ops...)
}

// commit is one transaction, refused when another broker has taken over: what
// this one had under way when it was stopped must not land behind the other's
// back.
func (b *Service) commit(ctx context.Context, ops ...store.Op) error {
	return b.journal.Commit(ctx, append([]store.Op{store.IfRevision(epochKey, b.epoch)}, ops...)...)
}

// takeOver makes this broker the journal's only writer, until another takes it
// over.
func (b *Service) takeOver(ctx context.Context) error {
	changes, err := b.journal.Watch(ctx, epochKey)
	if err != nil {
		return err
	}
	mine := rand.Text() + " " + b.url()
	b.pass("before takeover")
	if err := b.journal.Commit(ctx, store.Put(epochKey, []byte(mine))); err != nil {
		return err
	}
	b.pass("after takeover")
	value, revision, err := b.journal.Get(ctx, epochKey)
	if err != nil {
		return err
	}
	if string(value) != mine {
		return &deposed{by: value}
	}
	b.epoch = revision
	b.spawn(func() {
		// One that has nothing to write must learn of it too.
		for c := range changes {
			if c.Revision > b.epoch {
				b.depose(c.Value)
			}
		}
	})
	return nil
}

// reign finds out whether this broker may still write. Where it may not, it
// stops, and the fault says who came instead.
func (b *Service) reign(ctx context.Context) error {
	value, revision, err := b.journal.Get(ctx, epochKey)
	switch {
	case err == nil && revision == b.epoch:
		return nil
	case err != nil && !errors.Is(err, store.ErrNotFound):
		return wsdl.NewFault(wsdl.FaultCodeUnavailable, "the journal cannot be read: "+err.Error(), "try again")
	}
	b.depose(value)
	return b.up(ctx)
}

// depose stops this broker, since another has taken over the journal: nothing
// of what it would call or answer is true any more.
func (b *Service) depose(by []byte) {
	d := &deposed{by: by}
	if b.ctx.Err() == nil {
		b.log.WithField("broker", d.base()).Error("another broker has taken over the journal; this one stops")
	}
	b.stop(d)
}

// deposed is why a broker stopped when another has taken over the journal.
type deposed struct {
	by []byte // what stands under epochKey; empty when nothing does
}

// base is the other broker's base address, "" when it is not known.
func (d *deposed) base() string {
	_, base, _ := strings.Cut(string(d.by), " ")
	return base
}

func (d *deposed) Error() string {
	s := "broker: another broker has taken over the journal"
	if base := d.base(); base != "" {
		s += "; it is at " + base
	}
	return s
}

// fault is what callers are told.
func (d *deposed) fault() error {
	const what = "another broker has taken over the journal, and this one has stopped"
	if d.base() == "" {
		return wsdl.NewFault(wsdl.FaultCodeUnavailable, what, "ask the bootstrap service where the broker is")
	}
	f := wsdl.NewFault(wsdl.FaultCodeWrongNode, what, "ask "+d.base()+"/services/broker")
	f.Address = d.base() + "/services/broker"
	return f
}

// persist writes until it is written or the broker ends. Everything that goes
// through it may be written twice.
func (b *Service) persist(ops []store.Op) error {
	pause := 10 * time.Millisecond
	for {
		err := b.write(b.ctx, ops)
		if err == nil || b.ctx.Err() != nil {
			return err
		}
		if errors.Is(err, store.ErrClosed) {
			return err
		}
		if errors.Is(err, store.ErrConflict) {
			// Nothing but the epoch is a condition of what goes through here.
			value, _, _ := b.journal.Get(b.ctx, epochKey)
			b.depose(value)
			return err
		}
		b.log.WithError(err).Error("the journal does not take a record; trying again")
		if !b.sleep(pause) {
			return b.ctx.Err()
		}
		pause = min(2*pause, 2*time.Second)
	}
}

// ops turns a commit of a job's life into journal operations.
func (j *job) ops(c commit) ([]store.Op, error) {
	b, l := j.broker, &j.life
	put := func(key string, v any) (store.Op, error) {
		value, err := b.pack(b.ctx, j.blobs, v)
		return store.Put(key, value), err
	}
	var ops []store.Op
	add := func(op store.Op, err error) error {
		ops = append(ops, op)
		return err
	}
	dropAll := func() {
		for _, m := range l.Members {
			ops = append(ops, store.Drop(m.Node, m.job(l.Job), l.Attempt))
		}
	}
	prefix := attemptKey(l.Job, l.Attempt)
	if c.Attempt {
		record := attemptRecord{Base: b.url()}
		for _, m := range l.Members {
			record.Members = append(record.Members, m.record())
		}
		if err := add(put(prefix+"attempt", record)); err != nil {
			return nil, err
		}
		for _, m := range l.Members {
			ops = append(ops, store.Name(store.Attempt{Job: m.job(l.Job), Number: l.Attempt, Node: m.Node, Incarnation: m.Incarnation}))
		}
	}
	if c.Go {
		record := goRecord{Started: l.Started, Begun: l.Begun, Used: l.Used, Builds: l.Builds}
		for _, m := range l.Members {
			record.Proxies = append(record.Proxies, m.proxy())
		}
		if err := add(put(prefix+"go", record)); err != nil {
			return nil, err
		}
	}
	if c.Report != nil {
		if err := add(put(reportKey(l.Job, l.Attempt, c.Report.Member, c.Report.Report.Sequence), c.Report.Report)); err != nil {
			return nil, err
		}
	}
	if c.Change > 0 {
		if err := add(put(changeKey(l.Job, l.Attempt, c.Change), l.Changes[c.Change-1])); err != nil {
			return nil, err
		}
	}
	if c.Set && l.Set != nil {
		if err := add(put(setsPrefix+l.Job, l.Set)); err != nil {
			return nil, err
		}
	}
	if l.Every > 0 && (c.End || c.Set && l.Set == nil) {
		ops = append(ops, store.Delete(setsPrefix+l.Job))
	}
	for _, i := range c.Drop {
		ops = append(ops, store.Drop(l.Members[i].Node, l.Members[i].job(l.Job), l.Attempt))
	}
	if c.End {
		if err := add(put(resultsPrefix+l.Job, j.result())); err != nil {
			return nil, err
		}
	}
	if c.Outcome || c.Requeue || c.End || c.Moved || c.Set && l.Set != nil {
		s := j.record()
		s.Blobs = j.blobs.list()
		if err := add(put(statusPrefix+l.Job, s)); err != nil {
			return nil, err
		}
	}
	if c.Requeue || c.End {
		if l.Attempt > 0 {
			ops = append(ops, store.DeletePrefix(prefix))
		}
		dropAll()
	}
	return ops, nil
}

func (m *member) record() memberRecord {
	return memberRecord{Node: m.Node, Part: m.Part, Name: m.Name, Incarnation: m.Incarnation, URL: m.URL,
		Processes: m.Processes, Slots: m.Slots, Cores: m.Cores, Memory: m.Memory, Restore: m.Restore, Former: m.Former}
}

func (r memberRecord) member() member {
	return member{Node: r.Node, Part: r.Part, Name: r.Name, Incarnation: r.Incarnation, URL: r.URL,
		Processes: r.Processes, Slots: r.Slots, Cores: r.Cores, Memory: r.Memory, Restore: r.Restore, Former: r.Former}
}

// parseAttemptKey splits a key below attemptsPrefix into job, number and what
// is left; it is false for what the broker did not write.
func parseAttemptKey(key string) (job string, number int, rest string, ok bool) {
	parts := strings.SplitN(strings.TrimPrefix(key, attemptsPrefix), "/", 3)
	if len(parts) != 3 {
		return "", 0, "", false
	}
	number, err := strconv.Atoi(parts[1])
	return parts[0], number, parts[2], err == nil && number > 0
}

// parseReportKey splits what parseAttemptKey left of a report's key.
func parseReportKey(rest string) (member int, sequence int64, ok bool) {
	parts := strings.Split(rest, "/")
	if len(parts) != 3 || parts[0] != "report" {
		return 0, 0, false
	}
	member, err1 := strconv.Atoi(parts[1])
	sequence, err2 := strconv.ParseInt(parts[2], 10, 64)
	return member, sequence, err1 == nil && err2 == nil && member >= 0
}
