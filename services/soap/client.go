package soap

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"reflect"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"mvm/wsdl"
)

// ClientConfig is what a Client is made of; every field has a default.
type ClientConfig struct {
	Timeout  time.Duration // of a call whose context has no deadline; default 2 min
	Dial     time.Duration // to connect; default 5 s
	Response int64         // bytes of an answer at most; default 64 MiB
	Idle     int           // connections kept for each address; default 32
	TLS      *tls.Config
	// DialContext makes the connections; nil is TCP, bounded by Dial.
	DialContext func(ctx context.Context, network, address string) (net.Conn, error)
	SOAP12      bool // speak SOAP 1.2
	Strict      bool // refuse answers that do not fit the schema; for tests of servers
}

// Client calls SOAP services; it is the wsdl.Caller of generated clients. It
// keeps connections and may be used concurrently. Close it when done.
type Client struct {
	config   ClientConfig
	version  version
	http     *http.Client
	near     *near     // nil: every server is elsewhere
	buffers  sync.Pool // of *bytes.Buffer
	scanners sync.Pool // of *wsdl.Scanner
}

var _ wsdl.Caller = (*Client)(nil)

// NewClient returns a Client without connections.
func NewClient(config ClientConfig) *Client {
	set(&config.Timeout, 2*time.Minute)
	set(&config.Dial, 5*time.Second)
	set(&config.Response, 64<<20)
	set(&config.Idle, 32)
	c := &Client{config: config, version: soap11()}
	if config.SOAP12 {
		c.version = soap12()
	}
	dialer := &net.Dialer{Timeout: config.Dial}
	if config.DialContext == nil {
		config.DialContext = dialer.DialContext
	}
	c.http = &http.Client{
		Transport: &http.Transport{
			DialContext:         config.DialContext,
			TLSClientConfig:     config.TLS,
			TLSHandshakeTimeout: config.Dial,
			MaxIdleConns:        1024,
			MaxIdleConnsPerHost: config.Idle,
			IdleConnTimeout:     90 * time.Second, // shorter than a Server's
			DisableCompression:  true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return c
}

// HTTP returns the client beneath, for plain requests over the same
// connections.
func (c *Client) HTTP() *http.Client { return c.http }

// Close closes connections that no call uses.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// callError is a Fault made on this side, with what caused it, so that
// errors.As finds the one and errors.Is the other.
type callError struct {
	*wsdl.Fault
	cause error
}

func (e *callError) Unwrap() []error { return []error{e.Fault, e.cause} }

// Call performs one call. An error has a *wsdl.Fault in its chain: the
// server's own, or unavailable (no connection, or one that broke: the call may
// have been carried out; or what answers is no SOAP server), timeout, tooLarge,
// internal (an answer that is none to this call).
// When ctx was cancelled, the error wraps context.Canceled instead.
func (c *Client) Call(ctx context.Context, url, operation string, request, response any) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.config.Timeout)
		defer cancel()
	}
	buffer := take[bytes.Buffer](&c.buffers)
	defer recycle(&c.buffers, buffer)
	got, err := c.post(ctx, url, operation, request, buffer)
	if err != nil {
		return c.broken(ctx, url, operation, err)
	}
	if got.media != media11 && got.media != media12 {
		return c.odd(url, operation, got)
	}
	err = c.answer(operation, got.data, response)
	if errors.Is(err, errNoEnvelope) {
		return c.odd(url, operation, got)
	}
	var fault *wsdl.Fault
	if err != nil && !errors.As(err, &fault) {
		return c.nonsense(url, operation, err.Error())
	}
	return err
}

// received is what HTTP brought back from a call.
type received struct {
	status int
	media  string // "" without a content type
	node   bool   // whether it has the header that a Server's answers have
	data   []byte // for as long as the call
}

// post sends a request; buffer may have its answer in the end.
func (c *Client) post(ctx context.Context, url, operation string, request any, buffer *bytes.Buffer) (got received, err error) {
	if err := writeEnvelope(buffer, c.version, request); err != nil {
		return got, err
	}
	body := bytes.Clone(buffer.Bytes()) // who reads it may still do so after the call
	buffer.Reset()
	header := http.Header{}
	action := `"` + wsdl.Namespace + "#" + operation + `"`
	if c.config.SOAP12 {
		header["Content-Type"] = []string{media12 + "; charset=utf-8; action=" + action}
	} else {
		header["Content-Type"] = []string{media11 + "; charset=utf-8"}
		header["Soapaction"] = []string{action}
	}
	if id := RequestID(ctx); id != "" {
		header["X-Request-Id"] = []string{id}
	}
	if calls, ok := c.near.serves(url); ok {
		w, err := c.near.answer(ctx, calls, url, header, body)
		if err != nil {
			return got, err
		}
		return c.received(url, operation, w.status, w.header, w.body.Bytes())
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return got, err
	}
	r.Header = header
	// Neither redirects nor cookies are wanted, and an http.Client costs a
	// tenth of the call.
	response, err := c.http.Transport.RoundTrip(r)
	if err != nil {
		return got, err
	}
	defer response.Body.Close()
	if _, err = buffer.ReadFrom(io.LimitReader(response.Body, c.config.Response+1)); err != nil {
		return got, err
	}
	return c.received(url, operation, response.StatusCode, response.Header, buffer.Bytes())
}

func (c *Client) received(url, operation string, status int, header http.Header, data []byte) (received, error) {
	if int64(len(data)) > c.config.Response {
		return received{}, wsdl.Faultf(wsdl.FaultCodeTooLarge, "%s of %s answered with more than %d bytes", operation, url, c.config.Response)
	}
	media, _, _ := mediaType(header.Get("Content-Type"))
	return received{status: status, media: media, node: header.Get("X-Request-Id") != "", data: data}, nil
}

// broken makes the error of a call that got no answer.
func (c *Client) broken(ctx context.Context, url, operation string, err error) error {
	var fault *wsdl.Fault
	var timeout net.Error
	switch {
	case errors.As(err, &fault):
		return err
	case errors.Is(ctx.Err(), context.Canceled):
		return fmt.Errorf("%s of %s: %w", operation, url, context.Canceled)
	case ctx.Err() != nil, errors.As(err, &timeout) && timeout.Timeout():
		fault = wsdl.Faultf(wsdl.FaultCodeTimeout, "%s of %s did not answer in time", operation, url)
		return &callError{fault, errors.Join(err, context.DeadlineExceeded)}
	}
	fault = wsdl.Faultf(wsdl.FaultCodeUnavailable, "%s of %s cannot be called: %s", operation, url, line([]byte(rootOf(err).Error()), 200))
	return &callError{fault, err}
}

// rootOf drops what package net says about addresses, which are told already.
func rootOf(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}

// odd makes the error of an answer that is not SOAP: a Server's refusal, or
// from something that is none.
func (c *Client) odd(url, operation string, got received) error {
	code := wsdl.FaultCodeUnavailable
	switch got.status {
	case http.StatusRequestEntityTooLarge:
		code = wsdl.FaultCodeTooLarge
	case http.StatusRequestTimeout, http.StatusGatewayTimeout:
		code = wsdl.FaultCodeTimeout
	case http.StatusServiceUnavailable, http.StatusTooManyRequests:
		code = wsdl.FaultCodeBusy
	case http.StatusUnauthorized:
		code = wsdl.FaultCodeUnauthenticated
	case http.StatusForbidden:
		code = wsdl.FaultCodeForbidden
	}
	if got.node && got.media == "text/plain" {
		switch got.status {
		case http.StatusNotFound:
			code = wsdl.FaultCodeNotFound
		case http.StatusUnsupportedMediaType, http.StatusBadRequest:
			code = wsdl.FaultCodeInvalidRequest
		case http.StatusInternalServerError:
			code = wsdl.FaultCodeInternal
		}
		return wsdl.Faultf(code, "%s of %s answered with HTTP status %d: %s", operation, url, got.status, line(got.data, 200))
	}
	media := line([]byte(got.media), 80)
	if media == "" {
		media = "no content type"
	}
	said := line(got.data, 80)
	if said == "" {
		said = "nothing readable"
	}
	return wsdl.Faultf(code, "%s of %s was not answered by a SOAP server: HTTP status %d, %s: %s", operation, url, got.status, media, said)
}

// line makes one line of what somebody else wrote: its first printable
// characters, limit at most, with a space for each run of others.
func line(data []byte, limit int) string {
	var b strings.Builder
	n, gap := 0, false
	for len(data) > 0 && n < limit {
		r, size := utf8.DecodeRune(data)
		data = data[size:]
		if r == utf8.RuneError || r == ' ' || !unicode.IsPrint(r) {
			gap = n > 0
			continue
		}
		if gap {
			b.WriteByte(' ')
			n++
			gap = false
		}
		b.WriteRune(r)
		n++
	}
	return b.String()
}

func (c *Client) nonsense(url, operation, why string) error {
	return wsdl.Faultf(wsdl.FaultCodeInternal, "the answer to %s of %s cannot be understood: %s", operation, url, why)
}

// errNoEnvelope: an answer that says it is XML and is not of SOAP.
var errNoEnvelope = errors.New("the answer is no SOAP envelope")

// answer decodes an envelope into response, or returns the fault in it.
func (c *Client) answer(operation string, data []byte, response any) error {
	scanner := take[wsdl.Scanner](&c.scanners)
	defer keep(&c.scanners, scanner)
	if _, ok := scanMessage(scanner, data, wsdl.Limits{}); ok {
		_, local := scanner.Name()
		if name, ok := strings.CutSuffix(string(local), "Response"); ok && name == operation && scanner.Decode(response) && scanEnd(scanner) {
			return nil
		}
		reflect.ValueOf(response).Elem().SetZero() // what was read of it
	}
	m, err := openMessage(data, wsdl.Limits{}, version{})
	switch {
	case err != nil && m.version == version{}:
		return errNoEnvelope
	case err != nil:
		return plain(err)
	}
	if m.body.Name == (xml.Name{Space: m.version.namespace, Local: "Fault"}) {
		return m.fault()
	}
	if want := (xml.Name{Space: wsdl.Namespace, Local: operation + "Response"}); m.body.Name != want {
		return fmt.Errorf("its body is {%s}%s", m.body.Name.Space, m.body.Name.Local)
	}
	checker := wsdl.NewChecker(m.document, m.body, operation+"Response")
	if err := checker.Decode(response); err != nil {
		return plain(err)
	}
	if err := m.close(); err != nil {
		return plain(err)
	}
	if problems := checker.Problems(); c.config.Strict && len(problems) > 0 {
		return fmt.Errorf("%s (and %d more)", problems[0].Message, len(problems)-1)
	}
	return nil
}

// plain keeps a Fault that says that an answer is malformed from passing for
// one that the server sent.
func plain(err error) error { return errors.New(err.Error()) }

// faultBody is a Fault of either version.
type faultBody struct {
	Code11   string `xml:"faultcode"`
	String11 string `xml:"faultstring"`
	Detail11 struct {
		Fault *wsdl.GridFault `xml:"urn:mvm:1 GridFault"`
	} `xml:"detail"`
	Code12 struct {
		Value string `xml:"Value"`
	} `xml:"Code"`
	Reason12 struct {
		Text string `xml:"Text"`
	} `xml:"Reason"`
	Detail12 struct {
		Fault *wsdl.GridFault `xml:"urn:mvm:1 GridFault"`
	} `xml:"Detail"`
}

// fault decodes the fault in the body. One without our detail gets a code by
// its class.
func (m *message) fault() error {
	var body faultBody
	if err := xml.NewTokenDecoder(&element{&m.body, m.document}).Decode(&body); err != nil {
		return plain(err)
	}
	for _, f := range []*wsdl.GridFault{body.Detail11.Fault, body.Detail12.Fault} {
		if f != nil && f.Code != nil {
			return f
		}
	}
	class := body.Code11 + body.Code12.Value
	class = class[strings.IndexByte(class, ':')+1:]
	code := wsdl.FaultCodeInternal
	switch class {
	case "Client", "Sender", "MustUnderstand", "VersionMismatch":
		code = wsdl.FaultCodeInvalidRequest
	}
	return wsdl.NewFault(code, line([]byte(body.String11+body.Reason12.Text), 300), "")
}
