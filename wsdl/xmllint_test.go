package wsdl

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/beevik/etree"
)

// good are documents that use most of the schema; the corpus is made by
// breaking them in every place in many ways.
func good() map[string]string {
	const xsi = ` xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"`
	job := `
  <description>All there is.</description>
  <parameter name="n" default="4" description="how many"/><parameter name="m"/>
  <source name="main" language="c"><file name="main.c"><text>int main(void) { return 0 &lt; 1; }</text></file><file path="a.h"/><flag>-O2</flag><flag/></source>
  <source name="b" language="python"><file name="b.py"><content>
     cHJpbnQoMSkK
  </content></file></source>
  <input name="data" digest="sha256:00"/>
  <task name="t" source="main" count="${n}" processor="false">
    <argument>1</argument><argument></argument><environment name="A" value="1"/>
    <resources profile="small" version="2" cores="1" memory="16"><set name="x" value="1"/><require property="os" equals="linux"/><require property="cores" minimum="2"/></resources>
    <input name="in" path="in"/><output name="out" process="0" optional="true"/>
  </task>
  <task name="u" source="b"/>
  <topology kind="smallWorld" over="t u" prefix="p" direction="both" queue="q" degree="4" probability="0.25" seed="1"><link latency="1.5" loss="0"/></topology>
  <topology profile="ring" version="1"><set name="a" value="b"/><graph format="dot"><text>graph { a -- b }</text></graph></topology>
  <edge from="t[0]:x" to="u:y" queue="q" direct="0"/>
  <queue name="q" type="fifo" capacity="4096" full="block"><encoder codec="raw"/></queue>
  <policy wallTime="60" retries="1" priority="50" isolation="process" nodes="2"/>`
	status := `<id>0</id><task>t</task><index xsi:nil="true"/><state>exited</state><exitCode>0</exitCode><started>2026-11-22T13:00:00.5Z</started><ended xsi:nil="true"/><file><name>stdout</name><digest>d</digest><size>5</size><data>QUJDRA==</data></file>`
	return map[string]string{
		"job":             `<job xmlns="urn:mvm:1" name="all"` + xsi + `>` + job + `</job>`,
		"SubmitJob":       `<m:SubmitJob xmlns:m="urn:mvm:1"` + xsi + `><m:token>t</m:token><m:job name="x"><m:task name="t"/></m:job><m:version>2</m:version><m:argument name="n" value="3"/></m:SubmitJob>`,
		"Register":        `<Register xmlns="urn:mvm:1"` + xsi + `><node><id>i</id><incarnation>j</incarnation><url>u</url><role>backend</role><role>worker</role><cores>2</cores><memory>2048</memory><slots>0</slots><freeSlots xsi:nil="1"></freeSlots><compiler><language>c</language><command>gcc</command><version>12</version></compiler></node></Register>`,
		"Report":          `<Report xmlns="urn:mvm:1"` + xsi + `><attempt><job>j</job><number>1</number></attempt><sequence>9</sequence><process>` + status + `</process><proxyBytes>-1</proxyBytes></Report>`,
		"RegisterProfile": `<RegisterProfile xmlns="urn:mvm:1"` + xsi + `><profile><kind>topology</kind><name>n</name><registered>2026-11-22T13:00:00+01:00</registered><topology kind="ring"/></profile></RegisterProfile>`,
		"GetBroker":       `<GetBroker xmlns="urn:mvm:1"` + xsi + `/>`,
		"GetOutput":       `<GetOutput xmlns="urn:mvm:1"` + xsi + `><id></id><process xsi:nil="true"/><name>stdout</name><offset>+12</offset></GetOutput>`,
		"Dequeue":         `<DequeueResponse xmlns="urn:mvm:1"` + xsi + `><item/><item>QQ==</item><end>true</end></DequeueResponse>`,
	}
}

// breakings returns documents made from one by a single change each.
func breakings(t *testing.T, name, document string) map[string]string {
	made := map[string]string{}
	values := []string{"", " ", "x", "-1", "0", "1", " 7 ", "+7", "2147483648", "-9223372036854775809", "1.5", "1e3", "true", "TRUE", "True ", "yes",
		"${n}", "${}", "$", "QQ==", "QQ", "QR==", "Q Q = =", "=", "QQ=A", "topology", "Fifo", "backend", "c",
		"2026-02-29T00:00:00Z", "2024-02-29T23:59:59.999999999Z", "2026-11-22T13:00:00", "2026-11-22", " 2026-11-22T13:00:00Z ", "2026-11-22T13:00:00+14:01", "2026-11-22T13:00:00-14:00", "2026-11-22t13:00:00z", "0000-01-01T00:00:00Z", "2026-13-01T00:00:00Z", "2026-11-22T25:00:00Z"}
	parse := func() *etree.Document {
		d := etree.NewDocument()
		d.ReadSettings.PreserveCData = true
		if err := d.ReadFromString(document); err != nil {
			t.Fatal(err)
		}
		return d
	}
	each := func(label string, change func(e *etree.Element) bool) {
		count := len(parse().FindElements("//*"))
		for i := range count {
			d := parse()
			e := d.FindElements("//*")[i]
			if !change(e) {
				continue
			}
			s, err := d.WriteToString()
			if err != nil {
				t.Fatal(err)
			}
			made[fmt.Sprintf("%s-%d-%s", name, i, label)] = s
		}
	}
	each("same", func(e *etree.Element) bool { return true })
	each("drop", func(e *etree.Element) bool {
		return e.Parent().Parent() != nil && e.Parent().RemoveChild(e) != nil
	})
	each("twice", func(e *etree.Element) bool {
		if e.Parent().Parent() == nil {
			return false
		}
		e.Parent().InsertChildAt(e.Index(), e.Copy())
		return true
	})
	each("last", func(e *etree.Element) bool {
		p := e.Parent()
		if p.Parent() == nil {
			return false
		}
		p.RemoveChild(e)
		p.AddChild(e)
		return true
	})
	each("rename", func(e *etree.Element) bool { e.Tag += "x"; return true })
	each("child", func(e *etree.Element) bool { e.CreateElement("stranger"); return true })
	each("namespace", func(e *etree.Element) bool { e.Space = "xsi"; return true })
	each("nonamespace", func(e *etree.Element) bool { e.CreateAttr("xmlns", ""); return e.Space == "" })
	each("text", func(e *etree.Element) bool { e.CreateText("text"); return true })
	each("cdata", func(e *etree.Element) bool { e.CreateCData("7"); return true })
	each("comment", func(e *etree.Element) bool { e.CreateComment("7"); return true })
	each("pi", func(e *etree.Element) bool { e.CreateProcInst("a", "b"); return true })
	each("attribute", func(e *etree.Element) bool { e.CreateAttr("stranger", "1"); return true })
	each("lang", func(e *etree.Element) bool { e.CreateAttr("xml:lang", "en"); return true })
	each("nil", func(e *etree.Element) bool { e.CreateAttr("xsi:nil", "true"); return true })
	each("notnil", func(e *etree.Element) bool { e.CreateAttr("xsi:nil", "0"); return true })
	each("nilx", func(e *etree.Element) bool { e.CreateAttr("xsi:nil", "x"); return true })
	each("location", func(e *etree.Element) bool { e.CreateAttr("xsi:schemaLocation", "urn:x y"); return true })
	each("xsi", func(e *etree.Element) bool { e.CreateAttr("xsi:stranger", "1"); return true })
	for n, value := range values {
		each(fmt.Sprintf("value%d", n), func(e *etree.Element) bool {
			if len(e.ChildElements()) > 0 {
				return false
			}
			e.SetText(value)
			return true
		})
	}
	attributes := len(parse().FindElements("//*"))
	for i := range attributes {
		for j := range parse().FindElements("//*")[i].Attr {
			for n, value := range append([]string{"\x00drop"}, values...) {
				d := parse()
				e := d.FindElements("//*")[i]
				a := &e.Attr[j]
				if a.Space == "xmlns" || a.Key == "xmlns" {
					continue
				}
				if value == "\x00drop" {
					e.RemoveAttr(a.FullKey())
				} else {
					a.Value = value
				}
				s, err := d.WriteToString()
				if err != nil {
					t.Fatal(err)
				}
				made[fmt.Sprintf("%s-%d-%s-%d", name, i, a.FullKey(), n)] = s
			}
		}
	}
	return made
}

func TestVerdictsAgreeWithXmllint(t *testing.T) {
	xmllint, err := exec.LookPath("xmllint")
	if err != nil {
		t.Skip("xmllint is not installed, so nothing was compared; install libxml2-utils")
	}
	dir := t.TempDir()
	documents := map[string]string{}
	var args []string
	for name, document := range good() {
		for made, text := range breakings(t, name, document) {
			path := filepath.Join(dir, strings.ReplaceAll(made, ":", "_")+".xml")
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			documents[path] = text
			args = append(args, path)
		}
	}
	verdicts := map[string]bool{}
	var said strings.Builder
	for len(args) > 0 {
		n := min(len(args), 1000)
		command := exec.Command(xmllint, append([]string{"--noout", "--nonet", "--schema", "grid.xsd"}, args[:n]...)...)
		out, _ := command.CombinedOutput() // the exit code says only that one of them failed
		said.Write(out)
		args = args[n:]
		for line := range strings.Lines(string(out)) {
			line = strings.TrimSpace(line)
			if path, ok := strings.CutSuffix(line, " validates"); ok {
				verdicts[path] = true
			} else if path, ok := strings.CutSuffix(line, " fails to validate"); ok {
				verdicts[path] = false
			}
		}
	}
	complaints := map[string]string{}
	for line := range strings.Lines(said.String()) {
		if path, _, ok := strings.Cut(line, ".xml:"); ok {
			complaints[path+".xml"] += line
		}
	}
	valid, differ, known := 0, 0, 0
	for path, text := range documents {
		want, ok := verdicts[path]
		if !ok {
			t.Fatalf("xmllint said nothing about %s:\n%s", path, text)
		}
		root := strings.TrimPrefix(text[strings.IndexByte(text, '<')+1:strings.IndexAny(text, " />")], "m:")
		problems := check([]byte(text), root)
		if want {
			valid++
		}
		if got := len(problems) == 0; got != want {
			if knownDifference(problems, complaints[path]) {
				known++
			} else if differ++; differ <= 20 {
				t.Errorf("%s: Check says %t (%v), xmllint %t\n%s%s", filepath.Base(path), got, problemText(problems), want, complaints[path], text)
			}
		}
	}
	t.Logf("%d documents, %d of them valid; %d verdicts differ, %d more in known ways", len(documents), valid, differ, known)
	if known > 100 {
		t.Errorf("%d known differences are more than there should be", known)
	}
}

// knownDifference: where the two differ, and are meant to.
func knownDifference(problems []*Problem, complaint string) bool {
	if len(problems) > 0 {
		// libxml2 skips what is no base64 within base64.
		for _, p := range problems {
			if !strings.Contains(p.Message, "is no base64") {
				return false
			}
		}
		return complaint == ""
	}
	for line := range strings.Lines(complaint) {
		switch {
		case strings.Contains(line, " ' is not a valid value of the atomic type 'xs:"): // libxml2 does not collapse white space as it should
		case strings.Contains(line, "Element '{urn:mvm:1}GetBroker': The element is not 'nillable'"): // a root without a required child may be, for SOAP::Lite
		case strings.Contains(line, "content type is empty"): // white space is let pass in what must be empty, for people
		default:
			return false
		}
	}
	return complaint != ""
}

func problemText(problems []*Problem) string {
	var b strings.Builder
	for _, p := range problems {
		b.WriteString(p.Message + "\n")
	}
	return b.String()
}
