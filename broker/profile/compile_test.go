package profile

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"mvm/wsdl"
)

const task = `<task name="p" source="c" count="4"/>`

// problemsOf is "line element: found" of each problem, and the fault's code.
func problemsOf(t *testing.T, err error) ([]string, wsdl.FaultCode) {
	t.Helper()
	var fault *wsdl.Fault
	if !errors.As(err, &fault) {
		t.Fatalf("found the error %v, expected a fault", err)
	}
	var out []string
	for _, p := range fault.Problem {
		out = append(out, fmt.Sprintf("%d %s: %s", p.Line, p.Element, p.Found))
		if p.Message == "" || p.Expected == "" && p.Element != "" {
			t.Errorf("the problem at %s says neither what nor what was expected: %+v", p.Element, p)
		}
	}
	return out, wsdl.CodeOf(err)
}

// Each mistake is refused with its line, its element and what was found.
func TestMistakesAreRefused(t *testing.T) {
	for _, c := range []struct{ body, want string }{
		{`<task name="p" source="d"/>`, `3 job/task[1]/@source: d`},
		{`<task name="p"/>`, `3 job/task[1]/@source: nothing`},
		{`<task name="1p" source="c"/>`, `3 job/task[1]/@name: 1p`},
		{`<task name="outside" source="c"/>`, `3 job/task[1]/@name: outside`},
		{`<task name="p" source="c"/>` + "\n" + `<task name="p" source="c"/>`, `4 job/task[2]/@name: p`},
		{`<task name="p" source="c" count="0"/>`, `3 job/task[1]/@count: 0`},
		{`<task name="p" source="c" count="100001"/>`, `3 job/task[1]/@count: 100001`},
		{`<task name="p" source="c" count="999999999999999999"/>`, `3 job/task[1]/@count: 999999999999999999`},
		{`<task name="p" source="c" count="60000"/><task name="q" source="c" count="60000"/>`, `3 job/task[2]/@count: 120000`},
		{`<task name="p" source="c"><argument>${x}</argument></task>`, `3 job/task[1]/argument[1]: ${x}`},
		{`<task name="p" source="c"><argument>${x</argument></task>`, `3 job/task[1]/argument[1]: ${x`},
		{`<task name="p" source="c"><environment name="MVM_X" value="1"/></task>`, `3 job/task[1]/environment[1]/@name: MVM_X`},
		{`<task name="p" source="c"><environment name="A=B" value="1"/></task>`, `3 job/task[1]/environment[1]/@name: A=B`},
		{`<task name="p" source="c"><environment name="A" value="1"/><environment name="A" value="2"/></task>`, `3 job/task[1]/environment[2]/@name: A`},
		{`<task name="p" source="c"><output name="../x"/></task>`, `3 job/task[1]/output[1]/@name: ../x`},
		{`<task name="p" source="c"><output name="/etc/passwd"/></task>`, `3 job/task[1]/output[1]/@name: /etc/passwd`},
		{`<task name="p" source="c"><output name="a/./b"/></task>`, `3 job/task[1]/output[1]/@name: a/./b`},
		{`<task name="p" source="c"><output name="a\b"/></task>`, `3 job/task[1]/output[1]/@name: a\b`},
		{`<task name="p" source="c"><output name="-rf"/></task>`, `3 job/task[1]/output[1]/@name: -rf`},
		{`<task name="p" source="c"><output name="a"/><output name="a"/></task>`, `3 job/task[1]/output[2]/@name: a`},
		{`<task name="p" source="c"><output name="a"/><output name="a" process="0"/></task>`, `3 job/task[1]/output[2]/@name: a`},
		{`<task name="p" source="c"><output name="a" process="1"/></task>`, `3 job/task[1]/output[1]/@process: 1`},
		{`<task name="p" source="c"><input name="x"/></task>`, `3 job/task[1]/input[1]: none of them`},
		{`<task name="p" source="c"><input name="x" path="x" digest="sha256:` + strings.Repeat("0", 64) + `"/></task>`, `3 job/task[1]/input[1]: path and digest`},
		{`<task name="p" source="c"><input name="x" digest="sha256:00"/></task>`, `3 job/task[1]/input[1]/@digest: sha256:00`},
		{`<task name="p" source="c"><input><text>x</text></input></task>`, `3 job/task[1]/input[1]: no name`},
		{`<task name="p" source="c"><input name="a"><text>x</text></input><input name="a/b"><text>x</text></input></task>`, `3 job/task[1]/input[2]/@name: a/b`},
		{`<task name="p" source="c"><resources><require property="os" minimum="1"/></resources></task>`, `3 job/task[1]/resources/require[1]/@minimum: minimum`},
		{`<task name="p" source="c"><resources><require property="cores"/></resources></task>`, `3 job/task[1]/resources/require[1]: neither`},
		{`<task name="p" source="c"><resources><require property="cores" equals="many"/></resources></task>`, `3 job/task[1]/resources/require[1]/@equals: many`},
		{`<task name="p" source="c"><resources><require property="compiler" equals="fortran"/></resources></task>`, `3 job/task[1]/resources/require[1]/@equals: fortran`},
		{`<task name="p" source="c"><resources version="2"/></task>`, `3 job/task[1]/resources/@version: 2`},
		{task + `<policy wallTime="40000000"/>`, `3 job/policy/@wallTime: 40000000`},
		{task + `<policy priority="101"/>`, `3 job/policy/@priority: 101`},
		{task + `<policy nodes="5"/>`, `3 job/policy/@nodes: 5`},
		{task + `<policy nodes="0"/>`, `3 job/policy/@nodes: 0`},
		{task + `<topology/>`, `3 job/topology[1]/@kind: nothing`},
		{task + `<topology kind="ring" over="p q"/>`, `3 job/topology[1]/@over: q`},
		{task + `<topology kind="ring" over="p p"/>`, `3 job/topology[1]/@over: p`},
		{task + `<topology kind="ring" columns="2"/>`, `3 job/topology[1]/@columns: 2`},
		{task + `<topology kind="ring" queue="fast"/>`, `3 job/topology[1]/@queue: fast`},
		{task + `<topology kind="ring" prefix="9"/>`, `3 job/topology[1]/@prefix: 9`},
		{task + `<topology kind="ring"><parameter name="x"/></topology>`, `3 job/topology[1]/parameter[1]: parameter`},
		{task + `<topology kind="ring"><set name="x" value="1"/></topology>`, `3 job/topology[1]/set[1]: set`},
		{task + `<topology profile="r"/>`, `3 job/topology[1]/@profile: r`},
		{task + `<topology kind="ring"/>` + "\n" + `<topology kind="line"/>`, `4 job/topology[2]: prev`},
		{task + `<topology kind="farm"/>`, `3 job/topology[1]/@over: 1`},
		{over(6, `kind="hypercube"`), `3 job/topology[1]: 6`},
		{over(6, `kind="butterfly"`), `3 job/topology[1]: 6`},
		{over(12, `kind="mesh" columns="5"`), `3 job/topology[1]: 5 columns`},
		{over(12, `kind="mesh" columns="4" rows="4"`), `3 job/topology[1]: 4 columns x 4 rows`},
		{over(12, `kind="mesh" dimensions="1" rows="4"`), `3 job/topology[1]/@rows: 4`},
		{over(12, `kind="torus" dimensions="4"`), `3 job/topology[1]/@dimensions: 4`},
		{over(9, `kind="fatTree"`), `3 job/topology[1]: 9`},
		{over(9, `kind="random" degree="9"`), `3 job/topology[1]/@degree: 9`},
		{over(9, `kind="smallWorld" degree="3"`), `3 job/topology[1]/@degree: 3`},
		{over(9, `kind="smallWorld" probability="1.1"`), `3 job/topology[1]/@probability: 1.1`},
		{over(2000, `kind="complete"`), `3 job/topology[1]: 3998000`},
		{over(100_000, `kind="complete"`), `3 job/topology[1]: 9999900000`},
		{over(9, `kind="graph"`), `3 job/topology[1]: no graph`},
		{task + `<topology kind="graph"><graph format="dot"><text>graph { a -- b -- c }</text></graph></topology>`, `3 job/topology[1]/graph: 3 vertices`},
		{task + `<topology kind="graph"><graph format="dot"><text>graph { a -> b }</text></graph></topology>`, `3 job/topology[1]/graph: dot`},
		{task + `<topology kind="graph"><graph format="dot" path="a.dot"/></topology>`, `3 job/topology[1]/graph: a.dot`},
		{task + `<edge from="p:a" to="q:b"/>`, `3 job/edge[1]/@to: q:b`},
		{task + `<edge from="p:a" to="p[4]:b"/>`, `3 job/edge[1]/@to: p[4]:b`},
		{task + `<edge from="p:a" to="p[x]:b"/>`, `3 job/edge[1]/@to: p[x]:b`},
		{task + `<edge from="p" to="p[1]:b"/>`, `3 job/edge[1]/@from: p`},
		{task + `<edge from="p:a b" to="p[1]:b"/>`, `3 job/edge[1]/@from: p:a b`},
		{task + `<edge from="outside:a" to="outside:b"/>`, `3 job/edge[1]: outside:a to outside:b`},
		{task + `<edge from="outside:a" to="p:b"/><edge from="p:b" to="outside:a"/>`, `3 job/edge[2]/@to: outside:a`},
		{task + `<edge from="p:a" to="p[1]:b"/><edge from="p:a" to="p[2]:b"/>`, `3 job/edge[2]: a`},
		{task + `<queue name="q" capacity="0"/>`, `3 job/queue[1]/@capacity: 0`},
		{task + `<queue name="fifo"/>`, `3 job/queue[1]/@name: fifo`},
		{task + `<queue name="q"/><queue name="q"/>`, `3 job/queue[2]/@name: q`},
		{task + `<queue name="q" type="latest" full="fail"/>`, `3 job/queue[1]/@full: fail`},
		{task + `<edge from="p:a" to="p[1]:b" queue="q"/><queue name="q" type="work"/>`, `3 job/edge[1]/@queue: q`},
		{task + `<topology kind="star" queue="q"/><queue name="q" type="broadcast"/>`, `3 job/topology[1]/@queue: q`},
		{task + `<edge from="p:a" to="queue:q"/><queue name="q" type="work"/>`, `3 job/queue[1]: no edge from "queue:q"`},
		{task + `<edge from="queue:q" to="p:a"/><queue name="q" type="work"/>`, `3 job/queue[1]: no edge to "queue:q"`},
		{task + `<edge from="p:a" to="queue:q"/><edge from="queue:q" to="p[*]:b"/><queue name="q"/>`, `3 job/queue[1]/@type: fifo`},
		{task + `<edge from="queue:q" to="queue:q"/><queue name="q"/>`, `3 job/edge[1]: queue:q to queue:q`},
		{task + `<edge from="p:a" to="queue:x"/><queue name="q" type="work"/>`, `3 job/edge[1]/@to: queue:x`},
		{task + `<edge from="p:a" to="queue:fifo"/>`, `3 job/edge[1]/@to: queue:fifo`},
		{task + `<edge from="p[*]:a" to="p[1]:b"/>`, `3 job/edge[1]: p[*]:a to p[1]:b`},
		{task + `<edge from="p:a" to="queue:q" queue="r"/><queue name="q" type="lifo"/><queue name="r"/>`, `3 job/edge[1]/@queue: r`},
		{task + `<edge from="p:a" to="p[1]:b" queue="q" direct="true"/><queue name="q" type="lifo"/>`, `3 job/edge[1]/@direct: true`},
		{task + `<edge from="p:a" to="queue:q" direct="true"/><queue name="q" type="work"/>`, `3 job/edge[1]/@direct: true`},
		{task + `<edge from="p[*]:a" to="queue:q"/><edge from="queue:q" to="p:b"/><edge from="p[2]:a" to="p:c"/><queue name="q" type="work"/>`, `3 job/edge[3]: a`},
		{`<task name="p" source="c" processor="true"/>`, `3 job/task[1]/@source: c`},
		{`<task name="queue" source="c"/>`, `3 job/task[1]/@name: queue`},
		{task + `<edge from="p:a" to="p[1]:b" direct="true"><link latency="1"/></edge>`, `3 job/edge[1]/@direct: true`},
		{task + `<edge from="p:a" to="outside:b" direct="true"/>`, `3 job/edge[1]/@direct: true`},
		{task + `<topology kind="ring"><link latency="3600001"/></topology>`, `3 job/topology[1]/link/@latency: 3600001`},
		{task + `<topology kind="ring"><link bandwidth="0"/></topology>`, `3 job/topology[1]/link/@bandwidth: 0`},
		{task + `<edge from="p:a" to="p[1]:b"><link loss="1.1"/></edge>`, `3 job/edge[1]/link/@loss: 1.1`},
		{task + `<edge from="p:a" to="p[1]:b"><link latency="2" jitter="2.5"/></edge>`, `3 job/edge[1]/link/@jitter: 2.5ms`},
		{task + `<edge from="p:a" to="queue:q"><link latency="2"/></edge><edge from="queue:q" to="p:b"/><queue name="q" type="work"/>`, `3 job/edge[1]/link: link`},
	} {
		_, err := parse(t, c.body)
		if err == nil {
			t.Errorf("%s was accepted, expected %s", c.body, c.want)
			continue
		}
		got, code := problemsOf(t, err)
		if !slices.Contains(got, c.want) {
			t.Errorf("%s\ngot:  %v\nwant: %s", c.body, got, c.want)
		}
		if len(got) != 1 && !strings.Contains(c.body, `kind="line"`) {
			t.Errorf("%s\none mistake gave %d problems: %v", c.body, len(got), got)
		}
		if code != wsdl.FaultCodeInvalidProfile {
			t.Errorf("%s: the code is %s", c.body, code)
		}
	}
}

// A job in VMs names their image, and nothing leads past the proxies of its nodes.
func TestIsolationInVMs(t *testing.T) {
	pair := task
	job, err := parse(t, pair+`<edge from="p[0]:x" to="p[1]:x"/><policy isolation="vm" image="minimal@3" perVM="2"/>`)
	if err != nil || job.VM == nil || job.VM.Image != "minimal@3" || job.VM.Most != 2 {
		t.Fatalf("found %+v, %v", job, err)
	}
	for network, want := range map[string]bool{`network="job"`: true, `network="none"`: false, ``: false} {
		if job, err := parse(t, pair+`<policy isolation="vm" image="minimal" `+network+`/>`); err != nil || job.VM.Network != want {
			t.Errorf("with %q: found %+v, %v", network, job, err)
		}
	}
	limited := `<policy isolation="vm" image="minimal"><vm cpu="150" disk="2048" diskRate="4096" networkRate="64"/></policy>`
	if job, err := parse(t, pair+limited); err != nil || job.VM.Limits != (VMLimits{CPUPercent: 150, DiskMiB: 2048, DiskRate: 4096, NetworkRate: 64}) {
		t.Errorf("found %+v, %v", job, err)
	}
	for _, c := range []struct{ body, want string }{
		{pair + `<policy><vm cpu="50"/></policy>`, "what its VMs may take, but its isolation is process"},
		{pair + strings.Replace(limited, `"64"`, `"63"`, 1), "a VM with 63 KiB a second over the network would look dead"},
		{pair + strings.Replace(limited, `"150"`, `"100001"`, 1), "the cpu of a VM is"},
		{pair + strings.Replace(limited, `disk="2048"`, `disc="2048"`, 1), "disc"},
		{pair + `<policy isolation="vm"/>`, "no image is named"},
		{pair + `<policy image="minimal"/>`, "its isolation is process"},
		{pair + `<policy network="job"/>`, "there are no VMs for it to join"},
		{pair + `<policy isolation="vm" image="minimal" network="world"/>`, "not one of none, job"},
		{`<source name="s" language="c"><file path="a.c"/></source><task name="p" source="s" count="1001"/><policy isolation="vm" image="minimal" network="job"/>`, "at most 1000 can have a network"},
		{pair + `<policy isolation="process" image="minimal"/>`, "its isolation is process"},
		{pair + `<policy perVM="1"/>`, "there are no VMs"},
		{pair + `<edge from="p[0]:x" to="p[1]:x" direct="true"/><policy isolation="vm" image="minimal"/>`, "is direct"},
	} {
		if _, err := parse(t, c.body); wsdl.CodeOf(err) != wsdl.FaultCodeInvalidProfile || !strings.Contains(messagesOf(err), c.want) {
			t.Errorf("%s: found %v, expected %s", c.body, err, c.want)
		}
	}
}

// Checkpoints are of jobs that are whole in their VMs.
func TestCheckpointPolicy(t *testing.T) {
	pair := task
	job, err := parse(t, pair+`<policy isolation="vm" image="minimal" checkpoint="30"/>`)
	if err != nil || job.Checkpoint != 30*time.Second {
		t.Fatalf("found %+v, %v", job, err)
	}
	for _, c := range []struct{ body, want string }{
		{pair + `<policy checkpoint="30"/>`, "this job's processes are in none"},
		{pair + `<edge from="p[0]:x" to="outside:o"/><policy isolation="vm" image="minimal" checkpoint="30"/>`, "leads outside the job"},
	} {
		if _, err := parse(t, c.body); wsdl.CodeOf(err) != wsdl.FaultCodeInvalidProfile || !strings.Contains(messagesOf(err), c.want) {
			t.Errorf("%s: found %v: %s, expected %s", c.body, err, messagesOf(err), c.want)
		}
	}
}

func messagesOf(err error) string {
	var fault *wsdl.Fault
	text := fmt.Sprint(err)
	if errors.As(err, &fault) {
		for _, p := range fault.Problem {
			text += p.Message
		}
	}
	return text
}

// Many problems are told at once, and not endlessly many.
func TestAllProblemsAtOnce(t *testing.T) {
	_, err := parse(t, `<task name="a" source="x" count="0"/>
<task name="b" source="c"><output name=".."/></task>
<topology kind="ring" over="z"/>
<policy priority="500"/>`)
	got, _ := problemsOf(t, err)
	want := []string{"3 job/task[1]/@source: x", "3 job/task[1]/@count: 0", "4 job/task[2]/output[1]/@name: ..", "6 job/policy/@priority: 500"}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	_, err = parse(t, task+strings.Repeat(`<edge from="p:a" to="nobody:b"/>`, 5000))
	if got, _ := problemsOf(t, err); len(got) != maxProblems+1 {
		t.Errorf("%d problems were listed, expected %d", len(got), maxProblems+1)
	}
}

func TestSchemaProblemsHaveLines(t *testing.T) {
	_, _, err := Parse(strings.NewReader("<job xmlns=\"urn:mvm:1\" name=\"x\">\n<tsk/>\n<task name=\"p\" cuont=\"3\"/></job>"), "bad.xml")
	if err == nil || !strings.Contains(err.Error(), "line 2") || !strings.Contains(err.Error(), "line 3") || !strings.Contains(err.Error(), "bad.xml") {
		t.Errorf("found %v", err)
	}
}

func TestParameters(t *testing.T) {
	text := `<job xmlns="urn:mvm:1" name="test-${who}">
<parameter name="who" default="me"/><parameter name="n"/><parameter name="twice" default="${who}${who}"/>
<source name="c" language="c"><file name="a.c"><text>${this stays}</text></file><flag>-DN=${n}</flag></source>
<task name="p" source="c" count="${n}"><argument>$${HOME} ${n}-${who} $$ {</argument><environment name="W" value="${twice}"/></task>
</job>`
	job, _, err := Parse(strings.NewReader(text), "test")
	if err != nil {
		t.Fatal(err)
	}
	got, err := Compile(job, map[string]string{"n": "3", "who": "${n}"}, nil, nil)
	if wsdl.CodeOf(err) != wsdl.FaultCodeInvalidProfile {
		t.Errorf("a name that becomes \"test-${n}\" was accepted: %v %v", got, err)
	}
	got, err = Compile(job, map[string]string{"n": "3", "who": "you"}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	p := got.Processes[2]
	if got.Name != "test-you" || len(got.Processes) != 3 || p.Arguments[0] != "${HOME} 3-you $$ {" || p.Environment[0].Value != "youyou" || got.Sources[0].Flags[0] != "-DN=3" {
		t.Errorf("found %+v", got)
	}
	for _, c := range []struct {
		arguments map[string]string
		want      string
	}{
		{nil, `the parameter "n" has no default and was given no value`},
		{map[string]string{"n": "x"}, `the count of the task "p" is "x", expected a whole number`},
		{map[string]string{"n": "1", "nn": "1"}, `for the parameter "nn", which the job does not declare; did you mean "n"?`},
		{map[string]string{"n": "1", "who": "a\x00b"}, `has a NUL byte`},
	} {
		if _, err := Compile(job, c.arguments, nil, nil); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("with %v found %v, expected %s", c.arguments, err, c.want)
		}
	}
	if out, err := Text(job, map[string]string{"who": "x"}, "data/${who}.txt"); err != nil || out != "data/x.txt" {
		t.Errorf("found %q, %v", out, err)
	}
	if _, err := Text(job, nil, "${n}"); err == nil {
		t.Error("a text with a parameter without a value was accepted")
	}
}

func TestDefaultsAndLimits(t *testing.T) {
	job := compile(t, task+`<topology kind="ring" queue="big"/><edge from="p:x" to="p[1]:x"/><queue name="big" capacity="5000"/>`)
	if job.WallTime != time.Hour || job.Priority != 50 || job.Nodes != 1 || job.Retries != 0 {
		t.Errorf("found %+v", job)
	}
	if job.Channels[0].Capacity != 8192 || job.Channels[8].Capacity != DefaultCapacity {
		t.Errorf("capacities are %d and %d", job.Channels[0].Capacity, job.Channels[8].Capacity)
	}
	job = compile(t, task+`<policy wallTime="0" retries="3" priority="0" nodes="4"/>`)
	if job.WallTime != 0 || job.Priority != 0 || job.Nodes != 4 || job.Retries != 3 {
		t.Errorf("found %+v", job)
	}
}

func TestOutputsOfSingleProcesses(t *testing.T) {
	job := compile(t, `<task name="p" source="c" count="3"><output name="all"/><output name="a" process="0"/><output name="a" process="2" optional="true"/></task>`)
	var got []string
	for _, p := range job.Processes {
		got = append(got, fmt.Sprint(p.Outputs))
	}
	if want := []string{"[{all false} {a false}]", "[{all false}]", "[{all false} {a true}]"}; !slices.Equal(got, want) {
		t.Errorf("found %v", got)
	}
}

// registry answers from profiles by kind and name, the newest last.
type registry map[string][]*wsdl.Profile

func (r registry) lookup(kind wsdl.ProfileKind, name string, version int32) (*wsdl.Profile, error) {
	versions := r[string(kind)+" "+name]
	if int(version) > len(versions) || len(versions) == 0 {
		return nil, errors.New("there is no such profile")
	}
	if version == 0 {
		version = int32(len(versions))
	}
	return versions[version-1], nil
}

func TestRegisteredProfilesAreMerged(t *testing.T) {
	number := func(text string) *wsdl.Number { return wsdl.Of(wsdl.Number(text)) }
	grid := func(version int32, kind wsdl.TopologyKind) *wsdl.Profile {
		return &wsdl.Profile{Name: "grid", Version: version, Topology: &wsdl.Topology{
			Parameter: []*wsdl.Parameter{{Name: "columns", Default: "2"}},
			Kind:      wsdl.Of(kind), Columns: number("${columns}"), Direction: wsdl.Of(wsdl.DirectionForward),
		}}
	}
	known := registry{
		"topology grid":  {grid(1, wsdl.TopologyKindMesh), grid(2, wsdl.TopologyKindTorus)},
		"topology outer": {{Name: "outer", Version: 1, Topology: &wsdl.Topology{Profile: "grid", Version: number("1"), Prefix: "o"}}},
		"topology loop":  {{Name: "loop", Version: 1, Topology: &wsdl.Topology{Profile: "loop"}}},
		"resources big": {{Name: "big", Version: 1, Resources: &wsdl.Resources{
			Parameter: []*wsdl.Parameter{{Name: "gib"}}, Memory: number("${gib}"), Cores: number("2"),
			Require: []*wsdl.Requirement{
				{Property: wsdl.Of(wsdl.NodePropertyOs), Equals: "linux"},
				{Property: wsdl.Of(wsdl.NodePropertyCompiler), Equals: "go"},
				{Property: wsdl.Of(wsdl.NodePropertyArch), Equals: "amd64"},
			},
		}}},
	}
	try := func(body string) (*Job, error) {
		t.Helper()
		job, lines, err := Parse(strings.NewReader(`<job xmlns="urn:mvm:1" name="test"><source name="c" language="c"><file name="a.c"><text>x</text></file></source>`+body+`</job>`), "test")
		if err != nil {
			t.Fatal(err)
		}
		compiled, err := Compile(job, nil, known.lookup, nil)
		return compiled, lines.Locate(err)
	}
	for _, c := range []struct{ body, want string }{
		{task + `<topology profile="grid" version="1"/>`, wires(compile(t, over(4, `kind="mesh" direction="forward" columns="2"`)))},
		{task + `<topology profile="grid"/>`, wires(compile(t, over(4, `kind="torus" direction="forward" columns="2"`)))},
		{task + `<topology profile="grid"><set name="columns" value="4"/></topology>`, wires(compile(t, over(4, `kind="torus" direction="forward" columns="4"`)))},
		{task + `<topology profile="grid" direction="both" columns="1" prefix="x"/>`, wires(compile(t, over(4, `kind="torus" columns="1" prefix="x"`)))},
		{task + `<topology profile="outer"/>`, wires(compile(t, over(4, `kind="mesh" direction="forward" columns="2" prefix="o"`)))},
	} {
		job, err := try(c.body)
		if err != nil {
			t.Errorf("%s: %v", c.body, err)
		} else if got := wires(job); got != c.want {
			t.Errorf("%s\ngot:  %s\nwant: %s", c.body, got, c.want)
		}
	}
	job, err := try(`<task name="p" source="c"><resources profile="big" cores="1"><set name="gib" value="512"/><require property="arch" equals="arm64"/><require property="compiler" equals="c"/></resources></task>`)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := fmt.Sprint(job.Processes[0].Need), "{1 512 [{os linux 0} {compiler go 0} {arch arm64 0} {compiler c 0}]}"; got != want {
		t.Errorf("the need is %s, expected %s", got, want)
	}
	for _, c := range []struct{ body, want string }{
		{task + `<topology profile="grid" version="3"/>`, "no such profile"},
		{task + `<topology profile="grid"><set name="rows" value="4"/></topology>`, `for the parameter "rows", which the registered topology "grid" version 2 does not declare`},
		{task + `<topology profile="grid"><set name="columns" value="x"/></topology>`, `in registered topology "grid" version 2: columns of the torus is "x"`},
		{task + `<topology profile="loop"/>`, "more than 8 times"},
		{`<task name="p" source="c"><resources profile="big"/></task>`, `the parameter "gib" has no default`},
	} {
		if _, err := try(c.body); err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "line 1") {
			t.Errorf("%s: found %v, expected %s", c.body, err, c.want)
		}
	}
}

func TestBlobs(t *testing.T) {
	text := `<job xmlns="urn:mvm:1" name="test">
<source name="c" language="c"><file path="src/a.c"/><file name="b.h"><content>aGk=</content></file></source>
<input name="empty"><content/></input>
<task name="p" source="c" count="2"><input name="t"><text>hello</text></input></task>
<topology kind="graph"><graph format="edgeList" path="g.txt"/></topology></job>`
	job, lines, err := Parse(strings.NewReader(text), "test")
	if err != nil {
		t.Fatal(err)
	}
	disk := map[string]string{"src/a.c": "int main(){}", "g.txt": "a b"}
	read := func(path string) ([]byte, error) {
		data, ok := disk[path]
		if !ok {
			return nil, errors.New("no such file")
		}
		return []byte(data), nil
	}
	found, err := Blobs(job, read)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for digest, data := range found {
		if DigestOf(data) != digest {
			t.Errorf("%s holds other bytes", digest)
		}
		got = append(got, string(data))
	}
	slices.Sort(got)
	if want := []string{"", "a b", "hello", "hi", "int main(){}"}; !slices.Equal(got, want) {
		t.Errorf("found %q", got)
	}
	compiled, err := Compile(job, nil, nil, func(reference string) ([]byte, error) { return found[reference], nil })
	if err != nil {
		t.Fatal(lines.Locate(err))
	}
	if f := compiled.Sources[0].Files[0]; f.Name != "a.c" || f.Digest != DigestOf([]byte("int main(){}")) {
		t.Errorf("found %+v", f)
	}
	if in := compiled.Processes[1].Inputs; len(in) != 2 || in[0].Name != "empty" || in[1].Digest != DigestOf([]byte("hello")) {
		t.Errorf("found %+v", in)
	}
	if wires(compiled) != "0:link0>1:link0 1:link0>0:link0" {
		t.Errorf("found %s", wires(compiled))
	}

	for _, path := range []string{"../a.c", "/etc/passwd", "a/../../b", "none"} {
		job := &wsdl.Job{Source: []*wsdl.Source{{File: []*wsdl.SourceFile{{Path: path}}}}}
		if _, err := Blobs(job, read); wsdl.CodeOf(err) != wsdl.FaultCodeInvalidProfile {
			t.Errorf("the path %s gave %v", path, err)
		}
	}
	job = &wsdl.Job{Input: []*wsdl.InputFile{{Path: "src/a.c"}}}
	if _, err := Blobs(job, nil); err == nil || !strings.Contains(err.Error(), "only the submitting client can read") {
		t.Errorf("a path without a reader gave %v", err)
	}
	job = &wsdl.Job{Input: []*wsdl.InputFile{{Path: "${x}"}}}
	if _, err := Blobs(job, read); err == nil || !strings.Contains(err.Error(), "needs a name") {
		t.Errorf("a path by parameter without a name gave %v", err)
	}
}

// Documents that ask for far more than they are long end with a problem, soon.
func TestBombsAreRefused(t *testing.T) {
	many := func(n int, text string) string { return strings.Repeat(text, n) }
	numbered := func(n int, format string) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, format, i)
		}
		return b.String()
	}
	for name, c := range map[string]struct{ parameters, body, want string }{
		"processes":   {"", numbered(20, `<task name="t%d" source="c" count="99999"/>`), "expected at most 100000"},
		"channels":    {"", `<task name="p" source="c" count="100000"/>` + many(20, `<topology kind="ring"/>`), "expected at most 1000000"},
		"topologies":  {"", `<task name="p" source="c"/>` + many(3000, `<topology kind="mesh" rows="1" columns="1"/>`), "expected at most 1000"},
		"inputs":      {"", numbered(3000, `<input name="i%d"><content/></input>`) + numbered(3000, `<task name="t%d" source="c"><input name="own"><content/></input></task>`), "names of input and output files"},
		"outputs":     {"", `<task name="p" source="c" count="3000">` + numbered(3000, `<output name="o%d"/>`) + numbered(3000, `<output name="own" process="%d"/>`) + `</task>`, "names of input and output files"},
		"bad edges":   {"", numbered(3000, `<task name="long-name-of-a-task-%d" source="c"/>`) + many(20_000, `<edge from="long-name-of-a-tusk-1:a" to="nobody:b"/>`), "more problems"},
		"parameters":  {numbered(20_000, `<parameter name="p%d" default="x"/>`), task + `<topology kind="rign"/>`, "kind"},
		"big lengths": {"", over(12, `kind="torus" columns="100000" rows="100000" layers="100000"`), "make 1000000000000000"},
	} {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			job, _, err := Parse(strings.NewReader(`<job xmlns="urn:mvm:1" name="test">`+c.parameters+`<source name="c" language="c"><file name="a.c"><text>x</text></file></source>`+c.body+`</job>`), "bomb")
			if err == nil {
				_, err = Compile(job, nil, nil, nil)
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("found %v, expected %q", err, c.want)
			}
			if took := time.Since(start); took > 20*time.Second {
				t.Errorf("it took %v", took)
			}
		})
	}
	// Each parameter is twice the one before: the texts stay bounded.
	text := `<job xmlns="urn:mvm:1" name="test"><parameter name="p0" default="` + many(1000, "x") + `"/>`
	for i := 1; i < 40; i++ {
		text += fmt.Sprintf(`<parameter name="p%d" default="${p%d}${p%d}"/>`, i, i-1, i-1)
	}
	text += `<source name="c" language="c"><file name="a.c"><text>x</text></file></source><task name="p" source="c">` + many(2000, `<argument>${p6}</argument>`) + `</task></job>`
	job, _, err := Parse(strings.NewReader(text), "bomb")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Compile(job, nil, nil, nil); err == nil || !strings.Contains(err.Error(), "longer than 131071 bytes") || !strings.Contains(err.Error(), "longer than 67108864 bytes") {
		t.Errorf("found %.300v", err)
	}
}

// A parameter that only a path refers to is of use before the job is compiled.
func TestParameterOfAPath(t *testing.T) {
	job, _, err := Parse(strings.NewReader(`<job xmlns="urn:mvm:1" name="test"><parameter name="text" default="a.txt"/>
<source name="c" language="c"><file name="a.c"><text>x</text></file></source><input name="text" path="${text}"/><task name="p" source="c"/></job>`), "test")
	if err != nil {
		t.Fatal(err)
	}
	arguments := map[string]string{"text": "b.txt"}
	if _, err := Blobs(job, func(path string) ([]byte, error) {
		name, err := Text(job, arguments, path)
		return []byte(name), err
	}); err != nil {
		t.Fatal(err)
	}
	compiled, err := Compile(job, arguments, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := compiled.Processes[0].Inputs[0]; got.Digest != DigestOf([]byte("b.txt")) {
		t.Errorf("found %+v", got)
	}
}

// gSOAP's C programs send an empty content element beside every text.
func TestEmptyContentSaysNothingBesideAnotherForm(t *testing.T) {
	empty := func() *wsdl.Binary { return &wsdl.Binary{} }
	job := &wsdl.Job{Name: "j", Source: []*wsdl.Source{{Name: "s", Language: wsdl.Of(wsdl.LanguageShell), File: []*wsdl.SourceFile{
		{Name: "text.sh", Text: "true", Content: empty()},
		{Path: "beside.sh", Content: empty()},
		{Name: "digest.sh", Digest: DigestOf(nil), Content: empty()},
		{Name: "empty.sh", Content: empty()},
	}}}, Task: []*wsdl.Task{{Name: "t", Source: "s"}}}
	if _, err := Compile(job, nil, nil, nil); err != nil {
		t.Errorf("before Blobs: %v", err)
	}
	if _, err := Blobs(job, func(string) ([]byte, error) { return []byte("beside"), nil }); err != nil {
		t.Fatal(err)
	}
	compiled, err := Compile(job, nil, nil, nil)
	if err != nil {
		t.Fatalf("after Blobs: %v", err)
	}
	for i, want := range []string{DigestOf([]byte("true")), DigestOf([]byte("beside")), DigestOf(nil), DigestOf(nil)} {
		if got := compiled.Sources[0].Files[i].Digest; got != want {
			t.Errorf("file %d has digest %s, want %s", i, got, want)
		}
	}
}

// What is laid between the ends of edges and topologies that name queues.
func TestQueuesAreLaid(t *testing.T) {
	for _, c := range []struct{ body, want string }{
		{`<edge from="p:a" to="p[1]:b" queue="q"/><queue name="q" capacity="4096"/>`, "p[0]:a>p[1]:b"},
		{`<edge from="p:a" to="p[1]:b" queue="q"/><edge from="p:c" to="p[1]:d" queue="q"/><queue name="q" type="priority" full="fail" capacity="5000"/>`,
			"p[0]:a>queue:q queue:q>p[1]:b p[0]:c>queue:q#2 queue:q#2>p[1]:d; q priority fail 8192, q#2 priority fail 8192"},
		{`<edge from="p:a" to="queue:q"/><edge from="queue:q" to="p[*]:b"/><edge from="outside:o" to="queue:q"/><queue name="q" type="work"/>`,
			"p[0]:a>queue:q queue:q>p[0]:b queue:q>p[1]:b queue:q>p[2]:b queue:q>p[3]:b outside:o>queue:q; q work block 262144"},
		{`<task name="m" source="c" count="2"/><topology kind="farm" over="m p" queue="q"/><queue name="q" type="work"/>`,
			"m[0]:worker>queue:q m[1]:worker>queue:q queue:q>p[0]:master queue:q>p[1]:master queue:q>p[2]:master queue:q>p[3]:master " +
				"p[0]:master>queue:q#2 p[1]:master>queue:q#2 p[2]:master>queue:q#2 p[3]:master>queue:q#2 queue:q#2>m[0]:worker queue:q#2>m[1]:worker; q work block 262144, q#2 work block 262144"},
		{`<task name="m" source="c"/><topology kind="farm" over="m p" queue="q" direction="forward" prefix="x"/><queue name="q" type="broadcast"/>`,
			"m:xworker>queue:q queue:q>p[0]:xmaster queue:q>p[1]:xmaster queue:q>p[2]:xmaster queue:q>p[3]:xmaster; q broadcast block 262144"},
		{`<topology kind="line" queue="q" direction="forward"/><queue name="q" type="latest"/>`,
			"p[0]:next>queue:q queue:q>p[1]:prev p[1]:next>queue:q#2 queue:q#2>p[2]:prev p[2]:next>queue:q#3 queue:q#3>p[3]:prev; q latest block 262144, q#2 latest block 262144, q#3 latest block 262144"},
		{`<edge from="p:a" to="p[1]:b" queue="q"/><queue name="q"><encoder codec="xdr" decode="true" type="double&lt;&gt;"/><encoder codec="json"/></queue>`,
			"p[0]:a>queue:q queue:q>p[1]:b; q fifo block 262144, decode xdr double<>, encode json"},
	} {
		job, err := parse(t, task+c.body)
		if err != nil {
			t.Errorf("%s: %v", c.body, err)
			continue
		}
		var channels, queues []string
		for i := range job.Channels {
			channels = append(channels, endLabel(job, job.Channels[i].From)+">"+endLabel(job, job.Channels[i].To))
		}
		for _, q := range job.Queues {
			queues = append(queues, fmt.Sprint(q.Name, " ", q.Type, " ", q.Full, " ", q.Capacity))
			for _, s := range q.Steps {
				queues = append(queues, s.String())
			}
		}
		got := strings.Join(channels, " ")
		if len(queues) > 0 {
			got += "; " + strings.Join(queues, ", ")
		}
		if got != c.want {
			t.Errorf("%s\ngot  %s\nwant %s", c.body, got, c.want)
		}
		for _, format := range []string{"svg", "dot", "text"} {
			picture, err := Draw(job, format)
			if err != nil || len(picture) == 0 {
				t.Errorf("%s as %s: %v", c.body, format, err)
			}
			if strings.Contains(c.body, "work") && !strings.Contains(string(picture), "queue:q") {
				t.Errorf("%s as %s does not show the queue", c.body, format)
			}
		}
	}
}

// A chain that could convert nothing is refused where its first wrong step is.
func TestChainsThatCannotBe(t *testing.T) {
	long := strings.Repeat(`<encoder codec="base64"/>`, MaxSteps+1)
	for _, c := range []struct{ encoders, at, says string }{
		{`<encoder codec="json"/>`, "job/queue[1]/encoder[1]", "step 1, encode json: json writes values, and here are bytes"},
		{`<encoder codec="zstd"/><encoder codec="xdr" decode="true"/>`, "job/queue[1]/encoder[2]", "step 2, decode xdr: "},
		{`<encoder codec="xdr" decode="true" type="double&lt;"/><encoder codec="json"/>`, "job/queue[1]/encoder[1]", "step 1, decode xdr double<: "},
		{`<encoder codec="json" decode="true"/>`, "job/queue[1]", "add an encode step"},
		{`<encoder codec="zstd" type="fast"/>`, "job/queue[1]/encoder[1]", "zstd takes no type"},
		{long, "job/queue[1]/encoder[17]", "expected at most 16"},
	} {
		_, err := parse(t, task+`<edge from="p:a" to="p[1]:b" queue="q"/><queue name="q">`+c.encoders+`</queue>`)
		var fault *wsdl.Fault
		if !errors.As(err, &fault) || len(fault.Problem) != 1 || fault.Problem[0].Element != c.at || !strings.Contains(fault.Problem[0].Message, c.says) {
			t.Errorf("%s: found %v, expected at %s: %s", c.encoders, err, c.at, c.says)
		}
	}
}

// A source that nobody runs is a mistake, but not another one where a task names
// a source that is not there.
func TestUnusedSource(t *testing.T) {
	compile := func(runs string) error {
		job, _, err := Parse(strings.NewReader(`<job xmlns="urn:mvm:1" name="test">
<source name="a" language="shell"><file name="a.sh"><text>true</text></file></source>
<source name="b" language="shell"><file name="b.sh"><text>true</text></file></source>
<task name="p" source="a"/><task name="q" source="`+runs+`"/></job>`), "test")
		if err != nil {
			t.Fatal(err)
		}
		_, err = Compile(job, nil, nil, nil)
		return err
	}
	if err := compile("b"); err != nil {
		t.Error(err)
	}
	if err := compile("a"); err == nil || !strings.Contains(err.Error(), `job/source[2]/@name: no task runs the source "b"`) {
		t.Errorf("an unused source: %v", err)
	}
	if err := compile("c"); err == nil || strings.Contains(err.Error(), "no task runs") {
		t.Errorf("a missing source: %v", err)
	}
}
