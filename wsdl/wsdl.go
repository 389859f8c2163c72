// Package wsdl holds the contracts of the grid: the WSDL and XSD documents,
// what is generated from them, the one fault type, and the caller's identity.
//
// Everything that crosses between nodes, and between clients and nodes, is
// declared here and nowhere else. The package must not import another room of
// the project, do I/O, or know about HTTP: it is what all rooms agree on.
package wsdl

import (
	"context"
	"embed"
	"encoding/base64"
	"fmt"
	"strings"
	"time"

	"github.com/hooklift/gowsdl/soap"
)

//go:generate go run ./gen

// Namespace is the one target namespace of every document here.
const Namespace = "urn:mvm:1"

// Documents are the published WSDLs and the schemas they include, by file name.
//
//go:embed bootstrap.wsdl broker.wsdl image.wsdl queue.wsdl information.wsdl vm.wsdl grid.xsd profile.xsd
var Documents embed.FS

// Operation is one row of a dispatch table. Request and answer are pointers to
// the generated wrapper types.
type Operation struct {
	Name       string
	Doc        string // a sentence, for people
	NewRequest func() any
	Call       func(ctx context.Context, request any) (any, error)
}

// Contract is a service as the transport serves it.
type Contract struct {
	Name        string // also the last part of its path: /services/NAME
	Description string
	Operations  []Operation
}

// Caller performs one SOAP call; the transport implements it. An error that
// the server meant for the caller is a *Fault. It may be called concurrently.
type Caller interface {
	Call(ctx context.Context, url, operation string, request, response any) error
}

// reply turns a typed nil into a plain one.
func reply[T any](response *T, err error) (any, error) {
	if err != nil {
		return nil, err
	}
	return response, nil
}

// Of returns a pointer to v, for the generated types' nillable fields.
func Of[T any](v T) *T { return &v }

// Or returns what p points to, or otherwise when it is nil.
func Or[T any](p *T, otherwise T) T {
	if p == nil {
		return otherwise
	}
	return *p
}

// Date returns t as the generated types carry it, or nil for the zero time.
func Date(t time.Time) *soap.XSDDateTime {
	if t.IsZero() {
		return nil
	}
	d := soap.CreateXsdDateTime(t.UTC(), true)
	return &d
}

// MarshalText writes base64: gowsdl's own []byte fields would be written raw.
func (b Binary) MarshalText() ([]byte, error) {
	return base64.StdEncoding.AppendEncode(nil, b), nil
}

// UnmarshalText reads base64, with or without white space in it.
func (b *Binary) UnmarshalText(text []byte) error {
	clean := strings.Map(func(r rune) rune {
		switch r {
		case ' ', '\t', '\r', '\n':
			return -1
		}
		return r
	}, string(text))
	data, err := base64.StdEncoding.DecodeString(clean)
	if err != nil {
		return fmt.Errorf("base64: %w", err)
	}
	*b = data
	return nil
}
