package soap

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/mux"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/sirupsen/logrus"

	"mvm/wsdl"
)

// Limits bound what callers may cost. A zero field means its default.
type Limits struct {
	Body     int64         // bytes of one request; default 16 MiB
	Bodies   int64         // bytes of all requests above 64 KiB, of what arrived of them; more wait; default 256 MiB
	Wait     time.Duration // of a request above 64 KiB for such bytes, before it is refused as busy; default 5 s
	Slow     int64         // bytes a second at which a request must arrive; default 2 KiB
	Rate     int64         // the same for one that holds memory others wait for; default 256 KiB
	Grace    time.Duration // in which the Rate is measured, and Slow in five of it; default 2 s
	Document wsdl.Limits   // what is in a request
	Headers  int           // bytes of a request's HTTP headers; default 64 KiB
	Header   time.Duration // to send the HTTP headers; default 10 s
	Read     time.Duration // to send the body; default 15 min
	Write    time.Duration // to take the next MiB of the answer; default 60 s
	Idle     time.Duration // of a kept connection; default 2 min
	Drain    time.Duration // for calls to end by themselves at a shutdown; default 500 ms
	Shutdown time.Duration // for calls to end once their context did; default 10 s

	// Connections is how many there may be; default 2048, or half of the
	// descriptors that the process may have if that is less.
	Connections int
}

func (l Limits) withDefaults() Limits {
	set(&l.Body, 16<<20)
	set(&l.Bodies, 256<<20)
	set(&l.Wait, 5*time.Second)
	set(&l.Slow, 2<<10)
	set(&l.Rate, 256<<10)
	set(&l.Grace, 2*time.Second)
	set(&l.Headers, 64<<10)
	set(&l.Header, 10*time.Second)
	set(&l.Read, 15*time.Minute)
	set(&l.Write, time.Minute)
	set(&l.Idle, 2*time.Minute)
	set(&l.Drain, 500*time.Millisecond)
	set(&l.Shutdown, 10*time.Second)
	set(&l.Connections, mostConnections())
	return l
}

func set[T int | int64 | time.Duration](field *T, value T) {
	if *field <= 0 {
		*field = value
	}
}

// Config is what a Server is made of. Only Contracts must be given.
type Config struct {
	Contracts []wsdl.Contract
	Guard     Guard                           // nil: everyone may call everything
	Log       *logrus.Logger                  // nil: no log
	Registry  *prometheus.Registry            // nil: one of its own; served at /metrics
	Health    func(ctx context.Context) error // nil: healthy while it serves; asked by /healthz
	Quiet     []string                        // what is logged at level debug when it succeeds, named as for a Guard
	Limits    Limits
}

// Server serves contracts at /services/NAME, with ?wsdl and ?xsd=, and
// /services, /healthz and /metrics beside them. It is an http.Handler, too.
type Server struct {
	config      Config
	limits      Limits
	services    map[string]*service
	router      *mux.Router
	metrics     *metrics
	quiet       map[string]bool
	buffers     sync.Pool // of *bytes.Buffer
	scanners    sync.Pool // of *wsdl.Scanner
	memory      *memory   // for large request bodies
	connections *connections
	stopping    atomic.Bool
	calls       atomic.Pointer[context.Context] // what those of Serve live under; nil before
	flights     flights
	second      atomic.Pointer[second] // the last that was an answer's date
}

// NewServer returns a Server that listens on nothing yet. It fails when two
// contracts have one name or a contract has no document.
func NewServer(config Config) (*Server, error) {
	if config.Log == nil {
		config.Log = logrus.New()
		config.Log.SetOutput(io.Discard)
	}
	if config.Registry == nil {
		config.Registry = prometheus.NewRegistry()
	}
	s := &Server{config: config, limits: config.Limits.withDefaults(), services: map[string]*service{}, quiet: map[string]bool{}}
	s.memory = newMemory(max(s.limits.Bodies, s.limits.Body), s.limits.Body)
	for _, operation := range config.Quiet {
		s.quiet[operation] = true
	}
	var err error
	if s.metrics, err = newMetrics(config.Registry); err != nil {
		return nil, err
	}
	for _, c := range config.Contracts {
		if s.services[c.Name] != nil {
			return nil, fmt.Errorf("two contracts are named %q", c.Name)
		}
		if s.services[c.Name], err = s.newService(c); err != nil {
			return nil, err
		}
	}
	if s.connections, err = newConnections(s.limits.Connections, config.Registry); err != nil {
		return nil, err
	}
	s.router = mux.NewRouter()
	s.router.Use(s.route)
	s.router.HandleFunc("/services", s.list)
	s.router.HandleFunc("/services/{service}", s.serveService)
	s.router.HandleFunc("/healthz", s.healthz)
	s.router.Handle("/metrics", promhttp.HandlerFor(config.Registry, promhttp.HandlerOpts{Registry: config.Registry}))
	s.router.NotFoundHandler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		refuse(w, http.StatusNotFound, "there is nothing at this path; /services lists the services")
	})
	s.router.MethodNotAllowedHandler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		refuse(w, http.StatusMethodNotAllowed, "method %s does not go with this path", r.Method)
	})
	return s, nil
}

// Router takes further plain handlers; they get the same request id, log,
// metrics and Guard. Mount before Serve, with a path and methods each.
func (s *Server) Router() *mux.Router { return s.router }

// Serve answers on listener until ctx ends; then it closes the listener, lets
// calls in flight finish for Limits.Drain, ends their contexts (so that long
// polls return), waits Limits.Shutdown for them, and closes what is left. It
// returns nil after a shutdown in which every call ended. A Server serves one
// listener, once.
func (s *Server) Serve(ctx context.Context, listener net.Listener) error {
	calls, end := context.WithCancelCause(context.Background())
	defer end(nil)
	s.calls.Store(&calls)
	server := &http.Server{
		Handler:           s,
		ReadHeaderTimeout: s.limits.Header,
		IdleTimeout:       s.limits.Idle,
		MaxHeaderBytes:    s.limits.Headers,
		BaseContext:       func(net.Listener) context.Context { return calls },
		ConnContext:       s.connections.context,
		ConnState:         s.connections.changed,
		ErrorLog:          log.New(logWriter{s.config.Log}, "", 0),
	}
	others := newHandovers(listener)
	crew, err := newCrew()
	if err != nil {
		return fmt.Errorf("serve %s: %w", listener.Addr(), err)
	}
	defer crew.cut()
	defer crew.dismiss()
	served, accepted := make(chan error, 1), make(chan error, 1)
	go func() { served <- server.Serve(others) }()
	go func() { accepted <- s.accept(calls, crew, others) }()
	select {
	case err := <-accepted:
		_ = server.Close()
		<-served
		return fmt.Errorf("serve %s: %w", listener.Addr(), err)
	case <-ctx.Done():
	}
	s.stopping.Store(true)
	_ = others.Close()
	<-accepted
	crew.dismiss() // a call that is carried out is the last of its connection
	// Closes the listener and idle connections at once, and keeps none.
	closed := make(chan struct{})
	patience, stop := context.WithTimeout(context.Background(), s.limits.Drain+s.limits.Shutdown)
	go func() { defer close(closed); _ = server.Shutdown(patience) }()
	defer func() { <-closed }()
	defer stop()
	<-served
	var left error
	if !s.flights.wait(s.limits.Drain) {
		end(errStopping)
		if !s.flights.wait(s.limits.Shutdown) {
			left = errors.New("shutdown: calls were cut off because they did not end in time")
		}
	}
	if left == nil {
		// Handlers are done; give their last bytes time to leave.
		flush, done := context.WithTimeout(context.Background(), 100*time.Millisecond)
		_ = server.Shutdown(flush)
		done()
	}
	_ = server.Close()
	return left
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.flights.begin()
	defer s.flights.end()
	x := s.beginExchange(w, r)
	defer x.connection.enter(phaseIdle)
	defer s.linger(x)
	defer x.end()
	if v := s.called(r); v != nil {
		x.service = v.contract.Name
		s.call(&x.out, x.request, x, v)
		return
	}
	s.router.ServeHTTP(&x.out, x.request)
}

// called returns the service that a request calls, without the router's way
// of regular expressions: nil where it may be anything else.
func (s *Server) called(r *http.Request) *service {
	if name, ok := strings.CutPrefix(r.URL.Path, "/services/"); ok && r.Method == http.MethodPost {
		return s.services[name]
	}
	return nil
}

// route notes which route was taken and asks the Guard, except for SOAP calls,
// whose operation is not known yet.
func (s *Server) route(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		x := exchangeOf(r.Context())
		if template, err := mux.CurrentRoute(r).GetPathTemplate(); err == nil {
			x.operation = r.Method + " " + template
		}
		name := mux.Vars(r)["service"]
		if s.services[name] != nil {
			x.service = name
			if r.Method == http.MethodPost {
				next.ServeHTTP(w, r)
				return
			}
		}
		if s.config.Guard != nil {
			ctx, err := s.config.Guard.Guard(r.Context(), r, x.name())
			if err != nil {
				f := failureOf(r.Context(), err)
				x.code, x.message = string(*f.fault.Code), f.fault.Message
				refuse(w, plainStatus(*f.fault.Code), "%s", f.fault.Error())
				return
			}
			r = r.WithContext(ctx)
		}
		next.ServeHTTP(w, r)
	})
}

// plainStatus is the HTTP status of a fault outside SOAP.
func plainStatus(code wsdl.FaultCode) int {
	switch code {
	case wsdl.FaultCodeUnauthenticated:
		return http.StatusUnauthorized
	case wsdl.FaultCodeForbidden:
		return http.StatusForbidden
	case wsdl.FaultCodeInternal:
		return http.StatusInternalServerError
	}
	return http.StatusServiceUnavailable
}

func (s *Server) healthz(w http.ResponseWriter, r *http.Request) {
	if s.stopping.Load() {
		refuse(w, http.StatusServiceUnavailable, "%s", errStopping)
		return
	}
	if s.config.Health != nil {
		if err := s.config.Health(r.Context()); err != nil {
			refuse(w, http.StatusServiceUnavailable, "%s", err)
			return
		}
	}
	text(w, r, "ok\n")
}

// refuse answers in plain text where SOAP has no say.
func refuse(w http.ResponseWriter, status int, format string, args ...any) {
	why := fmt.Sprintf(format, args...) + "\n"
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	// With its length known, the answer is whole before the connection ends.
	w.Header().Set("Content-Length", strconv.Itoa(len(why)))
	w.WriteHeader(status)
	_, _ = io.WriteString(w, why) // a caller that went away is no error of ours
}

// flights counts calls that are being answered.
type flights struct {
	mu   sync.Mutex // guards n and none
	n    int
	none chan struct{} // closed when n falls to 0; nil while nobody waits
}

func (f *flights) begin() {
	f.mu.Lock()
	f.n++
	f.mu.Unlock()
}

func (f *flights) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.n--; f.n == 0 && f.none != nil {
		close(f.none)
		f.none = nil
	}
}

// wait waits until there are none, at most for limit.
func (f *flights) wait(limit time.Duration) bool {
	f.mu.Lock()
	if f.n == 0 {
		f.mu.Unlock()
		return true
	}
	if f.none == nil {
		f.none = make(chan struct{})
	}
	none := f.none
	f.mu.Unlock()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-none:
		return true
	case <-timer.C:
		return false
	}
}
