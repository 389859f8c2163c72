package soap

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"io"
	"strings"

	"mvm/wsdl"
)

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

// writeEnvelope writes an envelope around what body writes.
func writeEnvelope(b *bytes.Buffer, v version, header string, body func(*bytes.Buffer) error) error {
	b.WriteString(`<?xml version="1.0" encoding="UTF-8"?>` + "\n" + `<soap:Envelope xmlns:soap="`)
	b.WriteString(v.namespace)
	b.WriteString(`">`)
	if header != "" {
		b.WriteString("<soap:Header>" + header + "</soap:Header>")
	}
	b.WriteString("<soap:Body>")
	if err := body(b); err != nil {
		return err
	}
	b.WriteString("</soap:Body></soap:Envelope>\n")
	return nil
}

// writeElement writes a generated wrapper type as its element.
func writeElement(b *bytes.Buffer, v any) error {
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
