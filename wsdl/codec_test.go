package wsdl

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/hooklift/gowsdl/soap"
)

// messages are generated types by which the codec is fuzzed: all forms and
// kinds of fields are in them.
func messages() []message {
	return []message{
		new(SubmitJob), new(Register), new(Heartbeat), new(HeartbeatResponse), new(Report), new(GetOutput), new(GetJobResponse),
		new(DequeueResponse), new(PutBlob), new(GetBroker), new(Instantiate), new(GridFault), new(RegisterProfile),
	}
}

// allMessages are the requests and answers of every operation, and the fault.
func allMessages(t *testing.T) []message {
	t.Helper()
	all := []message{new(GridFault)}
	for _, service := range []reflect.Type{reflect.TypeFor[BootstrapContext](), reflect.TypeFor[InformationContext](), reflect.TypeFor[BrokerContext](), reflect.TypeFor[ImageContext](), reflect.TypeFor[QueueContext]()} {
		for operation := range service.Methods() {
			for _, of := range []reflect.Type{operation.Type.In(1), operation.Type.Out(0)} {
				m, ok := reflect.New(of.Elem()).Interface().(message)
				if !ok {
					t.Fatalf("the codec does not know %s", of)
				}
				all = append(all, m)
			}
		}
	}
	return all
}

func empty(m message) message {
	return reflect.New(reflect.TypeOf(m).Elem()).Interface().(message)
}

// scanned reads a whole document with the codec.
func scanned(document []byte, into message) bool {
	var s Scanner
	return s.Reset(document, Limits{}) && s.Start() && s.Decode(into) && s.Done()
}

// agree fails when the codec takes a document that the Checker does not, or
// makes another value of it, or writes that in another way than encoding/xml.
func agree(t *testing.T, document []byte, like message) bool {
	t.Helper()
	fast := empty(like)
	if !scanned(document, fast) {
		return false
	}
	slow := empty(like)
	root, _ := like.root()
	if _, problems := Decode(document, root, slow); len(problems) > 0 {
		t.Fatalf("the codec takes what the checker does not: %s\n%q", problems[0].Message, document)
	}
	if !reflect.DeepEqual(fast, slow) {
		f, _ := json.Marshal(fast)
		s, _ := json.Marshal(slow)
		t.Fatalf("%.2000q\nis to the codec   %.2000s\nto encoding/xml %.2000s", document, f, s)
	}
	sameBytes(t, fast)
	return true
}

// sameBytes fails when the codec writes a message in another way than
// encoding/xml does, or cannot write it. It returns what was written.
func sameBytes(t *testing.T, m message) []byte {
	t.Helper()
	want, err := xml.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	got, ok := Append([]byte("before"), m)
	if !ok {
		t.Fatalf("the codec does not write %+v", m)
	}
	if got, ok = bytes.CutPrefix(got, []byte("before")); !ok || !bytes.Equal(got, want) {
		at := 0
		for at < len(got) && at < len(want) && got[at] == want[at] {
			at++
		}
		at = max(at-100, 0)
		t.Fatalf("the codec writes\n%.300s\nencoding/xml\n%.300s", got[min(at, len(got)):], want[min(at, len(want)):])
	}
	return got
}

// fill sets every field of a value, with what needs care in it.
func fill(v reflect.Value, n *int) {
	*n++
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), n)
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			v.SetBytes([]byte("bytes \x00\xff")[:*n%9])
			return
		}
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		fill(v.Index(0), n)
		fill(v.Index(1), n)
	case reflect.Struct:
		if date, ok := v.Addr().Interface().(*soap.XSDDateTime); ok {
			*date = *Date(time.Unix(int64(*n), int64(*n%3)*1000))
			return
		}
		for i := range v.NumField() {
			if v.Type().Field(i).Name != "XMLName" {
				fill(v.Field(i), n)
			}
		}
	case reflect.String:
		v.SetString([]string{"a<b>&\"'", "\t\r\n\x01", "\u00e9\ufffe", "\xff]]>", "\U0001f600 ", "", "x"}[*n%7])
	case reflect.Int32, reflect.Int64:
		v.SetInt(int64(*n) - 40)
	case reflect.Bool:
		v.SetBool(*n%2 == 0)
	}
}

func TestCodecWritesAsEncodingXML(t *testing.T) {
	for _, m := range allMessages(t) {
		root, _ := m.root()
		sameBytes(t, m) // empty
		n := 0
		fill(reflect.ValueOf(m).Elem(), &n)
		got := sameBytes(t, m)
		t.Logf("%s: %d values, %d bytes", root, n, len(got))
	}
	for _, odd := range []any{nil, (*Register)(nil), Register{}, "text", &GetJobResponse{Job: &JobStatus{Submitted: soap.CreateXsdDateTime(time.Unix(0, 0), false)}}} {
		if got, ok := Append([]byte("x"), odd); ok || string(got) != "x" {
			t.Errorf("%#v was written as %s", odd, got)
		}
	}
}

const xsiNamespace = ` xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"`

// What SOAP stacks send is read without encoding/xml.
func TestCodecTakesWhatClientsSend(t *testing.T) {
	heartbeat := func(inside string) string {
		return `<Heartbeat xmlns="urn:mvm:1"` + xsiNamespace + `>` + inside + `<incarnation>i</incarnation><freeSlots>1</freeSlots></Heartbeat>`
	}
	for _, c := range []struct {
		document string
		like     message
	}{
		{`<GetBroker xmlns="urn:mvm:1"/>`, new(GetBroker)},
		{`<ns0:GetBroker xmlns:ns0="urn:mvm:1"></ns0:GetBroker>`, new(GetBroker)},
		{`<GetBroker xmlns="urn:mvm:1"` + xsiNamespace + ` xsi:nil="true" />`, new(GetBroker)},
		{"\xef\xbb\xbf<?xml version='1.0' encoding='utf-8' standalone=\"yes\" ?>\r\n<!-- c -->\r\n<GetBroker xmlns='urn:mvm:1' >\r\n<!-- c --></GetBroker >\r\n<!-- e -->\r\n", new(GetBroker)},
		{`<?xml version="1.0"?><GetBroker xmlns="urn:mvm:1"/>`, new(GetBroker)},
		{`<?xml version="1.0" standalone="no"?><GetBroker xmlns="urn:mvm:1"/>`, new(GetBroker)},
		{`<a:GetBroker xmlns:a="urn:mvm:1" xmlns:a2="urn:other"` + xsiNamespace + ` xsi:type="a:GetBroker" xsi:schemaLocation="urn:mvm:1 x.xsd"/>`, new(GetBroker)},
		{heartbeat(`<node>plain</node>`), new(Heartbeat)},
		{heartbeat(`<node></node>`), new(Heartbeat)},
		{heartbeat(`<node/>`), new(Heartbeat)},
		{heartbeat(`<node xsi:type="xsd:string" xmlns:xsd="http://www.w3.org/2001/XMLSchema">n</node>`), new(Heartbeat)},
		{heartbeat("<node> a\r\nb\rc\n\r\n&#13;&#xD;&lt;&gt;&amp;&quot;&apos;&#x41;&#65;&#x1F600;\u00e9\u20ac\U0001f600\uff21\ufffd]] ]]&gt;</node>"), new(Heartbeat)},
		{heartbeat("<node><!-- a -->x<!-- b - c --><![CDATA[<&]] >&amp;\r\n\uff21]]>y<![CDATA[]]><![CDATA[]]]]><![CDATA[>]]></node>"), new(Heartbeat)},
		{heartbeat(`<x:node xmlns:x="urn:mvm:1">n</x:node>`), new(Heartbeat)},
		{`<Heartbeat xmlns="urn:mvm:1"` + xsiNamespace + `><node>n</node><incarnation>i</incarnation><freeSlots xsi:nil="true"/><freeMemory xsi:nil='1'></freeMemory><freeCores xsi:nil="false">
		-7 </freeCores><attempt><job>j</job><number>0007</number></attempt><attempt><job>k</job><number>2</number><node>n</node></attempt></Heartbeat>`, new(Heartbeat)},
		{`<PutBlob xmlns="urn:mvm:1"><digest>d</digest><size>9</size><data>QUJD
REVG</data></PutBlob>`, new(PutBlob)},
		{`<PutBlob xmlns="urn:mvm:1"><digest>d</digest><size>9</size><data/></PutBlob>`, new(PutBlob)},
		{`<DequeueResponse xmlns="urn:mvm:1"><item>QQ==</item><item></item><end>1</end></DequeueResponse>`, new(DequeueResponse)},
		{`<m:SubmitJob xmlns:m="urn:mvm:1"><m:token>t</m:token><m:job name = 'a"b&amp;&#10;]'><m:source name="s" language="c"><m:file name="m.c"><m:text><![CDATA[int main(void) { return 1 < 2 && 0; }]]></m:text></m:file></m:source><m:task name="t" source="s" count="${n}"><m:argument>1</m:argument><m:argument/></m:task></m:job></m:SubmitJob>`, new(SubmitJob)},
	} {
		if !agree(t, []byte(c.document), c.like) {
			root, _ := c.like.root()
			t.Errorf("not taken; problems %s\n%s", problemText(check([]byte(c.document), root)), c.document)
		}
	}
}

// Whatever is malformed, does not fit the schema, or is near a limit is left
// to those who can say what is wrong.
func TestCodecLeavesTheRest(t *testing.T) {
	inside := func(s string) string {
		return `<Heartbeat xmlns="urn:mvm:1"` + xsiNamespace + `>` + s + `</Heartbeat>`
	}
	node := func(s string) string {
		return inside(`<node>` + s + `</node><incarnation>i</incarnation><freeSlots>1</freeSlots>`)
	}
	slots := func(s string) string {
		return inside(`<node>n</node><incarnation>i</incarnation>` + s)
	}
	if !scanned([]byte(node("n")), new(Heartbeat)) || !scanned([]byte(slots("<freeSlots>1</freeSlots>")), new(Heartbeat)) {
		t.Fatal("the frame is not taken")
	}
	for _, document := range []string{
		"", "<", "<Heartbeat", "text", `<!DOCTYPE a>` + node("n"), `<?p i?>` + node("n"), " <?xml version='1.0'?>" + node("n"),
		`<?xml version="1.1"?>` + node("n"), `<?xml version="1.0" encoding="latin1"?>` + node("n"), `<?xml encoding="UTF-8"?>` + node("n"), `<?xmlversion="1.0"?>` + node("n"),
		node("n") + "x", node("n") + node("n"), node("n") + "</a>", node("\x00"), node("\x1f"), node("\xff"), node("\ufffe"), node("\uffff"), node("]]>"),
		node("&"), node("&x;"), node("&#0;"), node("&#xD800;"), node("&#xFFFE;"), node("&#x110000;"), node("&#;"), node("&#x;"), node("&lt"), node("&#99999999999;"),
		node("<a/>"), node("<!-- -- -->"), node("<!--->"), node("<!--> -->"), node("<![CDATA[\x01]]>"), node("<![CDATA["), node("<?p i?>"), node("</nod>"), node("n<\x19node>"), slots("<freeSlots>1<!freeSlots>"), slots("<freeSlots>1<?freeSlots>"),
		inside(""), inside("<node/>"), slots(""), slots(`<freeSlots/>`), slots(`<freeSlots>1</freeSlots><freeSlots>1</freeSlots>`), slots(`<freeSlots>1.5</freeSlots>`), slots(`<freeSlots>2147483648</freeSlots>`),
		slots(`<freeSlots>1</freeSlots>text`), slots(`<freeSlots>1</freeSlots><other/>`), slots(`<freeSlots>1</freeSlots><incarnation/>`), slots(`<freeSlots xmlns="">1</freeSlots>`), slots(`<x:freeSlots>1</x:freeSlots>`),
		slots(`<freeSlots xsi:nil="true">1</freeSlots>`), slots(`<freeSlots xsi:nil="true"> </freeSlots>`), slots(`<freeSlots xsi:nil="true"><![CDATA[]]></freeSlots>`), slots(`<freeSlots xsi:nil="yes"/>`), slots(`<freeSlots xsi:nil="true" xsi:nil="true"/>`),
		slots(`<freeSlots a="b">1</freeSlots>`), slots(`<freeSlots xsi:type="xsd:string">1</freeSlots>`), slots(`<freeSlots xsi:other="1">1</freeSlots>`), slots(`<freeSlots xmlns:x="urn:x" xmlns:x="urn:y">1</freeSlots>`), slots(`<freeSlots xmlns:x="">1</freeSlots>`),
		slots(`<freeSlots xml:lang="en">1</freeSlots>`), slots(`<freeSlots xmlns:xml="urn:x">1</freeSlots>`), slots(`<freeSlots xmlns:x="urn:x" x:a="1">1</freeSlots>`),
		inside(`<node xsi:nil="true"/><incarnation/><freeSlots>1</freeSlots>`), `<Heartbeat xmlns="urn:mvm:1"` + xsiNamespace + ` xsi:nil="true"/>`,
		`<Heartbeat xmlns="urn:mvm:2"><node/><incarnation/><freeSlots>1</freeSlots></Heartbeat>`, `<Heartbeat><node/></Heartbeat>`, `<Register xmlns="urn:mvm:1"/>`,
		node(strings.Repeat("<a>", 100)), slots("<freeSlots" + strings.Repeat(" ", 65<<10) + ">1</freeSlots>"), slots(`<freeSlots ` + strings.Repeat("a", 300) + `="">1</freeSlots>`),
		slots(strings.Repeat("<!---->", 10) + "<" + strings.Repeat("a", 300) + "/>"),
	} {
		if m := new(Heartbeat); scanned([]byte(document), m) {
			t.Errorf("taken: %.300q", document)
		}
	}
	var s Scanner
	document := []byte(inside(`<node>n</node><incarnation>i</incarnation><freeSlots>1</freeSlots><attempt><job>j</job><number>1</number></attempt>`))
	for _, limits := range []Limits{{}, {Depth: 3, Elements: 7, Attributes: 2, Name: 20, Tag: 100}, {Depth: 2}, {Elements: 6}, {Attributes: 1}, {Name: 10}, {Tag: 50}} {
		ok := s.Reset(document, limits) && s.Start() && s.Decode(new(Heartbeat)) && s.Done()
		if want := limits.Depth == 3 || limits == (Limits{}); ok != want {
			t.Errorf("with %+v: %t", limits, ok)
		}
	}
}

func FuzzCodec(f *testing.F) {
	for _, document := range good() {
		f.Add([]byte(document))
	}
	for _, m := range messages() {
		n := 0
		fill(reflect.ValueOf(m).Elem(), &n)
		if document, err := xml.Marshal(m); err == nil {
			f.Add(document)
		}
	}
	f.Add([]byte(`<n:Heartbeat xmlns:n="urn:mvm:1"` + xsiNamespace + ` xmlns:y='urn:y'><n:node xsi:type='y:string' >a<![CDATA[]]]]>&gt;&#x41;` + "\r\n" + `<!-- c -->]]</n:node ><n:incarnation/><n:freeSlots xsi:nil="true"/></n:Heartbeat>`))
	f.Add([]byte("\xef\xbb\xbf<?xml version='1.0' encoding=\"UTF-8\"?><GetBroker xmlns='urn:mvm:1'/>"))
	f.Add([]byte(`<PutBlob xmlns="urn:mvm:1"><digest>d</digest><size>9</size><data>QUJD REVG</data></PutBlob>`))
	f.Add([]byte(`<GetBroker xmlns="urn:mvm:1"` + xsiNamespace + ` xsi:nil="1"></GetBroker>`))
	f.Fuzz(func(t *testing.T, document []byte) {
		for _, m := range messages() {
			agree(t, document, m)
		}
		// Values, too, from the same bytes.
		data := Binary(document)
		sameBytes(t, &Report{Failure: string(document), ProxyBytes: int64(len(document))})
		sameBytes(t, &PutBlob{Digest: string(document), Data: &data})
	})
}

func BenchmarkCodec(b *testing.B) {
	document := []byte(good()["Register"])
	b.Run("read", func(b *testing.B) {
		b.ReportAllocs()
		var s Scanner
		for b.Loop() {
			if !s.Reset(document, Limits{}) || !s.Start() || !s.Decode(new(Register)) || !s.Done() {
				b.Fatal("not taken")
			}
		}
	})
	b.Run("encoding/xml/read", func(b *testing.B) {
		for b.Loop() {
			Decode(document, "Register", new(Register))
		}
	})
	r := new(Register)
	if !scanned(document, r) {
		b.Fatal("not taken")
	}
	var to []byte
	b.Run("write", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			to, _ = Append(to[:0], r)
		}
	})
	b.Run("encoding/xml/write", func(b *testing.B) {
		for b.Loop() {
			_, _ = xml.Marshal(r)
		}
	})
}
