// Package soap is the transport of the grid: it serves contracts of package
// wsdl over HTTP in SOAP 1.1 and 1.2, and calls them.
//
// What always holds in it: a request is dispatched on its body's name, is
// checked against the schema whole before anything of it is used, and is
// answered in the version of SOAP it came in; whatever goes wrong, the caller
// gets a wsdl.Fault with a code; exactly one function makes SOAP faults out of
// errors; every exchange has a request id, one line in the log and its place in
// the metrics. The package must not know what an operation means, who may call
// it (that is the Guard's), or import another room than wsdl.
//
// What a call of 1 KB costs here, by profiles: half is the kernel's (a wait, a
// read, the answer, the line in the log), a third reading and writing the
// message (wsdl.Scanner, wsdl.Append; with encoding/xml it was four times all the
// rest). So nothing on the way of a call may build a map, match a regular
// expression, look up a metric by its labels, start a timer or a goroutine, set a
// deadline, or format an error that nobody gets: each of these was there once
// and cost more than the message did. Under net/http, which does most of them,
// the same call costs twice as much; so plain calls do not get there (conversation).
package soap

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"math/rand/v2"
	"net/http"

	"mvm/wsdl"
)

// Guard decides who may call what. operation is "broker/SubmitJob" for a SOAP
// call, whose body is then read but not yet judged, and "GET /services/{service}"
// (method and route) for everything else. The context it returns, made from ctx,
// is the call's; an error, best a Fault with code unauthenticated or forbidden,
// refuses it. It is called concurrently.
type Guard interface {
	Guard(ctx context.Context, r *http.Request, operation string) (context.Context, error)
}

// version is a version of SOAP: its namespaces and what it says on HTTP.
type version struct {
	number    string
	namespace string
	media     string
}

const (
	namespace11 = "http://schemas.xmlsoap.org/soap/envelope/"
	namespace12 = "http://www.w3.org/2003/05/soap-envelope"
	media11     = "text/xml"
	media12     = "application/soap+xml"
)

func soap11() version { return version{"1.1", namespace11, media11} }
func soap12() version { return version{"1.2", namespace12, media12} }

// mediaType is the Content-Type of an answer.
func (v version) mediaType() string {
	if v.namespace == namespace12 {
		return media12 + "; charset=utf-8"
	}
	return media11 + "; charset=utf-8"
}

type requestIDKey struct{}

// WithRequestID returns a context whose calls carry the request id.
func WithRequestID(ctx context.Context, id string) context.Context {
	return context.WithValue(ctx, requestIDKey{}, id)
}

// RequestID returns the id of the request that ctx belongs to, or "". A Client
// passes it on, so that one id follows a request through the grid.
func RequestID(ctx context.Context) string {
	id, _ := ctx.Value(requestIDKey{}).(string)
	return id
}

// newRequestID returns 16 random hexadecimal digits.
func newRequestID() string {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], rand.Uint64()) // an id is no secret
	return hex.EncodeToString(b[:])
}

// saneRequestID accepts what is safe in a log and a header.
func saneRequestID(id string) bool {
	if len(id) == 0 || len(id) > 64 {
		return false
	}
	for _, c := range []byte(id) {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_' || c == '.') {
			return false
		}
	}
	return true
}

// Elsewhere returns contract with every operation answered by a wrongNode
// fault that names address(), the service to ask instead; it may be "" while
// nobody knows.
func Elsewhere(contract wsdl.Contract, address func() string) wsdl.Contract {
	away := contract
	away.Operations = make([]wsdl.Operation, len(contract.Operations))
	for i, o := range contract.Operations {
		o.Call = func(context.Context, any) (any, error) {
			f := wsdl.NewFault(wsdl.FaultCodeWrongNode, "this node does not serve "+contract.Name, "")
			if f.Address = address(); f.Address != "" {
				f.Advice = "ask " + f.Address
			} else {
				f.Advice = "ask the bootstrap service for the right address"
			}
			return nil, f
		}
		away.Operations[i] = o
	}
	return away
}
