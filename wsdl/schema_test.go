package wsdl

import (
	"strings"
	"testing"
	"time"
)

func TestDecodeTellsEveryProblemAtOnce(t *testing.T) {
	const document = `<job xmlns="urn:mvm:1" name="x">
  <description>text</description>
  <source name="main" language="fortran"><file><txt>hello</txt></file></source>
  <task name="work" cuont="4"
        source="main" name2="y">
    <agument>1</agument>
    <argument>1</argument><argument></argument>
    <environment value="1"/>
    <count>4</count>
  </task>
  <parameter name="late"/>
  <policy wallTime="-1"/>
  <policy/>
</job>
`
	var job Job
	lines, problems := Decode([]byte(document), "job", &job)
	for _, p := range problems {
		t.Log(p.Message)
	}
	want := []string{
		`line 3: job/source[1]/@language: "fortran" is not one of c, cpp, go, python, shell`,
		`line 3: job/source[1]/file[1]/txt: there is no element "txt" here; did you mean "text"?`,
		`line 4: job/task[1]/@cuont: "task" has no attribute "cuont"; did you mean "count"?`,
		`line 5: job/task[1]/@name2: "task" has no attribute "name2"; did you mean "name"?`,
		`line 6: job/task[1]/agument: there is no element "agument" here; did you mean "argument"?`,
		`line 8: job/task[1]/environment[1]/@name: the attribute "name" is missing`,
		`line 9: job/task[1]/count: there is no element "count" here; count is an attribute: <task count="...">`,
		`line 11: job/parameter[1]: "parameter" must come before "task"`,
		`line 12: job/policy/@wallTime: "-1" is not a whole number not below 0, or ${name}`,
		`line 13: job/policy: "policy" may stand here at most once`,
	}
	var got []string
	for _, p := range problems {
		got = append(got, p.Message)
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("problems:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if len(job.Task) != 1 || len(job.Task[0].Argument) != 2 || job.Task[0].Name != "work" {
		t.Errorf("decoded %+v", job)
	}
	if lines["job/task[1]/@source"] != 5 || lines["job/task[1]/argument[2]"] != 7 || lines.Of("job/task[1]/resources/@cores") != 4 {
		t.Errorf("lines: %v", lines)
	}
}

// check is Decode into nothing.
func check(document []byte, root string) []*Problem {
	_, problems := Decode(document, root, nil)
	return problems
}

func TestDecodeStopsAfterAHundredProblems(t *testing.T) {
	document := `<job xmlns="urn:mvm:1" name="x">` + strings.Repeat("\n<tsk/>", 500_000) + "</job>"
	begin := time.Now()
	problems := check([]byte(document), "job")
	if len(problems) != maxProblems+1 || !strings.Contains(problems[maxProblems].Message, "line 102: too many problems") {
		t.Errorf("%d problems, the last: %s", len(problems), problems[len(problems)-1].Message)
	}
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("it took %s", took)
	}
}

func TestDecodeHelpsWithTheRoot(t *testing.T) {
	for document, want := range map[string]string{
		`<job name="x"><task name="t"/></job>`:                   `line 1: job: the element has no namespace: write <job xmlns="urn:mvm:1" ...>`,
		`<job xmlns="urn:mvm:2" name="x"><task name="t"/></job>`: `line 1: job: the namespace is "urn:mvm:2": write <job xmlns="urn:mvm:1" ...>`,
		"\n<jobs xmlns='urn:mvm:1'/>":                            `line 2: jobs: the element here must be "job", not "jobs"`,
		``:                                                       `line 1: the document ends before its root element does`,
		"<job xmlns='urn:mvm:1' name='x'>\n<task name='t'></job>":                          `line 2: element <task> closed by </job>`,
		`<job xmlns="urn:mvm:1" name="x"><task name="t"/></job><job/>`:                     `line 1: a second root element "job": a document has one`,
		`<job xmlns="urn:mvm:1" name="x" name="y"/>`:                                       `line 1: the attribute "name" is given twice`,
		"<job\nname=\"x\"a='b'/>":                                                          `line 2: no white space before an attribute`,
		"<job xmlns='urn:mvm:1' name='x'>\n<description>&#65;&#xDBFF;</description></job>": `line 2: a reference to a surrogate, which is no character`,
		"<job xmlns='urn:mvm:1' name='x'\n a='&#55296;'/>":                                 `line 2: a reference to a surrogate, which is no character`,
		`<m:job name="x"/>`: `line 1: the prefix of m:job has no namespace declaration`,
		"<!DOCTYPE job SYSTEM 'file:///etc/passwd'>\n<job/>": `line 1: document type declarations are refused`,
	} {
		problems := check([]byte(document), "job")
		if len(problems) != 1 || problems[0].Message != want {
			t.Errorf("%s:\n%swant %s", document, problemText(problems), want)
		}
	}
}

func TestNilElementsAreAbsent(t *testing.T) {
	var node Register
	_, problems := Decode([]byte(`<Register xmlns="urn:mvm:1" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><node><id>i</id><incarnation>j</incarnation><url>u</url><cores> 2
</cores><memory>5</memory><slots xsi:nil="true"/><freeSlots>0</freeSlots></node></Register>`), "Register", &node)
	if len(problems) > 0 {
		t.Fatal(problemText(problems))
	}
	if node.Node.Slots != nil || node.Node.FreeSlots == nil || *node.Node.FreeSlots != 0 || node.Node.Cores != 2 {
		t.Errorf("decoded %+v", node.Node)
	}
}

// SOAP::Lite says xsi:nil in every call without arguments.
func TestNilRootIsAnEmptyOne(t *testing.T) {
	const xsi = ` xmlns="urn:mvm:1" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:nil="true"`
	var list ListJobs
	if _, problems := Decode([]byte(`<ListJobs`+xsi+`/>`), "ListJobs", &list); len(problems) > 0 || list.XMLName.Local != "ListJobs" {
		t.Errorf("%+v\n%s", list, problemText(problems))
	}
	for document, want := range map[string]string{
		`<GetJob` + xsi + `/>`:                             `line 1: GetJob/@xsi:nil: "GetJob" cannot be nil`,
		`<ListJobs` + xsi + `><limit>1</limit></ListJobs>`: `line 1: ListJobs/limit: "ListJobs" says xsi:nil and must be empty`,
		`<ListJobs` + xsi + `> </ListJobs>`:                `line 1: ListJobs: "ListJobs" says xsi:nil and must be empty`,
	} {
		problems := check([]byte(document), document[1:strings.IndexByte(document, ' ')])
		if len(problems) == 0 || problems[0].Message != want {
			t.Errorf("%s:\n%swant %s", document, problemText(problems), want)
		}
	}
}
