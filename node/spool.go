package node

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"mvm/wsdl"
)

// spool keeps reports on disk until the broker has acknowledged them, and
// delivers each attempt's in their order. It outlives attempts and the node's
// process: what the former life could not deliver is delivered by this one.
//
// On disk: a file for each report, named by its attempt and sequence number.
// Files of delivered reports are kept for the next ones: to make and remove one
// for each report costs ext4, which looks through all inodes that were freed in
// the last minute, more than all else that a report costs.
type spool struct {
	dir     string
	node    string // its id
	deliver func(ctx context.Context, s *spooled) (acknowledged int64, err error)
	dropped func(s *spooled) // after a report left the spool, however it left
	pause   time.Duration    // the first between two tries; it doubles up to thirtyfold
	log     *logrus.Entry

	mu      sync.Mutex // guards what follows
	ctx     context.Context
	lanes   map[string]*lane // by laneName
	spares  []string         // paths of files to write the next reports to
	made    int              // spare files so far
	sending sync.WaitGroup
	syncing sync.WaitGroup // of reports that the broker did not acknowledge soon
}

// soon is how long the broker has to acknowledge a report before the disk is
// waited for: nearly always it does, and two waits for the disk cost as much as all
// else that is done for a report. A machine that crashes before takes the end of a
// process with it that nobody was told of, as if it had crashed so much earlier.
const soon = 100 * time.Millisecond

// mostSpares is how many files wait for the next reports.
const mostSpares = 16

// lane is the undelivered reports of one attempt.
type lane struct {
	waiting []int64            // sequence numbers, in order
	busy    bool               // a goroutine delivers
	memory  map[int64]*spooled // those that the disk would not take
	fresh   *spooled           // the first of waiting, as it was put: the first try need not read it
	unsure  map[int64]*unsure  // those that a crash of the machine may take
	// substitutes is what goes in the place of reports that cannot be read or
	// are refused. Those of an earlier life's have none.
	substitutes map[int64]*spooled
	replaced    int64 // the report whose substitute is being delivered
}

// unsure is a report that is in a file which was not synced yet.
type unsure struct {
	report *spooled
	timer  *time.Timer // syncs it
}

func newLane() *lane {
	return &lane{memory: map[int64]*spooled{}, substitutes: map[int64]*spooled{}, unsure: map[int64]*unsure{}}
}

// spooled is a report with what its delivery needs. It is written as XML, like
// the message that it becomes.
type spooled struct {
	XMLName xml.Name `xml:"urn:mvm:1 Spooled"`
	Broker  string   `xml:"broker"`
	Image   []string `xml:"image"` // the first takes the blobs
	Owner   string   `xml:"owner"` // pins the blobs here
	Report  *wsdl.Report
}

var (
	// errStale marks a report that nobody waits for any more.
	errStale = errors.New("the broker does not want it")
	// errRefused marks a report that is refused as it is.
	errRefused = errors.New("the broker refuses it")
	// errUnread marks a report that is in the spool and cannot be read.
	errUnread = errors.New("it cannot be read from the spool")
)

// openSpool reads what is undelivered. Nothing is delivered until start.
func openSpool(s *spool) (*spool, error) {
	s.lanes = map[string]*lane{}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return nil, err
	}
	files, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		name, sequence, ok := reportOf(f.Name())
		if !ok { // a spare one, or a write that was cut short
			if err := os.Remove(filepath.Join(s.dir, f.Name())); err != nil {
				return nil, err
			}
			continue
		}
		l := s.lanes[name]
		if l == nil {
			l = newLane()
			s.lanes[name] = l
		}
		l.waiting = append(l.waiting, sequence)
	}
	for _, l := range s.lanes {
		slices.Sort(l.waiting)
	}
	return s, nil
}

// reportOf reads the name of a report's file.
func reportOf(file string) (lane string, sequence int64, ok bool) {
	whole, is := strings.CutSuffix(file, ".xml")
	lane, number, ok := cutLast(whole)
	sequence, err := strconv.ParseInt(number, 10, 64)
	return lane, sequence, is && ok && err == nil
}

// owners is the names under which undelivered reports pin their results.
func (s *spool) owners() map[string]bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	owners := map[string]bool{}
	for name, l := range s.lanes {
		for _, n := range l.waiting {
			if r, err := s.read(name, n); err == nil && r.Owner != "" {
				owners[r.Owner] = true
			}
		}
	}
	return owners
}

// start delivers until ctx ends.
func (s *spool) start(ctx context.Context) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ctx = ctx
	for name, l := range s.lanes {
		s.send(name, l)
	}
}

// wait returns when nobody delivers any more, and what is left is on disk. Only
// after start's ctx ended.
func (s *spool) wait() {
	s.sending.Wait()
	s.mu.Lock()
	left := map[string][]int64{}
	for name, l := range s.lanes {
		left[name] = slices.Collect(maps.Keys(l.unsure))
	}
	s.mu.Unlock()
	for name, sequences := range left {
		for _, n := range sequences {
			s.secure(name, n)
		}
	}
	s.syncing.Wait()
}

// empty tells whether everything is delivered.
func (s *spool) empty() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.lanes) == 0
}

// laneName begins the names of an attempt's reports; the incarnation keeps apart
// what a job with the same number left in an earlier life.
func laneName(a *wsdl.Attempt) string {
	return fmt.Sprintf("%s.%d.%s", url.QueryEscape(a.Job), a.Number, url.QueryEscape(a.Incarnation))
}

// attemptOf reads a lane's name. An incarnation of this program has no dots.
func attemptOf(name, node string) (*wsdl.Attempt, error) {
	rest, incarnation, _ := cutLast(name)
	job, number, ok := cutLast(rest)
	n, err := strconv.ParseInt(number, 10, 32)
	if !ok || err != nil {
		return nil, fmt.Errorf("%q names no attempt", name)
	}
	if job, err = url.QueryUnescape(job); err == nil {
		incarnation, err = url.QueryUnescape(incarnation)
	}
	return &wsdl.Attempt{Job: job, Number: int32(n), Node: node, Incarnation: incarnation}, err
}

func cutLast(s string) (before, after string, ok bool) {
	i := strings.LastIndexByte(s, '.')
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+1:], true
}

// put keeps a report and has it delivered. When it returns nil, the report
// survives the node's process; when durable, and the broker does not acknowledge
// it soon, the machine's crash as well. On an error the report waits in memory
// only.
func (s *spool) put(r *spooled, durable bool) error {
	name := laneName(r.Report.Attempt)
	err := s.write(name, r, false) // an attempt's reports are put one at a time
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.lanes[name]
	if l == nil {
		l = newLane()
		s.lanes[name] = l
	}
	if err != nil {
		l.memory[r.Report.Sequence] = r
		err = fmt.Errorf("keep a report: %w", err)
	} else if durable {
		n := r.Report.Sequence
		l.unsure[n] = &unsure{r, time.AfterFunc(soon, func() { s.secure(name, n) })}
	}
	l.substitutes[r.Report.Sequence] = substitute(r)
	if l.waiting = append(l.waiting, r.Report.Sequence); len(l.waiting) == 1 {
		l.fresh = r
	}
	s.send(name, l)
	return err
}

// write puts a report on disk. It has its name first and is synced then, which
// is one wait for the disk instead of two: what a crash tears cannot be read,
// and the broker is told so.
func (s *spool) write(name string, r *spooled, durable bool) error {
	text, err := xml.Marshal(r)
	if err != nil {
		return err
	}
	dir, path := s.spare()
	// Written over, not emptied first: ext4 begins to write at once what is closed
	// after it was emptied.
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err = f.Write(text); err == nil {
		var old fs.FileInfo
		if old, err = f.Stat(); err == nil && old.Size() > int64(len(text)) {
			err = f.Truncate(int64(len(text)))
		}
	}
	if err == nil {
		err = os.Rename(path, pathOf(dir, name, r.Report.Sequence))
	}
	if err != nil {
		os.Remove(path)
		return err
	}
	if !durable {
		return nil
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return syncFile(dir)
}

// secure syncs a report, if it is still there. One that the disk does not take
// is written anew when the next try to deliver fails.
func (s *spool) secure(name string, sequence int64) {
	s.mu.Lock()
	l := s.lanes[name]
	if l == nil || l.unsure[sequence] == nil {
		s.mu.Unlock()
		return
	}
	u := l.unsure[sequence]
	u.timer.Stop()
	delete(l.unsure, sequence)
	s.syncing.Add(1)
	defer s.syncing.Done()
	s.mu.Unlock()
	err := syncFile(pathOf(s.dir, name, sequence))
	if err == nil {
		err = syncFile(s.dir)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil || !slices.Contains(l.waiting, sequence) { // it is delivered
		return
	}
	if l.memory[sequence] == nil { // a substitute has taken its place otherwise
		l.memory[sequence] = u.report
	}
	s.log.WithError(err).WithFields(logrus.Fields{"attempt": name, "report": sequence}).Error("a report is not on disk: it is lost if this machine crashes before the broker has it")
}

// spare is the path of a file to write a report to, which may be there.
func (s *spool) spare() (dir, path string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.spares); n > 0 {
		path = s.spares[n-1]
		s.spares = s.spares[:n-1]
		return s.dir, path
	}
	s.made++
	return s.dir, filepath.Join(s.dir, fmt.Sprintf("spare-%d", s.made))
}

// discard takes a report off the disk. The caller holds mu.
func (s *spool) discard(name string, sequence int64) error {
	path := pathOf(s.dir, name, sequence)
	if len(s.spares) >= mostSpares {
		return os.Remove(path)
	}
	s.made++
	spare := filepath.Join(s.dir, fmt.Sprintf("spare-%d", s.made))
	if err := os.Rename(path, spare); err != nil {
		return err
	}
	s.spares = append(s.spares, spare)
	return nil
}

// replace puts a small report in the place of one that cannot be delivered: the
// broker must hear of it, or it would wait for ever. This is done once: should
// the substitute be refused too, it is sent until it is stale.
func (s *spool) replace(name string, l *lane, sequence int64, r *spooled, why error) error {
	s.mu.Lock()
	replaced, small := l.replaced == sequence, l.substitutes[sequence]
	s.mu.Unlock()
	if replaced {
		return why
	}
	if small == nil && r != nil {
		small = substitute(r)
	}
	if small == nil {
		attempt, err := attemptOf(name, s.node)
		if err != nil {
			return errors.Join(errStale, err) // not a folder of ours: nobody waits
		}
		small = substitute(&spooled{Report: &wsdl.Report{Attempt: attempt, Sequence: sequence, Failure: "the node was started again"}})
	}
	small.because(why)
	s.mu.Lock()
	l.memory[sequence], l.replaced = small, sequence
	s.mu.Unlock()
	if err := s.write(name, small, true); err != nil {
		s.log.WithError(err).WithField("attempt", name).Warn("a report's substitute is not on disk")
	}
	return nil
}

// writeFile replaces a file as a whole.
func writeFile(path string, data []byte, durable bool) error {
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil && durable {
		err = f.Sync()
	}
	if closing := f.Close(); err == nil {
		err = closing
	}
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		os.Remove(path + ".new")
		return err
	}
	if durable {
		return syncFile(filepath.Dir(path))
	}
	return nil
}

// syncFile waits until the disk has a file, or a folder's names.
func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// send has a lane delivered. The caller holds mu.
func (s *spool) send(name string, l *lane) {
	if l.busy || s.ctx == nil || s.ctx.Err() != nil {
		return
	}
	l.busy = true
	s.sending.Add(1)
	go s.drain(s.ctx, name, l)
}

func (s *spool) drain(ctx context.Context, name string, l *lane) {
	defer s.sending.Done()
	pause := s.pause
	for {
		s.mu.Lock()
		if len(l.waiting) == 0 {
			delete(s.lanes, name)
			s.mu.Unlock()
			return
		}
		sequence := l.waiting[0]
		report := l.memory[sequence]
		if report == nil && l.fresh != nil && l.fresh.Report.Sequence == sequence {
			report = l.fresh
		}
		l.fresh = nil
		s.mu.Unlock()

		var err error
		if report == nil {
			report, err = s.read(name, sequence)
		}
		var acknowledged int64
		if err != nil {
			if !errors.Is(err, unix.EMFILE) && !errors.Is(err, unix.ENFILE) && !errors.Is(err, unix.ENOMEM) {
				err = fmt.Errorf("%w: %w", errUnread, err)
			}
		} else if acknowledged, err = s.deliver(ctx, report); err == nil && acknowledged < sequence {
			err = fmt.Errorf("the broker acknowledged report %d, not %d", acknowledged, sequence)
		}
		if errors.Is(err, errRefused) || errors.Is(err, errUnread) {
			refused := err
			if err = s.replace(name, l, sequence, report, refused); err == nil {
				s.log.WithError(refused).WithFields(logrus.Fields{"attempt": name, "report": sequence}).Error("a report cannot be delivered; the broker is told so")
				continue
			}
		}
		if errors.Is(err, errStale) {
			s.log.WithError(err).WithField("attempt", name).Warn("a report is dropped")
			acknowledged = sequence
		}
		if acknowledged < sequence {
			s.log.WithError(err).WithField("attempt", name).Debug("a report is not delivered yet")
			s.settle(name, l)
			select {
			case <-ctx.Done():
				s.mu.Lock()
				l.busy = false
				s.mu.Unlock()
				return
			case <-time.After(pause + rand.N(pause)):
			}
			pause = min(2*pause, 30*s.pause)
			continue
		}
		pause = s.pause
		s.mu.Lock()
		var done []*spooled
		for len(l.waiting) > 0 && l.waiting[0] <= acknowledged {
			n := l.waiting[0]
			l.waiting = l.waiting[1:]
			r := l.memory[n]
			if n == sequence {
				r = report
			} else if r == nil {
				r, _ = s.read(name, n) // only to let go of its results
			}
			if r != nil {
				done = append(done, r)
			}
			delete(l.memory, n)
			delete(l.substitutes, n)
			if u := l.unsure[n]; u != nil {
				u.timer.Stop()
				delete(l.unsure, n)
			}
			if err := s.discard(name, n); err != nil && !errors.Is(err, fs.ErrNotExist) {
				s.log.WithError(err).Warn("a delivered report stays in the spool")
			}
		}
		s.mu.Unlock()
		for _, r := range done {
			s.dropped(r)
		}
	}
}

// settle puts on disk what the disk would not take before.
func (s *spool) settle(name string, l *lane) {
	s.mu.Lock()
	unwritten := maps.Clone(l.memory)
	s.mu.Unlock()
	for _, n := range slices.Sorted(maps.Keys(unwritten)) {
		if s.write(name, unwritten[n], true) != nil {
			return
		}
		s.mu.Lock()
		if n != l.replaced { // what a substitute replaces may still be in a file
			delete(l.memory, n)
		}
		s.mu.Unlock()
	}
}

func pathOf(dir, lane string, sequence int64) string {
	return filepath.Join(dir, lane+"."+strconv.FormatInt(sequence, 10)+".xml")
}

func (s *spool) read(name string, sequence int64) (*spooled, error) {
	text, err := os.ReadFile(pathOf(s.dir, name, sequence))
	if err != nil {
		return nil, err
	}
	r := &spooled{}
	if err := xml.Unmarshal(text, r); err != nil {
		return nil, err
	}
	if r.Report == nil || r.Report.Attempt == nil {
		return nil, errors.New("it holds no report")
	}
	// The file may have held others before, and the machine may have crashed.
	if is := laneName(r.Report.Attempt); is != name || r.Report.Sequence != sequence {
		return nil, fmt.Errorf("it holds report %d of %s", r.Report.Sequence, is)
	}
	return r, nil
}
