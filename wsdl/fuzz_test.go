package wsdl

import (
	"bytes"
	"encoding/xml"
	"strings"
	"testing"
)

// What Check accepts, encoding/xml decodes, and what it then encodes is
// accepted again. What Check refuses, it refuses with a reason.
func FuzzCheck(f *testing.F) {
	for _, document := range good() {
		f.Add([]byte(document))
	}
	f.Add([]byte(`<job xmlns="urn:mvm:1" name="x"><task name="t" count="${n}"/></job>`))
	f.Add([]byte(`<a:job xmlns:a="urn:mvm:1" name='x'><!-- c --><?p i?><a:description><![CDATA[]]]]>&gt;&#x41;</a:description><a:task name="t"/></a:job>`))
	f.Add([]byte("\xef\xbb\xbf<?xml version='1.0'?><job/>"))
	f.Add([]byte(`<!DOCTYPE a><job/>`))
	f.Fuzz(func(t *testing.T, document []byte) {
		for _, r := range []struct {
			name string
			into func() any
		}{
			{"job", func() any { return new(Job) }},
			{"SubmitJob", func() any { return new(SubmitJob) }},
			{"Report", func() any { return new(Report) }},
			{"Register", func() any { return new(Register) }},
			{"GetOutput", func() any { return new(GetOutput) }},
			{"DequeueResponse", func() any { return new(DequeueResponse) }},
		} {
			into := r.into()
			lines, problems := Decode(document, r.name, into)
			if again := check(document, r.name); len(again) != len(problems) {
				t.Fatalf("%s: %d problems with decoding, %d without", r.name, len(problems), len(again))
			}
			if len(problems) > maxProblems+2 {
				t.Fatalf("%s: %d problems", r.name, len(problems))
			}
			for _, p := range problems {
				if p.Message == "" || int(p.Line) > bytes.Count(document, []byte("\n"))+1 {
					t.Fatalf("%s: problem %+v", r.name, p)
				}
			}
			if len(problems) > 0 {
				continue
			}
			if lines[r.name] == 0 {
				t.Fatalf("%s: no line of the root in %v", r.name, lines)
			}
			if err := xml.Unmarshal(bytes.TrimPrefix(document, []byte("\xef\xbb\xbf")), r.into()); err != nil && !strings.Contains(string(document), "nil") {
				t.Fatalf("%s: accepted, but encoding/xml says %v", r.name, err)
			}
			var b bytes.Buffer
			start := xml.StartElement{Name: xml.Name{Space: Namespace, Local: r.name}}
			if err := xml.NewEncoder(&b).EncodeElement(into, start); err != nil {
				t.Fatal(err)
			}
			for _, p := range check(b.Bytes(), r.name) {
				// A nil in a nillable element that must be there is not written.
				if !strings.Contains(p.Message, "is missing") || !strings.Contains(string(document), "nil") {
					t.Fatalf("%s: what was accepted is refused when written again: %s\n%s", r.name, p.Message, b.Bytes())
				}
			}
		}
	})
}
