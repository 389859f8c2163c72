// Package wsi judges WSDL documents and SOAP 1.1 messages by the WS-I Basic
// Profile 1.1 (and its Simple SOAP Binding Profile 1.0), as far as it bears on
// document/literal services over HTTP, and SOAP 1.2 messages by the HTTP
// binding of SOAP 1.2.
//
// Each rule is a function under the profile's own number, R and four digits;
// where the profile leaves it to the base specification, that is named. The
// package only reads what it is given and never judges what a message means.
package wsi

import (
	"fmt"
	"strings"

	"github.com/beevik/etree"
)

const (
	wsdlSpace   = "http://schemas.xmlsoap.org/wsdl/"
	soapSpace   = "http://schemas.xmlsoap.org/wsdl/soap/"
	schemaSpace = "http://www.w3.org/2001/XMLSchema"
	envelope11  = "http://schemas.xmlsoap.org/soap/envelope/"
	envelope12  = "http://www.w3.org/2003/05/soap-envelope"
	xmlSpace    = "http://www.w3.org/XML/1998/namespace"
)

// Violation is a rule that something breaks.
type Violation struct {
	Rule string // R1126, or a section of a specification
	Why  string
}

func (v Violation) String() string { return v.Rule + ": " + v.Why }

// rule says what is wrong with a T, or "".
type rule[T any] struct {
	number string
	check  func(T) string
}

func judge[T any](rules []rule[T], what T) []Violation {
	var found []Violation
	for _, r := range rules {
		if why := r.check(what); why != "" {
			found = append(found, Violation{r.number, why})
		}
	}
	return found
}

// is tells whether an element has a name.
func is(e *etree.Element, space, tag string) bool {
	return e != nil && e.Tag == tag && e.NamespaceURI() == space
}

// children are the child elements with a name.
func children(e *etree.Element, space, tag string) []*etree.Element {
	var found []*etree.Element
	if e != nil {
		for _, c := range e.ChildElements() {
			if is(c, space, tag) {
				found = append(found, c)
			}
		}
	}
	return found
}

// child is the first child element with a name, or nil.
func child(e *etree.Element, space, tag string) *etree.Element {
	if all := children(e, space, tag); len(all) > 0 {
		return all[0]
	}
	return nil
}

// attribute is an unqualified attribute's value, and whether there is one.
func attribute(e *etree.Element, name string) (string, bool) {
	if e != nil {
		for _, a := range e.Attr {
			if a.Space == "" && a.Key == name {
				return a.Value, true
			}
		}
	}
	return "", false
}

func name(e *etree.Element) string {
	v, _ := attribute(e, "name")
	return v
}

// walk visits an element and all below it.
func walk(e *etree.Element, visit func(*etree.Element)) {
	visit(e)
	for _, c := range e.ChildElements() {
		walk(c, visit)
	}
}

// resolve splits a QName's value where it is written.
func resolve(at *etree.Element, qname string) (space, local string, ok bool) {
	prefix, local, found := strings.Cut(qname, ":")
	if !found {
		prefix, local = "", qname
	}
	for e := at; e != nil; e = e.Parent() {
		for _, a := range e.Attr {
			if a.Space == "xmlns" && a.Key == prefix || prefix == "" && a.Space == "" && a.Key == "xmlns" {
				return a.Value, local, true
			}
		}
	}
	return "", local, prefix == ""
}

// declaresXML tells whether the prefix xml is declared, which is built in.
func declaresXML(root *etree.Element) string {
	why := ""
	walk(root, func(e *etree.Element) {
		for _, a := range e.Attr {
			if a.Space == "xmlns" && a.Value == xmlSpace {
				why = fmt.Sprintf("%s declares xmlns:%s for the namespace of xml: itself", e.Tag, a.Key)
			}
		}
	})
	return why
}

// parse reads a document, with all that stands in it.
func parse(data []byte) (*etree.Document, error) {
	d := etree.NewDocument()
	if err := d.ReadFromBytes(data); err != nil {
		return nil, err
	}
	if d.Root() == nil {
		return nil, fmt.Errorf("there is no element in it")
	}
	return d, nil
}
