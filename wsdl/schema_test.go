package wsdl

import (
	"strings"
	"testing"
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
