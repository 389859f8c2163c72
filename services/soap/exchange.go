package soap

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/sirupsen/logrus"
)

// exchange is one request and its answer, as the log and the metrics see them.
// It is also the context of what answers it.
type exchange struct {
	context.Context
	server     *Server
	request    *http.Request // nil in a conversation until somebody asks for it
	head       []byte        // what it is made of there, until the call is read
	life       life          // the context beneath, in a conversation
	method     string
	remote     string
	connection *connection // nil for a call that came otherwise, as in tests
	id         string
	service    string // "" outside services
	operation  string // of the service, or method and route
	counts     *counts
	code       string // of the fault, or "ok"; "" leaves it to the status
	message    string // of the fault
	started    time.Time
	took       time.Duration // once it ended
	in         countingBody
	out        countingWriter
	aborted    bool // by the handler: nothing more is to be said
}

type exchangeKey struct{}

// Value implements context.Context.
func (x *exchange) Value(key any) any {
	switch key.(type) {
	case exchangeKey:
		return x
	case requestIDKey:
		return x.id
	}
	return x.Context.Value(key)
}

func exchangeOf(ctx context.Context) *exchange { return ctx.Value(exchangeKey{}).(*exchange) }

func (s *Server) beginExchange(w http.ResponseWriter, r *http.Request) *exchange {
	x := &exchange{Context: r.Context(), server: s, method: r.Method, remote: r.RemoteAddr, id: r.Header.Get("X-Request-Id"), operation: "unknown", started: time.Now()}
	if !saneRequestID(x.id) {
		x.id = newRequestID()
	}
	header := w.Header()
	header["X-Request-Id"] = []string{x.id}
	header["X-Content-Type-Options"] = []string{"nosniff"}
	x.out = countingWriter{ResponseWriter: w, control: http.NewResponseController(w), patience: s.limits.Write, first: x}
	x.connection, _ = r.Context().Value(connectionKey{}).(*connection)
	x.connection.enter(phaseWorking)
	x.in.ReadCloser = r.Body
	if r.ContentLength != 0 {
		// An answer does not wait for the rest of a body that nobody wants.
		_ = x.out.control.EnableFullDuplex()                                      // a recorder in a test cannot
		_ = x.out.control.SetReadDeadline(x.started.Add(graces * s.limits.Grace)) // readBody gives more once something came
	}
	x.request = r.WithContext(x)
	x.request.Body = &x.in
	s.metrics.flight.Inc()
	return x
}

// answering is called before the answer's head is written.
func (x *exchange) answering() {
	x.connection.enter(phaseAnswering)
	if x.request.ContentLength != 0 && !x.in.ended || len(x.request.TransferEncoding) > 0 {
		// What is left of the body must not be taken for the next request; and
		// with chunks there may have been a length, too, by which somebody in
		// between counts (RFC 9112, section 6.3).
		x.out.Header().Set("Connection", "close")
	}
}

// end finishes an exchange. It is deferred around the handlers and takes their
// panics.
func (x *exchange) end() {
	p := recover()
	if p != nil && p != http.ErrAbortHandler {
		x.panicked(p)
		if x.out.status == 0 {
			refuse(&x.out, http.StatusInternalServerError, "a fault inside the node; its log says more under request id %s", x.id)
		}
	}
	x.finish(p != nil)
	if p == http.ErrAbortHandler {
		x.aborted = true
		panic(p)
	}
}

// finish writes the exchange's line and counts it.
func (x *exchange) finish(panicked bool) {
	s := x.server
	x.took = time.Since(x.started)
	if x.code == "" {
		if x.code = strconv.Itoa(x.status()); x.status() < 400 {
			x.code = "ok"
		}
	}
	s.metrics.flight.Dec()
	if x.code == "ok" && x.counts != nil {
		x.counts.ok.Inc()
		x.counts.seconds.Observe(x.took.Seconds())
	} else {
		s.metrics.requests.WithLabelValues(x.service, x.operation, x.code).Inc()
		s.metrics.seconds.WithLabelValues(x.service, x.operation).Observe(x.took.Seconds())
	}
	s.metrics.in.Add(float64(x.in.n))
	s.metrics.out.Add(float64(x.out.n))
	level := logrus.InfoLevel
	if x.code == "internal" || panicked {
		level = logrus.ErrorLevel
	} else if x.code == "ok" && s.quiet[x.name()] {
		level = logrus.DebugLevel
	}
	x.log(level)
}

// name is what a Guard and Config.Quiet call the exchange.
func (x *exchange) name() string {
	if x.service != "" && x.method == http.MethodPost {
		return x.service + "/" + x.operation
	}
	return x.operation
}

// panicked logs a panic with its stack.
func (x *exchange) panicked(p any) {
	x.server.config.Log.WithFields(logrus.Fields{
		"request": x.id, "service": x.service, "operation": x.operation, "panic": p, "stack": string(debug.Stack()),
	}).Error("panic")
}

type countingBody struct {
	io.ReadCloser
	n     int64
	ended bool // nothing more can be read
}

func (b *countingBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.n += int64(n)
	b.ended = b.ended || err != nil
	return n, err
}

// countingWriter gives the reader of an answer a time for each part of it, so
// that a download may last but not stall.
type countingWriter struct {
	http.ResponseWriter
	control  *http.ResponseController
	patience time.Duration
	first    *exchange // told when the answer begins
	status   int
	n        int64
}

func (w *countingWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *countingWriter) WriteHeader(status int) {
	if w.status == 0 && status >= 200 {
		w.status = status
		w.first.answering()
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *countingWriter) begin() {
	if w.status == 0 {
		w.status = http.StatusOK
		w.first.answering()
	}
	_ = w.control.SetWriteDeadline(time.Now().Add(w.patience)) // a recorder in a test has none
}

func (w *countingWriter) Write(p []byte) (int, error) {
	total := 0
	for {
		w.begin()
		part := p[total:min(len(p), total+1<<20)]
		n, err := w.ResponseWriter.Write(part)
		w.n += int64(n)
		if total += n; err != nil || total == len(p) {
			return total, err
		}
	}
}

// ReadFrom lets the kernel copy files, a MiB at a time.
func (w *countingWriter) ReadFrom(r io.Reader) (int64, error) {
	from, ok := w.ResponseWriter.(io.ReaderFrom)
	if !ok {
		return io.Copy(struct{ io.Writer }{w}, r)
	}
	var total int64
	limited, bounded := r.(*io.LimitedReader)
	for {
		part := &io.LimitedReader{R: r, N: 1 << 20}
		if bounded {
			part.R, part.N = limited.R, min(part.N, limited.N)
		}
		want := part.N
		w.begin()
		n, err := from.ReadFrom(part)
		w.n += n
		total += n
		if bounded {
			limited.N -= n
		}
		if err != nil || n < want || bounded && limited.N == 0 {
			return total, err
		}
	}
}

// isTimeout says whether a read ended because the sender was too slow.
func isTimeout(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }

type metrics struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	flight   prometheus.Gauge
	in, out  prometheus.Counter
	scanned  prometheus.Counter // requests that the scanner took
	checked  prometheus.Counter // and those that it left to the checker
}

// counts are the metrics of an operation's calls that succeed.
type counts struct {
	ok      prometheus.Counter
	seconds prometheus.Observer
}

func (m *metrics) of(service, operation string) *counts {
	return &counts{m.requests.WithLabelValues(service, operation, "ok"), m.seconds.WithLabelValues(service, operation)}
}

func newMetrics(registry *prometheus.Registry) (*metrics, error) {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mvm_requests_total", Help: "Requests answered, by service, operation or route, and fault code, HTTP status or ok.",
		}, []string{"service", "operation", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "mvm_request_seconds", Help: "Time from a request's headers to the end of its answer.",
			Buckets: []float64{.0001, .0003, .001, .003, .01, .03, .1, .3, 1, 3, 10, 60},
		}, []string{"service", "operation"}),
		flight: prometheus.NewGauge(prometheus.GaugeOpts{Name: "mvm_requests_in_flight", Help: "Requests being answered."}),
	}
	bytes := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "mvm_request_bytes_total", Help: "Bytes of bodies, in and out.",
	}, []string{"direction"})
	m.in, m.out = bytes.WithLabelValues("in"), bytes.WithLabelValues("out")
	decoded := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "mvm_requests_decoded_total", Help: "SOAP requests read by the fast scanner, and by the checker where that one did not take them.",
	}, []string{"by"})
	m.scanned, m.checked = decoded.WithLabelValues("scanner"), decoded.WithLabelValues("checker")
	for _, c := range []prometheus.Collector{m.requests, m.seconds, m.flight, bytes, decoded} {
		if err := registry.Register(c); err != nil {
			return nil, err
		}
	}
	for _, c := range []prometheus.Collector{collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{})} {
		var already prometheus.AlreadyRegisteredError
		if err := registry.Register(c); err != nil && !errors.As(err, &already) {
			return nil, err
		}
	}
	return m, nil
}
