package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What the tables cannot express must stop the generator: else documents would
// be judged by less than the schema says.
func TestUnsupportedSchemasAreRefused(t *testing.T) {
	for body, want := range map[string]string{
		`<xs:element name="a"/>`:                                                         "neither a type nor a complexType",
		`<xs:element name="a" type="Nowhere"/>`:                                          "no type Nowhere",
		`<xs:group name="a"/>`:                                                           "group is not supported",
		`<xs:complexType name="A"><xs:choice/></xs:complexType>`:                         "choice is not supported",
		`<xs:complexType name="A"><xs:sequence><xs:any/></xs:sequence></xs:complexType>`: "any in a sequence",
		`<xs:complexType name="A"><xs:sequence><xs:element name="b" type="xs:duration"/></xs:sequence></xs:complexType>`:                                "no type xs:duration",
		`<xs:complexType name="A"><xs:sequence><xs:element name="b" type="xs:int"/><xs:element name="b" type="xs:int"/></xs:sequence></xs:complexType>`: "two elements b",
		`<xs:complexType name="A"><xs:sequence><xs:element name="b" type="xs:int" maxOccurs="many"/></xs:sequence></xs:complexType>`:                    "maxOccurs of b",
		`<xs:complexType name="A"/><xs:complexType name="B"><xs:attribute name="c" type="A"/></xs:complexType>`:                                         "no simple type A",
		`<xs:simpleType name="A"><xs:list itemType="xs:int"/></xs:simpleType>`:                                                                          "only restrictions",
		`<xs:simpleType name="A"><xs:restriction base="xs:decimal"/></xs:simpleType>`:                                                                   "base xs:decimal",
		`<xs:simpleType name="A"><xs:restriction base="xs:int"><xs:minInclusive value="1"/></xs:restriction></xs:simpleType>`:                           "facet minInclusive",
		`<xs:simpleType name="A"><xs:restriction base="xs:int"><xs:pattern value="[1-9]"/></xs:restriction></xs:simpleType>`:                            "facet pattern of xs:int",
		`<xs:simpleType name="A"><xs:restriction base="xs:long"><xs:enumeration value="1"/></xs:restriction></xs:simpleType>`:                           "facet enumeration of xs:long",
		`<xs:simpleType name="A"><xs:restriction base="xs:string"><xs:pattern value="\i\c*"/></xs:restriction></xs:simpleType>`:                         "does not mean the same",
		`<xs:simpleType name="A"><xs:restriction base="xs:string"><xs:pattern value="^a$"/></xs:restriction></xs:simpleType>`:                           "does not mean the same",
	} {
		dir := t.TempDir()
		for name, inner := range map[string]string{"profile.xsd": "", "grid.xsd": body} {
			text := `<xs:schema xmlns:xs="http://www.w3.org/2001/XMLSchema">` + inner + `</xs:schema>`
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := readSchemas(dir); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want %s", body, err, want)
		}
	}
}

func TestServicesWithoutOperationsAreRefused(t *testing.T) {
	for body, want := range map[string]string{
		``: "no portTypes",
		`<portType name="APortType"><documentation>x</documentation></portType>`: "has no operations",
	} {
		path := filepath.Join(t.TempDir(), "services.wsdl")
		if err := os.WriteFile(path, []byte(`<definitions>`+body+`</definitions>`), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := readServices(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want %s", body, err, want)
		}
	}
}
