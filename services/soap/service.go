package soap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"sync"

	"mvm/wsdl"
)

// service is a contract that is being served.
type service struct {
	contract   wsdl.Contract
	operations map[string]*operation
	document   []byte // the WSDL, with locations still to fill in
}

// operation is one of a service.
type operation struct {
	*wsdl.Operation
	counts func() *counts
}

func (s *Server) newService(c wsdl.Contract) (*service, error) {
	document, err := wsdl.Documents.ReadFile(c.Name + ".wsdl")
	if err != nil {
		return nil, fmt.Errorf("contract %q: %w", c.Name, err)
	}
	v := &service{contract: c, operations: map[string]*operation{}, document: document}
	for i := range c.Operations {
		name := c.Operations[i].Name
		v.operations[name] = &operation{&c.Operations[i], sync.OnceValue(func() *counts { return s.metrics.of(c.Name, name) })}
	}
	return v, nil
}

func (v *service) names() string {
	names := make([]string, len(v.contract.Operations))
	for i, o := range v.contract.Operations {
		names[i] = o.Name
	}
	return strings.Join(names, ", ")
}

func (s *Server) serveService(w http.ResponseWriter, r *http.Request) {
	x := exchangeOf(r.Context())
	v := s.services[x.service]
	switch {
	case v == nil:
		refuse(w, http.StatusNotFound, "there is no such service; /services lists those that are here")
	case r.Method == http.MethodPost:
		x.operation = "unknown"
		s.call(w, r, x, v)
	case r.Method == http.MethodGet || r.Method == http.MethodHead:
		s.describe(w, r, v)
	default:
		w.Header().Set("Allow", "GET, HEAD, POST")
		refuse(w, http.StatusMethodNotAllowed, "method %s is not served; POST a SOAP envelope, or GET ?wsdl", r.Method)
	}
}

// refusal is a request that HTTP alone is enough to refuse.
type refusal struct {
	status int
	why    string
}

func (e *refusal) Error() string { return e.why }

// call answers one SOAP request.
func (s *Server) call(w http.ResponseWriter, r *http.Request, x *exchange, v *service) {
	answer := take[bytes.Buffer](&s.buffers)
	defer recycle(&s.buffers, answer)
	version, response, err := s.perform(w, r, x, v)
	var refused *refusal
	if errors.As(err, &refused) {
		w.Header().Set("Connection", "close")
		if refused.status == http.StatusServiceUnavailable {
			w.Header().Set("Retry-After", "2")
		}
		refuse(w, refused.status, "%s", refused.why)
		return
	}
	status, media := x.settle(answer, version, response, err)
	header := w.Header()
	header["Content-Type"] = []string{media}
	header["Content-Length"] = []string{strconv.Itoa(answer.Len())}
	w.WriteHeader(status)
	_, _ = w.Write(answer.Bytes()) // a caller that went away is no error of ours
}

// settle writes the envelope of an answer, or of the fault in its place, behind
// what answer has.
func (x *exchange) settle(answer *bytes.Buffer, version version, response any, err error) (status int, media string) {
	before := answer.Len()
	x.code = "ok"
	if err == nil {
		if err = writeEnvelope(answer, version, response); err == nil {
			return http.StatusOK, version.mediaType()
		}
	}
	f := failureOf(x, err)
	if f.fault.RequestId == "" {
		f.fault.RequestId = x.id
	}
	x.code, x.message = string(*f.fault.Code), f.fault.Message
	answer.Truncate(before)
	if status, err = f.write(answer, version); err != nil {
		answer.Truncate(before)
		return x.broken(answer, "the fault cannot be written: "+err.Error())
	}
	return status, version.mediaType()
}

// broken answers in plain text where there cannot even be a fault.
func (x *exchange) broken(answer *bytes.Buffer, why string) (status int, media string) {
	x.code = string(wsdl.FaultCodeInternal)
	answer.WriteString(why + "\n")
	return http.StatusInternalServerError, "text/plain; charset=utf-8"
}

// fell makes an error of a panic. It is deferred around what carries out calls.
func (x *exchange) fell(err *error) {
	if p := recover(); p != nil {
		x.panicked(p)
		*err = wsdl.NewFault(wsdl.FaultCodeInternal, x.operation+" failed inside the node", "its log says more under request id "+x.id)
	}
}

// perform reads, judges and carries out a call. The version is right as far
// as it could be found out, also when there is an error; a panic is one.
func (s *Server) perform(w http.ResponseWriter, r *http.Request, x *exchange, v *service) (version version, response any, err error) {
	defer x.fell(&err)
	if version, err = versionOf(r); err != nil {
		return version, nil, err
	}
	ctx, operation, version, request, err := s.read(w, r, x, v, version)
	if err != nil {
		return version, nil, err
	}
	response, err = operation.Call(ctx, request)
	return version, response, err
}

// versionOf reads the media type.
func versionOf(r *http.Request) (version, error) {
	v := soap11()
	if e := r.Header.Get("Content-Encoding"); e != "" && !strings.EqualFold(e, "identity") {
		return v, &refusal{http.StatusUnsupportedMediaType, "Content-Encoding is not served here; send the envelope as it is"}
	}
	header := r.Header.Values("Content-Type")
	if len(header) != 1 {
		return v, &refusal{http.StatusUnsupportedMediaType, "send one Content-Type: text/xml (SOAP 1.1) or application/soap+xml (SOAP 1.2), with charset=utf-8"}
	}
	return versionFor(header[0])
}

// versionFor is the version that goes with a Content-Type.
func versionFor(header string) (version, error) {
	v := soap11()
	media, charset, err := mediaType(header)
	if err != nil || media != media11 && media != media12 {
		return v, &refusal{http.StatusUnsupportedMediaType, "this Content-Type is not served; send text/xml (SOAP 1.1) or application/soap+xml (SOAP 1.2), with charset=utf-8"}
	}
	if media == media12 {
		v = soap12()
	}
	switch strings.ToLower(charset) {
	case "", "utf-8", "utf8", "us-ascii":
		return v, nil
	}
	return v, &refusal{http.StatusUnsupportedMediaType, "this charset is not served; send UTF-8"}
}

// mediaType splits a Content-Type.
func mediaType(header string) (media, charset string, err error) {
	switch header { // what most send, without mime's work
	case "text/xml; charset=utf-8", "text/xml;charset=utf-8", "text/xml;charset=UTF-8", "text/xml; charset=UTF-8":
		return media11, "utf-8", nil
	case "application/soap+xml; charset=utf-8":
		return media12, "utf-8", nil
	}
	media, parameters, err := mime.ParseMediaType(header)
	return media, parameters["charset"], err
}

// read reads the envelope and decodes the operation's element out of it.
func (s *Server) read(w http.ResponseWriter, r *http.Request, x *exchange, v *service, version version) (context.Context, *operation, version, any, error) {
	body := take[bytes.Buffer](&s.buffers)
	defer recycle(&s.buffers, body)
	held, err := s.readBody(w, r, body)
	defer held.release()
	if err != nil {
		return x, nil, version, nil, err
	}
	return s.decode(x, v, version, body.Bytes())
}

// decode decodes the operation's element out of an envelope. The Guard is asked
// as soon as the operation is known.
func (s *Server) decode(x *exchange, v *service, version version, data []byte) (ctx context.Context, _ *operation, _ version, _ any, err error) {
	ctx = x
	scanner := take[wsdl.Scanner](&s.scanners)
	defer keep(&s.scanners, scanner)
	var m *message // nil: the scanner has the body's child
	var operation *operation
	if scanned, ok := scanMessage(scanner, data, s.limits.Document); ok {
		if space, local := scanner.Name(); string(space) == wsdl.Namespace {
			operation, version = v.operations[string(local)], scanned
		}
	}
	if operation == nil {
		m, err = openMessage(data, s.limits.Document, version)
		version = m.version
		if err != nil {
			return ctx, nil, version, nil, err
		}
		name := m.body.Name
		operation = v.operations[name.Local]
		if operation == nil || name.Space != wsdl.Namespace {
			what := fmt.Sprintf("the %s service has no operation {%s}%s", v.contract.Name, name.Space, name.Local)
			return ctx, nil, version, nil, wsdl.NewFault(wsdl.FaultCodeInvalidRequest, what, fmt.Sprintf("it has, in namespace %s: %s", wsdl.Namespace, v.names()))
		}
	}
	x.operation, x.counts = operation.Name, operation.counts()
	if s.config.Guard != nil {
		var r *http.Request
		if r, err = x.asked(); err != nil {
			return ctx, nil, version, nil, err
		}
		if ctx, err = s.config.Guard.Guard(ctx, r, x.name()); err != nil {
			return ctx, nil, version, nil, err
		}
	}
	request := operation.NewRequest()
	if m == nil {
		if scanner.Decode(request) && scanEnd(scanner) {
			s.metrics.scanned.Inc()
			return ctx, operation, version, request, nil
		}
		request = operation.NewRequest()
		if m, err = openMessage(data, s.limits.Document, version); err != nil {
			return ctx, nil, version, nil, err
		}
	}
	s.metrics.checked.Inc()
	checker := wsdl.NewChecker(m.document, m.body, operation.Name)
	err = checker.Decode(request)
	problems := checker.Problems()
	if err == nil && len(problems) == 0 {
		err = m.close()
	}
	if err != nil {
		// Not readable to its end: that comes on top of what was found before.
		var f *wsdl.Fault
		if errors.As(err, &f) {
			f.Problem = append(problems, f.Problem...)
		}
		return ctx, nil, version, nil, err
	}
	if len(problems) > 0 {
		err = invalid(problems)
	}
	return ctx, operation, version, request, err
}
