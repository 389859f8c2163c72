package wsi

import (
	"fmt"
	"mime"
	"net/http"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/beevik/etree"
)

// Message is a SOAP message as it went over HTTP: a request has a Method, an
// answer a Status.
type Message struct {
	Method, Proto string
	Status        int
	Header        http.Header
	Body          []byte
	Services      []*Service // whose operations it may be about
}

// Message11 judges a message of SOAP 1.1.
func Message11(m Message) []Violation { return judgeMessage(m, rules11()) }

// Message12 judges a message of SOAP 1.2, which the Basic Profile 1.1 does not
// speak of, by the HTTP binding of SOAP 1.2 Part 2.
func Message12(m Message) []Violation { return judgeMessage(m, rules12()) }

// parsed is a message with its envelope.
type parsed struct {
	Message
	document   *etree.Document
	root, body *etree.Element
	fault      *etree.Element // nil in what is none
	media      string
	parameters map[string]string
}

func judgeMessage(m Message, rules []rule[*parsed]) []Violation {
	p := &parsed{Message: m}
	if !utf8.Valid(m.Body) {
		return []Violation{{"R1012", "the envelope is not UTF-8"}}
	}
	var err error
	if p.document, err = parse(m.Body); err != nil {
		return []Violation{{"R9980", fmt.Sprintf("it is no XML document: %s", err)}}
	}
	p.root = p.document.Root()
	for _, c := range p.root.ChildElements() {
		if p.body == nil && is(c, p.root.NamespaceURI(), "Body") {
			p.body = c
			p.fault = child(c, p.root.NamespaceURI(), "Fault")
		}
	}
	p.media, p.parameters, _ = mime.ParseMediaType(m.Header.Get("Content-Type"))
	return judge(rules, p)
}

func rules11() []rule[*parsed] {
	return []rule[*parsed]{
		{"R9980", structure}, {"R9981", oneBodyChild}, {"R1014", qualifiedBodyChild}, {"R1011", nothingAfterBody},
		{"R1008", noDoctype}, {"R1009", noInstructions}, {"R1005", noEncodingStyle}, {"R1006", noEncodingStyleInBody},
		{"R1032", noSOAPAttributes}, {"R1013", mustUnderstand}, {"R1033", noXMLDeclared},
		{"R1000", faultChildren}, {"R1001", faultUnqualified}, {"R1004", faultCode}, {"R1031", faultCodeDots},
		{"R1018", charset}, {"SOAP 1.1, section 6", textXML},
		{"R1132", post}, {"R1141", http1}, {"R1109", quotedAction}, {"R2744", declaredAction},
		{"R1126", faultStatus}, {"R1111", okStatus}, {"R2712", boundElement}, {"R1107", faultAlone},
	}
}

func rules12() []rule[*parsed] {
	return []rule[*parsed]{
		{"SOAP 1.2 Part 1, section 5", structure12}, {"SOAP 1.2 Part 2, section 7.1.4", media12}, {"R1018", charset},
		{"RFC 3902", action12}, {"SOAP 1.2 Part 2, table 20", faultStatus12}, {"R1111", okStatus}, {"R2712", boundElement},
		{"SOAP 1.2 Part 1, section 5.4", faultChildren12},
	}
}

func (p *parsed) request() bool { return p.Method != "" }

func structure(p *parsed) string { return envelope(p, envelope11) }

func structure12(p *parsed) string { return envelope(p, envelope12) }

// envelope: Envelope, perhaps Header, Body.
func envelope(p *parsed, space string) string {
	if !is(p.root, space, "Envelope") {
		return fmt.Sprintf("the root is {%s}%s, not {%s}Envelope", p.root.NamespaceURI(), p.root.Tag, space)
	}
	all := p.root.ChildElements()
	if len(all) > 0 && is(all[0], space, "Header") {
		all = all[1:]
	}
	if len(all) == 0 || !is(all[0], space, "Body") {
		return "the Envelope has no Body after its Header, if any"
	}
	return ""
}

func nothingAfterBody(p *parsed) string {
	if all := p.root.ChildElements(); p.body != nil && all[len(all)-1] != p.body {
		return fmt.Sprintf("%s follows the Body", all[len(all)-1].Tag)
	}
	return ""
}

func oneBodyChild(p *parsed) string {
	if p.body != nil && len(p.body.ChildElements()) > 1 {
		return fmt.Sprintf("the Body has %d children", len(p.body.ChildElements()))
	}
	return ""
}

func qualifiedBodyChild(p *parsed) string {
	if p.body != nil {
		for _, c := range p.body.ChildElements() {
			if c.NamespaceURI() == "" {
				return fmt.Sprintf("the Body's child %s is in no namespace", c.Tag)
			}
		}
	}
	return ""
}

func noDoctype(p *parsed) string {
	for _, token := range p.document.Child {
		if d, ok := token.(*etree.Directive); ok && strings.HasPrefix(d.Data, "DOCTYPE") {
			return "there is a document type declaration"
		}
	}
	return ""
}

func noInstructions(p *parsed) string {
	why := ""
	look := func(tokens []etree.Token) {
		for _, token := range tokens {
			if i, ok := token.(*etree.ProcInst); ok && i.Target != "xml" {
				why = fmt.Sprintf("there is a processing instruction %s", i.Target)
			}
		}
	}
	look(p.document.Child)
	walk(p.root, func(e *etree.Element) { look(e.Child) })
	return why
}

// encodingStyle finds the attribute on an element.
func encodingStyle(e *etree.Element) string {
	for _, a := range e.Attr {
		if a.Key == "encodingStyle" && a.NamespaceURI() == envelope11 {
			return fmt.Sprintf("%s has encodingStyle", e.Tag)
		}
	}
	return ""
}

func noEncodingStyle(p *parsed) string {
	why := ""
	walk(p.root, func(e *etree.Element) {
		if s := encodingStyle(e); s != "" && e.NamespaceURI() == envelope11 {
			why = s
		}
	})
	return why
}

func noEncodingStyleInBody(p *parsed) string {
	if p.body != nil {
		for _, c := range p.body.ChildElements() {
			if why := encodingStyle(c); why != "" {
				return why
			}
		}
	}
	return ""
}

func noSOAPAttributes(p *parsed) string {
	for _, e := range append(p.root.ChildElements(), p.root) {
		for _, a := range e.Attr {
			if a.NamespaceURI() == envelope11 && slices.Contains([]string{"Envelope", "Header", "Body"}, e.Tag) {
				return fmt.Sprintf("%s has the attribute %s of SOAP's namespace", e.Tag, a.Key)
			}
		}
	}
	return ""
}

func mustUnderstand(p *parsed) string {
	why := ""
	walk(p.root, func(e *etree.Element) {
		for _, a := range e.Attr {
			if a.Key == "mustUnderstand" && a.NamespaceURI() == envelope11 && a.Value != "0" && a.Value != "1" {
				why = fmt.Sprintf("mustUnderstand of %s is %q", e.Tag, a.Value)
			}
		}
	})
	return why
}

func noXMLDeclared(p *parsed) string { return declaresXML(p.root) }

// ofFault calls check with the fault's children, if it is a fault.
func ofFault(p *parsed, check func(c *etree.Element) string) string {
	if p.fault != nil {
		for _, c := range p.fault.ChildElements() {
			if why := check(c); why != "" {
				return why
			}
		}
	}
	return ""
}

func faultChildren(p *parsed) string {
	return ofFault(p, func(c *etree.Element) string {
		if !slices.Contains([]string{"faultcode", "faultstring", "faultactor", "detail"}, c.Tag) {
			return fmt.Sprintf("the Fault has a child %s", c.Tag)
		}
		return ""
	})
}

func faultUnqualified(p *parsed) string {
	return ofFault(p, func(c *etree.Element) string {
		if c.NamespaceURI() != "" {
			return fmt.Sprintf("the Fault's child %s is in namespace %s", c.Tag, c.NamespaceURI())
		}
		return ""
	})
}

func faultCode(p *parsed) string {
	return ofFault(p, func(c *etree.Element) string {
		if c.Tag != "faultcode" {
			return ""
		}
		space, local, ok := resolve(c, strings.TrimSpace(c.Text()))
		local, _, _ = strings.Cut(local, ".")
		switch {
		case !ok || space == "":
			return fmt.Sprintf("faultcode %q is no qualified name", c.Text())
		case space == envelope11 && !slices.Contains([]string{"Client", "Server", "MustUnderstand", "VersionMismatch"}, local):
			return fmt.Sprintf("faultcode %q is none of SOAP's", c.Text())
		}
		return ""
	})
}

func faultCodeDots(p *parsed) string {
	return ofFault(p, func(c *etree.Element) string {
		if c.Tag == "faultcode" && strings.Contains(c.Text(), ".") {
			return fmt.Sprintf("faultcode %q has a dot", c.Text())
		}
		return ""
	})
}

func faultAlone(p *parsed) string {
	if p.fault != nil && len(p.body.ChildElements()) > 1 {
		return "the Fault is not alone in the Body"
	}
	return ""
}

func charset(p *parsed) string {
	if got := p.parameters["charset"]; !strings.EqualFold(got, "utf-8") {
		return fmt.Sprintf("charset is %q in Content-Type %q", got, p.Header.Get("Content-Type"))
	}
	return ""
}

func textXML(p *parsed) string { return media(p, "text/xml") }

func media12(p *parsed) string { return media(p, "application/soap+xml") }

func media(p *parsed, want string) string {
	if p.media != want {
		return fmt.Sprintf("Content-Type is %q, not %s", p.Header.Get("Content-Type"), want)
	}
	return ""
}

func post(p *parsed) string {
	if p.request() && p.Method != http.MethodPost {
		return fmt.Sprintf("the method is %s", p.Method)
	}
	return ""
}

func http1(p *parsed) string {
	if p.Proto != "HTTP/1.1" && p.Proto != "HTTP/1.0" {
		return fmt.Sprintf("the protocol is %q", p.Proto)
	}
	return ""
}

// action is the SOAPAction header and what stands between its quotes.
func (p *parsed) action() (header, inside string, quoted bool) {
	header = strings.Join(p.Header.Values("SOAPAction"), ", ")
	quoted = len(header) >= 2 && header[0] == '"' && header[len(header)-1] == '"'
	return header, strings.Trim(header, `"`), quoted
}

func quotedAction(p *parsed) string {
	if header, _, quoted := p.action(); p.request() && !quoted {
		return fmt.Sprintf("SOAPAction is %s, which is no quoted string", header)
	}
	return ""
}

func declaredAction(p *parsed) string {
	header, inside, _ := p.action()
	if o := p.operation(); p.request() && o != nil && inside != o.Action {
		return fmt.Sprintf("SOAPAction is %s, the WSDL says %q", header, o.Action)
	}
	return ""
}

// RFC 3902, section 5: the action is the media type's parameter.
func action12(p *parsed) string {
	if o := p.operation(); p.request() && o != nil && p.parameters["action"] != o.Action {
		return fmt.Sprintf("the action is %q, the WSDL says %q", p.parameters["action"], o.Action)
	}
	return ""
}

// operation is the one that the body's child belongs to.
func (p *parsed) operation() *Operation {
	if p.body == nil || len(p.body.ChildElements()) == 0 {
		return nil
	}
	c := p.body.ChildElements()[0]
	for _, s := range p.Services {
		for i := range s.Operations {
			o := &s.Operations[i]
			if qname := (Name{c.NamespaceURI(), c.Tag}); p.request() && qname == o.Input || !p.request() && qname == o.Output {
				return o
			}
		}
	}
	return nil
}

func boundElement(p *parsed) string {
	if p.fault == nil && p.body != nil && p.operation() == nil {
		return "the Body holds no element that a message of the WSDL names"
	}
	return ""
}

func faultStatus(p *parsed) string {
	if !p.request() && p.fault != nil && p.Status != http.StatusInternalServerError {
		return fmt.Sprintf("a fault with HTTP status %d", p.Status)
	}
	return ""
}

func okStatus(p *parsed) string {
	if !p.request() && p.fault == nil && p.Status != http.StatusOK {
		return fmt.Sprintf("no fault, and HTTP status %d", p.Status)
	}
	return ""
}

// code12 is a SOAP 1.2 fault's code, without its prefix.
func code12(p *parsed) string {
	value := child(child(p.fault, envelope12, "Code"), envelope12, "Value")
	if value == nil {
		return ""
	}
	space, local, _ := resolve(value, strings.TrimSpace(value.Text()))
	if space != envelope12 {
		return ""
	}
	return local
}

// Sender faults are 400, all others 500.
func faultStatus12(p *parsed) string {
	if p.request() || p.fault == nil {
		return ""
	}
	want := http.StatusInternalServerError
	if code12(p) == "Sender" {
		want = http.StatusBadRequest
	}
	if p.Status != want {
		return fmt.Sprintf("a %s fault with HTTP status %d, not %d", code12(p), p.Status, want)
	}
	return ""
}

func faultChildren12(p *parsed) string {
	if p.fault == nil {
		return ""
	}
	if !slices.Contains([]string{"Sender", "Receiver", "MustUnderstand", "VersionMismatch", "DataEncodingUnknown"}, code12(p)) {
		return fmt.Sprintf("the fault's code %q is none of SOAP's", code12(p))
	}
	order := []string{"Code", "Reason", "Node", "Role", "Detail"}
	at := -1
	for _, c := range p.fault.ChildElements() {
		next := slices.Index(order, c.Tag)
		if next <= at || c.NamespaceURI() != envelope12 {
			return fmt.Sprintf("the fault's child %s does not belong there", c.Tag)
		}
		at = next
	}
	if child(child(p.fault, envelope12, "Reason"), envelope12, "Text") == nil {
		return "the fault has no Reason with a Text"
	}
	return ""
}
