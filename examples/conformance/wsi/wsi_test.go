package wsi

import (
	"net/http"
	"slices"
	"strings"
	"testing"
)

const goodWSDL = `<?xml version="1.0" encoding="UTF-8"?>
<definitions xmlns="http://schemas.xmlsoap.org/wsdl/" xmlns:xs="http://www.w3.org/2001/XMLSchema" xmlns:soap="http://schemas.xmlsoap.org/wsdl/soap/" xmlns:t="urn:t" targetNamespace="urn:t">
<import namespace="urn:u" location="u.wsdl"/>
<types><xs:schema targetNamespace="urn:t"><xs:include schemaLocation="t.xsd"/></xs:schema></types>
<message name="AskMessage"><part name="p" element="t:Ask"/></message>
<message name="TellMessage"><part name="p" element="t:Tell"/></message>
<message name="OopsMessage"><part name="p" element="t:Oops"/></message>
<message name="StopMessage"><part name="p" element="t:Stop"/></message>
<portType name="T">
<operation name="Ask"><input message="t:AskMessage"/><output message="t:TellMessage"/><fault name="Oops" message="t:OopsMessage"/></operation>
<operation name="Stop"><input message="t:StopMessage"/><output message="t:TellMessage"/></operation>
</portType>
<binding name="B" type="t:T">
<soap:binding style="document" transport="http://schemas.xmlsoap.org/soap/http"/>
<operation name="Ask"><soap:operation soapAction="urn:t#Ask" style="document"/><input><soap:body use="literal"/></input><output><soap:body use="literal"/></output><fault name="Oops"><soap:fault name="Oops" use="literal"/></fault></operation>
<operation name="Stop"><soap:operation soapAction="urn:t#Stop"/><input><soap:body use="literal"/></input><output><soap:body use="literal"/></output></operation>
</binding>
<service name="S"><port name="P" binding="t:B"><soap:address location="http://h/"/></port></service>
</definitions>`

func elements() []string { return []string{"Ask", "Tell", "Oops", "Stop"} }

func TestDescriptions(t *testing.T) {
	service, violations := Description([]byte(goodWSDL), elements())
	if len(violations) > 0 {
		t.Fatalf("the good one: %v", violations)
	}
	want := Operation{"Ask", "urn:t#Ask", Name{"urn:t", "Ask"}, Name{"urn:t", "Tell"}}
	if len(service.Operations) != 2 || service.Operations[0] != want {
		t.Errorf("operations %+v", service.Operations)
	}
	broken := []struct{ rule, from, to string }{
		{"R2028", `name="TellMessage"`, `name="AskMessage"`},
		{"R2028", `<part name="p" element="t:Ask"/>`, `<part name="p" element="t:Ask"/><part name="p" element="t:Ask"/>`},
		{"R2028", `</definitions>`, ``},
		{"R4003", `encoding="UTF-8"`, `encoding="us-ascii"`},
		{"R1034", ` targetNamespace="urn:t">`, ` targetNamespace="urn:t" xmlns:xml="http://www.w3.org/XML/1998/namespace">`},
		{"R2001", `u.wsdl`, `u.xsd`},
		{"R2007", ` location="u.wsdl"`, ``},
		{"R2803", `namespace="urn:u"`, `namespace="u"`},
		{"R2003", `<types>`, `<types><xs:import namespace="urn:u"/>`},
		{"R2022", `<types>`, `<types/><import namespace="urn:v" location="v.wsdl"/><types>`},
		{"R2023", `<types>`, `<message name="M"/><types>`},
		{"R2105", `<xs:schema targetNamespace="urn:t">`, `<xs:schema>`},
		{"R2101", `binding="t:B"`, `binding="t:C"`},
		{"R2101", `<output message="t:TellMessage"/><fault`, `<output message="t:NoMessage"/><fault`},
		{"R2303", `<input message="t:StopMessage"/><output message="t:TellMessage"/>`, `<output message="t:TellMessage"/><input message="t:StopMessage"/>`},
		{"R2304", `</portType>`, `<operation name="Ask"><input message="t:StopMessage"/></operation></portType>`},
		{"R2306", `element="t:Ask"`, `element="t:Ask" type="xs:string"`},
		{"R2204", `element="t:Ask"`, `type="xs:string"`},
		{"R2205", `element="t:Oops"`, `type="xs:string"`},
		{"R2206", `element="t:Ask"`, `element="t:Nothing"`},
		{"R2210", `element="t:Ask"/>`, `element="t:Ask"/><part name="q" element="t:Tell"/>`},
		{"R2201", `<soap:body use="literal"/></input>`, `<soap:body parts="p q" use="literal"/></input>`},
		{"R2701", ` transport="http://schemas.xmlsoap.org/soap/http"`, ``},
		{"R2702", `transport="http://schemas.xmlsoap.org/soap/http"`, `transport="http://schemas.xmlsoap.org/soap/smtp"`},
		{"R2705", `soapAction="urn:t#Ask" style="document"`, `soapAction="urn:t#Ask" style="rpc"`},
		{"R2706", `<soap:body use="literal"/></input>`, `<soap:body use="encoded"/></input>`},
		{"R2716", `<soap:body use="literal"/></input>`, `<soap:body namespace="urn:t" use="literal"/></input>`},
		{"R2718", `<operation name="Stop"><input`, `<operation name="Halt"><input`},
		{"R2721", `<soap:fault name="Oops"`, `<soap:fault`},
		{"R2754", `<soap:fault name="Oops"`, `<soap:fault name="Ouch"`},
		{"R2740", `<fault name="Oops"><soap:fault name="Oops" use="literal"/></fault>`, ``},
		{"R2710", `<input message="t:StopMessage"/>`, `<input message="t:AskMessage"/>`},
	}
	tested := map[string]bool{}
	for _, b := range broken {
		tested[b.rule] = true
		if !strings.Contains(goodWSDL, b.from) {
			t.Fatalf("%s: nothing to break", b.rule)
		}
		_, violations := Description([]byte(strings.Replace(goodWSDL, b.from, b.to, 1)), elements())
		if !slices.ContainsFunc(violations, func(v Violation) bool { return v.Rule == b.rule }) {
			t.Errorf("%s with %q is not found: %v", b.rule, b.to, violations)
		}
	}
	for _, r := range descriptionRules() {
		if !tested[r.number] {
			t.Errorf("%s is never broken", r.number)
		}
	}
}

// A binding of SOAP 1.2 is beyond the profile.
func TestOtherBindingsArePassedOver(t *testing.T) {
	other := strings.NewReplacer(`<binding name="B"`, `<binding name="B12"`, `<soap:binding style="document"`, `<s12:binding xmlns:s12="http://schemas.xmlsoap.org/wsdl/soap12/" style="rpc"`).
		Replace(goodWSDL[strings.Index(goodWSDL, "<binding"):strings.Index(goodWSDL, "<service")])
	service, violations := Description([]byte(strings.Replace(goodWSDL, "<service", other+"<service", 1)), elements())
	if len(violations) > 0 || len(service.Operations) != 2 {
		t.Errorf("%v, %+v", violations, service)
	}
}

// sample is a good message: "request", "answer" or "fault", of a version.
func sample(kind, version string) Message {
	service, _ := Description([]byte(goodWSDL), elements())
	m := Message{Proto: "HTTP/1.1", Header: http.Header{}, Services: []*Service{service}}
	space, contentType := envelope11, "text/xml; charset=utf-8"
	body := map[string]string{
		"request": `<t:Ask xmlns:t="urn:t"/>`,
		"answer":  `<Tell xmlns="urn:t"/>`,
		"fault":   `<s:Fault><faultcode>s:Client</faultcode><faultstring>no</faultstring><detail><x/></detail></s:Fault>`,
	}[kind]
	m.Status = map[string]int{"answer": 200, "fault": 500}[kind]
	if kind == "request" {
		m.Method = "POST"
	}
	if version == "1.2" {
		space, contentType = envelope12, "application/soap+xml; charset=utf-8"
		if kind == "fault" {
			m.Status = 400
			body = `<s:Fault><s:Code><s:Value>s:Sender</s:Value></s:Code><s:Reason><s:Text xml:lang="en">no</s:Text></s:Reason><s:Detail/></s:Fault>`
		}
		if kind == "request" {
			contentType += `; action="urn:t#Ask"`
		}
	} else if kind == "request" {
		m.Header.Set("SOAPAction", `"urn:t#Ask"`)
	}
	m.Header.Set("Content-Type", contentType)
	m.Body = []byte(`<?xml version="1.0" encoding="UTF-8"?><s:Envelope xmlns:s="` + space + `"><s:Header><h:x xmlns:h="urn:h"/></s:Header><s:Body>` + body + `</s:Body></s:Envelope>`)
	return m
}

func TestMessages(t *testing.T) {
	// to replaces from in the body, or else changes a header, the method, the
	// protocol or the status.
	for _, version := range []struct {
		number string
		judge  func(Message) []Violation
		rules  []rule[*parsed]
		broken []struct{ rule, kind, from, to string }
	}{
		{"1.1", Message11, rules11(), []struct{ rule, kind, from, to string }{
			{"R9980", "request", "s:Body", "s:Bode"},
			{"R9980", "request", "</s:Envelope>", ""},
			{"R1011", "request", "<s:Header>", "<s:Body/><s:Header>"},
			{"R9981", "request", "</s:Body>", `<t:Ask xmlns:t="urn:t"/></s:Body>`},
			{"R1014", "request", `<t:Ask xmlns:t="urn:t"/>`, "<Ask/>"},
			{"R1011", "request", "</s:Envelope>", "<x/></s:Envelope>"},
			{"R1008", "request", "<s:Envelope", "<!DOCTYPE x><s:Envelope"},
			{"R1009", "request", "<s:Body>", "<?pi x?><s:Body>"},
			{"R1005", "request", "<s:Body>", `<s:Body s:encodingStyle="x">`},
			{"R1006", "request", "<t:Ask ", `<t:Ask s:encodingStyle="x" `},
			{"R1032", "request", "<s:Body>", `<s:Body s:id="x">`},
			{"R1013", "request", "<h:x ", `<h:x s:mustUnderstand="true" `},
			{"R1033", "request", "<h:x ", `<h:x xmlns:xml="http://www.w3.org/XML/1998/namespace" `},
			{"R1000", "fault", "<detail>", "<reason/><detail>"},
			{"R1001", "fault", "<detail><x/></detail>", "<s:detail/>"},
			{"R1004", "fault", "s:Client", "s:Customer"},
			{"R1004", "fault", "s:Client", "Client"},
			{"R1031", "fault", "s:Client", "s:Client.Auth"},
			{"R1107", "fault", "</s:Body>", `<x xmlns="urn:x"/></s:Body>`},
			{"R1012", "request", "<t:Ask ", "<t:Ask a='\xff' "},
			{"R1018", "answer", "Content-Type", "text/xml"},
			{"SOAP 1.1, section 6", "answer", "Content-Type", "application/xml; charset=utf-8"},
			{"R1132", "request", "method", "M-POST"},
			{"R1141", "request", "proto", "HTTP/2.0"},
			{"R1109", "request", "SOAPAction", "urn:t#Ask"},
			{"R2744", "request", "SOAPAction", `"urn:t#Stop"`},
			{"R1126", "fault", "status", "200"},
			{"R1111", "answer", "status", "500"},
			{"R2712", "answer", "Tell", "Yell"},
			{"R2712", "request", "Ask", "Tell"},
		}},
		{"1.2", Message12, rules12(), []struct{ rule, kind, from, to string }{
			{"SOAP 1.2 Part 1, section 5", "request", envelope12, envelope11},
			{"SOAP 1.2 Part 2, section 7.1.4", "answer", "Content-Type", "text/xml; charset=utf-8"},
			{"R1018", "answer", "Content-Type", "application/soap+xml"},
			{"RFC 3902", "request", "Content-Type", "application/soap+xml; charset=utf-8"},
			{"SOAP 1.2 Part 2, table 20", "fault", "status", "500"},
			{"SOAP 1.2 Part 2, table 20", "fault", "s:Sender", "s:Receiver"},
			{"R1111", "answer", "status", "500"},
			{"R2712", "answer", "Tell", "Yell"},
			{"SOAP 1.2 Part 1, section 5.4", "fault", "s:Sender", "s:Client"},
			{"SOAP 1.2 Part 1, section 5.4", "fault", "<s:Detail/>", "<s:Role/><s:Node/>"},
			{"SOAP 1.2 Part 1, section 5.4", "fault", "s:Text", "s:Test"},
		}},
	} {
		for _, kind := range []string{"request", "answer", "fault"} {
			if violations := version.judge(sample(kind, version.number)); len(violations) > 0 {
				t.Errorf("a good %s of SOAP %s: %v", kind, version.number, violations)
			}
		}
		tested := map[string]bool{}
		for _, b := range version.broken {
			tested[b.rule] = true
			m := sample(b.kind, version.number)
			switch b.from {
			case "method":
				m.Method = b.to
			case "proto":
				m.Proto = b.to
			case "status":
				m.Status = map[string]int{"200": 200, "500": 500}[b.to]
			case "Content-Type", "SOAPAction":
				m.Header.Set(b.from, b.to)
			default:
				if !strings.Contains(string(m.Body), b.from) {
					t.Fatalf("%s: nothing to break", b.rule)
				}
				m.Body = []byte(strings.ReplaceAll(string(m.Body), b.from, b.to))
			}
			if violations := version.judge(m); !slices.ContainsFunc(violations, func(v Violation) bool { return v.Rule == b.rule }) {
				t.Errorf("%s, %s with %q is not found: %v\n%s", b.rule, b.kind, b.to, violations, m.Body)
			}
		}
		for _, r := range version.rules {
			if !tested[r.number] {
				t.Errorf("SOAP %s: %s is never broken", version.number, r.number)
			}
		}
	}
}
