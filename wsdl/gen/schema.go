package main

import (
	"bytes"
	"fmt"
	"go/format"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strings"

	"github.com/beevik/etree"
)

// builtins are the XML Schema types that the tables know, by the constant that
// stands for each.
var builtins = map[string]string{
	"string":       "kindString",
	"boolean":      "kindBoolean",
	"int":          "kindInt",
	"long":         "kindLong",
	"dateTime":     "kindDateTime",
	"base64Binary": "kindBase64",
}

// schemaType is a simple or complex type of the schemas.
type schemaType struct {
	name       string
	kind       string // "kindComplex", or the built-in that a simple type restricts
	values     []string
	pattern    string
	elements   []schemaElement
	attributes []schemaAttribute
}

type schemaElement struct {
	name, typ string
	min, max  int // max -1: unbounded
	nillable  bool
}

type schemaAttribute struct {
	name, typ string
	required  bool
}

// schemas is what grid.xsd and profile.xsd declare. A global element with a
// type of its own has that type under the element's name, after a "/".
type schemas struct {
	types map[string]*schemaType
	roots map[string]string // global element -> its type
}

func readSchemas(dir string) (*schemas, error) {
	s := &schemas{types: map[string]*schemaType{}, roots: map[string]string{}}
	for name, kind := range builtins {
		s.types["xs:"+name] = &schemaType{name: name, kind: kind}
	}
	for _, file := range []string{"profile.xsd", "grid.xsd"} {
		doc := etree.NewDocument()
		if err := doc.ReadFromFile(filepath.Join(dir, file)); err != nil {
			return nil, err
		}
		for _, e := range doc.Root().ChildElements() {
			if err := s.global(e); err != nil {
				return nil, fmt.Errorf("%s: %w", file, err)
			}
		}
	}
	return s, s.resolve()
}

func (s *schemas) global(e *etree.Element) error {
	name := e.SelectAttrValue("name", "")
	switch e.Tag {
	case "include", "annotation":
		return nil
	case "simpleType":
		t, err := simpleType(e)
		if err != nil {
			return fmt.Errorf("simpleType %s: %w", name, err)
		}
		s.types[name] = t
		return nil
	case "complexType":
		t, err := complexType(e, name)
		if err != nil {
			return fmt.Errorf("complexType %s: %w", name, err)
		}
		s.types[name] = t
		return nil
	case "element":
		if typ := e.SelectAttrValue("type", ""); typ != "" {
			s.roots[name] = typ
			return nil
		}
		inner := e.SelectElement("complexType")
		if inner == nil {
			return fmt.Errorf("element %s has neither a type nor a complexType", name)
		}
		t, err := complexType(inner, name)
		if err != nil {
			return fmt.Errorf("element %s: %w", name, err)
		}
		s.types["/"+name], s.roots[name] = t, "/"+name
		return nil
	}
	return fmt.Errorf("%s is not supported", e.Tag)
}

func simpleType(e *etree.Element) (*schemaType, error) {
	r := e.SelectElement("restriction")
	if r == nil {
		return nil, fmt.Errorf("only restrictions are supported")
	}
	base := r.SelectAttrValue("base", "")
	kind := builtins[strings.TrimPrefix(base, "xs:")]
	if kind == "" {
		return nil, fmt.Errorf("base %s is not supported", base)
	}
	t := &schemaType{name: e.SelectAttrValue("name", ""), kind: kind}
	for _, facet := range r.ChildElements() {
		value := facet.SelectAttrValue("value", "")
		if kind != "kindString" { // the fast codec would not look at it
			return nil, fmt.Errorf("facet %s of %s is not supported", facet.Tag, base)
		}
		switch facet.Tag {
		case "enumeration":
			t.values = append(t.values, value)
		case "pattern":
			if t.pattern != "" {
				return nil, fmt.Errorf("more than one pattern")
			}
			if _, err := regexp.Compile(value); err != nil || strings.ContainsAny(value, "^") {
				return nil, fmt.Errorf("pattern %s does not mean the same in Go", value)
			}
			t.pattern = `\A(?:` + value + `)\z`
		default:
			return nil, fmt.Errorf("facet %s is not supported", facet.Tag)
		}
	}
	return t, nil
}

func complexType(e *etree.Element, name string) (*schemaType, error) {
	t := &schemaType{name: name, kind: "kindComplex"}
	for _, child := range e.ChildElements() {
		switch child.Tag {
		case "annotation":
		case "sequence":
			for _, c := range child.ChildElements() {
				if c.Tag != "element" || c.SelectAttr("type") == nil {
					return nil, fmt.Errorf("%s in a sequence is not supported", c.Tag)
				}
				el := schemaElement{name: c.SelectAttrValue("name", ""), typ: c.SelectAttrValue("type", ""), nillable: c.SelectAttrValue("nillable", "") == "true"}
				if _, err := fmt.Sscan(c.SelectAttrValue("minOccurs", "1"), &el.min); err != nil {
					return nil, fmt.Errorf("minOccurs of %s: %w", el.name, err)
				}
				if m := c.SelectAttrValue("maxOccurs", "1"); m == "unbounded" {
					el.max = -1
				} else if _, err := fmt.Sscan(m, &el.max); err != nil {
					return nil, fmt.Errorf("maxOccurs of %s: %w", el.name, err)
				}
				for _, other := range t.elements {
					if other.name == el.name {
						return nil, fmt.Errorf("two elements %s in one sequence are not supported", el.name)
					}
				}
				t.elements = append(t.elements, el)
			}
		case "attribute":
			if child.SelectAttr("type") == nil {
				return nil, fmt.Errorf("attribute %s has no type", child.SelectAttrValue("name", ""))
			}
			t.attributes = append(t.attributes, schemaAttribute{child.SelectAttrValue("name", ""), child.SelectAttrValue("type", ""), child.SelectAttrValue("use", "") == "required"})
		default:
			return nil, fmt.Errorf("%s is not supported", child.Tag)
		}
	}
	return t, nil
}

// resolve fails when a name leads nowhere.
func (s *schemas) resolve() error {
	for root, typ := range s.roots {
		if s.types[typ] == nil {
			return fmt.Errorf("element %s: no type %s", root, typ)
		}
	}
	for _, t := range s.types {
		for _, e := range t.elements {
			if s.types[e.typ] == nil {
				return fmt.Errorf("%s/%s: no type %s", t.name, e.name, e.typ)
			}
		}
		for _, a := range t.attributes {
			if at := s.types[a.typ]; at == nil || at.kind == "kindComplex" {
				return fmt.Errorf("%s/@%s: no simple type %s", t.name, a.name, a.typ)
			}
		}
	}
	return nil
}

// sorted returns the types' names.
func (s *schemas) sorted() []string { return slices.Sorted(maps.Keys(s.types)) }

// schemaGo writes the tables by which a Checker judges documents.
func (s *schemas) schemaGo() ([]byte, error) {
	names := s.sorted()
	index := map[string]int{}
	for i, name := range names {
		index[name] = i
	}
	var b, patterns bytes.Buffer
	b.WriteString("// Code generated by wsdl/gen. DO NOT EDIT.\n\npackage wsdl\n\nimport (\n\"regexp\"\n\"sync\"\n)\n")
	b.WriteString("\n// schemaTypes are the types of grid.xsd and profile.xsd; they refer to each\n// other by their place in it. Nothing writes to it.\nvar schemaTypes = [...]schemaType{\n")
	count := 0
	for i, name := range names {
		t := s.types[name]
		fmt.Fprintf(&b, "%d: {name: %q, kind: %s", i, t.name, t.kind)
		if len(t.values) > 0 {
			fmt.Fprintf(&b, ", values: %#v", t.values)
		}
		if t.pattern != "" {
			fmt.Fprintf(&patterns, "sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(%q) }),\n", t.pattern)
			count++
			fmt.Fprintf(&b, ", pattern: %d", count)
		}
		if len(t.elements) > 0 {
			b.WriteString(", elements: []schemaElement{\n")
			for _, e := range t.elements {
				fmt.Fprintf(&b, "{%q, %d, %d, %d, %t},\n", e.name, index[e.typ], e.min, e.max, e.nillable)
			}
			b.WriteString("}")
		}
		if len(t.attributes) > 0 {
			b.WriteString(", attributes: []schemaAttribute{\n")
			for _, a := range t.attributes {
				fmt.Fprintf(&b, "{%q, %d, %t},\n", a.name, index[a.typ], a.required)
			}
			b.WriteString("}")
		}
		b.WriteString("},\n")
	}
	b.WriteString("}\n\n// schemaPatterns are compiled when first needed; schemaType.pattern counts\n// from 1.\nvar schemaPatterns = [...]func() *regexp.Regexp{\n")
	b.Write(patterns.Bytes())
	b.WriteString("}\n\n// schemaRoot returns the place of a global element's type in schemaTypes.\nfunc schemaRoot(name string) (int, bool) {\nswitch name {\n")
	roots := make([]string, 0, len(s.roots))
	for name := range s.roots {
		roots = append(roots, name)
	}
	sort.Strings(roots)
	for _, name := range roots {
		fmt.Fprintf(&b, "case %q: return %d, true\n", name, index[s.roots[name]])
	}
	b.WriteString("}\nreturn 0, false\n}\n")
	return format.Source(b.Bytes())
}

var (
	structLine = regexp.MustCompile(`^type (\w+) struct`)
	tagLine    = regexp.MustCompile("`xml:\"([^\",]+)(,attr)?(,omitempty)")
)

// keepRequired mends gowsdl's types: it lets encoding/xml leave out every
// empty value, so that a required 0 or "" would vanish, and with it an empty
// text in a list.
func (s *schemas) keepRequired(code []byte) []byte {
	lines := strings.Split(string(code), "\n")
	var t *schemaType
	for i, line := range lines {
		if m := structLine.FindStringSubmatch(line); m != nil {
			if t = s.types[m[1]]; t == nil {
				t = s.types["/"+m[1]]
			}
		}
		m := tagLine.FindStringSubmatchIndex(line)
		if m == nil || t == nil {
			continue
		}
		if s.required(t, line[m[2]:m[3]], m[4] >= 0) {
			lines[i] = line[:m[6]] + line[m[7]:]
		}
	}
	return []byte(strings.Join(lines, "\n"))
}

func (s *schemas) required(t *schemaType, name string, attribute bool) bool {
	if attribute {
		for _, a := range t.attributes {
			if a.name == name {
				return a.required
			}
		}
		return false
	}
	for _, e := range t.elements {
		if e.name == name {
			return e.max != 1 || e.min > 0 && !e.nillable && s.types[e.typ].kind != "kindComplex"
		}
	}
	return false
}
