package wsdl

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// The kinds of content that a type has.
type kind int8

const (
	kindComplex kind = iota
	kindString
	kindBoolean
	kindInt
	kindLong
	kindDateTime
	kindBase64
)

// schemaType is one row of the generated tables. A complex type has elements,
// in this order, and attributes; a simple type has values or a pattern.
type schemaType struct {
	name       string
	kind       kind
	values     []string
	pattern    int // in schemaPatterns, from 1
	elements   []schemaElement
	attributes []schemaAttribute
}

type schemaElement struct {
	name     string
	typ      int // in schemaTypes
	min, max int // max -1: unbounded
	nillable bool
}

type schemaAttribute struct {
	name     string
	typ      int // in schemaTypes
	required bool
}

const (
	instanceNamespace = "http://www.w3.org/2001/XMLSchema-instance"

	// maxProblems is how many problems of one document are told.
	maxProblems = 100
)

// errEnough ends the reading of a document with too many problems.
var errEnough = errors.New("too many problems")

// Lines says on which line a document writes an element or attribute. Its keys
// are paths as in Problem.Element: job/task[2]/@count. An element that the
// schema lets repeat has its number among those of its name, from 1, always;
// another has none.
type Lines map[string]int

// Of returns the line of path, or of the nearest element around it that the
// document has; 0 when there is none.
func (l Lines) Of(path string) int {
	for path != "" {
		if line, ok := l[path]; ok {
			return line
		}
		path = path[:max(strings.LastIndexByte(path, '/'), 0)]
	}
	return 0
}

// Decode checks a whole document against the schema and decodes it into into,
// a pointer to the generated type, unless that is nil. root is the global
// element that the document must have as its root ("job"). All that is wrong
// is reported at once, up to 100 problems, each with its line; into is then
// incomplete. Limits are the default ones.
func Decode(document []byte, root string, into any) (Lines, []*Problem) {
	lines := Lines{}
	d, err := NewDocument(document, Limits{})
	if err != nil {
		return lines, problemsOf(err)
	}
	var start xml.StartElement
	for start.Name.Local == "" {
		t, err := d.Token()
		if err != nil {
			return lines, problemsOf(err)
		}
		start, _ = t.(xml.StartElement)
	}
	c := NewChecker(d, start, root)
	c.lines = lines
	err = c.Decode(into)
	for err == nil && c.err != errEnough {
		_, err = d.Token() // what follows the root
	}
	problems := c.Problems()
	if err != nil && err != io.EOF {
		problems = append(problems, problemsOf(err)...)
	}
	return lines, problems
}

func problemsOf(err error) []*Problem {
	if f, ok := err.(*Fault); ok && len(f.Problem) > 0 {
		return f.Problem
	}
	return []*Problem{{Message: err.Error()}}
}

// Checker reads one element of a document and judges it against the schema.
// It is an xml.TokenReader that hands out only what encoding/xml reads as the
// schema means it: elements with xsi:nil are absent, white space around
// numbers, dates and base64 is gone, unknown elements and attributes are
// problems and left out. In one thing it is kinder than the schema: a root that
// needs nothing in it may say xsi:nil, as SOAP::Lite does in every call without
// arguments.
type Checker struct {
	document *Document
	pending  xml.StartElement
	started  bool
	root     string
	space    string // the namespace to expect; another one once that was reported
	frames   []frame
	ready    [2]xml.Token // to hand out, from the last
	nready   int
	problems []*Problem
	lines    Lines // filled where it is not nil
	err      error
}

// frame is an open element.
type frame struct {
	name   string
	number int         // among its name's, from 1; 0 where it cannot repeat
	typ    *schemaType // nil: unknown, its content is not judged
	line   int
	at     int   // the furthest of typ.elements seen
	counts []int // of each of typ.elements
	text   []byte
	nilled bool
	mixed  bool // text where only elements belong was reported
}

// NewChecker returns a Checker of the element whose start tag document has
// just handed out, which must be the global element root. It reads up to that
// element's end.
func NewChecker(document *Document, start xml.StartElement, root string) *Checker {
	return &Checker{document: document, pending: start, root: root, space: Namespace}
}

// Problems returns what was wrong so far, at most 100 and a last one that says
// that no more was read.
func (c *Checker) Problems() []*Problem { return c.problems }

// Decode reads the element to its end, or to its hundredth problem, and decodes
// it into into, unless that is nil. Its error says only that the document
// cannot be read any further; what does not fit the schema is in Problems.
func (c *Checker) Decode(into any) error {
	var failed error
	if into != nil {
		failed = xml.NewTokenDecoder(c).Decode(into)
	}
	for c.err == nil {
		_, _ = c.Token()
	}
	if c.err != io.EOF && c.err != errEnough {
		return c.err
	}
	if failed != nil && len(c.problems) == 0 {
		c.problem(c.root, c.document.Line(), "", "", failed.Error())
	}
	return nil
}

// Token implements xml.TokenReader.
func (c *Checker) Token() (xml.Token, error) {
	for c.nready == 0 {
		if c.err == nil {
			if err := c.step(); c.err == nil {
				c.err = err
			}
		}
		if c.err != nil && c.nready == 0 {
			return nil, c.err
		}
	}
	c.nready--
	return c.ready[c.nready], nil
}

func (c *Checker) hand(t xml.Token) {
	c.ready[c.nready] = t
	c.nready++
}

// step judges one token of the document. It returns io.EOF after the
// element's end.
func (c *Checker) step() error {
	if !c.started {
		c.started = true
		c.begin(c.pending)
		return nil
	}
	if len(c.frames) == 0 {
		return io.EOF
	}
	t, err := c.document.Token()
	if err != nil {
		return err
	}
	switch t := t.(type) {
	case xml.StartElement:
		c.begin(t)
	case xml.CharData:
		c.chars(t)
	case xml.EndElement:
		c.end(t)
	}
	return nil
}

// path returns the path of the open elements, then of more names.
func (c *Checker) path(more ...string) string {
	var b strings.Builder
	for i, f := range c.frames {
		if i > 0 {
			b.WriteByte('/')
		}
		b.WriteString(f.name)
		if f.number > 0 {
			fmt.Fprintf(&b, "[%d]", f.number)
		}
	}
	for _, name := range more {
		if b.Len() > 0 {
			b.WriteByte('/')
		}
		b.WriteString(name)
	}
	return b.String()
}

// problem records one; what is the sentence's end, without line and path.
func (c *Checker) problem(path string, line int, found, expected, what string) {
	if len(c.problems) >= maxProblems {
		if c.err == nil {
			c.err = errEnough
			c.problems = append(c.problems, &Problem{Line: int32(line), Message: fmt.Sprintf("line %d: too many problems; what follows was not read", line)})
		}
		return
	}
	c.problems = append(c.problems, &Problem{
		Line: int32(line), Element: path, Found: found, Expected: expected,
		Message: fmt.Sprintf("line %d: %s: %s", line, path, what),
	})
}

func (c *Checker) begin(t xml.StartElement) {
	line := c.document.Line()
	f := frame{name: shorten(t.Name.Local), line: line}
	var nillable bool
	if len(c.frames) == 0 {
		c.beginRoot(t, &f)
		nillable = f.typ != nil && f.typ.mayBeEmpty()
	} else {
		nillable = c.beginChild(t, &f)
	}
	if f.typ == nil {
		c.frames = append(c.frames, f)
		return
	}
	if f.typ.kind == kindComplex && len(f.typ.elements) > 0 {
		f.counts = make([]int, len(f.typ.elements))
	}
	c.frames = append(c.frames, f)
	if c.lines != nil {
		c.lines[c.path()] = line
	}
	attributes := c.attributes(t, nillable)
	if len(c.frames) == 1 || !c.frames[len(c.frames)-1].nilled {
		c.hand(xml.StartElement{Name: xml.Name{Space: Namespace, Local: t.Name.Local}, Attr: attributes})
	}
}

// mayBeEmpty says whether an element of the type needs no child.
func (t *schemaType) mayBeEmpty() bool {
	for _, e := range t.elements {
		if e.min > 0 {
			return false
		}
	}
	return t.kind == kindComplex
}

func (c *Checker) beginRoot(t xml.StartElement, f *frame) {
	typ, ok := schemaRoot(c.root)
	switch {
	case !ok:
		c.problem(f.name, f.line, "", "", fmt.Sprintf("the schema has no element %q", c.root))
	case t.Name.Local != c.root:
		c.problem(f.name, f.line, "element "+f.name, "element "+c.root, fmt.Sprintf("the element here must be %q, not %q", c.root, f.name))
	default:
		f.typ = &schemaTypes[typ]
		if t.Name.Space != Namespace {
			c.space = t.Name.Space
			found, what := "namespace "+shorten(t.Name.Space), fmt.Sprintf("the namespace is %q", shorten(t.Name.Space))
			if t.Name.Space == "" {
				found, what = "no namespace", "the element has no namespace"
			}
			c.problem(f.name, f.line, found, "namespace "+Namespace, fmt.Sprintf("%s: write <%s xmlns=%q ...>", what, f.name, Namespace))
		}
	}
}

// beginChild finds the child's type and says whether it is nillable.
func (c *Checker) beginChild(t xml.StartElement, f *frame) bool {
	parent := &c.frames[len(c.frames)-1]
	if parent.typ == nil {
		return false
	}
	name := f.name
	if parent.typ.kind != kindComplex {
		c.problem(c.path(name), f.line, "element "+name, parent.typ.expected(), fmt.Sprintf("%q takes text, not elements", parent.name))
		return false
	}
	if parent.nilled {
		c.problem(c.path(name), f.line, "element "+name, "nothing", fmt.Sprintf("%q says xsi:nil and must be empty", parent.name))
		return false
	}
	if t.Name.Space != c.space {
		found := fmt.Sprintf("element %s in namespace %s", name, shorten(t.Name.Space))
		if t.Name.Space == "" {
			found = fmt.Sprintf("element %s without a namespace", name)
		}
		c.problem(c.path(name), f.line, found, "namespace "+Namespace, fmt.Sprintf("%s: it must be in namespace %q", found, Namespace))
		return false
	}
	i := parent.typ.element(t.Name.Local)
	if i < 0 {
		c.unknownElement(parent, f)
		return false
	}
	e := &parent.typ.elements[i]
	f.typ = &schemaTypes[e.typ]
	parent.counts[i]++
	if e.max != 1 {
		f.number = parent.counts[i]
	}
	path := name
	if f.number > 0 {
		path = fmt.Sprintf("%s[%d]", name, f.number)
	}
	if e.max >= 0 && parent.counts[i] == e.max+1 {
		c.problem(c.path(path), f.line, fmt.Sprintf("%d of element %s", parent.counts[i], name), fmt.Sprintf("at most %d", e.max), fmt.Sprintf("%q may stand here at most %s", name, times(e.max)))
	}
	if i < parent.at {
		after := parent.typ.elements[parent.at].name
		c.problem(c.path(path), f.line, fmt.Sprintf("element %s after %s", name, after), "the order "+strings.Join(parent.typ.elementNames(), ", "), fmt.Sprintf("%q must come before %q", name, after))
	} else {
		parent.at = i
	}
	return e.nillable
}

func times(n int) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

func (c *Checker) unknownElement(parent, f *frame) {
	names := parent.typ.elementNames()
	expected := "one of " + strings.Join(names, ", ")
	if len(names) == 0 {
		expected = "no elements"
	}
	what := fmt.Sprintf("there is no element %q here", f.name)
	if near := nearest(f.name, names); near != "" {
		what += fmt.Sprintf("; did you mean %q?", near)
	} else if a := nearest(f.name, parent.typ.attributeNames()); a != "" {
		what += fmt.Sprintf("; %s is an attribute: <%s %s=\"...\">", a, parent.name, a)
	} else {
		what += "; expected " + expected
	}
	c.problem(c.path(f.name), f.line, "element "+f.name, expected, what)
}

// attributes judges a start tag's attributes and returns those to hand out.
func (c *Checker) attributes(t xml.StartElement, nillable bool) []xml.Attr {
	f := &c.frames[len(c.frames)-1]
	kept := t.Attr[:0]
	for _, a := range t.Attr {
		name := a.Name.Local
		switch {
		case a.Name.Space == "xmlns" || a.Name.Space == "" && name == "xmlns":
			continue
		case a.Name.Space == instanceNamespace:
			c.instance(f, a, nillable)
			continue
		case a.Name.Space != "":
			if a.Name.Space == "http://www.w3.org/XML/1998/namespace" {
				name = "xml:" + name
			}
			c.problem(c.path("@"+shorten(name)), c.document.attributeLine(a.Name.Local), "attribute "+shorten(name), "no attribute of another namespace", fmt.Sprintf("there is no attribute %q in namespace %q here", shorten(name), shorten(a.Name.Space)))
			continue
		}
		i := f.typ.attribute(name)
		if i < 0 {
			c.unknownAttribute(f, shorten(name), c.document.attributeLine(name))
			continue
		}
		if c.lines != nil {
			c.lines[c.path("@"+name)] = c.document.attributeLine(name)
		}
		at := &schemaTypes[f.typ.attributes[i].typ]
		if why := at.judge(a.Value); why != "" {
			c.problem(c.path("@"+name), c.document.attributeLine(name), quote(a.Value), at.expected(), why)
		}
		kept = append(kept, a)
	}
	for _, want := range f.typ.attributes {
		if want.required && !hasAttribute(t.Attr, want.name) {
			c.problem(c.path("@"+want.name), f.line, "nothing", schemaTypes[want.typ].expected(), fmt.Sprintf("the attribute %q is missing", want.name))
		}
	}
	return kept
}

func hasAttribute(attributes []xml.Attr, name string) bool {
	for _, a := range attributes {
		if a.Name.Space == "" && a.Name.Local == name {
			return true
		}
	}
	return false
}

func (c *Checker) unknownAttribute(f *frame, name string, line int) {
	names := f.typ.attributeNames()
	expected := "one of " + strings.Join(names, ", ")
	if len(names) == 0 {
		expected = "no attributes"
	}
	what := fmt.Sprintf("%q has no attribute %q", f.name, name)
	if near := nearest(name, names); near != "" {
		what += fmt.Sprintf("; did you mean %q?", near)
	} else if e := nearest(name, f.typ.elementNames()); e != "" {
		what += fmt.Sprintf("; %s is an element: <%s>...</%s>", e, e, e)
	} else {
		what += "; expected " + expected
	}
	c.problem(c.path("@"+name), line, "attribute "+name, expected, what)
}

// instance judges an xsi: attribute.
func (c *Checker) instance(f *frame, a xml.Attr, nillable bool) {
	line := f.line
	path := "@xsi:" + shorten(a.Name.Local)
	switch a.Name.Local {
	case "nil":
		value := strings.TrimSpace(a.Value)
		if why := schemaBoolean(value); why != "" {
			c.problem(c.path(path), line, quote(a.Value), "true or false", why)
		} else if !nillable {
			c.problem(c.path(path), line, "xsi:nil", "a value", fmt.Sprintf("%q cannot be nil", f.name))
		} else {
			f.nilled = value == "true" || value == "1"
		}
	case "type":
		local := strings.TrimSpace(a.Value)
		local = local[strings.IndexByte(local, ':')+1:]
		if local == "" || local != f.typ.name {
			c.problem(c.path(path), line, quote(a.Value), f.typ.name, fmt.Sprintf("%q has the type %q and no other", f.name, f.typ.name))
		}
	case "schemaLocation", "noNamespaceSchemaLocation":
	default:
		c.problem(c.path(path), line, "attribute "+path[1:], "no such attribute", fmt.Sprintf("there is no attribute %q", path[1:]))
	}
}

func (c *Checker) chars(text xml.CharData) {
	f := &c.frames[len(c.frames)-1]
	switch {
	case f.typ == nil:
	case f.nilled:
		if !f.mixed {
			f.mixed = true
			c.problem(c.path(), c.document.Line(), quote(string(text)), "nothing", fmt.Sprintf("%q says xsi:nil and must be empty", f.name))
		}
	case f.typ.kind != kindComplex:
		f.text = append(f.text, text...)
	case !f.mixed && len(bytes.TrimSpace(text)) > 0:
		f.mixed = true
		c.problem(c.path(), c.document.Line(), quote(string(bytes.TrimSpace(text))), "elements only", fmt.Sprintf("%q takes no text", f.name))
	}
}

func (c *Checker) end(t xml.EndElement) {
	f := &c.frames[len(c.frames)-1]
	if f.typ == nil || f.nilled && len(c.frames) > 1 {
		c.frames = c.frames[:len(c.frames)-1]
		return
	}
	// Handed out in reverse: ready is a stack.
	c.hand(xml.EndElement{Name: xml.Name{Space: Namespace, Local: t.Name.Local}})
	if f.typ.kind != kindComplex {
		text := f.text
		if f.typ.kind != kindString {
			text = collapse(f.typ.kind, text)
		}
		if why := f.typ.judge(string(text)); why != "" {
			c.problem(c.path(), f.line, quote(string(text)), f.typ.expected(), why)
		}
		c.hand(xml.CharData(text))
	}
	for i, e := range f.typ.elements {
		if f.counts[i] < e.min {
			c.problem(c.path(e.name), f.line, "nothing", "element "+e.name, fmt.Sprintf("the element %q is missing", e.name))
		}
	}
	c.frames = c.frames[:len(c.frames)-1]
}

// collapse drops the white space that a type does not count.
func collapse(k kind, text []byte) []byte {
	if k != kindBase64 {
		return bytes.Trim(text, " \t\r\n")
	}
	if !bytes.ContainsAny(text, " \t\r\n") {
		return text
	}
	kept := text[:0]
	for _, b := range text {
		switch b {
		case ' ', '\t', '\r', '\n':
		default:
			kept = append(kept, b)
		}
	}
	return kept
}

func shorten(s string) string {
	if len(s) > 100 {
		return strings.ToValidUTF8(s[:100], "") + "..."
	}
	return s
}

func quote(s string) string { return strconv.Quote(shorten(s)) }

func (t *schemaType) element(name string) int {
	for i := range t.elements {
		if t.elements[i].name == name {
			return i
		}
	}
	return -1
}

func (t *schemaType) attribute(name string) int {
	for i := range t.attributes {
		if t.attributes[i].name == name {
			return i
		}
	}
	return -1
}

func (t *schemaType) elementNames() []string {
	names := make([]string, len(t.elements))
	for i, e := range t.elements {
		names[i] = e.name
	}
	return names
}

func (t *schemaType) attributeNames() []string {
	names := make([]string, len(t.attributes))
	for i, a := range t.attributes {
		names[i] = a.name
	}
	return names
}
