package hostile

import (
	"encoding/xml"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"unicode"
)

const refused = "500 invalidProfile: "

// quoted is text as XML carries it.
func quoted(text string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(text)) // a strings.Builder takes everything
	return b.String()
}

const source = `<source name="s" language="shell"><file name="s.sh"><text>true</text></file></source>`

// plan asks where a job's processes would go: everything about the profile is
// judged, and nothing runs.
func plan(attributes, content string) func(*node) answer {
	return call("broker", `<PlanJob xmlns="urn:mvm:1"><job name="j"`+attributes+`>`+content+`</job></PlanJob>`)
}

func namesGroup() group {
	list := []entry{}
	file := func(name, head, says string) {
		list = append(list, entry{name: fmt.Sprintf("a source file named %.60q", name), head: head, says: says,
			send: plan("", `<source name="s" language="shell"><file name="`+quoted(name)+`"><text>true</text></file></source><task name="t" source="s"/>`)})
	}
	for name, says := range nameRules() {
		file(name.text, refused, says)
	}
	for _, x := range []struct{ name, says string }{{"../x", "leads out"}, {"/etc/passwd", "absolute"}, {"-o", "begins with '-'"}} {
		list = append(list,
			entry{name: fmt.Sprintf("an input named %q", x.name), head: refused, says: x.says, send: plan("", source+`<input name="`+x.name+`"><text>x</text></input><task name="t" source="s"/>`)},
			entry{name: fmt.Sprintf("an output named %q", x.name), head: refused, says: x.says, send: plan("", source+`<task name="t" source="s"><output name="`+x.name+`"/></task>`)})
	}
	zero := "sha256:" + strings.Repeat("0", 64)
	get := func(path string) func(*node) answer {
		return raw("GET " + path + " HTTP/1.1\r\nHost: grid\r\nConnection: close\r\n\r\n")
	}
	op := func(service, format string, args ...any) func(*node) answer {
		return call(service, fmt.Sprintf(format, args...))
	}
	list = append(list, []entry{
		{name: "a file in a file", head: refused, says: "", send: plan("", `<source name="s" language="shell"><file name="a"><text>true</text></file><file name="a/b"><text>x</text></file></source><task name="t" source="s"/>`)},
		{name: "two files of one name", head: refused, says: "two files are named", send: plan("", `<source name="s" language="shell"><file name="a"><text>true</text></file><file name="a"><text>x</text></file></source><task name="t" source="s"/>`)},
		{name: "a file's path with .., over SOAP: only a client on the submitter's machine reads paths", head: refused, says: "", send: plan("", `<source name="s" language="shell"><file path="../../../etc/passwd"/></source><task name="t" source="s"/>`)},
		{name: "a file by the digest sha256:../../../etc/passwd", head: refused, says: "expected sha256: and 64", send: plan("", `<source name="s" language="shell"><file name="a" digest="sha256:../../../etc/passwd"/></source><task name="t" source="s"/>`)},
		{name: "a blob with the digest ../../etc/passwd", head: "500 invalidRequest: ", says: "not a digest", send: op("image", `<GetBlob xmlns="urn:mvm:1"><digest>../../etc/passwd</digest></GetBlob>`)},
		{name: "a blob with a digest in upper case", head: "500 invalidRequest: ", says: "not a digest", send: op("image", `<StatBlob xmlns="urn:mvm:1"><digest>sha256:%s</digest></StatBlob>`, strings.Repeat("AB", 32))},
		{name: "a blob put under sha256:../../x", head: "500 invalidRequest: ", says: "not a digest", send: op("image", `<PutBlob xmlns="urn:mvm:1"><digest>sha256:../../x%s</digest><size>1</size><data>QQ==</data></PutBlob>`, strings.Repeat("0", 57))},
		{name: "an image named ../../x", head: "500 notFound: ", says: "", send: op("image", `<GetImage xmlns="urn:mvm:1"><name>../../x</name></GetImage>`)},
		{name: "an image's version -1", head: "500 notFound: ", says: "", send: op("image", `<GetImage xmlns="urn:mvm:1"><name>x</name><version>-1</version></GetImage>`)},
		{name: "an image with an empty name, to be removed: it would mean all", head: "500 notFound: ", says: "", send: op("image", `<RemoveImage xmlns="urn:mvm:1"><name></name></RemoveImage>`)},
		{name: "an image registered by the digest ../../etc/passwd", head: "500 invalidRequest: ", says: "not a digest", send: op("image", `<RegisterImage xmlns="urn:mvm:1"><name>x</name><digest>../../etc/passwd</digest></RegisterImage>`)},
		{name: "an image registered that is not there", head: "500 notFound: ", says: "", send: op("image", `<RegisterImage xmlns="urn:mvm:1"><name>x</name><digest>%s</digest></RegisterImage>`, zero)},
		{name: "an image whose manifest is any blob", head: "500 invalidRequest: ", says: "the manifest of an image is refused", send: func(n *node) answer {
			call("image", `<PutBlob xmlns="urn:mvm:1"><digest>sha256:559aead08264d5795d3909718cdd05abd49572e84fe55590eef31a88a08fdffd</digest><size>1</size><data>QQ==</data></PutBlob>`)(n)
			return call("image", `<RegisterImage xmlns="urn:mvm:1"><digest>sha256:559aead08264d5795d3909718cdd05abd49572e84fe55590eef31a88a08fdffd</digest></RegisterImage>`)(n)
		}},
		{name: "the file of a blob with .. in its path", head: "301", says: "", send: get("/services/image/blobs/..%2f..%2f..%2fetc%2fpasswd")},
		{name: "the file of a blob with a NUL in its name", head: "4", says: "", send: get("/services/image/blobs/" + zero + "%00")},
		{name: "the file of a blob that is not there", head: "404", says: "", send: get("/services/image/blobs/" + zero)},
		{name: "?xsd=../services.wsdl", head: "404", says: "no such schema", send: get("/services/broker?xsd=../services.wsdl")},
		{name: "?xsd=/etc/passwd", head: "404", says: "no such schema", send: get("/services/broker?xsd=/etc/passwd")},
		{name: "?xsd=grid.xsd with a NUL", head: "404", says: "no such schema", send: get("/services/broker?xsd=grid.xsd%00.xsd")},
		{name: "?xsd=broker.wsdl", head: "404", says: "no such schema", send: get("/services/broker?xsd=broker.wsdl")},
		{name: "a service named ../broker", head: "", says: "", send: get("/services/..%2fbroker")},
		{name: "a job with the id ../../state", head: "500 notFound: ", says: "", send: op("broker", `<GetJob xmlns="urn:mvm:1"><id>../../state</id></GetJob>`)},
		{name: "a job with an id of 100,000 bytes", head: "500 notFound: ", says: "", send: op("broker", `<GetJob xmlns="urn:mvm:1"><id>%s</id></GetJob>`, strings.Repeat("x", 100_000))},
		{name: "the output ../../../etc/passwd of a job", head: "500 notFound: ", says: "left no file", send: func(n *node) answer {
			id := strings.TrimSpace(n.run(`<job xmlns="urn:mvm:1" name="done">` + source + `<task name="t" source="s"/></job>`))
			return call("broker", `<GetOutput xmlns="urn:mvm:1"><id>`+id+`</id><process>0</process><name>../../../../../../etc/passwd</name></GetOutput>`)(n)
		}},
		{name: "a registered profile named ../../x", head: refused, says: "", send: op("broker", `<RegisterProfile xmlns="urn:mvm:1"><profile><kind>resources</kind><name>../../x</name><resources cores="1"/></profile></RegisterProfile>`)},
		{name: "a registered profile named a%%2fb", head: refused, says: "", send: op("broker", `<RegisterProfile xmlns="urn:mvm:1"><profile><kind>resources</kind><name>a%%2fb</name><resources cores="1"/></profile></RegisterProfile>`)},
		{name: "the registered profile ../../x", head: "500 notFound: ", says: "", send: op("broker", `<GetProfile xmlns="urn:mvm:1"><kind>job</kind><name>../../x</name></GetProfile>`)},
		{name: "the registered profile job/x/1", head: "500 notFound: ", says: "", send: op("broker", `<GetProfile xmlns="urn:mvm:1"><kind>job</kind><name>job/x/1</name></GetProfile>`)},
		{name: "an Awaken of the job ../../../x", head: "500 ", says: "", send: op("queue", `<Awaken xmlns="urn:mvm:1"><attempt><job>../../../x</job><number>1</number><node>n</node><incarnation>i</incarnation></attempt><broker>http://127.0.0.1:1/services/broker</broker><image>http://127.0.0.1:1</image><slots>1</slots><proxy>false</proxy></Awaken>`)},
		{name: "the stream ../../x of an attempt", head: "500 ", says: "", send: op("queue", `<ReadStream xmlns="urn:mvm:1"><attempt><job>../x</job><number>1</number></attempt><process>0</process><name>../../x</name></ReadStream>`)},
		{name: "a node with the id ../../x", head: "500 ", says: "", send: op("information", `<Register xmlns="urn:mvm:1"><node><id>../../x</id><incarnation>i</incarnation><url>http://127.0.0.1:1</url><cores>1</cores><memory>1</memory><slots>0</slots><freeSlots>0</freeSlots></node></Register>`)},
		{name: "a VM with the id ../../x", head: "500 ", says: "", send: op("vm", `<CreateVM xmlns="urn:mvm:1"><id>../../x</id><image>minimal</image></CreateVM>`)},
		{name: "a VM restored from the checkpoint sha256:../../x", head: "500 ", says: "", send: op("vm", `<RestoreVM xmlns="urn:mvm:1"><checkpoint>sha256:../../x</checkpoint></RestoreVM>`)},
		{name: "the checkpoint ../../x, removed", head: "500 ", says: "", send: op("vm", `<RemoveCheckpoint xmlns="urn:mvm:1"><digest>../../x</digest></RemoveCheckpoint>`)},
		{name: "the file of a checkpoint that is not there", head: "404", says: "keeps no checkpoint", send: get("/services/vm/checkpoints/" + zero)},
		{name: "the console of a VM with .. in its path", head: "", says: "", send: get("/services/vm/..%2f..%2fx/console")},
		{name: "a VM sent with a token that nobody gave", head: "403", says: "no VM is expected", send: raw("GET /services/vm/arrivals HTTP/1.1\r\nHost: grid\r\nConnection: Upgrade\r\nUpgrade: mvm-migration\r\nAuthorization: Bearer 0123456789abcdef0123456789abcdef\r\n\r\n")},
		{name: "a switch of VMs joined by a network's name that nobody gave", head: "404", says: "no VM in that network", send: raw("GET /services/vm/networks/0123456789abcdef0123456789abcdef HTTP/1.1\r\nHost: grid\r\nConnection: Upgrade\r\nUpgrade: mvm-trunk\r\nMvm-Node: x\r\nAuthorization: Bearer 0123456789abcdef\r\n\r\n")},
		{name: "a network of VMs, without the upgrade", head: "426", says: "networks of VMs are for the nodes", send: get("/services/vm/networks/x")},
		{name: "a VM with the id ../../x that is to be awaited", head: "500 ", says: "", send: op("vm", `<AwaitVM xmlns="urn:mvm:1"><id>../../x</id><memory>128</memory></AwaitVM>`)},
		{name: "a heartbeat of the node ../../x", head: "500 ", says: "", send: op("information", `<Heartbeat xmlns="urn:mvm:1"><node>../../x</node><incarnation>i</incarnation><freeSlots>1</freeSlots></Heartbeat>`)},
	}...)
	return group{"Names that become files", "Profiles are sent with PlanJob, which judges all of a profile and runs nothing.", list}
}

type fileName struct{ text string }

// nameRules yields file names that are refused, and why.
func nameRules() func(func(fileName, string) bool) {
	return func(yield func(fileName, string) bool) {
		for _, x := range [][2]string{
			{"../x", "leads out"}, {"a/../../x", "leads out"}, {"..", "leads out"}, {"a/..", "leads out"}, {".", ""}, {"a//b", "empty"}, {"a/./b", ""}, {"/etc/cron.d/x", "absolute"},
			{"a\\..\\b", "backslash"}, {"C:\\x", "backslash"}, {"-rf", "begins with '-'"}, {"a/-rf", ""}, {"@list", ""}, {"~/x", ""}, {".bashrc", ""}, {"a/.git/config", ""},
			{"$(reboot)", "'$'"}, {"`reboot`", "'`'"}, {"a;reboot", "';'"}, {"a|reboot", "'|'"}, {"a&reboot", "'&'"}, {"a>b", "'>'"}, {"a<b", "'<'"}, {"*", "'*'"}, {"a?", "'?'"}, {"a'b", ""}, {"a\"b", ""},
			{"a\nb", "control character"}, {"a\tb", "control character"}, {"a\x7fb", "control character"}, {"x.zip:../../y|z", ""}, {strings.Repeat("a", 256), "longer than 255"}, {strings.Repeat("a/", 600) + "b", "longer than"},
		} {
			if !yield(fileName{x[0]}, x[1]) {
				return
			}
		}
	}
}

func profilesGroup() group {
	p := func(name, content, head, says string) entry {
		return entry{name: name, send: plan("", content), head: head, says: says}
	}
	var bomb, deep strings.Builder
	fmt.Fprintf(&bomb, `<parameter name="p0" default="%s"/>`, strings.Repeat("a", 100))
	for i := range 30 {
		fmt.Fprintf(&bomb, `<parameter name="p%d" default="%s"/>`, i+1, strings.Repeat(fmt.Sprintf("${p%d}", i), 10))
	}
	for i := range 2000 {
		fmt.Fprintf(&deep, `<parameter name="p%d" default="${p%d}"/>`, i+1, i)
	}
	over := func(kind string) string {
		return source + `<task name="t" source="s" count="100000"/><topology ` + kind + `/>`
	}
	two := source + `<task name="t" source="s" count="2"/>`
	graph := func(format, text string) string {
		return source + `<task name="t" source="s" count="2"/><topology kind="graph"><graph format="` + format + `"><text>` + quoted(text) + `</text></graph></topology>`
	}
	var groups strings.Builder
	groups.WriteString("graph { {")
	for i := range 3000 {
		fmt.Fprintf(&groups, " a%d", i)
	}
	groups.WriteString(" } -- {")
	for i := range 3000 {
		fmt.Fprintf(&groups, " b%d", i)
	}
	groups.WriteString(" } }")
	flag := func(language, flag string) string {
		return `<source name="s" language="` + language + `"><file name="a.c"><text>x</text></file><flag>` + quoted(flag) + `</flag></source><task name="t" source="s"/>`
	}
	named := func(what, content string) entry { return p(what+" named $(reboot)", content, refused, "$(reboot)") }
	return group{"Profiles", "Sent with PlanJob as part of a SOAP call. What is counted is judged before it is made.", []entry{
		p("a million tasks", source+strings.Repeat(`<task name="t"/>`, 1_000_000), large, "more than 600000 elements"),
		p("half a million tasks of one name", source+strings.Repeat(`<task name="t" source="s"/>`, 500_000), refused, "two tasks are named"),
		p("a million processes", source+`<task name="t" source="s" count="1000000"/>`, refused, "from 1 to 100000"),
		p("10^30 processes", source+`<task name="t" source="s" count="1`+strings.Repeat("0", 30)+`"/>`, refused, "not a whole number"),
		p("no process", source+`<task name="t" source="s" count="0"/>`, refused, "from 1 to 100000"),
		p("-1 processes", source+`<task name="t" source="s" count="-1"/>`, refused, ""),
		p("a million processes in ten tasks", source+strings.Repeat(`<task name="t" source="s" count="100000"/>`, 10), refused, "expected at most 100000"),
		p("100,000 processes, complete: 10^10 edges", over(`kind="complete"`), refused, ""),
		p("100,000 processes, random of degree 99,999", over(`kind="random" degree="99999"`), refused, ""),
		p("100,000 processes, a farm of 50,000 masters", source+`<task name="m" source="s" count="50000"/><task name="w" source="s" count="50000"/><topology kind="farm"/>`, refused, ""),
		p("a torus of 2^31 x 2^31 x 4", two+`<topology kind="torus" columns="2147483648" rows="2147483648" layers="4"/>`, refused, ""),
		p("a torus of 100,000 x 100,000 x 100,000", two+`<topology kind="torus" columns="100000" rows="100000" layers="100000"/>`, refused, ""),
		p("a mesh whose sides multiply to 2^64 + 2", two+`<topology kind="mesh" columns="4294967296" rows="4294967296"/>`, refused, ""),
		p("a torus of no columns", two+`<topology kind="torus" columns="0"/>`, refused, ""),
		p("a hypercube of 3", source+`<task name="t" source="s" count="3"/><topology kind="hypercube"/>`, refused, ""),
		p("a tree of arity 0", two+`<topology kind="tree" arity="0"/>`, refused, ""),
		p("a fat tree of 10^9 levels", two+`<topology kind="fatTree" arity="2" levels="1000000000"/>`, refused, ""),
		p("a random graph of degree 10^9", two+`<topology kind="random" degree="1000000000"/>`, refused, ""),
		p("300,000 edges", two+strings.Repeat(`<edge from="t:a" to="t[1]:b"/>`, 300_000), refused, ""),
		p("two million edges as an edge list", graph("edgeList", strings.Repeat("a b\n", 2_000_000)), refused, ""),
		p("a DOT graph that joins two groups of 3,000", graph("dot", groups.String()), refused, ""),
		p("a DOT graph nested 100,000 deep", graph("dot", "graph "+strings.Repeat("{", 100_000)), refused, "nested"),
		p("a DOT graph that never ends", graph("dot", `digraph { a -> "`), refused, ""),
		p("a DOT graph with a comment that never ends", graph("dot", `digraph { /* `), refused, ""),
		p("a DOT graph with HTML", graph("dot", `digraph { a [label=<<b>x</b>>] }`), refused, "HTML"),
		p("a GraphML file with an entity bomb", graph("graphml", `<!DOCTYPE g [<!ENTITY a "aaaa">]><graphml><graph><node id="&a;"/></graph></graphml>`), refused, "document type"),
		p("a GraphML file nested 100,000 deep", graph("graphml", "<graphml>"+strings.Repeat("<a>", 100_000)), refused, "nested more than 100 deep"),
		p("a GraphML file with a node twice", graph("graphml", `<graphml><graph><node id="a"/><node id="a"/></graph></graphml>`), refused, "two nodes have the id"),
		p("a graph that is no graph", graph("graphml", "\x7fELF"), "500 ", ""),
		p("parameters that double ten times each, thirty times", bomb.String()+source+`<task name="t" source="s"><argument>${p30}</argument></task>`, refused, "becomes longer than"),
		p("2,000 parameters, each made of the one before", `<parameter name="p0" default="x"/>`+deep.String()+source+`<task name="t" source="s"><argument>${p2000}</argument></task>`, "", ""),
		p("a parameter made of itself", `<parameter name="p" default="${p}"/>`+source+`<task name="t" source="s"/>`, refused, "names no declared parameter"),
		p("two parameters made of each other", `<parameter name="p" default="${q}"/><parameter name="q" default="${p}"/>`+source+`<task name="t" source="s"/>`, refused, ""),
		p("a parameter twice", `<parameter name="p" default="1"/><parameter name="p" default="2"/>`+source+`<task name="t" source="s"/>`, refused, "declared twice"),
		p("an argument of 200,000 bytes, which no program can be given", source+`<task name="t" source="s"><argument>`+strings.Repeat("a", 200_000)+`</argument></task>`, refused, "too long"),
		p("two tasks of one name", source+`<task name="t" source="s"/><task name="t" source="s"/>`, refused, "two tasks are named"),
		p("a port twice", two+`<edge from="t:a" to="t[1]:b"/><edge from="t:a" to="t[1]:c"/>`, refused, ""),
		p("an edge to nobody", two+`<edge from="t:a" to="ghost:b"/>`, refused, "ghost"),
		p("an edge to the process 10^20", two+`<edge from="t:a" to="t[100000000000000000000]:b"/>`, refused, ""),
		p("a queue of 2^63 bytes", two+`<queue name="q" capacity="9223372036854775808"/>`, refused, ""),
		p("memory of 10^20 MiB", source+`<task name="t" source="s"><resources memory="100000000000000000000"/></task>`, refused, ""),
		p("a wall time of 10^20 s", two+`<policy wallTime="100000000000000000000"/>`, refused, ""),
		p("a billion retries", two+`<policy retries="1000000000"/>`, refused, ""),
		p("a probability of 2", two+`<topology kind="smallWorld" probability="2"/>`, refused, ""),
		p("a variable that the linker obeys by name MVM_", source+`<task name="t" source="s"><environment name="MVM_PORTS" value="x"/></task>`, refused, "reserved"),
		p("a variable with = in its name", source+`<task name="t" source="s"><environment name="A=B" value="x"/></task>`, refused, ""),
		named("a task", source+`<task name="$$(reboot)" source="s"/>`),
		named("a source", `<source name="$$(reboot)" language="shell"><file name="s.sh"><text>true</text></file></source><task name="t" source="$$(reboot)"/>`),
		named("a language", `<source name="s" language="$(reboot)"><file name="s.sh"><text>true</text></file></source><task name="t" source="s"/>`),
		named("a parameter", `<parameter name="$(reboot)" default="x"/>`+source+`<task name="t" source="s"/>`),
		named("a variable", source+`<task name="t" source="s"><environment name="$$(reboot)" value="x"/></task>`),
		named("a port", two+`<edge from="t:$$(reboot)" to="t[1]:b"/>`),
		named("a queue", two+`<queue name="$$(reboot)"/>`),
		named("an end outside the job", two+`<edge from="outside:$$(reboot)" to="t:a"/>`),
		{name: "a job named $(reboot)", head: refused, says: "$(reboot)", send: call("broker", `<PlanJob xmlns="urn:mvm:1"><job name="$(reboot)">`+source+`<task name="t" source="s"/></job></PlanJob>`)},
		p("a task named with an escape sequence", source+`<task name="&#x9b;2J" source="s"/>`, refused, "a letter, then"),
		p("a task whose name reads backwards", source+`<task name="a&#x202e;b" source="s"/>`, refused, "a letter, then"),
		p("a C source with the flag -fplugin=./x.so", flag("c", "-fplugin=./x.so"), refused, "the flag \"-fplugin=./x.so\" is refused for c"),
		p("a C source with the flag -o/etc/passwd", flag("c", "-o/etc/passwd"), refused, "is refused for c"),
		p("a C source with the flag @/etc/passwd", flag("c", "@/etc/passwd"), refused, "it is no flag"),
		p("a Go source with the flag -toolexec=rm", flag("go", "-toolexec=rm"), refused, "is refused for go"),
		p("a Python source with the flag -c", flag("python", "-c"), refused, "is refused for python"),
		p("a shell source with the flag -c", flag("shell", "-c"), refused, "is refused for shell"),
		p("a topology of 2 GiB by digest, which is not there", two+`<topology kind="graph"><graph format="dot" digest="sha256:`+strings.Repeat("0", 64)+`"/></topology>`, refused, ""),
		{name: "a registered topology that is itself", head: "500 ", says: "", send: call("broker", `<RegisterProfile xmlns="urn:mvm:1"><profile><kind>topology</kind><name>ouroboros</name><topology profile="ouroboros"/></profile></RegisterProfile>`)},
	}}
}

// upTo cuts an answer after a text: what follows depends on the machine.
func upTo(text string, send func(*node) answer) func(*node) answer {
	return func(n *node) answer {
		before, _, _ := strings.Cut(string(send(n)), text)
		return answer(before + text)
	}
}

// run submits a profile and waits for its end; what is answered is the id.
func (n *node) run(profile string) string {
	file := filepath.Join(n.t.TempDir(), "job.xml")
	if err := os.WriteFile(file, []byte(profile), 0o600); err != nil {
		return err.Error()
	}
	id, said, code := n.mvm("submit", "--wait", file)
	if code > 1 {
		return fmt.Sprintf("%d: %s", code, said)
	}
	return id
}

// ends runs a profile and tells how the job ended.
func ends(profile string) func(*node) answer {
	return func(n *node) answer {
		said, trouble, _ := n.mvm("job", strings.TrimSpace(n.run(profile)), "--json")
		pick := func(name string) string {
			m := regexp.MustCompile(`"` + name + `": "((?:[^"\\]|\\.)*)"`).FindStringSubmatch(said)
			if m == nil {
				return ""
			}
			return m[1]
		}
		if pick("state") == "" {
			return answer(trouble)
		}
		return answer(pick("state") + ": " + pick("reason"))
	}
}

func outputsGroup() group {
	leaves := func(name, script, head, says string) entry {
		return entry{name: name, head: head, says: says, send: ends(`<job xmlns="urn:mvm:1" name="leaves"><source name="s" language="shell"><file name="s.sh"><text>` +
			quoted(script) + `</text></file></source><task name="t" source="s"><output name="out"/></task></job>`)}
	}
	const kept = "failed: "
	// Every character that a shell, make, a linker or XML gives a meaning.
	const meant = "$(touch /tmp/x) `touch /tmp/x` ; | & > < * ? ~ ' \" \\ # % ! {} [] $HOME ${HOME} -rf --help = , : @ ^ \u202e \u00a0 &amp; ]]>"
	say := func(where string) entry {
		argument, variable := "", ""
		if where == "an argument" {
			argument = "<argument>" + strings.ReplaceAll(quoted(meant), "${", "$${") + "</argument>"
		} else {
			variable = `<environment name="SAID" value="` + strings.ReplaceAll(quoted(meant), "${", "$${") + `"/>`
		}
		return entry{name: "every character that a shell gives a meaning, in " + where + ": it arrives as it is", head: "as it was sent", send: func(n *node) answer {
			id := strings.TrimSpace(n.run(`<job xmlns="urn:mvm:1" name="says"><source name="s" language="shell"><file name="s.sh"><text>printf %s "$1$SAID"</text></file></source><task name="t" source="s">` + argument + variable + `</task></job>`))
			if said, trouble, _ := n.mvm("logs", id); said != meant {
				return answer(fmt.Sprintf("%q %q", said, trouble))
			}
			return "as it was sent"
		}}
	}
	return group{"Jobs that leave what is no output", "Each job runs, names an output called out, and leaves something else there.", []entry{
		leaves("a symbolic link to /etc/passwd", "ln -s /etc/passwd out", kept, "no regular file"),
		leaves("a symbolic link to a file of its own", "echo x >a; ln -s a out", kept, "no regular file"),
		leaves("a symbolic link to itself", "ln -s out out", kept, "no regular file"),
		leaves("a fifo, which would wait for a writer", "mkfifo out", kept, "no regular file"),
		leaves("a folder", "mkdir out", kept, "no regular file"),
		leaves("a file of a terabyte of nothing", "truncate -s 1T out", kept, "expected at most 17179869184"),
		leaves("nothing", "true", kept, "left no output"),
		leaves("a hard link to a file of its own, which is one", "echo x >a; ln a out", "succeeded", ""),
		say("an argument"), say("a variable"),
	}}
}

func commandsGroup() group {
	// verb runs the program, and tells its exit code and what it printed; an
	// answer with an order to the terminal in it says so.
	verb := func(args ...string) func(*node) answer {
		return func(n *node) answer {
			out, trouble, code := n.mvm(args...)
			text := strings.TrimSpace(out + trouble)
			for _, r := range text {
				if r != '\n' && r != '\t' && (unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r)) {
					return answer(fmt.Sprintf("it obeys %q in %q", r, text))
				}
			}
			return answer(fmt.Sprintf("exit code %d: %s", code, text))
		}
	}
	file := func(content string, args ...string) func(*node) answer {
		return func(n *node) answer {
			dir := n.t.TempDir()
			name := filepath.Join(dir, "a\x1b[2Jb\u202ec.xml")
			if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
				return answer(err.Error())
			}
			return answer(strings.ReplaceAll(string(verb(append(args, name)...)(n)), dir, "DIR"))
		}
	}
	const escape = "\x1b]0;owned\x07\x1b[31mred\u009b2J\u202etxt.exe"
	v := func(name, head, says string, send func(*node) answer) entry {
		return entry{name: name, head: head, says: says, send: send}
	}
	return group{"The command line", "What the program is given, and what it prints of it: no control character but line ends and tabs, and none that turns the direction of writing.", []entry{
		v("mvm job, with escape sequences for an id", "exit code 5", "", verb("job", escape)),
		v("mvm logs ../../etc/passwd", "exit code 5", "", verb("logs", "../../etc/passwd")),
		v("mvm cancel, with a NUL written out", "exit code 5", "", verb("cancel", "\\x00")),
		v("mvm output, with a name that is a command", "exit code 5", "", verb("output", "$(reboot)")),
		v("a verb with escape sequences", "exit code 2", "", verb(escape)),
		v("a flag with escape sequences", "exit code 2", "", verb("jobs", "--"+escape)),
		v("an address with escape sequences", "exit code ", "", verb("jobs", "--grid", "http://"+escape)),
		v("an address of a file", "exit code ", "", verb("jobs", "--grid", "file:///etc/passwd")),
		v("a profile that is not there, with escape sequences", "exit code ", "", verb("submit", "/nowhere/"+escape)),
		v("a profile that is /etc/passwd", "exit code 3", "", verb("submit", "/etc/passwd")),
		v("a profile that is a folder", "exit code ", "", verb("submit", "/etc")),
		v("a profile that is /dev/zero", "exit code ", "", verb("submit", "/dev/zero")),
		v("a profile with an escape sequence in its name", "exit code 3", "", file(`<job xmlns="urn:mvm:1" name="`+"\x1b"+`[2J"/>`, "submit")),
		v("a profile whose task's name reads backwards", "exit code 3", "", file(`<job xmlns="urn:mvm:1" name="a">`+source+`<task name="a`+"\u202e\u0085"+`b" source="s"/></job>`, "submit")),
		v("a profile of another namespace", "exit code 3", "", file(`<job xmlns="urn:mvm:2" name="a"/>`, "submit")),
		v("a file by an absolute path, of the one who submits", "exit code ", "", file(`<job xmlns="urn:mvm:1" name="a"><source name="s" language="shell"><file path="/nowhere/at/all"/></source><task name="t" source="s"/></job>`, "plan")),
		v("a compiler that prints escape sequences", "exit code 1", "source s does not build", upTo("does not build", file(`<job xmlns="urn:mvm:1" name="a"><source name="s" language="c"><file name="a.c"><text>#error `+"\u009b2J\u202e"+`
int main;</text></file></source><task name="t" source="s"/></job>`, "submit", "--wait"))),
	}}
}
