package wsdl

import (
	"bytes"
	"encoding/base64"
	"encoding/xml"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/hooklift/gowsdl/soap"
)

// The codec reads and writes the generated types some twenty times faster than
// encoding/xml, and no differently. What there is, in which order and how often,
// it takes from the schema's tables; codec_gen.go only says where in a type a
// field is. It makes no errors: where it does not know what to do it says so,
// and a Checker or encoding/xml does it.

// codec reads or writes a value.
type codec struct {
	from *Scanner    // nil: it writes
	typ  *schemaType // of the field at hand

	value []byte // reading: text or attribute, without white space that its type does not count

	to        []byte // writing
	element   string // the name of the field at hand, or
	attribute string // its name as an attribute
	keep      bool   // whether it is written although it is empty
	odd       bool   // something came that only encoding/xml can write
}

// visitor is a generated type.
type visitor interface {
	// visit reads or writes a field: the number is that of the type's
	// elements, then of its attributes.
	visit(c *codec, field int) bool
}

// message is a generated type of a global element, which may be part of
// another, too.
type message interface {
	visitor
	// root returns the element's name and where the value has it; "" for a
	// nil pointer.
	root() (string, *xml.Name)
}

// Decode reads the element that s has just begun, which must be a global
// element of our namespace, to its end into into, a pointer to its generated
// type, and checks it against the schema. False: ask a Checker; into is then
// incomplete.
func (s *Scanner) Decode(into any) bool {
	m, ok := into.(message)
	if !ok {
		return false
	}
	root, name := m.root()
	typ, ok := schemaRoot(root)
	if !ok || string(s.local) != root || string(s.space) != Namespace {
		return false
	}
	*name = xml.Name{Space: Namespace, Local: root}
	c := &s.codec
	c.from, c.typ = s, &schemaTypes[typ]
	return c.read(m, c.typ.mayBeEmpty())
}

// Append appends a message, a pointer to the generated type of a global
// element, to the byte as encoding/xml writes it. False: encoding/xml must do
// it, and to is as it was.
func Append(to []byte, v any) ([]byte, bool) {
	m, ok := v.(message)
	if !ok {
		return to, false
	}
	root, _ := m.root()
	typ, ok := schemaRoot(root)
	if !ok {
		return to, false
	}
	c := codec{to: to, typ: &schemaTypes[typ], element: root}
	c.write(m, Namespace)
	if c.odd {
		return to, false
	}
	return c.to, true
}

// The forms that a field has.

func one[T comparable](c *codec, field *T, leaf func(*codec, *T) bool) bool {
	var zero T
	if c.from == nil && !c.keep && *field == zero {
		return true
	}
	return leaf(c, field)
}

func optional[T any](c *codec, field **T, leaf func(*codec, *T) bool) bool {
	if c.from == nil {
		return *field == nil || leaf(c, *field)
	}
	*field = new(T)
	return leaf(c, *field)
}

func list[T any](c *codec, field *[]*T, leaf func(*codec, *T) bool) bool {
	if c.from != nil {
		v := new(T)
		*field = append(*field, v)
		return leaf(c, v)
	}
	for _, v := range *field {
		if v != nil {
			leaf(c, v)
		}
	}
	return true
}

func texts(c *codec, field *[]string, leaf func(*codec, *string) bool) bool {
	if c.from != nil {
		*field = append(*field, "")
		return leaf(c, &(*field)[len(*field)-1])
	}
	for i := range *field {
		leaf(c, &(*field)[i])
	}
	return true
}

// The kinds of values. Reading, each takes what schemaType.judge does, or less.

func text[T ~string](c *codec, field *T) bool {
	if c.from == nil {
		c.begin()
		c.escape(string(*field))
		c.end()
		return true
	}
	for _, v := range c.typ.values {
		if v == string(c.value) {
			*field = T(v)
			return true
		}
	}
	if len(c.typ.values) > 0 || c.typ.pattern > 0 && !schemaPatterns[c.typ.pattern-1]().Match(c.value) {
		return false
	}
	*field = T(c.value)
	return true
}

func number[T int32 | int64](c *codec, field *T) bool {
	if c.from == nil {
		c.begin()
		c.to = strconv.AppendInt(c.to, int64(*field), 10)
		c.end()
		return true
	}
	digits, negative := bytes.CutPrefix(c.value, []byte("-"))
	if len(digits) == 0 || len(digits) > 18 {
		return false
	}
	var n int64
	for _, d := range digits {
		if d < '0' || d > '9' {
			return false
		}
		n = n*10 + int64(d-'0')
	}
	if negative {
		n = -n
	}
	*field = T(n)
	return int64(*field) == n
}

func boolean(c *codec, field *bool) bool {
	if c.from == nil {
		c.begin()
		c.to = strconv.AppendBool(c.to, *field)
		c.end()
		return true
	}
	switch string(c.value) {
	case "true", "1":
		*field = true
	case "false", "0":
		*field = false
	default:
		return false
	}
	return true
}

func date(c *codec, field *soap.XSDDateTime) bool {
	if c.from == nil {
		t := field.ToGoTime()
		switch {
		case *field != soap.CreateXsdDateTime(t, true):
			c.odd = true // without a zone, which gowsdl tells nobody
		case !t.IsZero():
			c.begin()
			c.to = t.AppendFormat(c.to, time.RFC3339Nano)
			c.end()
		}
		return true
	}
	value := string(c.value)
	if !dateTime(value) || !strings.ContainsAny(value[19:], "Z+-") {
		return false
	}
	t, err := time.Parse(time.RFC3339Nano, value)
	if value == "0001-01-01T00:00:00Z" {
		t = time.Time{}
	}
	*field = soap.CreateXsdDateTime(t, true)
	return err == nil
}

func binary(c *codec, field *Binary) bool {
	if c.from == nil {
		c.begin()
		c.to = base64.StdEncoding.AppendEncode(c.to, *field)
		c.end()
		return true
	}
	data := make([]byte, base64.StdEncoding.DecodedLen(len(c.value)))
	n, err := base64.StdEncoding.Strict().Decode(data, c.value)
	*field = data[:n]
	return err == nil
}

func record[T any, V interface {
	*T
	visitor
}](c *codec, field *T) bool {
	if c.from != nil {
		return c.read(V(field), false)
	}
	c.write(V(field), "")
	return true
}

// rooted is record for types that know their element's name, which encoding/xml
// writes with its namespace.
func rooted[T any, V interface {
	*T
	message
}](c *codec, field *T) bool {
	if c.from == nil {
		c.write(V(field), Namespace)
		return true
	}
	root, name := V(field).root()
	*name = xml.Name{Space: Namespace, Local: root}
	return c.read(V(field), false)
}

// write writes a value of c.typ as c.element.
func (c *codec) write(v visitor, namespace string) {
	typ, element, keep := c.typ, c.element, c.keep
	c.to = append(append(c.to, '<'), element...)
	if namespace != "" {
		c.to = append(append(append(c.to, ` xmlns="`...), namespace...), '"')
	}
	for i := range typ.attributes {
		a := &typ.attributes[i]
		c.attribute, c.keep = a.name, a.required
		c.typ = &schemaTypes[a.typ]
		v.visit(c, len(typ.elements)+i)
	}
	c.attribute = ""
	c.to = append(c.to, '>')
	for i := range typ.elements {
		e := &typ.elements[i]
		c.typ, c.element, c.keep = &schemaTypes[e.typ], e.name, e.min > 0 && !e.nillable
		v.visit(c, i)
	}
	c.typ, c.element, c.keep = typ, element, keep
	c.end()
}

// begin and end write what stands around a simple value, and end what stands
// after any element.
func (c *codec) begin() {
	if c.attribute != "" {
		c.to = append(append(append(c.to, ' '), c.attribute...), `="`...)
		return
	}
	c.to = append(append(append(c.to, '<'), c.element...), '>')
}

func (c *codec) end() {
	if c.attribute != "" {
		c.to = append(c.to, '"')
		return
	}
	c.to = append(append(append(c.to, "</"...), c.element...), '>')
}

// escape writes text with the references that encoding/xml uses.
func (c *codec) escape(s string) {
	from := 0
	for i := 0; i < len(s); {
		b := s[i]
		if b >= ' ' && b < utf8.RuneSelf && b != '&' && b != '<' && b != '>' && b != '"' && b != '\'' {
			i++
			continue
		}
		n, with := 1, ""
		switch b {
		case '&':
			with = "&amp;"
		case '<':
			with = "&lt;"
		case '>':
			with = "&gt;"
		case '"':
			with = "&#34;"
		case '\'':
			with = "&#39;"
		case '\t':
			with = "&#x9;"
		case '\n':
			with = "&#xA;"
		case '\r':
			with = "&#xD;"
		default:
			var r rune
			r, n = utf8.DecodeRuneInString(s[i:])
			if b < ' ' || r == utf8.RuneError && n == 1 || r == 0xfffe || r == 0xffff {
				with = "\ufffd"
			}
		}
		if with != "" {
			c.to = append(append(c.to, s[from:i]...), with...)
			from = i + n
		}
		i += n
	}
	c.to = append(c.to, s[from:]...)
}

// read reads an element of c.typ, whose start tag was read last, to its end.
func (c *codec) read(v visitor, nillable bool) bool {
	s, typ := c.from, c.typ
	if nilled, ok := c.attributes(v, typ, nillable); nilled || !ok {
		return nilled && ok && c.nothing()
	}
	at, count := 0, 0 // in typ.elements, and how many of it there were
	for {
		switch s.next() {
		case tokenOdd:
			return false
		case tokenEnd:
			for ; at < len(typ.elements); at++ {
				if count < typ.elements[at].min {
					return false
				}
				count = 0
			}
			return true
		}
		if string(s.space) != Namespace {
			return false
		}
		for {
			if at == len(typ.elements) {
				return false
			}
			if typ.elements[at].name == string(s.local) {
				break
			}
			if count < typ.elements[at].min {
				return false
			}
			at++
			count = 0
		}
		e := &typ.elements[at]
		if count++; e.max >= 0 && count > e.max || !c.child(v, at, e) {
			return false
		}
	}
}

// child reads the element whose start tag was read last into v's field.
func (c *codec) child(v visitor, field int, e *schemaElement) bool {
	s, typ := c.from, &schemaTypes[e.typ]
	c.typ = typ
	if typ.kind == kindComplex {
		return v.visit(c, field)
	}
	nilled, ok := c.attributes(nil, typ, e.nillable)
	if !ok {
		return false
	}
	if nilled {
		return c.nothing()
	}
	if c.value, ok = s.content(); !ok {
		return false
	}
	if typ.kind != kindString {
		c.value = trim(typ.kind, c.value)
	}
	return v.visit(c, field)
}

// nothing reads the open element's end where not even white space is before it.
func (c *codec) nothing() bool {
	s := c.from
	return (s.empty || bytes.HasPrefix(s.data[s.at:], []byte("</"))) && s.next() == tokenEnd
}

// trim is collapse for text that is not to be written to.
func trim(k kind, text []byte) []byte {
	n := len(text)
	switch {
	case k == kindBase64 && bytes.ContainsAny(text, " \t\r\n"):
		text = bytes.Clone(text)
	case k != kindBase64 && n > 0 && !white(text[0]) && !white(text[n-1]):
		return text
	}
	return collapse(k, text)
}

// attributes reads those of the start tag read last, of an element of type
// typ, into v, which may be nil where it has none.
func (c *codec) attributes(v visitor, typ *schemaType, nillable bool) (nilled, ok bool) {
	var seen uint64
	for i := range c.from.attributes {
		a := &c.from.attributes[i]
		switch string(a.space) {
		case "":
			j := -1
			for k := range typ.attributes {
				if typ.attributes[k].name == string(a.local) {
					j = k
				}
			}
			if j < 0 {
				return false, false
			}
			seen |= 1 << j
			c.typ, c.value = &schemaTypes[typ.attributes[j].typ], a.value
			if !v.visit(c, len(typ.elements)+j) {
				return false, false
			}
		case instanceNamespace:
			switch string(a.local) {
			case "nil":
				if !nillable || !boolean(&codec{from: c.from, value: a.value}, &nilled) {
					return false, false
				}
			case "type":
				local := bytes.Trim(a.value, " \t\r\n")
				if string(local[bytes.IndexByte(local, ':')+1:]) != typ.name {
					return false, false
				}
			case "schemaLocation", "noNamespaceSchemaLocation":
			default:
				return false, false
			}
		default:
			return false, false
		}
	}
	for j := range typ.attributes {
		if typ.attributes[j].required && seen&(1<<j) == 0 {
			return false, false
		}
	}
	return nilled, true
}
