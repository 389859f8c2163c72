package soap

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"mvm/wsdl"
)

// versionMismatch: an envelope in a namespace that is no version of SOAP here.
type versionMismatch struct{ namespace string }

func (e *versionMismatch) Error() string {
	return fmt.Sprintf("the envelope's namespace %q is neither SOAP 1.1 nor SOAP 1.2", e.namespace)
}

// notUnderstood: header blocks that must be understood and are not.
type notUnderstood struct{ blocks []xml.Name }

func (e *notUnderstood) Error() string {
	names := make([]string, len(e.blocks))
	for i, b := range e.blocks {
		names[i] = "{" + b.Space + "}" + b.Local
	}
	return "these header blocks must be understood and are not: " + strings.Join(names, ", ")
}

// errStopping is the cause of a call's end when the server shuts down.
var errStopping = errors.New("the node is shutting down")

// failure is an error as SOAP sees it.
type failure struct {
	code   string // of SOAP 1.2: Sender, Receiver, MustUnderstand, VersionMismatch
	status int    // of HTTP, in SOAP 1.2
	header string // header blocks, in SOAP 1.2
	fault  *wsdl.Fault
}

// failureOf is the one function that makes SOAP faults out of errors. ctx is
// the call's.
func failureOf(ctx context.Context, err error) failure {
	var version *versionMismatch
	var blocks *notUnderstood
	var fault *wsdl.Fault
	switch {
	case errors.As(err, &version):
		return failure{"VersionMismatch", http.StatusInternalServerError,
			`<soap:Upgrade><soap:SupportedEnvelope qname="v12:Envelope" xmlns:v12="` + namespace12 + `"/><soap:SupportedEnvelope qname="v11:Envelope" xmlns:v11="` + namespace11 + `"/></soap:Upgrade>`,
			wsdl.NewFault(wsdl.FaultCodeInvalidRequest, err.Error(), "send one of the two")}
	case errors.As(err, &blocks):
		var header bytes.Buffer
		for _, b := range blocks.blocks {
			header.WriteString(`<soap:NotUnderstood qname="n:`)
			escape(&header, b.Local)
			header.WriteString(`" xmlns:n="`)
			escape(&header, b.Space)
			header.WriteString(`"/>`)
		}
		return failure{"MustUnderstand", http.StatusInternalServerError, header.String(),
			wsdl.NewFault(wsdl.FaultCodeInvalidRequest, err.Error(), "send the message without them")}
	case errors.As(err, &fault):
		f := *fault // the caller's is not written to
		fault = &f
		if f.Code == nil {
			fault.Code = wsdl.Of(wsdl.FaultCodeInternal)
		}
	case errors.Is(context.Cause(ctx), errStopping):
		fault = wsdl.NewFault(wsdl.FaultCodeUnavailable, errStopping.Error(), "try again, or ask another node")
	case errors.Is(err, context.DeadlineExceeded):
		fault = wsdl.NewFault(wsdl.FaultCodeTimeout, "the operation took too long", "")
	case errors.Is(err, context.Canceled):
		fault = wsdl.NewFault(wsdl.FaultCodeUnavailable, "the call was abandoned", "")
	default:
		fault = wsdl.NewFault(wsdl.FaultCodeInternal, err.Error(), "the node's log says more under the request id")
	}
	// What is quoted from a request may be as long as that: here ends who would
	// fill the log and the answer with it.
	const most = 4 << 10
	if len(fault.Message) > most {
		fault.Message = strings.ToValidUTF8(fault.Message[:most], "") + "..."
	}
	switch *fault.Code {
	case wsdl.FaultCodeBusy, wsdl.FaultCodeTimeout, wsdl.FaultCodeUnavailable, wsdl.FaultCodeInternal:
		return failure{"Receiver", http.StatusInternalServerError, "", fault}
	}
	return failure{"Sender", http.StatusBadRequest, "", fault}
}

// write writes the failure's envelope and returns its HTTP status.
func (f failure) write(b *bytes.Buffer, v version) (int, error) {
	status, body := f.status, f.body12
	if v.namespace == namespace11 {
		status, body, f.header = http.StatusInternalServerError, f.body11, ""
	}
	openEnvelope(b, v, f.header)
	if err := body(b); err != nil {
		return 0, err
	}
	closeEnvelope(b)
	return status, nil
}

func (f failure) body11(b *bytes.Buffer) error {
	code := map[string]string{"Sender": "Client", "Receiver": "Server"}[f.code]
	if code == "" {
		code = f.code
	}
	b.WriteString("<soap:Fault><faultcode>soap:" + code + "</faultcode><faultstring>")
	escape(b, f.fault.Error())
	b.WriteString("</faultstring>")
	// SOAP 1.1, section 4.4: detail is about the body, never about headers.
	if f.code != "MustUnderstand" {
		b.WriteString("<detail>")
		if err := writeElement(b, f.fault); err != nil {
			return err
		}
		b.WriteString("</detail>")
	}
	b.WriteString("</soap:Fault>")
	return nil
}

func (f failure) body12(b *bytes.Buffer) error {
	b.WriteString("<soap:Fault><soap:Code><soap:Value>soap:" + f.code + "</soap:Value>")
	if f.header == "" {
		b.WriteString(`<soap:Subcode><soap:Value xmlns:m="` + wsdl.Namespace + `">m:`)
		escape(b, string(*f.fault.Code))
		b.WriteString("</soap:Value></soap:Subcode>")
	}
	b.WriteString(`</soap:Code><soap:Reason><soap:Text xml:lang="en">`)
	escape(b, f.fault.Error())
	b.WriteString("</soap:Text></soap:Reason><soap:Detail>")
	if err := writeElement(b, f.fault); err != nil {
		return err
	}
	b.WriteString("</soap:Detail></soap:Fault>")
	return nil
}

func escape(b *bytes.Buffer, s string) {
	_ = xml.EscapeText(b, []byte(s)) // a bytes.Buffer takes everything
}

// invalid makes a Fault of what the schema check found.
func invalid(problems []*wsdl.Problem) *wsdl.Fault {
	f := wsdl.NewFault(wsdl.FaultCodeInvalidProfile, "the job profile does not fit the schema", "mend what is named and send it again")
	for _, p := range problems {
		if p.Element != "" && !inProfile(p.Element) {
			f = wsdl.NewFault(wsdl.FaultCodeInvalidRequest, "the request does not fit the schema", "compare it with the service's WSDL")
			break
		}
	}
	f.Problem = problems
	return f
}

// inProfile says whether a path leads into a job, topology or resources
// profile that a request carries.
func inProfile(path string) bool {
	for _, prefix := range []string{"SubmitJob/job/", "PlanJob/job/", "RegisterProfile/profile/job/", "RegisterProfile/profile/topology/", "RegisterProfile/profile/resources/"} {
		if strings.HasPrefix(path, prefix) {
			return true
		}
	}
	return false
}
