package node

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"mvm/node/mvm"
)

// embedded holds the slim program of the MVM process when `make build` made it.
//
//go:embed all:embedded
var embedded embed.FS

// slimProgram is its name there.
const slimProgram = "embedded/mvm-process"

// launcher starts MVM processes. Tests put a fake in its place to inject
// faults.
type launcher interface {
	// Launch starts an MVM process and returns when it is ready.
	Launch(ctx context.Context, start mvm.Start) (process, error)
	// Sweep ends what an earlier life of the launcher left; MVM processes get
	// grace to do it themselves.
	Sweep(grace time.Duration) (processes int, err error)
	// Cleaning is how leftovers are ended on this machine.
	Cleaning() string
	// Confinement is how registered codecs and rules are confined on this
	// machine. The first call finds it out.
	Confinement() mvm.Confinement
	// Close removes what is kept for later launches, when the last has ended.
	Close()
}

// process is a running MVM process, as mvm.Handle gives it.
type process interface {
	PID() int
	Ready() mvm.Ready
	// Call may be used by several goroutines. A *mvm.Error is the process's
	// own answer.
	Call(ctx context.Context, request mvm.Request) (mvm.Reply, error)
	// Events is closed when the process is gone and all was read.
	Events() <-chan mvm.Event
	// Kill ends the process and all it started, at once.
	Kill()
	// Done is closed when the process is gone and what it started was ended, as
	// far as that worked: Clean says so.
	Done() <-chan struct{}
	// Clean is nil when nothing of the process is left. Else it has tried again
	// to end what is. To be called after Done.
	Clean() error
}

// launched is a real MVM process.
type launched struct {
	*mvm.Handle
	mark string
}

func (l *launched) Clean() error {
	if l.Err() == nil || l.Ready().Cleaning == mvm.PIDNamespace { // the kernel ended all
		return nil
	}
	_, err := mvm.Sweep(l.mark, 0)
	return err
}

// starter is the launcher of real MVM processes.
type starter struct {
	// binary is the program to start, nil for this program itself. It is put
	// into memory at the first need: an idle node does without it.
	binary   func() (*os.File, error)
	cleaning string
	confines func() mvm.Confinement
	limits   mvm.Limits
	places   *mvm.Places
	prefix   string // of the marks of everything that is started from one data folder
}

// markOf begins the marks of everything that is started from a node's data folder.
func markOf(dir string) string {
	sum := sha256.Sum256([]byte(dir))
	return hex.EncodeToString(sum[:8]) + "."
}

// newStarter finds the program to start. dir is the node's data folder, which
// no other node uses at the same time: it names what is this node's.
func newStarter(dir string, limits mvm.Limits, log *logrus.Entry) (*starter, error) {
	prefix := markOf(dir)
	s := &starter{prefix: prefix, limits: limits, places: mvm.NewPlaces(prefix)}
	switch _, err := fs.Stat(embedded, slimProgram); {
	case errors.Is(err, fs.ErrNotExist):
		log.Info("this program was built without the slim MVM process and starts itself in its place: each job starts some 10 ms of CPU time later (`make build` embeds it)")
		s.binary = func() (*os.File, error) { return nil, nil }
		s.cleaning = mvm.Probe(nil)
	case err != nil:
		return nil, err
	default:
		s.binary = sync.OnceValues(slim)
		program, err := slim()
		if err != nil {
			return nil, err
		}
		s.cleaning = mvm.Probe(program)
		program.Close()
	}
	s.confines = sync.OnceValue(func() mvm.Confinement {
		program, err := s.binary()
		found := mvm.Confinement{Level: -1}
		if err == nil {
			found, err = mvm.Confine(program, s.cleaning)
		}
		if err != nil {
			log.WithError(err).Warn("registered codecs and rules cannot be confined here, so none runs")
		} else if len(found.Missing) > 0 {
			log.WithField("missing", strings.Join(found.Missing, ", ")).Warn("registered codecs and rules are confined by fewer walls than there could be")
		}
		return found
	})
	return s, nil
}

func (s *starter) Confinement() mvm.Confinement { return s.confines() }

// slim puts the slim program into memory.
func slim() (*os.File, error) {
	program, err := embedded.Open(slimProgram)
	if err != nil {
		return nil, err
	}
	defer program.Close()
	return mvm.Executable(program)
}

func (s *starter) Launch(ctx context.Context, start mvm.Start) (process, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	binary, err := s.binary()
	if err != nil {
		return nil, err
	}
	mark := s.prefix + random(12)
	h, err := mvm.Launch(mvm.LaunchConfig{Binary: binary, Start: start, Cleaning: s.cleaning, Mark: mark, Limits: s.limits, Places: s.places})
	if err != nil {
		return nil, err
	}
	return &launched{h, mark}, nil
}

func (s *starter) Sweep(grace time.Duration) (int, error) { return mvm.Sweep(s.prefix, grace) }

func (s *starter) Close() { s.places.Close() }

func (s *starter) Cleaning() string { return s.cleaning }
