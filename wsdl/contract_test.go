package wsdl

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/beevik/etree"
)

func sourceDocuments(t *testing.T) []string {
	t.Helper()
	names, err := filepath.Glob("*.xsd")
	if err != nil || len(names) != 2 {
		t.Fatal(names, err)
	}
	return names
}

func publishedDocuments() []string {
	return []string{"bootstrap.wsdl", "broker.wsdl", "image.wsdl", "queue.wsdl", "information.wsdl", "vm.wsdl"}
}

// What is committed is what the generator makes, and it makes the same twice.
func TestGeneratedFilesAreFresh(t *testing.T) {
	if testing.Short() {
		t.Skip("runs the Go tool, which takes seconds; skipped by -short")
	}
	// Read here, so that a cached verdict dies when the generator changes.
	sources, err := filepath.Glob("gen/*.go")
	if err != nil || len(sources) == 0 {
		t.Fatal(sources, err)
	}
	for _, name := range sources {
		if _, err := os.ReadFile(name); err != nil {
			t.Fatal(err)
		}
	}
	generated := append(publishedDocuments(), "grid_gen.go", "dispatch_gen.go", "schema_gen.go")
	for round := range 2 {
		dir := t.TempDir()
		for _, name := range append(sourceDocuments(t), "services.wsdl") {
			data, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if out, err := exec.Command("go", "run", "./gen", dir).CombinedOutput(); err != nil {
			t.Fatalf("generate: %v\n%s", err, out)
		}
		for _, name := range generated {
			want, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("round %d: %s is not what the generator makes; run go generate ./wsdl", round+1, name)
			}
		}
	}
}

func TestSchemasAreValid(t *testing.T) {
	if _, err := exec.LookPath("xmllint"); err != nil {
		t.Skip("xmllint is not installed, so the schemas were not judged; install libxml2-utils")
	}
	document := filepath.Join(t.TempDir(), "job.xml")
	if err := os.WriteFile(document, []byte(good()["job"]), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range sourceDocuments(t) {
		if out, err := exec.Command("xmllint", "--noout", "--nonet", "--schema", name, document).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
	if out, err := exec.Command("xmllint", append([]string{"--noout", "--nonet"}, publishedDocuments()...)...).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// The rules by which zeep, gSOAP, node-soap, PHP and SOAP::Lite all take the
// documents.
func TestSchemasKeepTheRulesThatEveryStackNeeds(t *testing.T) {
	roots := map[string]*etree.Element{}
	types := map[string]bool{}
	for _, name := range sourceDocuments(t) {
		d := etree.NewDocument()
		if err := d.ReadFromFile(name); err != nil {
			t.Fatal(err)
		}
		root := d.Root()
		for attribute, want := range map[string]string{"targetNamespace": Namespace, "elementFormDefault": "qualified", "attributeFormDefault": "unqualified"} {
			if got := root.SelectAttrValue(attribute, ""); got != want {
				t.Errorf("%s: %s is %q, want %q", name, attribute, got, want)
			}
		}
		for _, e := range root.FindElements("//*") {
			switch e.Tag {
			case "any", "anyAttribute", "group", "attributeGroup", "choice", "all", "extension", "complexContent", "simpleContent", "union", "list", "import", "redefine":
				t.Errorf("%s: xs:%s is not to be used", name, e.Tag)
			case "pattern":
				if strings.Contains(e.SelectAttrValue("value", ""), `\$`) {
					t.Errorf("%s: pattern %s: \\$ is no escape of XML Schema", name, e.SelectAttrValue("value", ""))
				}
			case "complexType", "simpleType":
				types[e.SelectAttrValue("name", "")] = true
			case "element":
				if e.Parent() == root {
					roots[e.SelectAttrValue("name", "")] = e
				}
			}
			for _, attribute := range []string{"type", "base"} {
				typ := e.SelectAttrValue(attribute, "")
				switch strings.TrimPrefix(typ, "xs:") {
				case "duration", "QName", "ID", "IDREF", "NOTATION", "language", "nonNegativeInteger", "integer", "decimal", "anyType", "anySimpleType":
					t.Errorf("%s: type %s is not to be used", name, typ)
				case "base64Binary":
					if e.Tag != "restriction" {
						t.Errorf("%s: %s is base64Binary itself; use the named type Binary", name, e.SelectAttrValue("name", ""))
					}
				}
			}
			if max := e.SelectAttrValue("maxOccurs", "1"); max != "1" && max != "unbounded" {
				t.Errorf("%s: maxOccurs=%q of %s: gowsdl makes a scalar of it", name, max, e.SelectAttrValue("name", ""))
			}
		}
	}
	uses := map[string]int{}
	for _, name := range publishedDocuments() {
		d := etree.NewDocument()
		if err := d.ReadFromFile(name); err != nil {
			t.Fatal(err)
		}
		checkPublished(t, name, d.Root(), roots, types, uses)
	}
	for element, n := range uses {
		if n > 1 {
			t.Errorf("%s is the input of %d operations", element, n)
		}
	}
}

// checkPublished judges one WSDL and counts which elements are inputs.
func checkPublished(t *testing.T, name string, root *etree.Element, roots map[string]*etree.Element, types map[string]bool, uses map[string]int) {
	if got := root.SelectAttrValue("targetNamespace", ""); got != Namespace {
		t.Errorf("%s: targetNamespace %q", name, got)
	}
	if schema := root.FindElement("types/schema"); schema == nil || len(schema.SelectElements("include")) != 1 {
		t.Errorf("%s: it does not include its schema once, in the same namespace", name)
	}
	if root.SelectElement("import") != nil {
		t.Errorf("%s: wsdl:import, which gowsdl ignores", name)
	}
	parts := map[string]string{}
	for _, m := range root.SelectElements("message") {
		part := m.SelectElement("part")
		element := strings.TrimPrefix(part.SelectAttrValue("element", ""), "tns:")
		parts["tns:"+m.SelectAttrValue("name", "")] = element
		if roots[element] == nil {
			t.Errorf("%s: message %s has no global element", name, m.SelectAttrValue("name", ""))
		}
	}
	portType := root.SelectElement("portType")
	if types[portType.SelectAttrValue("name", "")] {
		t.Errorf("%s: the portType is named like a type", name)
	}
	operations := map[string]bool{}
	for _, o := range portType.SelectElements("operation") {
		operation := o.SelectAttrValue("name", "")
		operations[operation] = true
		in, out := parts[o.SelectElement("input").SelectAttrValue("message", "")], parts[o.SelectElement("output").SelectAttrValue("message", "")]
		if in != operation || out != operation+"Response" {
			t.Errorf("%s: %s takes %s and answers %s: not wrapped", name, operation, in, out)
		}
		uses[in]++
		if types[in] {
			t.Errorf("%s: element %s is named like a type", name, in)
		}
		fault := o.SelectElement("fault")
		if fault == nil || fault.SelectAttrValue("name", "") != "GridFault" || parts[fault.SelectAttrValue("message", "")] != "GridFault" {
			t.Errorf("%s: %s has not the fault GridFault", name, operation)
		}
	}
	bindings := root.SelectElements("binding")
	if len(bindings) != 2 {
		t.Fatalf("%s: %d bindings", name, len(bindings))
	}
	for i, space := range []string{"http://schemas.xmlsoap.org/wsdl/soap/", "http://schemas.xmlsoap.org/wsdl/soap12/"} {
		b := bindings[i]
		how := b.SelectElement("binding")
		if how.NamespaceURI() != space || how.SelectAttrValue("style", "") != "document" {
			t.Errorf("%s: binding %d is %s; SOAP 1.1 comes first", name, i, how.NamespaceURI())
		}
		bound := b.SelectElements("operation")
		if len(bound) != len(operations) {
			t.Errorf("%s: binding %d has %d operations of %d", name, i, len(bound), len(operations))
		}
		for _, o := range bound {
			operation := o.SelectAttrValue("name", "")
			if got := o.SelectElement("operation").SelectAttrValue("soapAction", ""); got != Namespace+"#"+operation {
				t.Errorf("%s: soapAction %q", name, got)
			}
			for _, part := range []string{"input/body", "output/body", "fault/fault"} {
				if e := o.FindElement(part); e == nil || e.SelectAttrValue("use", "") != "literal" || e.NamespaceURI() != space {
					t.Errorf("%s: %s of %s is not literal", name, part, operation)
				}
			}
			outer, inner := o.SelectElement("fault").SelectAttrValue("name", ""), o.FindElement("fault/fault").SelectAttrValue("name", "")
			if outer != "GridFault" || inner != "GridFault" {
				t.Errorf("%s: the fault of %s is named %q and %q", name, operation, outer, inner)
			}
		}
	}
}

// A value that encoding/xml calls empty must still be written where the
// schema requires one: else the receiver refuses the message.
func TestRequiredValuesAreWrittenEvenWhenEmpty(t *testing.T) {
	for i := range schemaTypes {
		typ := &schemaTypes[i]
		if typ.kind != kindComplex {
			continue
		}
		code := structOf(t, typ.name)
		for _, e := range typ.elements {
			tag := fmt.Sprintf("`xml:%q json", e.name)
			scalar := schemaTypes[e.typ].kind != kindComplex
			if scalar && !e.nillable && e.min > 0 && !strings.Contains(code, tag) {
				t.Errorf("%s.%s is left out when it is empty", typ.name, e.name)
			}
		}
	}
}

func structOf(t *testing.T, name string) string {
	t.Helper()
	code, err := os.ReadFile("grid_gen.go")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(code), "\ntype "+name+" struct {")
	if !ok {
		t.Fatalf("no type %s in grid_gen.go", name)
	}
	body, _, _ := strings.Cut(rest, "\n}")
	return body
}
