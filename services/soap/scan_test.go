package soap

import (
	"encoding/xml"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"mvm/wsdl"
)

// quickly reads an envelope with the scanner alone.
func quickly(data []byte, into any) (version, bool) {
	var s wsdl.Scanner
	v, ok := scanMessage(&s, data, wsdl.Limits{})
	return v, ok && s.Decode(into) && scanEnd(&s)
}

// thoroughly reads one with the checker.
func thoroughly(data []byte, root string, into any) (version, string) {
	m, err := openMessage(data, wsdl.Limits{}, version{})
	if err != nil {
		return m.version, err.Error()
	}
	if want := (xml.Name{Space: wsdl.Namespace, Local: root}); m.body.Name != want {
		return m.version, "another body"
	}
	checker := wsdl.NewChecker(m.document, m.body, root)
	if err := checker.Decode(into); err != nil {
		return m.version, err.Error()
	}
	for _, p := range checker.Problems() {
		return m.version, p.Message
	}
	if err := m.close(); err != nil {
		return m.version, err.Error()
	}
	return m.version, ""
}

// sameRequest fails when the scanner takes an envelope that the checker does
// not, or reads another request out of it.
func sameRequest(t *testing.T, data []byte) bool {
	t.Helper()
	quick, slow := new(wsdl.Heartbeat), new(wsdl.Heartbeat)
	v, ok := quickly(data, quick)
	if !ok {
		return false
	}
	w, why := thoroughly(data, "Heartbeat", slow)
	if why != "" {
		t.Fatalf("the scanner takes what the checker does not: %s\n%q", why, data)
	}
	if v != w || !reflect.DeepEqual(quick, slow) {
		t.Fatalf("%q\nis to the scanner %+v %+v\nto the checker %+v %+v", data, v, quick, w, slow)
	}
	return true
}

const heartbeat = `<Heartbeat xmlns="urn:mvm:1"><node>n</node><incarnation>i</incarnation><freeSlots>2</freeSlots></Heartbeat>`

func TestScannerTakesPlainEnvelopes(t *testing.T) {
	declared := `<?xml version="1.0" encoding="UTF-8"?>` + "\r\n"
	for _, data := range []string{
		envelope11(heartbeat), envelope12(heartbeat), declared + envelope11("\n  "+heartbeat+"\n") + "\n<!-- the end -->\n", "\xef\xbb\xbf" + envelope11(heartbeat),
		strings.Replace(envelope11(heartbeat), "<e:Body>", "<e:Header/><e:Body>", 1),
		strings.Replace(envelope11(heartbeat), "<e:Body>", "\n<e:Header>\n</e:Header>\n<e:Body xmlns:w='urn:w' w:Id='b'>", 1),
		strings.Replace(envelope12(heartbeat), "<e:Body>", `<e:Header><a:To xmlns:a="http://www.w3.org/2005/08/addressing" e:mustUnderstand="0">http://x/ &amp; <![CDATA[y]]><a:z/><!-- c --><b xmlns="urn:b" c="d">e</b></a:To></e:Header><e:Body>`, 1),
		strings.Replace(envelope11(heartbeat), "<e:Body>", `<e:Body e:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/">`, 1),
	} {
		if !sameRequest(t, []byte(data)) {
			_, why := thoroughly([]byte(data), "Heartbeat", new(wsdl.Heartbeat))
			t.Errorf("not taken (checker: %s): %s", why, data)
		}
	}
}

func TestScannerLeavesOddEnvelopes(t *testing.T) {
	header := func(inside string) string {
		return strings.Replace(envelope11(heartbeat), "<e:Body>", "<e:Header>"+inside+"</e:Header><e:Body>", 1)
	}
	for _, data := range []string{
		heartbeat, envelope11(""), envelope11(heartbeat + heartbeat), envelope11(heartbeat) + "x", envelope11("text" + heartbeat),
		strings.Replace(envelope11(heartbeat), namespace11, "urn:other", 1), strings.Replace(envelope11(heartbeat), "e:Body", "e:Bdy", 2),
		strings.Replace(envelope11(heartbeat), "</e:Body>", "</e:Body><e:More/>", 1),
		header(`<a xmlns="urn:a" e:mustUnderstand="1"/>`), header(`<a xmlns="urn:a" e:mustUnderstand=" 1 "/>`), header(`<a xmlns="urn:a" e:mustUnderstand="maybe"/>`),
		header(`<a/>`), header(`<a xmlns="urn:a">&x;</a>`), header(`<a xmlns="urn:a"><b></a>`), header("text"), header(`<a xmlns="urn:a">` + "\x01" + `</a>`),
	} {
		if _, ok := quickly([]byte(data), new(wsdl.Heartbeat)); ok {
			t.Errorf("taken: %s", data)
		}
	}
}

// What the scanner takes, the checker takes, and reads the same out of it.
func FuzzEnvelope(f *testing.F) {
	f.Add([]byte(envelope11(heartbeat)))
	f.Add([]byte(`<?xml version="1.0" encoding="utf-8"?><s:Envelope xmlns:s='` + namespace12 + `'><s:Header><t xmlns='urn:t' s:mustUnderstand='0'>x<!-- c --><![CDATA[]]]]>&gt;<u/></t></s:Header><s:Body>` + heartbeat + `</s:Body></s:Envelope>`))
	f.Add([]byte("\xef\xbb\xbf" + envelope12("\r\n"+strings.Replace(heartbeat, "<node>n", "<!-- -- --><node>&#x41;", 1))))
	f.Fuzz(func(t *testing.T, data []byte) { sameRequest(t, data) })
}

// What other people's stacks and our own client send, as it was seen on the
// wire, is read without encoding/xml.
func TestScannerTakesWhatStacksSend(t *testing.T) {
	operations := map[string]wsdl.Operation{}
	for _, c := range (&fakeGrid{}).contracts() {
		for _, o := range c.Operations {
			operations[o.Name] = o
		}
	}
	files, err := filepath.Glob("testdata/clients/*.xml")
	if err != nil || len(files) < 60 {
		t.Fatalf("%d messages, %v", len(files), err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		_, name, _ := strings.Cut(strings.TrimSuffix(filepath.Base(file), ".xml"), "-")
		quick, slow := operations[name].NewRequest(), operations[name].NewRequest()
		v, ok := quickly(data, quick)
		w, why := thoroughly(data, name, slow)
		if !ok || why != "" {
			t.Errorf("%s is taken: %t; the checker says %q", file, ok, why)
		} else if v != w || !reflect.DeepEqual(quick, slow) {
			t.Errorf("%s is to the scanner %+v, to the checker %+v", file, quick, slow)
		}
	}
}
