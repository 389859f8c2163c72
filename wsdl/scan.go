package wsdl

import (
	"bytes"
	"unicode/utf8"
)

// Scanner reads one XML document, which is in memory, fast, and knows only
// yes: it takes documents of the form that SOAP stacks send, and of each that
// it takes, a Document of the same bytes and Limits would give the same
// elements and text. Whatever is malformed, refused or merely rare (names that
// are not ASCII, processing instructions, a limit nearly reached) it does not
// take, without a word: then ask a Document, which alone makes errors.
//
// A Scanner may be used again after Reset, for documents one after another.
type Scanner struct {
	data       []byte
	at         int // in data: what was read
	limits     Limits
	elements   int
	empty      bool        // the element that began last is <a/>, and its end not yet told
	open       []openTag   // elements, the innermost last
	spaces     []binding   // namespaces in force, the innermost last
	attributes []attribute // of the start tag read last, without namespace declarations
	space      []byte      // its namespace
	local      []byte      // its name
	text       []byte      // room for text that is not in data as it stands
	codec      codec       // reads values
}

// maxSpaces is how many namespace declarations may be in force: they are
// looked through one by one.
const maxSpaces = 64

// openTag is an open element.
type openTag struct {
	name   []byte // with its prefix
	spaces int    // namespaces in force around it
}

// binding is a namespace declaration.
type binding struct {
	prefix, space []byte // prefix empty: the default namespace
}

type attribute struct {
	prefix, local, value []byte
	space                []byte // nil: none
}

// What comes next in a document.
type token int8

const (
	tokenOdd   token = iota // something that the Scanner does not take
	tokenStart              // a start tag
	tokenEnd                // the open element's end
)

// Reset begins to read data, and says whether it may be worth it.
func (s *Scanner) Reset(data []byte, limits Limits) bool {
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	s.data, s.at, s.limits = data, 0, limits.withDefaults()
	s.elements, s.empty = 0, false
	s.open, s.spaces = s.open[:0], s.spaces[:0]
	return utf8.Valid(data) && s.declaration()
}

// Forget lets go of the document, so that a kept Scanner does not keep it.
func (s *Scanner) Forget() {
	clear(s.open[:cap(s.open)])
	clear(s.spaces[:cap(s.spaces)])
	clear(s.attributes[:cap(s.attributes)])
	text := s.text[:0]
	if cap(text) > 64<<10 {
		text = nil
	}
	*s = Scanner{open: s.open[:0], spaces: s.spaces[:0], attributes: s.attributes[:0], text: text}
}

// declaration reads an XML declaration, if there is one.
func (s *Scanner) declaration() bool {
	rest, ok := bytes.CutPrefix(s.data, []byte("<?xml"))
	if !ok {
		return true
	}
	inside, _, ok := bytes.Cut(rest, []byte("?>"))
	if !ok || len(inside) > 100 {
		return false
	}
	s.at = len("<?xml") + len(inside) + len("?>")
	for i, want := range [...]string{"version", "encoding", "standalone"} {
		trimmed := bytes.TrimLeft(inside, " \t\r\n")
		if len(trimmed) == 0 && i > 0 {
			return true
		}
		name, rest, ok := bytes.Cut(trimmed, []byte("="))
		if !ok || len(trimmed) == len(inside) {
			return false
		}
		if string(name) != want {
			if i == 1 {
				continue
			}
			return false
		}
		if len(rest) < 2 || rest[0] != '"' && rest[0] != '\'' {
			return false
		}
		value, rest, ok := bytes.Cut(rest[1:], rest[:1])
		switch {
		case !ok,
			i == 0 && string(value) != "1.0",
			i == 1 && !bytes.EqualFold(value, []byte("utf-8")),
			i == 2 && string(value) != "yes" && string(value) != "no":
			return false
		}
		inside = rest
	}
	return len(bytes.TrimLeft(inside, " \t\r\n")) == 0
}

// Start reads the next start tag, and End the open element's end, where
// nothing but white space and comments comes before. False: ask a Document.
func (s *Scanner) Start() bool { return s.next() == tokenStart }

// End: see Start.
func (s *Scanner) End() bool { return s.next() == tokenEnd }

// Ends says whether the open element's end was read: else a start tag was. ok
// is false for anything else.
func (s *Scanner) Ends() (end, ok bool) {
	t := s.next()
	return t == tokenEnd, t != tokenOdd
}

// Done says whether nothing is left of the document.
func (s *Scanner) Done() bool {
	return s.next() == tokenOdd && len(s.open) == 0 && s.at == len(s.data)
}

// Name returns namespace and name of the start tag read last. They are good
// as long as the document's bytes are.
func (s *Scanner) Name() (space, local []byte) { return s.space, s.local }

// Attribute returns the value of an attribute of the start tag read last, and
// whether it is there. space is "" for none.
func (s *Scanner) Attribute(space, local string) ([]byte, bool) {
	for i := range s.attributes {
		if a := &s.attributes[i]; string(a.local) == local && string(a.space) == space {
			return a.value, true
		}
	}
	return nil, false
}

// Skip reads the element that began last to its end, whatever is in it.
func (s *Scanner) Skip() bool {
	for depth := len(s.open); len(s.open) >= depth; {
		if s.empty {
			s.next()
			continue
		}
		text, ok := s.segment(s.text[:0])
		if !ok {
			return false
		}
		s.text = text
		if s.next() == tokenOdd {
			return false
		}
	}
	return true
}

// next reads the next tag.
func (s *Scanner) next() token {
	if s.empty {
		s.empty = false
		s.pop()
		return tokenEnd
	}
	for {
		for s.at < len(s.data) && white(s.data[s.at]) {
			s.at++
		}
		rest := s.data[s.at:]
		switch {
		case len(rest) < 2 || rest[0] != '<' || rest[1] == '?':
			return tokenOdd
		case rest[1] == '/':
			return s.endTag()
		case rest[1] != '!':
			return s.startTag()
		case !s.comment():
			return tokenOdd
		}
	}
}

func white(c byte) bool { return c == ' ' || c == '\n' || c == '\r' || c == '\t' }

// comment reads a comment, at which the Scanner stands.
func (s *Scanner) comment() bool {
	rest, ok := bytes.CutPrefix(s.data[s.at:], []byte("<!--"))
	if !ok {
		return false
	}
	// The two after which a Document's first walk takes the comment for ended.
	if bytes.HasPrefix(rest, []byte(">")) || bytes.HasPrefix(rest, []byte("->")) {
		return false
	}
	n := bytes.Index(rest, []byte("--"))
	if n < 0 || n+2 >= len(rest) || rest[n+2] != '>' {
		return false
	}
	s.at += len("<!--") + n + len("-->")
	return true
}

func (s *Scanner) pop() {
	last := len(s.open) - 1
	s.spaces = s.spaces[:s.open[last].spaces]
	s.open = s.open[:last]
}

// endTag reads the tag at which the Scanner stands, if it is an end tag.
func (s *Scanner) endTag() token {
	rest, ok := bytes.CutPrefix(s.data[s.at:], []byte("</"))
	if !ok || len(s.open) == 0 {
		return tokenOdd
	}
	name := s.open[len(s.open)-1].name
	if len(rest) <= len(name) || string(rest[:len(name)]) != string(name) {
		return tokenOdd
	}
	n := len(name)
	for n < len(rest) && white(rest[n]) {
		n++
	}
	if n == len(rest) || rest[n] != '>' {
		return tokenOdd
	}
	s.at += 2 + n + 1
	s.pop()
	return tokenEnd
}

// qualified measures the name at the beginning of b; colon is where its prefix
// ends, or -1. n is 0 where there is no such name.
func qualified(b []byte) (n, colon int) {
	colon = -1
	for first := true; n < len(b); n++ {
		switch c := b[n]; {
		case 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || c == '_':
			first = false
		case first:
			return 0, -1
		case '0' <= c && c <= '9' || c == '-' || c == '.':
		case c == ':' && colon < 0:
			colon, first = n, true
		case c == ':' || c >= utf8.RuneSelf:
			return 0, -1
		default:
			return n, colon
		}
	}
	return 0, -1 // a name is never the last of a document
}

// startTag reads the start tag at which the Scanner stands.
func (s *Scanner) startTag() token {
	if len(s.open) == 0 && s.elements > 0 {
		return tokenOdd // a second root
	}
	tag := s.data[s.at+1:]
	n, colon := qualified(tag)
	if n == 0 || n >= s.limits.Name {
		return tokenOdd
	}
	name := tag[:n]
	s.open = append(s.open, openTag{name, len(s.spaces)})
	s.attributes = s.attributes[:0]
	if s.elements++; s.elements > s.limits.Elements || len(s.open) > s.limits.Depth {
		return tokenOdd
	}
	for {
		before := n
		for n < len(tag) && white(tag[n]) {
			n++
		}
		if n+1 >= len(tag) {
			return tokenOdd
		}
		if tag[n] == '>' {
			n++
			break
		}
		if tag[n] == '/' {
			if tag[n+1] != '>' {
				return tokenOdd
			}
			s.empty = true
			n += 2
			break
		}
		if n == before {
			return tokenOdd
		}
		m := s.attribute(tag[n:])
		n += m
		declared := len(s.spaces) - s.open[len(s.open)-1].spaces
		if m == 0 || n >= s.limits.Tag || len(s.attributes)+declared > s.limits.Attributes || len(s.spaces) > maxSpaces {
			return tokenOdd
		}
	}
	if n >= s.limits.Tag {
		return tokenOdd
	}
	s.at += 1 + n
	var ok bool
	if colon < 0 {
		s.local = name
		s.space, _ = s.lookup(nil)
	} else {
		s.local = name[colon+1:]
		if s.space, ok = s.lookup(name[:colon]); !ok {
			return tokenOdd
		}
	}
	if len(s.attributes) > 0 && !s.resolve() {
		return tokenOdd
	}
	return tokenStart
}

// attribute reads the attribute at the beginning of b and returns its length,
// or 0.
func (s *Scanner) attribute(b []byte) int {
	n, colon := qualified(b)
	if n == 0 || n >= s.limits.Name {
		return 0
	}
	name := b[:n]
	for n < len(b) && white(b[n]) {
		n++
	}
	if n == len(b) || b[n] != '=' {
		return 0
	}
	n++
	for n < len(b) && white(b[n]) {
		n++
	}
	if n == len(b) || b[n] != '"' && b[n] != '\'' {
		return 0
	}
	length := bytes.IndexByte(b[n+1:], b[n])
	if length < 0 {
		return 0
	}
	value := b[n+1 : n+1+length]
	n += length + 2
	switch {
	case string(name) == "xmlns":
		name, colon = nil, -1
	case colon < 0 || string(name[:colon]) != "xmlns":
		plain := plainText(value)
		if plain < len(value) {
			var ok bool
			if value, ok = appendText(make([]byte, 0, len(value)), value, false); !ok {
				return 0
			}
		}
		a := attribute{local: name, value: value}
		if colon >= 0 {
			a.prefix, a.local = name[:colon], name[colon+1:]
		}
		s.attributes = append(s.attributes, a)
		return n
	default:
		name = name[colon+1:]
		if len(value) == 0 || string(name) == "xml" || string(name) == "xmlns" {
			return 0
		}
	}
	if plainText(value) < len(value) || string(value) == "xmlns" {
		return 0
	}
	for _, other := range s.spaces[s.open[len(s.open)-1].spaces:] {
		if bytes.Equal(other.prefix, name) {
			return 0
		}
	}
	s.spaces = append(s.spaces, binding{name, value})
	return n
}

// resolve finds the attributes' namespaces, and refuses one given twice.
func (s *Scanner) resolve() bool {
	for i := range s.attributes {
		a := &s.attributes[i]
		if a.prefix != nil {
			var ok bool
			if a.space, ok = s.lookup(a.prefix); !ok {
				return false
			}
		}
		for j := range i {
			if b := &s.attributes[j]; bytes.Equal(a.local, b.local) && bytes.Equal(a.space, b.space) {
				return false
			}
		}
	}
	return true
}

// lookup returns the namespace of a prefix.
func (s *Scanner) lookup(prefix []byte) ([]byte, bool) {
	for i := len(s.spaces) - 1; i >= 0; i-- {
		if b := &s.spaces[i]; string(b.prefix) == string(prefix) {
			return b.space, true
		}
	}
	return nil, false
}

// content reads text up to the open element's end, and that. What it returns
// is good until it is called again.
func (s *Scanner) content() ([]byte, bool) {
	if s.empty {
		return nil, s.next() == tokenEnd
	}
	rest := s.data[s.at:]
	n := bytes.IndexByte(rest, '<')
	if n < 0 || n+1 == len(rest) {
		return nil, false
	}
	text := rest[:n]
	if rest[n+1] == '/' && plainText(text) == n {
		s.at += n
		return text, s.endTag() == tokenEnd
	}
	text, ok := s.segment(s.text[:0])
	if !ok {
		return nil, false
	}
	s.text = text
	return text, s.endTag() == tokenEnd
}

// segment appends all text up to the next tag, with its CDATA sections and
// without comments.
func (s *Scanner) segment(to []byte) ([]byte, bool) {
	for {
		rest := s.data[s.at:]
		n := bytes.IndexByte(rest, '<')
		if n < 0 || n+1 == len(rest) {
			return nil, false
		}
		var ok bool
		if to, ok = appendText(to, rest[:n], false); !ok {
			return nil, false
		}
		s.at += n
		if rest[n+1] != '!' {
			return to, true
		}
		data, ok := bytes.CutPrefix(rest[n:], []byte("<![CDATA["))
		if !ok {
			if !s.comment() {
				return nil, false
			}
			continue
		}
		end := bytes.Index(data, []byte("]]>"))
		if end < 0 {
			return nil, false
		}
		if to, ok = appendText(to, data[:end], true); !ok {
			return nil, false
		}
		s.at += len("<![CDATA[") + end + len("]]>")
	}
}

// plainText returns how many bytes at the beginning of text mean themselves:
// all but references, line ends to mend, what may end a CDATA section, and
// what is no character of XML or may be none.
func plainText(text []byte) int {
	for i, c := range text {
		if c < ' ' && c != '\n' && c != '\t' || c == '&' || c == '<' || c == ']' || c == 0xef {
			return i
		}
	}
	return len(text)
}

// appendText appends text, which is UTF-8, as it is meant. False: it holds
// what may not stand there.
func appendText(to, text []byte, cdata bool) ([]byte, bool) {
	for {
		n := plainText(text)
		to = append(to, text[:n]...)
		if n == len(text) {
			return to, true
		}
		c, used := text[n], 1
		switch {
		case c == '\r':
			c = '\n'
			if n+1 < len(text) && text[n+1] == '\n' {
				used = 2
			}
		case c < ' ':
			return nil, false
		case c == 0xef: // U+FFFE and U+FFFF are no characters of XML
			if text[n+1] == 0xbf && text[n+2] >= 0xbe {
				return nil, false
			}
		case cdata:
		case c == '<', c == ']' && bytes.HasPrefix(text[n:], []byte("]]>")):
			return nil, false
		case c == '&':
			r, length := reference(text[n:])
			if length == 0 {
				return nil, false
			}
			to = utf8.AppendRune(to, r)
			text = text[n+length:]
			continue
		}
		to = append(to, c)
		text = text[n+used:]
	}
}

// reference reads the reference at the beginning of text; length is 0 where
// there is none that is known.
func reference(text []byte) (r rune, length int) {
	end := bytes.IndexByte(text[:min(len(text), 12)], ';')
	if end < 2 {
		return 0, 0
	}
	length = end + 1
	switch name := text[1:end]; string(name) {
	case "lt":
		return '<', length
	case "gt":
		return '>', length
	case "amp":
		return '&', length
	case "apos":
		return '\'', length
	case "quot":
		return '"', length
	default:
		if name[0] != '#' {
			return 0, 0
		}
		base, digits := rune(10), name[1:]
		if len(digits) > 0 && digits[0] == 'x' {
			base, digits = 16, digits[1:]
		}
		if len(digits) == 0 || len(digits) > 7 {
			return 0, 0
		}
		for _, c := range digits {
			d := rune(-1)
			switch {
			case '0' <= c && c <= '9':
				d = rune(c - '0')
			case base == 16 && 'a' <= c && c <= 'f':
				d = rune(c-'a') + 10
			case base == 16 && 'A' <= c && c <= 'F':
				d = rune(c-'A') + 10
			}
			if d < 0 {
				return 0, 0
			}
			r = r*base + d
		}
	}
	if r < ' ' && r != '\t' && r != '\n' && r != '\r' || r > 0xd7ff && r < 0xe000 || r == 0xfffe || r == 0xffff || r > utf8.MaxRune {
		return 0, 0
	}
	return r, length
}
