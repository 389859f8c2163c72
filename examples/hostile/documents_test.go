package hostile

import (
	"fmt"
	"strings"
	"unicode/utf16"
)

const (
	ask     = `<GetBroker xmlns="urn:mvm:1"/>`
	getJob  = `<GetJob xmlns="urn:mvm:1"><id>x</id></GetJob>`
	opened  = `<e:Envelope xmlns:e="` + namespace11 + `"><e:Body>`
	closed  = `</e:Body></e:Envelope>`
	illegal = "500 invalidRequest: the XML document cannot be read: line 1: "
	large   = "500 tooLarge: the XML document cannot be read: line 1: "
	wrong   = "500 invalidRequest: the SOAP envelope is wrong: line 1: "
	unfit   = "500 invalidRequest: the request does not fit the schema: line 1: "
)

// sent is a whole document that is sent to the bootstrap service.
func sent(name, document, head, says string) entry {
	return entry{name: name, send: post("bootstrap", document), head: head, says: says}
}

func in16(text string, little bool, mark bool) string {
	if mark {
		text = "\ufeff" + text
	}
	var b strings.Builder
	for _, u := range utf16.Encode([]rune(text)) {
		if little {
			b.WriteByte(byte(u))
			b.WriteByte(byte(u >> 8))
		} else {
			b.WriteByte(byte(u >> 8))
			b.WriteByte(byte(u))
		}
	}
	return b.String()
}

// filled is a document of 15 MiB: open, unit again and again, end.
func filled(open, unit, end string) string {
	const size = 15 << 20
	return open + strings.Repeat(unit, (size-len(open)-len(end))/len(unit)) + end
}

func xmlGroup() group {
	d := sent
	whole := envelope(ask)
	var laughs, quadratic strings.Builder
	laughs.WriteString(`<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY lol0 "lol">`)
	for i := range 9 {
		fmt.Fprintf(&laughs, `<!ENTITY lol%d "%s">`, i+1, strings.Repeat(fmt.Sprintf("&lol%d;", i), 10))
	}
	laughs.WriteString("]>" + opened + "&lol9;" + closed)
	fmt.Fprintf(&quadratic, `<!DOCTYPE a [<!ENTITY a "%s">]>%s%s%s`, strings.Repeat("a", 100_000), opened, strings.Repeat("&a;", 100_000), closed)
	spaces, prefixes := "", ""
	for i := range 60 {
		prefixes += fmt.Sprintf(` xmlns:p%d="urn:%d"`, i, i)
	}
	for range 40 {
		spaces += "<a" + prefixes + ">"
	}
	var many strings.Builder
	for i := range 65 {
		fmt.Fprintf(&many, ` a%d="x"`, i)
	}
	return group{"Documents", "Sent to the bootstrap service as the body of a SOAP call. Nothing is fetched, expanded or guessed.", []entry{
		d("nothing", "", illegal, "ends before its root"),
		d("white space", "  \t ", illegal, ""),
		d("text", "hello", illegal, ""),
		d("JSON", `{"jsonrpc":"2.0"}`, illegal, ""),
		d("an entity bomb: a billion laughs", laughs.String(), illegal, "declarations are refused"),
		d("an entity bomb: quadratic blow-up", quadratic.String(), illegal, "declarations are refused"),
		d("an external entity, file:///etc/passwd", `<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>`+opened+"&x;"+closed, illegal, "declarations are refused"),
		d("a parameter entity from another host", `<!DOCTYPE a [<!ENTITY % x SYSTEM "http://127.0.0.1:1/x">%x;]>`+whole, illegal, "declarations are refused"),
		d("an external DTD", `<!DOCTYPE a SYSTEM "http://127.0.0.1:1/x.dtd">`+whole, illegal, "declarations are refused"),
		d("a DTD without anything in it", `<!DOCTYPE a>`+whole, illegal, "declarations are refused"),
		d("a DTD inside the document", opened+`<!DOCTYPE a>`+ask+closed, illegal, "declarations are refused"),
		d("an entity that nobody declared", opened+`<GetBroker xmlns="urn:mvm:1">&nbsp;</GetBroker>`+closed, illegal, "entity"),
		d("a reference to the character 0", opened+`<GetBroker xmlns="urn:mvm:1">&#0;</GetBroker>`+closed, illegal, ""),
		d("a reference to a surrogate", opened+`<GetBroker xmlns="urn:mvm:1">&#xD800;</GetBroker>`+closed, illegal, ""),
		d("a reference beyond Unicode", opened+`<GetBroker xmlns="urn:mvm:1">&#x7FFFFFFF;</GetBroker>`+closed, illegal, ""),
		d("elements nested 65 deep", opened+strings.Repeat("<a>", 65)+strings.Repeat("</a>", 65)+closed, large, "nested more than 64 deep"),
		d("elements nested 5 million deep", filled(opened, "<a>", closed), large, "nested more than 64 deep"),
		d("5 million end tags", filled(opened, "</a>", closed), illegal, ""),
		d("65 attributes in an element", opened+"<GetBroker"+many.String()+"/>"+closed, large, "more than 64 attributes"),
		d("15 MiB of attributes", filled(opened+"<GetBroker", ` a="a"`, "/>"+closed), large, ""),
		d("an attribute of 15 MiB", filled(opened+`<GetBroker a="`, "a", `"/>`+closed), large, ""),
		d("a name of 257 bytes", opened+"<"+strings.Repeat("a", 257)+"/>"+closed, large, "a name of more than 256 bytes"),
		d("a name of 15 MiB", filled(opened+"<", "a", "/>"+closed), large, "a name of more than 256 bytes"),
		d("a namespace bomb: 40 levels with 60 prefixes each", opened+spaces+strings.Repeat("</a>", 40)+closed, "500 ", ""),
		d("a namespace of 100,000 bytes", opened+`<a xmlns="`+strings.Repeat("u", 100_000)+`"/>`+closed, large, "65536 bytes"),
		d("4 million empty elements", filled(opened, "<a/>", closed), large, "more than 600000 elements"),
		d("15 MiB of comments", filled(opened, "<!---->", ask+closed), "", ""),
		d("15 MiB of processing instructions", filled(opened, "<?a?>", ask+closed), "", ""),
		d("15 MiB of empty CDATA sections", filled(opened+`<GetBroker xmlns="urn:mvm:1">`, "<![CDATA[]]>", "</GetBroker>"+closed), "", ""),
		d("15 MiB of character references", filled(opened+`<GetBroker xmlns="urn:mvm:1">`, "&#x41;", "</GetBroker>"+closed), "", ""),
		d("15 MiB of <", filled(opened, "<", closed), large, ""),
		d("15 MiB of zeros", filled("", "\x00", ""), illegal, ""),
		d("a start tag that never ends", filled(opened+"<GetBroker ", " ", ""), large, "a start tag of more than 65536 bytes"),
		d("an attribute twice", opened+`<GetBroker xmlns="urn:mvm:1" a="1" a="2"/>`+closed, illegal, "given twice"),
		d("an attribute twice, by two prefixes of one namespace", opened+`<GetBroker xmlns="urn:mvm:1" xmlns:x="u" xmlns:y="u" x:a="1" y:a="2"/>`+closed, illegal, "given twice"),
		d("a prefix declared twice", opened+`<GetBroker xmlns="urn:mvm:1" xmlns:x="u" xmlns:x="v"/>`+closed, illegal, "twice"),
		d("a prefix without a declaration", opened+`<x:GetBroker/>`+closed, illegal, "no namespace declaration"),
		d("a prefix declared as nothing", opened+`<GetBroker xmlns="urn:mvm:1" xmlns:x=""/>`+closed, illegal, "given no namespace"),
		d("attributes that nothing separates", opened+`<GetBroker xmlns="urn:mvm:1"a="b"/>`+closed, illegal, "no white space before an attribute"),
		d("an attribute without quotes", opened+`<GetBroker xmlns=urn:mvm:1/>`+closed, illegal, ""),
		d("an attribute without a value", opened+`<GetBroker xmlns="urn:mvm:1" a/>`+closed, illegal, ""),
		d("a < inside an attribute", opened+`<GetBroker xmlns="urn:mvm:1" a="<"/>`+closed, illegal, ""),
		d("]]> in text", opened+`<GetBroker xmlns="urn:mvm:1">]]></GetBroker>`+closed, illegal, ""),
		d("-- in a comment", opened+`<!-- -- -->`+ask+closed, illegal, ""),
		d("a comment that never ends", opened+`<!-- `+ask+closed, illegal, ""),
		d("a CDATA section that never ends", opened+`<GetBroker xmlns="urn:mvm:1"><![CDATA[`+closed, illegal, ""),
		d("a processing instruction that never ends", opened+`<?php `+ask+closed, illegal, ""),
		d("an end tag of another element", opened+`<GetBroker xmlns="urn:mvm:1"></GetBrokre>`+closed, illegal, "closed by"),
		d("tags that overlap", opened+`<GetBroker xmlns="urn:mvm:1"><b></GetBroker></b>`+closed, illegal, ""),
		d("a document cut off in a tag", whole[:len(whole)-30], illegal, ""),
		d("a document cut off between tags", opened+ask, illegal, ""),
		d("a document cut off in a name", whole[:12], illegal, ""),
		d("two documents, one after the other", whole+whole, illegal, "a second root element"),
		d("two documents with declarations", `<?xml version="1.0"?>`+whole+`<?xml version="1.0"?>`+whole, illegal, "more than one document"),
		d("text after the document", whole+"more", illegal, "text outside the root"),
		d("text before the document", "more"+whole, illegal, "text outside the root"),
		d("a zero after the document", whole+"\x00", illegal, ""),
		d("white space before the declaration", ` <?xml version="1.0"?>`+whole, illegal, "not at the beginning"),
		d("XML 1.1", `<?xml version="1.1"?>`+whole, illegal, "version"),
		d("UTF-16, little-endian, with a byte order mark", in16(whole, true, true), illegal, "send UTF-8"),
		d("UTF-16, big-endian, with a byte order mark", in16(whole, false, true), illegal, "send UTF-8"),
		d("UTF-16, little-endian, without one", in16(whole, true, false), illegal, "send UTF-8"),
		d("UTF-16, big-endian, without one", in16(whole, false, false), illegal, "send UTF-8"),
		d("UTF-16 by declaration alone", `<?xml version="1.0" encoding="UTF-16"?>`+whole, illegal, "send UTF-8"),
		d("ISO-8859-1 by declaration", `<?xml version="1.0" encoding="ISO-8859-1"?>`+whole, illegal, "send UTF-8"),
		d("ISO-8859-1 without a declaration", opened+"<GetBroker xmlns=\"urn:mvm:1\">\xe4</GetBroker>"+closed, illegal, "byte 0xe4 is not UTF-8"),
		d("windows-1252 by declaration", `<?xml version="1.0" encoding="windows-1252"?>`+whole, illegal, "send UTF-8"),
		d("UTF-7 by declaration", `<?xml version="1.0" encoding="UTF-7"?>`+whole, illegal, "send UTF-8"),
		d("overlong UTF-8", opened+"<GetBroker xmlns=\"urn:mvm:1\">\xc0\xbc</GetBroker>"+closed, illegal, "byte 0xc0 is not UTF-8"),
		d("a surrogate in UTF-8", opened+"<GetBroker xmlns=\"urn:mvm:1\">\xed\xa0\x80</GetBroker>"+closed, illegal, "byte 0xed is not UTF-8"),
		d("a character cut off", opened+"<GetBroker xmlns=\"urn:mvm:1\">\xf0\x9f\x92</GetBroker>"+closed, illegal, "byte 0xf0 is not UTF-8"),
		d("a NUL in text", opened+"<GetBroker xmlns=\"urn:mvm:1\">\x00</GetBroker>"+closed, illegal, ""),
		d("a NUL in a name", opened+"<Get\x00Broker xmlns=\"urn:mvm:1\"/>"+closed, illegal, ""),
		d("an escape character in text", opened+"<GetBroker xmlns=\"urn:mvm:1\">\x1b[2J</GetBroker>"+closed, illegal, ""),
		d("U+FFFE in text", opened+"<GetBroker xmlns=\"urn:mvm:1\">\ufffe</GetBroker>"+closed, illegal, ""),
		d("a byte order mark in UTF-8, which is right", "\xef\xbb\xbf"+whole, "200 GetBrokerResponse", ""),
		d("two byte order marks", "\xef\xbb\xbf\xef\xbb\xbf"+whole, illegal, ""),
	}}
}

func envelopeGroup() group {
	d := sent
	e := func(content string) string {
		return `<e:Envelope xmlns:e="` + namespace11 + `" xmlns:w="urn:wsu" xmlns="urn:mvm:1">` + content + `</e:Envelope>`
	}
	header := func(block string) string { return e("<e:Header>" + block + "</e:Header><e:Body><GetBroker/></e:Body>") }
	return group{"Envelopes", "Sent to the bootstrap service. There is one place where the operation's element is looked for, and nothing else may stand there: what is signed, once signatures come, is what is carried out.", []entry{
		d("no envelope", ask, wrong, "not a SOAP Envelope"),
		d("an envelope of another namespace", strings.ReplaceAll(envelope(ask), namespace11, "http://example.org/soap"), "500 invalidRequest: ", "neither SOAP 1.1 nor SOAP 1.2"),
		d("an envelope of no namespace", "<Envelope><Body/></Envelope>", "500 invalidRequest: ", "neither SOAP 1.1 nor SOAP 1.2"),
		d("an envelope of SOAP 1.2 with the Content-Type of 1.1, which is served", strings.ReplaceAll(envelope(ask), namespace11, namespace12), "200 GetBrokerResponse", ""),
		d("an envelope without a Body", e(""), wrong, "no Body"),
		d("an empty Body", e("<e:Body/>"), wrong, "the Body is empty"),
		d("text in the Body", e("<e:Body>GetBroker</e:Body>"), wrong, "text where only elements belong"),
		d("text in the Envelope", e("hello<e:Body><GetBroker/></e:Body>"), wrong, "text where only elements belong"),
		d("a Body of the other version's namespace", e(`<b:Body xmlns:b="`+namespace12+`"><GetBroker/></b:Body>`), wrong, "no Body"),
		d("two operations in a Body", e("<e:Body><GetBroker/><GetBroker/></e:Body>"), wrong, "further child"),
		d("two Bodies", e("<e:Body><GetBroker/></e:Body><e:Body><ListServices/></e:Body>"), wrong, "further child"),
		d("two Bodies with one id", e(`<e:Body w:Id="b"><GetBroker/></e:Body><e:Body w:Id="b"><ListServices/></e:Body>`), wrong, "further child"),
		d("a Body after another element", e(`<x xmlns="urn:x"><e:Body><GetBroker/></e:Body></x><e:Body><ListServices/></e:Body>`), wrong, "no Body where one belongs"),
		d("a Header after the Body", e("<e:Body><GetBroker/></e:Body><e:Header/>"), wrong, "further child"),
		d("two Headers", e("<e:Header/><e:Header/><e:Body><GetBroker/></e:Body>"), wrong, "no Body where one belongs"),
		d("a signed Body moved into the Header, another in its place: the Header does not count", header(`<x:Wrapper xmlns:x="urn:x"><e:Body w:Id="b"><ListServices/></e:Body></x:Wrapper>`), "200 GetBrokerResponse", ""),
		d("the same where the Header must be understood", header(`<x:Wrapper xmlns:x="urn:x" e:mustUnderstand="1"><e:Body w:Id="b"><ListServices/></e:Body></x:Wrapper>`), "500: ", "must be understood"),
		d("a Body inside the operation's element", e("<e:Body><GetBroker><e:Body><ListServices/></e:Body></GetBroker></e:Body>"), "500 invalidRequest: ", ""),
		d("an Envelope inside the Body", e("<e:Body>"+envelope(ask)+"</e:Body>"), "500 invalidRequest: ", "has no operation"),
		d("an element after the Body", e(`<e:Body><GetBroker/></e:Body><x xmlns="urn:x"/>`), wrong, "further child"),
		d("a WS-Security header that must be understood", header(`<s:Security xmlns:s="http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-secext-1.0.xsd" e:mustUnderstand="1"/>`), "500: ", "Security"),
		d("a header block of no namespace", header(`<x xmlns=""/>`), wrong, "in no namespace"),
		d("mustUnderstand is perhaps", header(`<x xmlns="urn:x" e:mustUnderstand="perhaps"/>`), wrong, "it must be 1 or 0"),
		d("mustUnderstand for another actor, which is passed over", header(`<x xmlns="urn:x" e:mustUnderstand="1" e:actor="urn:other"/>`), "200 GetBrokerResponse", ""),
		d("100,000 header blocks", header(strings.Repeat(`<x xmlns="urn:x"/>`, 100_000)), "200 GetBrokerResponse", ""),
		d("an operation of another service", e("<e:Body><SubmitJob/></e:Body>"), "500 invalidRequest: ", "has no operation"),
		d("an operation of no namespace", envelope("<GetBroker/>"), "500 invalidRequest: ", "has no operation {}GetBroker"),
		d("an operation of another namespace", envelope(`<GetBroker xmlns="urn:mvm:2"/>`), "500 invalidRequest: ", "has no operation {urn:mvm:2}GetBroker"),
		d("an operation in lower case", envelope(`<getbroker xmlns="urn:mvm:1"/>`), "500 invalidRequest: ", "has no operation"),
		d("an answer as a request", envelope(`<GetBrokerResponse xmlns="urn:mvm:1"/>`), "500 invalidRequest: ", "has no operation"),
		d("a fault as a request", envelope(`<e:Fault><faultcode>e:Client</faultcode><faultstring>no</faultstring></e:Fault>`), "500 invalidRequest: ", "has no operation"),
		d("RPC with encodingStyle, href and id", e(`<e:Body e:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/"><GetBroker href="#1"/></e:Body>`), "500 invalidRequest: ", ""),
		d("an XInclude of /etc/passwd", e(`<e:Body><GetBroker><i:include xmlns:i="http://www.w3.org/2001/XInclude" href="file:///etc/passwd" parse="text"/></GetBroker></e:Body>`), "500 invalidRequest: ", ""),
		d("a stylesheet instruction, which is passed over", `<?xml-stylesheet href="http://127.0.0.1:1/x.xsl"?>`+envelope(ask), "200 GetBrokerResponse", ""),
	}}
}

func schemaGroup() group {
	c := func(name, service, element, head, says string) entry {
		return entry{name: name, send: call(service, element), head: head, says: says}
	}
	op := func(element, content string) string {
		return `<` + element + ` xmlns="urn:mvm:1" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">` + content + `</` + element + `>`
	}
	output := func(content string) string { return op("GetOutput", content) }
	digest := "sha256:" + strings.Repeat("0", 64)
	return group{"Messages", "Calls whose element does not fit the schema. All that is wrong is told at once, with its line and path, up to a hundred problems.", []entry{
		c("a required element that is missing", "broker", op("GetJob", ""), unfit, "GetJob/id"),
		c("an element that the schema does not know", "broker", op("GetJob", "<id>x</id><extra/>"), unfit, "extra"),
		c("an element with a typing mistake", "broker", op("GetJob", "<ID>x</ID>"), unfit, ""),
		c("an attribute that the schema does not know", "broker", op("GetJob", `<id lang="en">x</id>`), unfit, "lang"),
		c("an element of another namespace", "broker", op("GetJob", `<id xmlns="urn:other">x</id>`), unfit, ""),
		c("an element of no namespace", "broker", op("GetJob", `<id xmlns="">x</id>`), unfit, ""),
		c("an element twice", "broker", op("GetJob", "<id>x</id><id>y</id>"), unfit, "GetJob/id"),
		c("elements in the wrong order", "broker", op("WaitJob", "<revision>1</revision><id>x</id>"), unfit, ""),
		c("text where elements belong", "broker", op("GetJob", "x"), unfit, ""),
		c("elements where text belongs", "broker", op("GetJob", "<id><b>x</b></id>"), unfit, ""),
		c("a number beyond its type", "broker", output("<id>x</id><process>99999999999</process><name>stdout</name>"), unfit, "GetOutput/process"),
		c("a number beyond every type", "broker", output("<id>x</id><process>0</process><name>stdout</name><offset>"+strings.Repeat("9", 100_000)+"</offset>"), unfit, ""),
		c("a number with a point", "broker", output("<id>x</id><process>1.0</process><name>stdout</name>"), unfit, ""),
		c("a number in another base", "broker", output("<id>x</id><process>0x10</process><name>stdout</name>"), unfit, ""),
		c("a number in other digits", "broker", output("<id>x</id><process>\u0661</process><name>stdout</name>"), unfit, ""),
		c("a number that is infinite", "broker", output("<id>x</id><process>INF</process><name>stdout</name>"), unfit, ""),
		c("a number that is not there", "broker", output("<id>x</id><process/><name>stdout</name>"), unfit, ""),
		c("a value that is no member of its enumeration", "broker", op("ListJobs", "<state>asleep</state>"), unfit, "asleep"),
		c("a member of an enumeration in upper case", "broker", op("ListJobs", "<state>RUNNING</state>"), unfit, "RUNNING"),
		c("a value that is no boolean", "broker", `<SubmitJob xmlns="urn:mvm:1"><token>t</token><job name="x"><task name="t" processor="maybe"/></job></SubmitJob>`, "500 invalidProfile: ", "maybe"),
		c("bytes that are no base64", "image", op("PutBlob", "<digest>"+digest+"</digest><size>1</size><data>!!!!</data>"), unfit, "PutBlob/data"),
		c("base64 cut off", "image", op("PutBlob", "<digest>"+digest+"</digest><size>1</size><data>QQ=</data>"), unfit, "PutBlob/data"),
		c("nil where nothing may be nil", "broker", op("GetJob", `<id xsi:nil="true"/>`), unfit, ""),
		c("xsi:nil with a content", "broker", output(`<id>x</id><process xsi:nil="true">3</process><name>stdout</name>`), unfit, ""),
		c("another type by xsi:type", "broker", op("GetJob", `<id xsi:type="Job">x</id>`), "500 ", ""),
		c("a location of other schemas, which nobody follows", "broker", `<GetJob xmlns="urn:mvm:1" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:schemaLocation="urn:mvm:1 http://127.0.0.1:1/x.xsd"><id>x</id></GetJob>`, "500 notFound: ", ""),
		c("300,000 elements that the schema does not know", "broker", op("GetJob", "<id>x</id>"+strings.Repeat("<a/>", 300_000)), unfit, ""),
		c("a job and the name of one", "broker", `<SubmitJob xmlns="urn:mvm:1"><token>t</token><job name="x"><source name="s" language="shell"><file name="s"><text>true</text></file></source><task name="t" source="s"/></job><profile>p</profile></SubmitJob>`, "500 invalidRequest: ", "both"),
		c("neither a job nor the name of one", "broker", op("SubmitJob", "<token>t</token>"), "500 invalidRequest: ", "neither"),
		c("an argument twice", "broker", op("SubmitJob", `<token>t</token><profile>p</profile><argument name="a" value="1"/><argument name="a" value="2"/>`), "500 ", ""),
		c("a token of 100,000 characters", "broker", op("SubmitJob", "<token>"+strings.Repeat("t", 100_000)+"</token><profile>p</profile>"), "500 invalidRequest: ", "expected 1 to 200"),
		c("a negative offset", "broker", output("<id>x</id><process>0</process><name>stdout</name><offset>-1</offset>"), "500 ", ""),
		c("a blob of 2^63 - 1 bytes", "image", op("PutBlob", "<digest>"+digest+"</digest><size>9223372036854775807</size><offset>9223372036854775800</offset><data>QUFBQUFBQUFBQUFB</data>"), "500 ", ""),
		c("a blob of negative size", "image", op("PutBlob", "<digest>"+digest+"</digest><size>-1</size><data>QQ==</data>"), "500 ", ""),
		c("a blob whose bytes are others", "image", op("PutBlob", "<digest>"+digest+"</digest><size>1</size><data>QQ==</data>"), "500 conflict: ", ""),
		c("a range beyond 2^63", "image", op("GetBlob", "<digest>"+digest+"</digest><offset>9223372036854775807</offset><length>2147483647</length>"), "500 ", ""),
		c("an Awaken from no broker", "queue", op("Awaken", `<attempt><job>j</job><number>1</number><node>n</node><incarnation>i</incarnation></attempt>`), "500 ", ""),
		c("a report from no node", "broker", op("Report", `<attempt><job>j</job><number>1</number><node>n</node><incarnation>i</incarnation></attempt><sequence>1</sequence>`), "500 ", ""),
		c("a node that registers without end of roles", "information", op("Register", `<node><id>evil</id><incarnation>i</incarnation><url>http://127.0.0.1:1</url>`+strings.Repeat("<role>emperor</role>", 200)+`<cores>1</cores><memory>1</memory><slots>1</slots><freeSlots>1</freeSlots></node>`), unfit, "emperor"),
	}}
}
