package soap

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"io"
	"strings"
	"sync"

	"mvm/wsdl"
)

// scanMessage reads an envelope up to its body's first child as openMessage
// does, if it is one of the common kind; the child can then be decoded out of
// the scanner. False says nothing: openMessage does.
func scanMessage(s *wsdl.Scanner, data []byte, limits wsdl.Limits) (v version, ok bool) {
	if !s.Reset(data, limits) || !s.Start() {
		return v, false
	}
	space, local := s.Name()
	switch string(space) {
	case namespace11:
		v = soap11()
	case namespace12:
		v = soap12()
	}
	if string(local) != "Envelope" || v.namespace == "" || !s.Start() {
		return v, false
	}
	if is(s, v, "Header") && (!scanHeader(s, v) || !s.Start()) {
		return v, false
	}
	return v, is(s, v, "Body") && s.Start()
}

// is says whether the scanner's last start tag is of the version of SOAP.
func is(s *wsdl.Scanner, v version, name string) bool {
	space, local := s.Name()
	return string(local) == name && string(space) == v.namespace
}

// scanHeader skips header blocks that need not be understood.
func scanHeader(s *wsdl.Scanner, v version) bool {
	for {
		end, ok := s.Ends()
		if end || !ok {
			return ok
		}
		if space, _ := s.Name(); len(space) == 0 {
			return false
		}
		must, _ := s.Attribute(v.namespace, "mustUnderstand")
		switch string(must) {
		case "", "0", "false":
		default:
			return false
		}
		if !s.Skip() {
			return false
		}
	}
}

// scanEnd reads the rest of an envelope whose body's child was read.
func scanEnd(s *wsdl.Scanner) bool {
	for range 2 { // the Body, the Envelope
		if !s.End() {
			return false
		}
	}
	return s.Done()
}

// message is an envelope that is being read: the body's one child has begun.
type message struct {
	version  version
	document *wsdl.Document
	body     xml.StartElement
}

// openMessage reads an envelope up to its body's first child. Before the
// version is known, errors are in that of the media type.
func openMessage(data []byte, limits wsdl.Limits, version version) (*message, error) {
	m := &message{version: version}
	var err error
	if m.document, err = wsdl.NewDocument(data, limits); err != nil {
		return m, err
	}
	start, _, err := m.next()
	if err != nil {
		return m, err
	}
	switch {
	case start.Name.Local != "Envelope":
		return m, m.refuse("the root element is %q, not a SOAP Envelope", start.Name.Local)
	case start.Name.Space == namespace11:
		m.version = soap11()
	case start.Name.Space == namespace12:
		m.version = soap12()
	default:
		return m, &versionMismatch{start.Name.Space}
	}
	start, end, err := m.next()
	if err != nil {
		return m, err
	}
	if !end && start.Name == (xml.Name{Space: m.version.namespace, Local: "Header"}) {
		if err := m.header(); err != nil {
			return m, err
		}
		if start, end, err = m.next(); err != nil {
			return m, err
		}
	}
	if end || start.Name != (xml.Name{Space: m.version.namespace, Local: "Body"}) {
		return m, m.refuse("the envelope has no Body where one belongs")
	}
	if m.body, end, err = m.next(); err != nil {
		return m, err
	}
	if end {
		return m, m.refuse("the Body is empty; it must have one child, the operation's element")
	}
	return m, nil
}

// close reads the rest of the envelope, which must have nothing in it, after
// the body's child was read to its end.
func (m *message) close() error {
	for _, element := range []string{"Body", "Envelope"} {
		start, end, err := m.next()
		if err != nil {
			return err
		}
		if !end {
			return m.refuse("the %s has a further child %q, which does not belong there", element, start.Name.Local)
		}
	}
	if _, err := m.document.Token(); err != io.EOF {
		return err
	}
	return nil
}

func (m *message) refuse(format string, args ...any) error {
	f := wsdl.NewFault(wsdl.FaultCodeInvalidRequest, "the SOAP envelope is wrong", "")
	f.Problem = []*wsdl.Problem{{
		Line:    int32(m.document.Line()),
		Message: fmt.Sprintf("line %d: ", m.document.Line()) + fmt.Sprintf(format, args...),
	}}
	return f
}

// next returns the next start tag, or that the open element ends. White space
// is skipped, other text refused.
func (m *message) next() (start xml.StartElement, end bool, err error) {
	for {
		t, err := m.document.Token()
		if err != nil {
			return start, false, err
		}
		switch t := t.(type) {
		case xml.StartElement:
			return t, false, nil
		case xml.EndElement:
			return start, true, nil
		case xml.CharData:
			if len(bytes.TrimSpace(t)) > 0 {
				return start, false, m.refuse("text where only elements belong")
			}
		}
	}
}

// header reads the header blocks. None is understood here, so one that must be
// is refused; the others are for somebody else.
func (m *message) header() error {
	var missed []xml.Name
	for {
		block, end, err := m.next()
		if err != nil {
			return err
		}
		if end {
			break
		}
		if block.Name.Space == "" {
			return m.refuse("the header block %q is in no namespace", block.Name.Local)
		}
		must, err := m.mandatory(block)
		if err != nil {
			return err
		}
		if must {
			missed = append(missed, block.Name)
		}
		for depth := 1; depth > 0; {
			t, err := m.document.Token()
			if err != nil {
				return err
			}
			switch t.(type) {
			case xml.StartElement:
				depth++
			case xml.EndElement:
				depth--
			}
		}
	}
	if len(missed) > 0 {
		return &notUnderstood{missed}
	}
	return nil
}

// mandatory says whether a header block is meant for this node and must be
// understood.
func (m *message) mandatory(block xml.StartElement) (bool, error) {
	must, role := "", ""
	for _, a := range block.Attr {
		if a.Name.Space != m.version.namespace {
			continue
		}
		switch a.Name.Local {
		case "mustUnderstand":
			must = strings.TrimSpace(a.Value)
		case "actor", "role":
			role = strings.TrimSpace(a.Value)
		}
	}
	switch must {
	case "", "0", "false":
		return false, nil
	case "1", "true":
	default:
		return false, m.refuse("mustUnderstand is %q; it must be 1 or 0", must)
	}
	switch role {
	case "", "http://schemas.xmlsoap.org/soap/actor/next",
		namespace12 + "/role/next", namespace12 + "/role/ultimateReceiver":
		return true, nil
	}
	return false, nil
}

// openEnvelope writes what stands before the body's child, closeEnvelope what
// stands after it.
func openEnvelope(b *bytes.Buffer, v version, header string) {
	b.WriteString(`<?xml version="1.0" encoding="UTF-8"?>` + "\n" + `<soap:Envelope xmlns:soap="`)
	b.WriteString(v.namespace)
	b.WriteString(`">`)
	if header != "" {
		b.WriteString("<soap:Header>" + header + "</soap:Header>")
	}
	b.WriteString("<soap:Body>")
}

func closeEnvelope(b *bytes.Buffer) { b.WriteString("</soap:Body></soap:Envelope>\n") }

// writeEnvelope writes an envelope around a generated wrapper type.
func writeEnvelope(b *bytes.Buffer, v version, body any) error {
	openEnvelope(b, v, "")
	if err := writeElement(b, body); err != nil {
		return err
	}
	closeEnvelope(b)
	return nil
}

// writeElement writes a generated wrapper type as its element.
func writeElement(b *bytes.Buffer, v any) error {
	if written, ok := wsdl.Append(b.AvailableBuffer(), v); ok {
		b.Write(written)
		return nil
	}
	before := b.Len()
	if err := xml.NewEncoder(b).Encode(v); err != nil {
		return fmt.Errorf("encode %T: %w", v, err)
	}
	if b.Len() == before {
		return fmt.Errorf("encode %T: there is nothing in it", v)
	}
	return nil
}

// element hands out one element whose start tag was already read, with all
// that is in it.
type element struct {
	start    *xml.StartElement
	document *wsdl.Document
}

func (e *element) Token() (xml.Token, error) {
	if e.start != nil {
		t := *e.start
		e.start = nil
		return t, nil
	}
	return e.document.Token()
}

// take gets what a pool keeps, or a new one.
func take[T any](pool *sync.Pool) *T {
	if v, ok := pool.Get().(*T); ok {
		return v
	}
	return new(T)
}

// recycle keeps a buffer for the next call unless it has grown large.
func recycle(pool *sync.Pool, b *bytes.Buffer) {
	if b.Cap() <= 256<<10 {
		b.Reset()
		pool.Put(b)
	}
}

// keep keeps a scanner without its document.
func keep(pool *sync.Pool, scanner *wsdl.Scanner) {
	scanner.Forget()
	pool.Put(scanner)
}
