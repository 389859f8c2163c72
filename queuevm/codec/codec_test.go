package codec

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"os/exec"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func chain(t testing.TB, steps ...Step) *Chain {
	t.Helper()
	c, err := New(steps, Limits{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func decode(codec, typ string) Step { return Step{Codec: codec, Decode: true, Type: typ} }
func encode(codec, typ string) Step { return Step{Codec: codec, Type: typ} }

func unhex(text string) string {
	b, err := hex.DecodeString(strings.ReplaceAll(text, " ", ""))
	if err != nil {
		panic(err)
	}
	return string(b)
}

func TestConvert(t *testing.T) {
	tests := []struct {
		name  string
		steps []Step
		in    string
		out   string
	}{
		{"nothing", nil, "as it is", "as it is"},
		{"doubles to JSON", []Step{decode(XDR, "double<>"), encode(JSON, "")}, unhex("00000002 3ff8000000000000 c000000000000000"), "[1.5,-2]"},
		{"doubles without a length", []Step{decode(XDR, "double[]"), encode(JSON, "")}, unhex("3ff8000000000000 c000000000000000"), "[1.5,-2]"},
		{"JSON to doubles", []Step{decode(JSON, ""), encode(XDR, "double<>")}, " [1.5, -2]\n", unhex("00000002 3ff8000000000000 c000000000000000")},
		{"a struct", []Step{decode(XDR, "struct { int id; string name<>; bool on; opaque key[3]; hyper *far; unsigned int few[2]; }"), encode(JSON, "")},
			unhex("ffffffff 00000002 68690000 00000001 01020300 00000001 0000000100000000 00000007 ffffffff"),
			`{"id":-1,"name":"hi","on":true,"key":"AQID","far":4294967296,"few":[7,4294967295]}`},
		{"a struct by names", []Step{decode(JSON, ""), encode(XDR, "struct { int a; int *b; }")}, `{"b":null,"a":"3"}`, unhex("00000003 00000000")},
		{"a struct by order", []Step{decode(JSON, ""), encode(XDR, "struct { int a; double b; }")}, `[3,4]`, unhex("00000003 4010000000000000")},
		{"an enum", []Step{decode(XDR, "enum { RED = 1, BLUE = -2 }"), encode(JSON, "")}, unhex("fffffffe"), `"BLUE"`},
		{"enum names and numbers", []Step{decode(JSON, ""), encode(XDR, "enum { RED = 1, BLUE = 0x2 }[2]")}, `["BLUE",1]`, unhex("00000002 00000001")},
		{"lines to JSON", []Step{decode(Lines, ""), encode(JSON, "")}, "one\r\ntwo\n\n3", `["one","two","","3"]`},
		{"JSON to lines", []Step{decode(JSON, ""), encode(Lines, "")}, `["one",2,2.5,true]`, "one\n2\n2.5\ntrue\n"},
		{"lines to numbers", []Step{decode(Lines, ""), encode(XDR, "int<>")}, "7\n-1\n", unhex("00000002 00000007 ffffffff")},
		{"raw to JSON", []Step{decode(Raw, ""), encode(JSON, "")}, "\x00\xff", `"AP8="`},
		{"JSON to raw", []Step{decode(JSON, ""), encode(Raw, "")}, `"grün"`, "grün"},
		{"base64", []Step{encode(Base64, "")}, "\x00\xff", "AP8="},
		{"base64 with line breaks", []Step{decode(Base64, "")}, "AP\n8=\n", "\x00\xff"},
		{"JSON to XML", []Step{decode(JSON, ""), encode(XML, "row")}, `{"id":3,"x":[1.5,null],"s":"a<b","e":[],"r":{}}`,
			`<row xmlns:xs="http://www.w3.org/2001/XMLSchema" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><id xsi:type="xs:long">3</id><x><value xsi:type="xs:double">1.5</value><value xsi:nil="true"/></x><s>a&lt;b</s><e kind="list"/><r kind="record"/></row>`},
		{"others' XML to JSON", []Step{decode(XML, ""), encode(JSON, "")},
			`<?xml version="1.0"?><!-- c --><a:r xmlns:a="urn:a" id="7"><b>1</b><c u="m">2</c><b><![CDATA[<3>]]></b></a:r>`,
			`{"@id":"7","b":["1","<3>"],"c":{"@u":"m","#text":"2"}}`},
		{"others' XML back", []Step{decode(JSON, ""), encode(XML, "")}, `{"@id":7,"#text":"x"}`,
			`<item xmlns:xs="http://www.w3.org/2001/XMLSchema" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" id="7">x</item>`},
		{"big numbers", []Step{decode(JSON, ""), encode(JSON, "")}, `[18446744073709551615,-9223372036854775808,1e300,-0]`, `[18446744073709551615,-9223372036854775808,1e+300,-0]`},
		{"through everything", []Step{
			decode(JSON, ""), encode(XML, ""), encode(Zstd, ""), encode(Base64, ""),
			decode(Base64, ""), decode(Zstd, ""), decode(XML, ""), encode(JSON, "")},
			`{"value":[1,2.5,"x",null,true,{"value":1}]}`, `{"value":[1,2.5,"x",null,true,{"value":1}]}`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := chain(t, tt.steps...)
			for range 2 { // a chain's buffers are used again
				out, err := c.Convert([]byte(tt.in))
				if err != nil {
					t.Fatal(err)
				}
				if string(out) != tt.out {
					t.Fatalf("%q\ngave     %q\nexpected %q", tt.in, out, tt.out)
				}
			}
		})
	}
}

func TestRefusedChains(t *testing.T) {
	tests := []struct {
		steps []Step
		want  string
	}{
		{[]Step{encode("morse", "")}, `step 1, encode morse: there is no codec "morse"; there are raw, lines`},
		{[]Step{decode(JSON, "")}, "the chain ends with values"},
		{[]Step{encode(JSON, "")}, "json writes values, and here are bytes"},
		{[]Step{decode(JSON, ""), encode(Zstd, "")}, "step 2, encode zstd: this takes bytes"},
		{[]Step{decode(JSON, ""), decode(XML, "")}, "step 2, decode xml: this takes bytes"},
		{[]Step{decode(JSON, "int")}, "json takes no type"},
		{[]Step{decode(XML, "a")}, "reading XML takes no type"},
		{[]Step{decode(JSON, ""), encode(XML, "a b")}, "no name of an element"},
		{[]Step{decode(XDR, "")}, "xdr needs a type"},
		{[]Step{decode(XDR, "int x")}, `at character 5: found "x", expected the end`},
		{[]Step{decode(XDR, "long")}, "expected int, unsigned"},
		{[]Step{decode(XDR, "opaque")}, "expected opaque's length"},
		{[]Step{decode(XDR, "int[0]")}, "holds nothing"},
		{[]Step{decode(XDR, "int[9999999]")}, "expected a number to 1048576"},
		{[]Step{decode(XDR, "string[3]")}, "expected < and >"},
		{[]Step{decode(XDR, "struct { }")}, "expected a type"},
		{[]Step{decode(XDR, "struct { int a; int a; }")}, "the name a comes twice"},
		{[]Step{decode(XDR, "enum { a = 1, a = 2 }")}, "the name a comes twice"},
		{[]Step{decode(XDR, "struct { int a[]; }")}, "expected a number"},
		{[]Step{decode(XDR, "union switch (int x) {}")}, "union is not served"},
		{[]Step{decode(XDR, strings.Repeat("struct { ", 40)+"int a;")}, "nested more than 16 deep"},
		{[]Step{decode(XDR, strings.Repeat(" ", 5000))}, "longer than 4096 bytes"},
	}
	for _, tt := range tests {
		_, err := New(tt.steps, Limits{}, nil)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%v: %v\nexpected %q in it", tt.steps, err, tt.want)
		}
	}
}

func TestRefusedItems(t *testing.T) {
	toJSON := func(s Step) []Step { return []Step{s, encode(JSON, "")} }
	fromJSON := func(s Step) []Step { return []Step{decode(JSON, ""), s} }
	bomb := string(must(chain(t, encode(Zstd, "")).Convert(make([]byte, 4096))))
	tests := []struct {
		steps []Step
		in    string
		want  string
	}{
		{nil, strings.Repeat("x", 2000), "2000 bytes is over the limit of 1000"},
		{toJSON(decode(JSON, "")), "[1,", "not complete"},
		{toJSON(decode(JSON, "")), "", "not complete"},
		{toJSON(decode(JSON, "")), "[1]x", "at byte"},
		{toJSON(decode(JSON, "")), "1 2", "something follows"},
		{toJSON(decode(JSON, "")), "\"\xff\"", "not UTF-8"},
		{toJSON(decode(JSON, "")), `{"a":1,"a":2}`, `"a" comes twice`},
		{toJSON(decode(JSON, "")), "1e999", "no number of 64 bits"},
		{toJSON(decode(JSON, "")), strings.Repeat("[", 20), "nested more than 10 deep"},
		{toJSON(decode(JSON, "")), "[" + strings.Repeat("1,", 200) + "1]", "more than 100 values"},
		{toJSON(decode(Lines, "")), strings.Repeat("\n", 200), "more than 100 values"},
		{toJSON(decode(Lines, "")), "\xff", "not UTF-8"},
		{toJSON(decode(XML, "")), strings.Repeat("<a>", 20), "nested more than 10 deep"},
		{toJSON(decode(XML, "")), `<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>`, "document types are refused"},
		{toJSON(decode(XML, "")), "<a>&b;</a>", "at byte"},
		{toJSON(decode(XML, "")), "<a/><b/>", "something follows"},
		{toJSON(decode(XML, "")), "<a>x<b/></a>", "mixes text and elements"},
		{toJSON(decode(XML, "")), "<a", "XML syntax error"},
		{toJSON(decode(XML, "")), `<a xmlns:i="` + xsiNamespace + `" i:type="xs:int">seven</a>`, "no number"},
		{toJSON(decode(XDR, "int<2>")), unhex("00000003"), "a length of 3 is over the type's 2"},
		{toJSON(decode(XDR, "double<>")), unhex("ffffffff"), "8 bytes are needed, 0 are left"},
		{toJSON(decode(XDR, "int")), unhex("00000003 00"), "1 bytes follow"},
		{toJSON(decode(XDR, "int")), unhex("0000"), "4 bytes are needed, 2 are left"},
		{toJSON(decode(XDR, "bool")), unhex("00000002"), "a bool is 0 or 1"},
		{toJSON(decode(XDR, "opaque[1]")), unhex("01000001"), "are not zero"},
		{toJSON(decode(XDR, "double")), unhex("7ff8000000000000"), "JSON has no NaN"},
		{fromJSON(encode(XDR, "int")), "2147483648", "2147483648 is not a whole number from -2147483648 to 2147483647"},
		{fromJSON(encode(XDR, "unsigned")), "-1", "from 0 to 4294967295"},
		{fromJSON(encode(XDR, "hyper")), "9223372036854775808", "is not a whole number"},
		{fromJSON(encode(XDR, "hyper")), "9.3e18", "is not a whole number"},
		{fromJSON(encode(XDR, "int")), "1.5", "is not a whole number"},
		{fromJSON(encode(XDR, "int")), "[1]", "a list is not a whole number"},
		{fromJSON(encode(XDR, "int[2]")), "[1]", "1 elements do not fill an array of 2"},
		{fromJSON(encode(XDR, "float")), "1e300", "too big for a float"},
		{fromJSON(encode(XDR, "struct { int a; }")), `{"b":1}`, "member a is missing"},
		{fromJSON(encode(XDR, "struct { int a; }<>")), `[{"a":1},{"a":"x"}]`, "element 1: a: text is not a whole number"},
		{fromJSON(encode(Lines, "")), `[[1]]`, "line 1: a list is not one word"},
		{fromJSON(encode(Lines, "")), `"a\nb"`, "not one line"},
		{fromJSON(encode(Raw, "")), `3`, "raw writes bytes and text"},
		{fromJSON(encode(XML, "")), `{"a b":3}`, "no name of an element"},
		{fromJSON(encode(XML, "")), `"\u0001"`, "cannot hold the character U+0001"},
		{[]Step{decode(Base64, "")}, "????", "not base64"},
		{[]Step{decode(Zstd, "")}, "plain", "not zstd"},
		{[]Step{decode(Zstd, "")}, bomb, "more than 1000 bytes of it"},
	}
	for _, tt := range tests {
		c, err := New(tt.steps, Limits{Item: 1000, Values: 100, Depth: 10}, nil)
		if err != nil {
			t.Fatal(err)
		}
		out, err := c.Convert([]byte(tt.in))
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%v of %.60q: %q, %v\nexpected %q", tt.steps, tt.in, out, err, tt.want)
		}
	}
}

func must(b []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return bytes.Clone(b)
}

// TestXDRAgainstPython compares with the XDR that another implementation packs.
func TestXDRAgainstPython(t *testing.T) {
	const pack = `
import warnings; warnings.simplefilter("ignore")
import base64, xdrlib
p = xdrlib.Packer()
p.pack_int(-7); p.pack_uint(4000000000); p.pack_hyper(-1 << 40); p.pack_uhyper(1 << 63)
p.pack_float(0.5); p.pack_double(1e-300); p.pack_bool(True); p.pack_string(b"lab")
p.pack_fopaque(5, b"12345"); p.pack_bytes(b"")
p.pack_array([1.5, 2.5, -1.0], p.pack_double); p.pack_farray(2, [1, 2], p.pack_int)
print(base64.b64encode(p.get_buffer()).decode())`
	out, err := exec.Command("/usr/bin/python3", "-c", pack).CombinedOutput()
	if err != nil {
		t.Skipf("SKIPPED: no other XDR to compare with: Python's xdrlib: %v: %s", err, out)
	}
	packed, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(out)))
	if err != nil {
		t.Fatal(err)
	}
	const typ = `struct { int a; unsigned int b; hyper c; unsigned hyper d; float e; double f; bool g;
		string h<>; opaque i[5]; opaque j<>; double k<>; int l[2]; }`
	const want = `{"a":-7,"b":4000000000,"c":-1099511627776,"d":9223372036854775808,"e":0.5,"f":1e-300,"g":true,` +
		`"h":"lab","i":"MTIzNDU=","j":"","k":[1.5,2.5,-1],"l":[1,2]}`
	got, err := chain(t, decode(XDR, typ), encode(JSON, "")).Convert(packed)
	if err != nil || string(got) != want {
		t.Fatalf("decoded %s, %v\nexpected %s", got, err, want)
	}
	back, err := chain(t, decode(XDR, typ), encode(XDR, typ)).Convert(packed)
	if err != nil || !bytes.Equal(back, packed) {
		t.Fatalf("encoded %x, %v\nexpected %x", back, err, packed)
	}
}

// same compares values; numbers of different kinds are the same when their
// values are.
func same(a, b Value) bool {
	switch x := a.(type) {
	case List:
		y, ok := b.(List)
		if !ok || len(x) != len(y) {
			return false
		}
		for i := range x {
			if !same(x[i], y[i]) {
				return false
			}
		}
		return true
	case Record:
		y, ok := b.(Record)
		if !ok || len(x) != len(y) {
			return false
		}
		for i := range x {
			if x[i].Name != y[i].Name || !same(x[i].Value, y[i].Value) {
				return false
			}
		}
		return true
	case int64, uint64, float64:
		f, err := float(a)
		g, err2 := float(b)
		if _, isText := b.(string); isText || err != nil || err2 != nil {
			return false
		}
		return f == g || math.IsNaN(f) && math.IsNaN(g)
	}
	return reflect.DeepEqual(a, b)
}

// FuzzValues takes any JSON text through JSON and XML: what XML can write, it
// gives back.
func FuzzValues(f *testing.F) {
	for _, s := range []string{`[1,2.5,"x",null,true,{}]`, `{"a":{"value":[[]]}}`, `{"@a":"b","#text":"c"}`, `"\r\n\t "`, `{"value":""}`, `{"#text":""}`, `{"@a":1}`, `[{"@a":"1","b":"2"}]`} {
		f.Add(s)
	}
	limits := Limits{Item: 1 << 16, Values: 1 << 12, Depth: 20}
	f.Fuzz(func(t *testing.T, in string) {
		read, err := decodeJSON("", limits)
		if err != nil {
			t.Fatal(err)
		}
		value, err := read([]byte(in))
		if err != nil {
			return
		}
		for _, codec := range []string{JSON, XML} {
			form, _ := formOf(codec)
			write, err := form.encode("", limits)
			if err != nil {
				t.Fatal(err)
			}
			read, err := form.decode("", Limits{Item: limits.Item, Values: 4 * limits.Values, Depth: 2 * limits.Depth})
			if err != nil {
				t.Fatal(err)
			}
			written, err := write(value)
			if err != nil {
				if codec == XML {
					continue // names and characters that XML has not
				}
				t.Fatalf("%q: %v", in, err)
			}
			back, err := read(written)
			if err != nil {
				t.Fatalf("%s wrote %q of %q and reads: %v", codec, written, in, err)
			}
			if !same(value, back) && !(codec == XML && marked(value)) {
				t.Fatalf("%s wrote %q of %q and reads %#v, not %#v", codec, written, in, back, value)
			}
		}
	})
}

// marked tells of a record with "@" or "#text" fields, which stand for
// attributes and text: those come back as text, and before the others.
func marked(v Value) bool {
	switch t := v.(type) {
	case List:
		for _, e := range t {
			if marked(e) {
				return true
			}
		}
	case Record:
		for _, f := range t {
			if f.Name == textField || strings.HasPrefix(f.Name, "@") || marked(f.Value) {
				return true
			}
		}
	}
	return false
}

// FuzzDecode gives every decoder any bytes: each gives a value that all the
// encoders can be asked to write, or an error.
func FuzzDecode(f *testing.F) {
	f.Add("double<>", []byte(unhex("00000001 3ff8000000000000")))
	f.Add("struct { int a; string s<3>; opaque o[2]; bool *b; enum { X = 1 } e; unsigned hyper h<>; }", []byte(unhex("00000001 00000000 01020000 00000000 00000001 00000000")))
	f.Add("int[]", []byte(`<a b="c"><value>1</value></a>`))
	f.Add("", []byte(`{"a":[1e3,"x"]}`))
	f.Fuzz(func(t *testing.T, typ string, in []byte) {
		limits := Limits{Item: 1 << 16, Values: 1 << 12, Depth: 20}
		if len(in) > limits.Item {
			return
		}
		for _, name := range Names() {
			form, _ := formOf(name)
			using := ""
			if name == XDR {
				using = typ
			}
			read, err := form.decode(using, limits)
			if err != nil {
				if name != XDR {
					t.Fatal(err)
				}
				continue
			}
			value, err := read(in)
			if err != nil || !form.value {
				continue
			}
			for _, other := range []string{Raw, Lines, JSON, XML, XDR} {
				form, _ := formOf(other)
				using := ""
				if other == XDR {
					using = typ
				}
				if write, err := form.encode(using, limits); err == nil {
					out, err := write(value)
					if other == name && name == XDR && (err != nil || !bytes.Equal(out.([]byte), in)) && !odd(value) {
						t.Fatalf("%s: %x is read as %#v and written as %x, %v", typ, in, value, out, err)
					}
				}
			}
		}
	})
}

// odd tells of values whose bytes XDR need not give back: a NaN's payload.
func odd(v Value) bool {
	switch t := v.(type) {
	case float64:
		return math.IsNaN(t)
	case List:
		for _, e := range t {
			if odd(e) {
				return true
			}
		}
	case Record:
		for _, f := range t {
			if odd(f.Value) {
				return true
			}
		}
	}
	return false
}

func BenchmarkDoublesToJSON(b *testing.B) {
	c := chain(b, decode(XDR, "double<>"), encode(JSON, ""))
	numbers := must(chain(b, decode(JSON, ""), encode(XDR, "double<>")).Convert([]byte("[" + strings.Repeat("1.2345678,", 999) + "2]")))
	b.SetBytes(int64(len(numbers)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Convert(numbers); err != nil {
			b.Fatal(err)
		}
	}
}

// Several items go through a chain as one by one, whatever stands between its programs,
// and up to the first that some step refuses.
func TestAll(t *testing.T) {
	program := func(s Step) (Conversion, error) {
		return func(items [][]byte) (made [][]byte, err error) {
			for _, item := range items {
				if strings.Contains(string(item), s.Type) {
					return made, errors.New("not this one")
				}
				made = append(made, append([]byte(s.Program+":"), item...))
			}
			return made, nil
		}, nil
	}
	here, there := Step{Program: "here@1", Type: "never"}, Step{Program: "there@2", Type: "b3"}
	text := []Step{{Codec: Lines, Decode: true}, {Codec: JSON}, {Codec: JSON, Decode: true}, {Codec: Lines}}
	for name, steps := range map[string][]Step{
		"none": nil, "no program": text, "first": append([]Step{here}, text...), "last": append(slices.Clone(text), there),
		"both": append(append([]Step{here}, text...), there), "in a row": {here, there}, "refuses before": {there, {Codec: XDR, Type: "string<3>", Decode: true}, {Codec: JSON}},
	} {
		t.Run(name, func(t *testing.T) {
			var items [][]byte
			for k := range 6 {
				items = append(items, fmt.Appendf(nil, "a%d\nb%d\n", k, k))
			}
			all, err := New(steps, Limits{}, program)
			if err != nil {
				t.Fatal(err)
			}
			single, _ := New(steps, Limits{}, program)
			got, failed := all.All(items)
			for k, item := range items {
				want, refused := single.Convert(item)
				if refused != nil {
					if k != len(got) || failed == nil || failed.Error() != refused.Error() {
						t.Errorf("item %d: %v, and %d of all with %v", k, refused, len(got), failed)
					}
					return
				}
				if k >= len(got) || string(got[k]) != string(want) {
					t.Fatalf("item %d is %q of %d, %v", k, want, len(got), failed)
				}
			}
			if failed != nil {
				t.Error(failed)
			}
		})
	}
}
