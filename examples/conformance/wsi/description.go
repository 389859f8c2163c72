package wsi

import (
	"fmt"
	"slices"
	"strings"

	"github.com/beevik/etree"
)

// Name is a qualified name.
type Name struct{ Space, Local string }

// Service is what a WSDL says about its SOAP 1.1 binding.
type Service struct {
	Operations []Operation
}

// Operation is one row of a binding.
type Operation struct {
	Name          string
	Action        string
	Input, Output Name // elements
}

// description is a WSDL with the elements that its schemas declare.
type description struct {
	root     *etree.Element
	document *etree.Document
	space    string
	elements []string // of the target namespace
}

// Description judges a WSDL's SOAP 1.1 side. elements are the global elements
// that the schemas it includes declare for its target namespace. Bindings of
// SOAP 1.2 are beyond the profile and passed over.
func Description(data []byte, elements []string) (*Service, []Violation) {
	document, err := parse(data)
	if err != nil {
		return nil, []Violation{{"R2028", fmt.Sprintf("it is no XML document: %s", err)}}
	}
	d := &description{root: document.Root(), document: document, elements: elements}
	d.space, _ = attribute(d.root, "targetNamespace")
	return d.service(), judge(descriptionRules(), d)
}

func descriptionRules() []rule[*description] {
	return []rule[*description]{
		{"R2028", uniqueNames}, {"R4003", descriptionEncoding}, {"R1034", noXMLDeclaredThere},
		{"R2001", wsdlImports}, {"R2007", importLocation}, {"R2803", importNamespace}, {"R2003", schemaImports},
		{"R2022", importsFirst}, {"R2023", typesEarly}, {"R2105", schemaNamespace}, {"R2101", knownReferences},
		{"R2303", requestResponse}, {"R2304", distinctOperations}, {"R2306", elementOrType}, {"R2204", partsAreElements},
		{"R2205", faultPartsAreElements}, {"R2206", globalElements}, {"R2210", onePart}, {"R2201", onePartNamed},
		{"R2701", transportGiven}, {"R2702", transportHTTP}, {"R2705", documentStyle}, {"R2706", literal}, {"R2716", noNamespace},
		{"R2718", allOperations}, {"R2721", faultNamed}, {"R2754", faultNameMatches}, {"R2740", faultsBound}, {"R2710", distinctSignatures},
	}
}

func (d *description) all(tag string) []*etree.Element { return children(d.root, wsdlSpace, tag) }

// find is the top-level component that a QName at an element refers to, or nil.
func (d *description) find(tag string, at *etree.Element, reference string) *etree.Element {
	value, _ := attribute(at, reference)
	space, local, _ := resolve(at, value)
	for _, e := range d.all(tag) {
		if space == d.space && name(e) == local {
			return e
		}
	}
	return nil
}

// bindings are those of SOAP 1.1.
func (d *description) bindings() []*etree.Element {
	return slices.DeleteFunc(d.all("binding"), func(b *etree.Element) bool {
		for _, c := range b.ChildElements() {
			if c.Tag == "binding" && c.NamespaceURI() != soapSpace {
				return true
			}
		}
		return false
	})
}

// each calls check for every operation of every SOAP 1.1 binding, until
// something is wrong.
func (d *description) each(check func(binding, operation *etree.Element) string) string {
	for _, b := range d.bindings() {
		for _, o := range children(b, wsdlSpace, "operation") {
			if why := check(b, o); why != "" {
				return name(b) + ", " + name(o) + ": " + why
			}
		}
	}
	return ""
}

// extensions are the soap: elements of a bound operation's input, output and
// faults.
func extensions(operation *etree.Element, tag string) []*etree.Element {
	var found []*etree.Element
	for _, c := range operation.ChildElements() {
		found = append(found, children(c, soapSpace, tag)...)
	}
	return found
}

// abstract is the portType's operation that a bound one stands for.
func (d *description) abstract(binding, operation *etree.Element) *etree.Element {
	for _, o := range children(d.find("portType", binding, "type"), wsdlSpace, "operation") {
		if name(o) == name(operation) {
			return o
		}
	}
	return nil
}

// message is what an operation's input, output or fault carries.
func (d *description) message(operation *etree.Element, tag string) *etree.Element {
	return d.find("message", child(operation, wsdlSpace, tag), "message")
}

// element is the element of a message's only part.
func (d *description) element(message *etree.Element) Name {
	part := child(message, wsdlSpace, "part")
	value, _ := attribute(part, "element")
	space, local, _ := resolve(part, value)
	return Name{space, local}
}

func (d *description) service() *Service {
	s := &Service{}
	d.each(func(b, o *etree.Element) string {
		abstract := d.abstract(b, o)
		action, _ := attribute(child(o, soapSpace, "operation"), "soapAction")
		s.Operations = append(s.Operations, Operation{
			Name: name(o), Action: action,
			Input: d.element(d.message(abstract, "input")), Output: d.element(d.message(abstract, "output")),
		})
		return ""
	})
	return s
}

// repeated is the first name that two of the elements have.
func repeated(elements []*etree.Element) string {
	seen := map[string]bool{}
	for _, e := range elements {
		if seen[name(e)] {
			return name(e)
		}
		seen[name(e)] = true
	}
	return ""
}

func uniqueNames(d *description) string {
	for _, tag := range []string{"message", "portType", "binding", "service"} {
		if twice := repeated(d.all(tag)); twice != "" {
			return fmt.Sprintf("two %ss are named %s", tag, twice)
		}
	}
	for _, m := range d.all("message") {
		if twice := repeated(children(m, wsdlSpace, "part")); twice != "" {
			return fmt.Sprintf("message %s has two parts named %s", name(m), twice)
		}
	}
	for _, s := range d.all("service") {
		if twice := repeated(children(s, wsdlSpace, "port")); twice != "" {
			return fmt.Sprintf("service %s has two ports named %s", name(s), twice)
		}
	}
	return ""
}

func descriptionEncoding(d *description) string {
	for _, token := range d.document.Child {
		if i, ok := token.(*etree.ProcInst); ok && i.Target == "xml" && strings.Contains(i.Inst, "encoding=") && !strings.Contains(strings.ToLower(i.Inst), `"utf-8"`) {
			return "its encoding is " + i.Inst
		}
	}
	return ""
}

func noXMLDeclaredThere(d *description) string { return declaresXML(d.root) }

// Only WSDL is imported by wsdl:import: a schema's address ends in xsd here as
// nearly everywhere.
func wsdlImports(d *description) string {
	for _, i := range d.all("import") {
		if location, _ := attribute(i, "location"); strings.HasSuffix(location, "xsd") {
			return "wsdl:import of the schema " + location
		}
	}
	return ""
}

func importLocation(d *description) string {
	for _, i := range d.all("import") {
		if location, _ := attribute(i, "location"); location == "" {
			return "a wsdl:import has no location"
		}
	}
	return ""
}

func importNamespace(d *description) string {
	for _, i := range d.all("import") {
		if space, _ := attribute(i, "namespace"); !strings.Contains(space, ":") {
			return fmt.Sprintf("the namespace %q of a wsdl:import is relative", space)
		}
	}
	return ""
}

func schemaImports(d *description) string {
	why := ""
	walk(d.root, func(e *etree.Element) {
		if is(e, schemaSpace, "import") && !is(e.Parent(), schemaSpace, "schema") {
			why = "an xsd:import stands in " + e.Parent().Tag
		}
	})
	return why
}

// order says what stands before a tag and may not.
func (d *description) order(tag string, before ...string) string {
	var last string
	for _, c := range d.root.ChildElements() {
		if is(c, wsdlSpace, tag) && last != "" {
			return fmt.Sprintf("%s stands after %s", tag, last)
		}
		if c.NamespaceURI() == wsdlSpace && c.Tag != tag && !slices.Contains(before, c.Tag) {
			last = c.Tag
		}
	}
	return ""
}

func importsFirst(d *description) string { return d.order("import", "documentation") }
func typesEarly(d *description) string   { return d.order("types", "documentation", "import") }

func schemaNamespace(d *description) string {
	for _, types := range d.all("types") {
		for _, s := range children(types, schemaSpace, "schema") {
			if space, _ := attribute(s, "targetNamespace"); space == "" {
				return "a schema has no targetNamespace"
			}
		}
	}
	return ""
}

func knownReferences(d *description) string {
	check := func(e *etree.Element, reference, tag string) string {
		if value, ok := attribute(e, reference); ok && d.find(tag, e, reference) == nil {
			return fmt.Sprintf("%s %s refers to the %s %s, which is not here", e.Tag, name(e), tag, value)
		}
		return ""
	}
	for _, p := range d.all("portType") {
		for _, o := range children(p, wsdlSpace, "operation") {
			for _, c := range o.ChildElements() {
				if why := check(c, "message", "message"); why != "" {
					return why
				}
			}
		}
	}
	for _, b := range d.all("binding") {
		if why := check(b, "type", "portType"); why != "" {
			return why
		}
	}
	for _, s := range d.all("service") {
		for _, p := range children(s, wsdlSpace, "port") {
			if why := check(p, "binding", "binding"); why != "" {
				return why
			}
		}
	}
	return ""
}

// eachAbstract is each for the portTypes.
func (d *description) eachAbstract(check func(operation *etree.Element) string) string {
	for _, p := range d.all("portType") {
		for _, o := range children(p, wsdlSpace, "operation") {
			if why := check(o); why != "" {
				return name(p) + ", " + name(o) + ": " + why
			}
		}
	}
	return ""
}

func requestResponse(d *description) string {
	return d.eachAbstract(func(o *etree.Element) string {
		var order []string
		for _, c := range o.ChildElements() {
			if c.Tag == "input" || c.Tag == "output" {
				order = append(order, c.Tag)
			}
		}
		if len(order) == 0 || order[0] != "input" {
			return "it does not begin with an input"
		}
		return ""
	})
}

func distinctOperations(d *description) string {
	for _, p := range d.all("portType") {
		if twice := repeated(children(p, wsdlSpace, "operation")); twice != "" {
			return fmt.Sprintf("%s has two operations %s", name(p), twice)
		}
	}
	return ""
}

// eachPart calls check for every part of every message.
func (d *description) eachPart(check func(part *etree.Element) string) string {
	for _, m := range d.all("message") {
		for _, p := range children(m, wsdlSpace, "part") {
			if why := check(p); why != "" {
				return name(m) + ", part " + name(p) + ": " + why
			}
		}
	}
	return ""
}

func elementOrType(d *description) string {
	return d.eachPart(func(p *etree.Element) string {
		_, element := attribute(p, "element")
		if _, typ := attribute(p, "type"); element && typ {
			return "it has both an element and a type"
		}
		return ""
	})
}

func globalElements(d *description) string {
	return d.eachPart(func(p *etree.Element) string {
		value, ok := attribute(p, "element")
		space, local, _ := resolve(p, value)
		if ok && (space != d.space || !slices.Contains(d.elements, local)) {
			return fmt.Sprintf("the schema has no global element %s", value)
		}
		return ""
	})
}

// bound calls check with the messages that an operation's tags carry.
func (d *description) bound(check func(message *etree.Element) string, tags ...string) string {
	return d.each(func(b, o *etree.Element) string {
		for _, tag := range tags {
			if m := d.message(d.abstract(b, o), tag); m != nil {
				if why := check(m); why != "" {
					return name(m) + " " + why
				}
			}
		}
		return ""
	})
}

func typed(message *etree.Element) string {
	for _, p := range children(message, wsdlSpace, "part") {
		if _, ok := attribute(p, "element"); !ok {
			return fmt.Sprintf("has the part %s, which is no element", name(p))
		}
	}
	return ""
}

func partsAreElements(d *description) string      { return d.bound(typed, "input", "output") }
func faultPartsAreElements(d *description) string { return d.bound(typed, "fault") }

func onePart(d *description) string {
	return d.bound(func(m *etree.Element) string {
		if n := len(children(m, wsdlSpace, "part")); n > 1 {
			return fmt.Sprintf("has %d parts", n)
		}
		return ""
	}, "input", "output")
}

func onePartNamed(d *description) string {
	return d.each(func(_, o *etree.Element) string {
		for _, body := range extensions(o, "body") {
			if parts, _ := attribute(body, "parts"); len(strings.Fields(parts)) > 1 {
				return "soap:body names the parts " + parts
			}
		}
		return ""
	})
}

// transport is what the soap:binding of each binding says.
func (d *description) transport(check func(value string, given bool) string) string {
	for _, b := range d.bindings() {
		if why := check(attribute(child(b, soapSpace, "binding"), "transport")); why != "" {
			return name(b) + ": " + why
		}
	}
	return ""
}

func transportGiven(d *description) string {
	return d.transport(func(_ string, given bool) string {
		if !given {
			return "soap:binding has no transport"
		}
		return ""
	})
}

func transportHTTP(d *description) string {
	return d.transport(func(value string, given bool) string {
		if given && value != "http://schemas.xmlsoap.org/soap/http" {
			return "the transport is " + value
		}
		return ""
	})
}

func documentStyle(d *description) string {
	return d.each(func(b, o *etree.Element) string {
		style, given := attribute(child(o, soapSpace, "operation"), "style")
		if !given {
			style, given = attribute(child(b, soapSpace, "binding"), "style")
		}
		if given && style != "document" {
			return "the style is " + style
		}
		return ""
	})
}

func literal(d *description) string {
	return d.each(func(_, o *etree.Element) string {
		for _, e := range append(extensions(o, "body"), extensions(o, "fault")...) {
			if use, given := attribute(e, "use"); given && use != "literal" {
				return fmt.Sprintf("the use of soap:%s is %s", e.Tag, use)
			}
		}
		return ""
	})
}

func noNamespace(d *description) string {
	return d.each(func(_, o *etree.Element) string {
		for _, e := range append(extensions(o, "body"), extensions(o, "fault")...) {
			if space, given := attribute(e, "namespace"); given {
				return fmt.Sprintf("soap:%s has the namespace %s", e.Tag, space)
			}
		}
		return ""
	})
}

func allOperations(d *description) string {
	for _, b := range d.bindings() {
		names := func(e *etree.Element) []string {
			var all []string
			for _, o := range children(e, wsdlSpace, "operation") {
				all = append(all, name(o))
			}
			slices.Sort(all)
			return all
		}
		if got, want := names(b), names(d.find("portType", b, "type")); !slices.Equal(got, want) {
			return fmt.Sprintf("%s has the operations %v, its portType %v", name(b), got, want)
		}
	}
	return ""
}

func faultNamed(d *description) string {
	return d.each(func(_, o *etree.Element) string {
		for _, f := range extensions(o, "fault") {
			if name(f) == "" {
				return "a soap:fault has no name"
			}
		}
		return ""
	})
}

func faultNameMatches(d *description) string {
	return d.each(func(_, o *etree.Element) string {
		for _, f := range extensions(o, "fault") {
			if outer := name(f.Parent()); name(f) != "" && name(f) != outer {
				return fmt.Sprintf("soap:fault %s stands in fault %s", name(f), outer)
			}
		}
		return ""
	})
}

func faultsBound(d *description) string {
	return d.each(func(b, o *etree.Element) string {
		for _, f := range children(d.abstract(b, o), wsdlSpace, "fault") {
			if !slices.ContainsFunc(children(o, wsdlSpace, "fault"), func(e *etree.Element) bool { return name(e) == name(f) }) {
				return fmt.Sprintf("fault %s of the portType is not bound", name(f))
			}
		}
		return ""
	})
}

// The signature of a document/literal operation is its input element.
func distinctSignatures(d *description) string {
	for _, b := range d.bindings() {
		seen := map[Name]string{}
		for _, o := range children(b, wsdlSpace, "operation") {
			input := d.element(d.message(d.abstract(b, o), "input"))
			if other := seen[input]; other != "" {
				return fmt.Sprintf("%s: %s and %s both take %s", name(b), other, name(o), input.Local)
			}
			seen[input] = name(o)
		}
	}
	return ""
}
