package soap

import (
	"context"
	"encoding/xml"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"mvm/wsdl"
)

// Whatever is sent, the answer is well-formed, of a status that was foreseen,
// and never a fault of the server's own.
func FuzzServer(f *testing.F) {
	grid := &fakeGrid{base: func() string { return "http://x" }, jobs: map[string]*wsdl.SubmitJob{}, blobs: map[string][]byte{}}
	var contracts []wsdl.Contract
	for _, c := range []wsdl.Contract{wsdl.BootstrapContract(grid), wsdl.BrokerContract(grid), wsdl.ImageContract(grid), wsdl.QueueContract(grid), wsdl.InformationContract(grid)} {
		for i := range c.Operations {
			o := &c.Operations[i]
			o.Call = func(context.Context, any) (any, error) {
				return nil, wsdl.NewFault(wsdl.FaultCodeNotFound, "reached "+o.Name, "")
			}
		}
		contracts = append(contracts, c)
	}
	server, err := NewServer(Config{Contracts: contracts, Limits: Limits{Body: 1 << 16}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add("bootstrap", "text/xml", envelope11(getBroker))
	f.Add("broker", "application/soap+xml;charset=utf-8", envelope12(`<ListJobs xmlns="urn:mvm:1"><limit>5</limit></ListJobs>`))
	f.Add("broker", "text/xml", `<e:Envelope xmlns:e="`+namespace11+`"><e:Header><a:b xmlns:a="urn:a" e:mustUnderstand="1"/></e:Header><e:Body/></e:Envelope>`)
	f.Add("image", "text/xml", envelope11(`<PutBlob xmlns="urn:mvm:1"><digest/><size>1</size><data>QQ==</data></PutBlob>`))
	f.Add("queue", "text/xml", `<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>`)
	f.Fuzz(func(t *testing.T, service, media, body string) {
		r := httptest.NewRequest("POST", "http://x/services/x", strings.NewReader(body))
		r.URL.Path = "/services/" + service
		r.Header.Set("Content-Type", media)
		w := httptest.NewRecorder()
		server.ServeHTTP(w, r)
		said := w.Body.String()
		switch w.Code {
		case 301, 404, 413, 415: // plain text
			return
		case 400, 500:
			if strings.Contains(said, "<code>internal</code>") || !strings.Contains(said, "Fault>") {
				t.Fatalf("%d: %s", w.Code, said)
			}
		default:
			t.Fatalf("%d: %s", w.Code, said)
		}
		if err := xml.Unmarshal([]byte(said), new(struct{})); err != nil {
			t.Fatalf("%v: %s", err, said)
		}
	})
}

// Whatever a server answers, the client neither panics nor takes it for more
// than it is.
func FuzzClient(f *testing.F) {
	c := NewClient(ClientConfig{Strict: true})
	f.Add([]byte(envelope11(`<GetJobResponse xmlns="urn:mvm:1"><job><id>x</id></job></GetJobResponse>`)))
	f.Add([]byte(envelope11(`<e:Fault><faultcode>e:Client</faultcode><faultstring>no</faultstring><detail><GridFault xmlns="urn:mvm:1"><code>busy</code><message>m</message></GridFault></detail></e:Fault>`)))
	f.Add([]byte(envelope12(`<e:Fault><e:Code><e:Value>e:Receiver</e:Value></e:Code><e:Reason><e:Text xml:lang="en">no</e:Text></e:Reason></e:Fault>`)))
	f.Fuzz(func(t *testing.T, data []byte) {
		response := new(wsdl.GetJobResponse)
		err := c.answer("GetJob", data, response)
		var fault *wsdl.Fault
		if err == nil && response.Job == nil {
			t.Fatal("an answer without its content was taken")
		}
		if errors.As(err, &fault) && (fault.Code == nil || wsdl.CodeOf(err) == "") {
			t.Fatalf("a fault without a code: %+v", fault)
		}
	})
}

var _ http.Handler = (*Server)(nil)
