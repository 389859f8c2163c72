package wsdl

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Limits bound what a document may ask of whoever reads it; a zero field means
// its default.
type Limits struct {
	Depth      int // of open elements; default 64
	Attributes int // of one element; default 64
	Name       int // bytes of a name; default 256
	Tag        int // bytes of one start tag; default 64 KiB
	Elements   int // in all; default 600,000
}

func (l Limits) withDefaults() Limits {
	for _, f := range []struct {
		field *int
		value int
	}{{&l.Depth, 64}, {&l.Attributes, 64}, {&l.Name, 256}, {&l.Tag, 64 << 10}, {&l.Elements, 600_000}} {
		if *f.field <= 0 {
			*f.field = f.value
		}
	}
	return l
}

// Document reads one XML document, which is in memory, token by token, more
// strictly than encoding/xml does: one root, no DTD, UTF-8, no attribute twice,
// no prefix without a namespace, and Limits. Comments and processing
// instructions are left out. Its errors are Faults (invalidRequest or
// tooLarge) with one Problem that names the line.
type Document struct {
	data  []byte
	d     *xml.Decoder
	depth int
	done  bool
	err   error

	line       int   // where the last token begins
	start, end int64 // the last token's bytes
	scopes     []scope
}

// scope is a namespace in force: declared by the element at depth.
type scope struct {
	space string
	depth int
}

// NewDocument checks data's outer form against limits and returns its reader.
func NewDocument(data []byte, limits Limits) (*Document, error) {
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	if len(data) >= 2 && (data[0] == 0xfe && data[1] == 0xff || data[0] == 0xff && data[1] == 0xfe || data[0] == 0 || data[1] == 0) {
		return nil, documentFault(FaultCodeInvalidRequest, 1, "the document is not in UTF-8 but looks like UTF-16 or UTF-32; send UTF-8")
	}
	if !utf8.Valid(data) {
		at := 0
		for at < len(data) {
			r, n := utf8.DecodeRune(data[at:])
			if r == utf8.RuneError && n == 1 {
				break
			}
			at += n
		}
		return nil, documentFault(FaultCodeInvalidRequest, 1+bytes.Count(data[:at], []byte("\n")),
			"byte 0x%02x is not UTF-8; send an XML document in UTF-8", data[at])
	}
	if err := scan(data, limits.withDefaults()); err != nil {
		return nil, err
	}
	d := xml.NewDecoder(bytes.NewReader(data))
	return &Document{data: data, d: d, line: 1}, nil
}

func documentFault(code FaultCode, line int, format string, args ...any) *Fault {
	message := fmt.Sprintf("line %d: ", line) + fmt.Sprintf(format, args...)
	f := NewFault(code, "the XML document cannot be read", "")
	f.Problem = []*Problem{{Line: int32(line), Message: message}}
	return f
}

// Line returns the line on which the last token begins, from 1.
func (d *Document) Line() int { return d.line }

// Token returns the next start tag, end tag or text, with namespaces resolved.
// Text is good until the next call. After the root's end it returns io.EOF.
func (d *Document) Token() (xml.Token, error) {
	if d.err != nil {
		return nil, d.err
	}
	t, err := d.token()
	if err != nil {
		d.err = err
	}
	return t, err
}

func (d *Document) token() (xml.Token, error) {
	for {
		d.line, _ = d.d.InputPos()
		d.start = d.d.InputOffset()
		t, err := d.d.Token()
		d.end = d.d.InputOffset()
		if err == io.EOF {
			if !d.done {
				return nil, d.fault("the document ends before its root element does")
			}
			return nil, io.EOF
		}
		if err != nil {
			if s, ok := err.(*xml.SyntaxError); ok {
				d.line = s.Line
				return nil, d.fault("%s", s.Msg)
			}
			if strings.Contains(err.Error(), "CharsetReader") {
				return nil, d.fault("the XML declaration names an encoding other than UTF-8; send UTF-8")
			}
			return nil, d.fault("%s", strings.TrimPrefix(err.Error(), "xml: "))
		}
		switch t := t.(type) {
		case xml.StartElement:
			if d.done {
				return nil, d.fault("a second root element %q: a document has one", t.Name.Local)
			}
			d.depth++
			return t, d.open(t)
		case xml.EndElement:
			for n := len(d.scopes); n > 0 && d.scopes[n-1].depth == d.depth; n-- {
				d.scopes = d.scopes[:n-1]
			}
			d.depth--
			d.done = d.depth == 0
			return t, nil
		case xml.CharData:
			if d.depth == 0 {
				if len(bytes.TrimSpace(t)) > 0 {
					return nil, d.fault("text outside the root element")
				}
				continue
			}
			return t, nil
		case xml.ProcInst:
			if strings.EqualFold(t.Target, "xml") && d.start != 0 {
				return nil, d.fault("an XML declaration that is not at the beginning: is this more than one document?")
			}
		case xml.Directive:
			return nil, d.fault("document type declarations are refused")
		}
	}
}

func (d *Document) fault(format string, args ...any) error {
	return documentFault(FaultCodeInvalidRequest, d.line, format, args...)
}

// open checks a start tag's attributes and prefixes.
func (d *Document) open(t xml.StartElement) error {
	for i, a := range t.Attr {
		prefix := ""
		switch {
		case a.Name.Space == "xmlns":
			prefix = a.Name.Local
			if a.Value == "" {
				return d.fault("the prefix %q is given no namespace", prefix)
			}
		case a.Name.Space == "" && a.Name.Local == "xmlns":
		default:
			for _, b := range t.Attr[:i] {
				if a.Name == b.Name {
					return d.fault("the attribute %q is given twice", a.Name.Local)
				}
			}
			continue
		}
		for _, b := range t.Attr[:i] {
			if a.Name == b.Name {
				return d.fault("the namespace of prefix %q is declared twice", prefix)
			}
		}
		if a.Value != "" {
			d.scopes = append(d.scopes, scope{a.Value, d.depth})
		}
	}
	if err := d.known(t.Name); err != nil {
		return err
	}
	for _, a := range t.Attr {
		if a.Name.Space != "xmlns" && a.Name.Space != "" {
			if err := d.known(a.Name); err != nil {
				return err
			}
		}
	}
	return nil
}

// known refuses a prefix without a declaration, which encoding/xml hands out
// as if it were the namespace.
func (d *Document) known(name xml.Name) error {
	if name.Space == "" || name.Space == "http://www.w3.org/XML/1998/namespace" {
		return nil
	}
	for i := len(d.scopes) - 1; i >= 0; i-- {
		if d.scopes[i].space == name.Space {
			return nil
		}
	}
	return d.fault("the prefix of %s:%s has no namespace declaration", name.Space, name.Local)
}

// attributeLine returns the line on which the last start tag writes the
// attribute with this local name.
func (d *Document) attributeLine(local string) int {
	tag := d.data[d.start:d.end]
	for at := 0; ; {
		i := bytes.Index(tag[at:], []byte(local))
		if i < 0 {
			return d.line
		}
		i += at
		rest := bytes.TrimLeft(tag[i+len(local):], " \t\r\n")
		if i > 0 && strings.IndexByte(" \t\r\n:", tag[i-1]) >= 0 && len(rest) > 0 && rest[0] == '=' {
			return d.line + bytes.Count(tag[:i], []byte("\n"))
		}
		at = i + 1
	}
}

// scan walks over data's markup without building anything, so that a hostile
// document is refused before it costs memory.
func scan(data []byte, limits Limits) error {
	line, counted := 1, 0
	at := func(i int) int {
		line += bytes.Count(data[counted:i], []byte("\n"))
		counted = i
		return line
	}
	depth, elements := 0, 0
	for i := 0; ; {
		next := bytes.IndexByte(data[i:], '<')
		if next < 0 {
			next = len(data) - i
		}
		if forged := surrogate(data[i : i+next]); forged >= 0 {
			return documentFault(FaultCodeInvalidRequest, at(i+forged), "a reference to a surrogate, which is no character")
		}
		if i += next; i == len(data) {
			return nil
		}
		rest := data[i:]
		switch {
		case bytes.HasPrefix(rest, []byte("<!--")):
			i += skipTo(rest, "-->")
		case bytes.HasPrefix(rest, []byte("<![CDATA[")):
			i += skipTo(rest, "]]>")
		case bytes.HasPrefix(rest, []byte("<?")):
			i += skipTo(rest, "?>")
		case bytes.HasPrefix(rest, []byte("<!")):
			return documentFault(FaultCodeInvalidRequest, at(i), "document type declarations are refused")
		case bytes.HasPrefix(rest, []byte("</")):
			depth--
			i += skipTo(rest, ">")
		default:
			n, empty, attributes, why := scanTag(rest, limits)
			if why == "" && n < len(rest) && strings.IndexByte("\"'", rest[n-1]) >= 0 {
				return documentFault(FaultCodeInvalidRequest, at(i+n), "no white space before an attribute")
			}
			if why == "" && attributes > limits.Attributes {
				why = fmt.Sprintf("an element with more than %d attributes", limits.Attributes)
			}
			if elements++; elements > limits.Elements {
				why = fmt.Sprintf("more than %d elements", limits.Elements)
			}
			if !empty {
				depth++
			}
			if depth > limits.Depth {
				why = fmt.Sprintf("elements nested more than %d deep", limits.Depth)
			}
			if why != "" {
				return documentFault(FaultCodeTooLarge, at(i), "%s", why)
			}
			if forged := surrogate(rest[:n]); forged >= 0 {
				return documentFault(FaultCodeInvalidRequest, at(i+forged), "a reference to a surrogate, which is no character")
			}
			i += n
		}
	}
}

// surrogate returns the index of a reference to U+D800 to U+DFFF in text, or -1:
// encoding/xml takes it for U+FFFD.
func surrogate(text []byte) int {
	for at := 0; ; {
		i := bytes.Index(text[at:], []byte("&#"))
		if i < 0 {
			return -1
		}
		at += i
		name, _, ok := bytes.Cut(text[at+2:min(len(text), at+64)], []byte(";"))
		base := 10
		if len(name) > 0 && name[0] == 'x' {
			name, base = name[1:], 16
		}
		if n, err := strconv.ParseUint(string(name), base, 32); ok && err == nil && n >= 0xd800 && n < 0xe000 {
			return at
		}
		at += 2
	}
}

// skipTo returns the index after the first end in rest, or rest's length.
func skipTo(rest []byte, end string) int {
	if i := bytes.Index(rest, []byte(end)); i >= 0 {
		return i + len(end)
	}
	return len(rest)
}

// scanTag measures the start tag at the beginning of tag, up to an attribute
// that stands right behind another one's quote, where there is one. What else
// is malformed is left for the decoder to say.
func scanTag(tag []byte, limits Limits) (n int, empty bool, attributes int, why string) {
	name := 0
	for n = 1; n < len(tag); n++ {
		if n > limits.Tag {
			return n, false, attributes, fmt.Sprintf("a start tag of more than %d bytes", limits.Tag)
		}
		switch c := tag[n]; c {
		case '>':
			return n + 1, tag[n-1] == '/', attributes, ""
		case '"', '\'':
			end := bytes.IndexByte(tag[n+1:], c)
			if end < 0 {
				return len(tag), false, attributes, ""
			}
			attributes++
			n += end + 1
			name = 0
			if n+1 < len(tag) && strings.IndexByte(" \t\r\n/>", tag[n+1]) < 0 {
				return n + 1, false, attributes, "" // encoding/xml would take it
			}
		case ' ', '\t', '\r', '\n', '=':
			name = 0
		default:
			if name++; name > limits.Name {
				return n, false, attributes, fmt.Sprintf("a name of more than %d bytes", limits.Name)
			}
		}
	}
	return n, false, attributes, ""
}
