package conformance

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/beevik/etree"

	"mvm/examples/conformance/wsi"
	"mvm/services/client"
	"mvm/services/soap"
	"mvm/wsdl"
)

// services are the published contracts, by name.
func services(t *testing.T) map[string]*wsi.Service {
	t.Helper()
	var elements []string
	for _, name := range []string{"grid.xsd", "profile.xsd"} {
		d := etree.NewDocument()
		if err := d.ReadFromBytes(published(t, name)); err != nil {
			t.Fatal(err)
		}
		for _, e := range d.Root().SelectElements("element") {
			elements = append(elements, e.SelectAttrValue("name", ""))
		}
	}
	found := map[string]*wsi.Service{}
	for _, name := range []string{"bootstrap", "broker", "image", "queue", "information", "vm"} {
		service, violations := wsi.Description(published(t, name+".wsdl"), elements)
		for _, v := range violations {
			t.Errorf("%s.wsdl: %s", name, v)
		}
		found[name] = service
	}
	return found
}

func published(t *testing.T, name string) []byte {
	t.Helper()
	data, err := fs.ReadFile(wsdl.Documents, name)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestDescriptionsKeepTheBasicProfile(t *testing.T) {
	operations := 0
	for _, s := range services(t) {
		operations += len(s.Operations)
	}
	if operations < 30 {
		t.Errorf("only %d operations were found", operations)
	}
}

const stranger = "stranger/1" // the User-Agent of requests that are wrong on purpose

// judgeMessages calls every operation as our own client does, and provokes a
// fault of each, and then judges every SOAP message that was on the wire: of
// the stacks, of ours, and of the nodes among themselves.
func judgeMessages(t *testing.T, g *grid) {
	contracts := services(t)
	// What only a VM answers: no VM is made here, but asked for.
	silent := map[string]bool{}
	for _, o := range contracts["vm"].Operations {
		silent[o.Name] = !strings.HasPrefix(o.Name, "List")
	}
	for _, soap12 := range []bool{false, true} {
		exercise(t, g, soap12)
		provoke(t, g, contracts, soap12)
	}
	waitFor(t, "a heartbeat", func() bool {
		return slices.ContainsFunc(g.records.all(), func(x exchange) bool { return bytes.Contains(x.responseBody, []byte("<HeartbeatResponse ")) })
	})

	all := []*wsi.Service{}
	for _, s := range contracts {
		all = append(all, s)
	}
	seen := map[string]bool{} // "1.1 request GetBroker"
	elements := map[string]bool{}
	judged := 0
	for _, x := range g.records.all() {
		service, found := contracts[path.Base(x.request.URL.Path)]
		if x.request.Method != http.MethodPost || !found {
			continue
		}
		of := []*wsi.Service{service}
		request := wsi.Message{Method: x.request.Method, Proto: x.request.Proto, Header: x.request.Header, Body: x.requestBody, Services: of}
		answer := wsi.Message{Status: x.response.StatusCode, Proto: x.response.Proto, Header: x.response.Header, Body: x.responseBody, Services: of}
		ours := strings.HasPrefix(x.request.UserAgent(), "Go-http-client/")
		for _, m := range []wsi.Message{request, answer} {
			if m.Body == nil || m.Method != "" && !ours {
				continue
			}
			judge, version := wsi.Message11, "1.1"
			if strings.HasPrefix(m.Header.Get("Content-Type"), "application/soap+xml") {
				judge, version = wsi.Message12, "1.2"
			}
			judged++
			if violations := judge(m); len(violations) > 0 {
				t.Errorf("SOAP %s: %v\n%s\n%s", version, violations, m.Header, m.Body)
				continue
			}
			kind, element := content(t, m.Body)
			if m.Method != "" {
				kind = "request"
			}
			elements[element] = true
			name, _, _ := strings.Cut(strings.TrimPrefix(element, "<"), " ")
			if kind == "fault" {
				name = "GridFault"
				if o := asked(t, x.requestBody); o != "" {
					name = o
				}
			}
			seen[version+" "+kind+" "+strings.TrimSuffix(name, "Response")] = true
		}
	}
	for _, s := range all {
		for _, o := range s.Operations {
			for _, kind := range []string{"request", "answer", "fault"} {
				if !seen["1.1 "+kind+" "+o.Name] && !(kind == "answer" && silent[o.Name]) {
					t.Errorf("no %s of %s was on the wire in SOAP 1.1: does exercise call it?", kind, o.Name)
				}
			}
			if !seen["1.2 fault "+o.Name] {
				t.Errorf("no fault of %s was on the wire in SOAP 1.2", o.Name)
			}
		}
	}
	t.Logf("%d messages judged, with %d different elements in them", judged, len(elements))
	validate(t, slices.Sorted(maps.Keys(elements)))
}

// asked is the name of the element in an envelope's body.
func asked(t *testing.T, envelope []byte) string {
	if etree.NewDocument().ReadFromBytes(envelope) != nil {
		return "" // it was wrong on purpose, or too large to keep
	}
	_, element := content(t, envelope)
	name, _, _ := strings.Cut(strings.TrimPrefix(element, "<"), " ")
	return name[strings.IndexByte(name, ':')+1:]
}

// content is what an envelope carries, as a document of its own: the child of
// its body ("answer"), or the detail of a fault ("fault").
func content(t *testing.T, envelope []byte) (kind, element string) {
	t.Helper()
	d := etree.NewDocument()
	if err := d.ReadFromBytes(envelope); err != nil {
		t.Fatal(err)
	}
	kind = "answer"
	body := d.Root().SelectElement("Body")
	if body == nil || len(body.ChildElements()) == 0 {
		return kind, ""
	}
	e := body.ChildElements()[0]
	if e.Tag == "Fault" {
		kind = "fault"
		if e = d.FindElement("//GridFault"); e == nil {
			return kind, ""
		}
	}
	alone := e.Copy()
	for above := e.Parent(); above != nil; above = above.Parent() {
		for _, a := range above.Attr {
			if (a.Space == "xmlns" || a.Key == "xmlns") && alone.SelectAttr(a.FullKey()) == nil {
				alone.CreateAttr(a.FullKey(), a.Value)
			}
		}
	}
	var b strings.Builder
	alone.WriteTo(&b, &etree.WriteSettings{})
	return kind, b.String()
}

// validate has xmllint compare elements with the published schema.
func validate(t *testing.T, elements []string) {
	t.Helper()
	if _, err := exec.LookPath("xmllint"); err != nil {
		t.Skip("xmllint IS NOT HERE: the messages were not compared with the schema; install libxml2-utils")
	}
	dir := t.TempDir()
	for _, name := range []string{"grid.xsd", "profile.xsd"} {
		if err := os.WriteFile(filepath.Join(dir, name), published(t, name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for part := range slices.Chunk(slices.DeleteFunc(elements, func(e string) bool { return e == "" }), 1000) {
		args := []string{"--noout", "--nonet", "--schema", filepath.Join(dir, "grid.xsd")}
		for _, element := range part {
			file := filepath.Join(dir, fmt.Sprintf("%x.xml", sha256.Sum256([]byte(element))))
			if err := os.WriteFile(file, []byte(element), 0o600); err != nil {
				t.Fatal(err)
			}
			args = append(args, file)
		}
		if out, err := exec.Command("xmllint", args...).CombinedOutput(); err != nil {
			for line := range strings.Lines(string(out)) {
				if !strings.HasSuffix(line, " validates\n") {
					t.Errorf("xmllint: %s", line)
				}
			}
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// exerciseVMs registers an image and forgets it, and asks a node for all that it does
// with VMs: of one that is not there.
func exerciseVMs(t *testing.T, g *grid, caller wsdl.Caller, c *client.Client) {
	t.Helper()
	ctx := t.Context()
	folder := filepath.Join(t.TempDir(), "tiny")
	must(t, os.Mkdir(folder, 0o755))
	var files []string
	for _, part := range []string{"kernel", "initrd"} {
		must(t, os.WriteFile(filepath.Join(folder, part), []byte(part), 0o600))
		files = append(files, fmt.Sprintf("    {\n      \"part\": %q,\n      \"digest\": \"sha256:%x\",\n      \"size\": %d\n    }", part, sha256.Sum256([]byte(part)), len(part)))
	}
	must(t, os.WriteFile(filepath.Join(folder, "manifest.json"), fmt.Appendf(nil,
		"{\n  \"format\": \"mvm-image-1\",\n  \"name\": \"tiny\",\n  \"architecture\": \"amd64\",\n  \"leastMemory\": 80,\n  \"files\": [\n%s\n  ]\n}\n", strings.Join(files, ",\n")), 0o600))
	pushed, err := c.PushImage(ctx, folder, "", nil)
	must(t, err)
	_, _, err = c.Image(ctx, pushed.Name, 0)
	must(t, err)
	_, err = c.Images(ctx, "")
	must(t, err)
	_, err = c.RemoveImage(ctx, pushed.Name, 0)
	must(t, err)

	vm := wsdl.NewVMClient(caller, g.url+"/services/vm")
	_, err = vm.ListVMsContext(ctx, &wsdl.ListVMs{})
	must(t, err)
	_, err = vm.ListCheckpointsContext(ctx, &wsdl.ListCheckpoints{})
	must(t, err)
	for _, ask := range []func() error{
		func() error { _, err := vm.GetVMContext(ctx, &wsdl.GetVM{Id: "none"}); return err },
		func() error {
			_, err := vm.CreateVMContext(ctx, &wsdl.CreateVM{Id: "none", Image: "none", Memory: 128, Limits: &wsdl.VMLimits{CpuPercent: 50}})
			return err
		},
		func() error { _, err := vm.SuspendVMContext(ctx, &wsdl.SuspendVM{Id: "none"}); return err },
		func() error { _, err := vm.ResumeVMContext(ctx, &wsdl.ResumeVM{Id: "none"}); return err },
		func() error {
			_, err := vm.StopVMContext(ctx, &wsdl.StopVM{Id: "none", GraceMillis: wsdl.Of[int64](0)})
			return err
		},
		func() error { _, err := vm.DestroyVMContext(ctx, &wsdl.DestroyVM{Id: "none", Force: true}); return err },
		func() error { _, err := vm.CheckpointVMContext(ctx, &wsdl.CheckpointVM{Id: "none"}); return err },
		func() error {
			_, err := vm.RemoveCheckpointContext(ctx, &wsdl.RemoveCheckpoint{Digest: "none"})
			return err
		},
		func() error { _, err := vm.RestoreVMContext(ctx, &wsdl.RestoreVM{Checkpoint: "none"}); return err },
		func() error { _, err := vm.CloneVMContext(ctx, &wsdl.CloneVM{Id: "none"}); return err },
		func() error {
			_, err := vm.MigrateVMContext(ctx, &wsdl.MigrateVM{Id: "none", Node: "none"})
			return err
		},
		func() error {
			_, err := vm.SendVMContext(ctx, &wsdl.SendVM{Id: "none", Key: "none", Target: "http://127.0.0.1:9", Token: "none"})
			return err
		},
	} {
		if ask() == nil {
			t.Error("a VM that is not there answers")
		}
	}
	_, _ = vm.AwaitVMContext(ctx, &wsdl.AwaitVM{Id: "none", Memory: 128})           // a token that nobody uses: or, without QEMU, a fault
	_, _ = vm.SettleMigrationContext(ctx, &wsdl.SettleMigration{Migration: "none"}) // not here: or, without QEMU, a fault
}

// exercise calls, in one version of SOAP, all that our client has calls for.
func exercise(t *testing.T, g *grid, soap12 bool) {
	t.Helper()
	ctx := t.Context()
	caller := soap.NewClient(soap.ClientConfig{SOAP12: soap12, Strict: true})
	defer caller.Close()
	c, err := client.Config{Caller: caller}.Dial(ctx, g.url)
	must(t, err)
	_, err = c.Services(ctx)
	must(t, err)
	_, err = c.Nodes(ctx)
	must(t, err)
	_, err = wsdl.NewInformationClient(caller, g.url+"/services/information").QueryContext(ctx, &wsdl.Query{})
	must(t, err)
	ring := wsdl.TopologyKindRing
	_, err = c.Register(ctx, &wsdl.Profile{Kind: wsdl.Of(wsdl.ProfileKindTopology), Name: "ring", Topology: &wsdl.Topology{Kind: &ring}})
	must(t, err)
	_, err = c.Profiles(ctx, "", "")
	must(t, err)
	_, err = c.Profile(ctx, wsdl.ProfileKindTopology, "ring", 0)
	must(t, err)

	data := wsdl.Binary("a blob")
	digest := fmt.Sprintf("sha256:%x", sha256.Sum256(data))
	image := wsdl.NewImageClient(caller, g.url+"/services/image")
	_, err = image.PutBlobContext(ctx, &wsdl.PutBlob{Digest: digest, Size: wsdl.Of(int64(len(data))), Data: &data})
	must(t, err)
	_, err = image.GetBlobContext(ctx, &wsdl.GetBlob{Digest: digest})
	must(t, err)
	_, err = image.StatBlobContext(ctx, &wsdl.StatBlob{Digest: digest})
	must(t, err)
	_, err = image.ListBlobsContext(ctx, &wsdl.ListBlobs{})
	must(t, err)

	document, err := client.Load("../jobs/testdata/outside.xml")
	must(t, err)
	_, err = c.Plan(ctx, client.Request{Document: document})
	must(t, err)
	id, err := c.Submit(ctx, client.Request{Document: document})
	must(t, err)
	var job *wsdl.JobStatus
	waitFor(t, "the job's process runs", func() bool {
		job, err = c.Job(ctx, id)
		must(t, err)
		return len(job.Process) == 1 && wsdl.Or(job.Process[0].State, "") == wsdl.ProcessStateRunning
	})
	for _, q := range job.Outside {
		queue := wsdl.NewQueueClient(caller, q.Url)
		held, err := queue.InspectContext(ctx, &wsdl.Inspect{Job: id})
		must(t, err)
		for _, a := range held.Attempt {
			_, err = queue.GetQuietContext(ctx, &wsdl.GetQuiet{Attempt: a.Attempt})
			must(t, err)
			_, err = queue.CheckpointAttemptContext(ctx, &wsdl.CheckpointAttempt{Attempt: a.Attempt, Set: 1, Step: wsdl.Of(wsdl.CheckpointStepDrop)})
			must(t, err)
		}
		_, err = queue.OpenSocketContext(ctx, &wsdl.OpenSocket{Job: id, Queue: q.Name})
		must(t, err)
		if q.Name == "questions" {
			_, err = queue.EnqueueContext(ctx, &wsdl.Enqueue{Job: id, Queue: q.Name, Item: []*wsdl.Binary{&data}})
		} else {
			_, err = queue.DequeueContext(ctx, &wsdl.Dequeue{Job: id, Queue: q.Name, TimeoutMillis: 1000})
		}
		must(t, err)
	}
	exerciseVMs(t, g, caller, c)
	exerciseJobQueues(t, c, document)
	exerciseChanges(t, c)
	_, err = c.Jobs(ctx, client.JobFilter{})
	must(t, err)
	_, err = c.Cancel(ctx, id, "it was said")
	must(t, err)
	_, err = c.Wait(ctx, id, nil)
	must(t, err)
}

// still has a process on each node that never says a word on its ports: changes
// of its edges wait for that, and are answered all the same.
const still = `<job xmlns="urn:mvm:1" name="still">
  <source name="still" language="shell"><file name="still.sh"><text>exec sleep 600</text></file></source>
  <task name="still" source="still" count="4"/>
  <edge from="still[0]:rewired" to="still[1]:rewired"/>
  <edge from="still[2]:removed" to="still[3]:removed"/>
  <policy nodes="4"/>
</job>`

// exerciseChanges calls all that changes the edges of a running job.
func exerciseChanges(t *testing.T, c *client.Client) {
	t.Helper()
	ctx := t.Context()
	file := filepath.Join(t.TempDir(), "still.xml")
	must(t, os.WriteFile(file, []byte(still), 0o600))
	document, err := client.Load(file)
	must(t, err)
	id, err := c.Submit(ctx, client.Request{Document: document})
	must(t, err)
	waitFor(t, "all processes run", func() bool { // their streams are read from their nodes then
		job, err := c.Job(ctx, id)
		must(t, err)
		running := func(p *wsdl.ProcessStatus) bool { return wsdl.Or(p.State, "") == wsdl.ProcessStateRunning }
		return len(job.Process) == 4 && !slices.ContainsFunc(job.Process, func(p *wsdl.ProcessStatus) bool { return !running(p) })
	})
	for process := range 4 { // one of them is on the broker's own node, and read there without the network
		_, err = c.Output(ctx, id, process, client.Stdout, 0, false, io.Discard)
		must(t, err)
	}
	change, err := c.AddEdge(ctx, &wsdl.AddEdge{Job: id, Edge: &wsdl.Edge{From: "still[0]:added", To: "still[3]:added"}, WaitMillis: 10_000})
	must(t, err)
	_, err = c.Change(ctx, id, change.Number, 0)
	must(t, err)
	_, err = c.RewireEdge(ctx, &wsdl.RewireEdge{Job: id, Edge: "still[0]:rewired", To: "still[2]:rewired"})
	must(t, err)
	_, err = c.RemoveEdge(ctx, &wsdl.RemoveEdge{Job: id, Edge: "still[2]:removed"})
	must(t, err)
	_, err = c.Cancel(ctx, id, "it was changed enough")
	must(t, err)
}

// exerciseJobQueues calls all that is there for the queues in which jobs wait.
func exerciseJobQueues(t *testing.T, c *client.Client, document *client.Document) {
	t.Helper()
	ctx := t.Context()
	_, err := c.MakeQueue(ctx, &wsdl.MakeQueue{Name: "night", Capacity: 9, Held: true})
	must(t, err)
	_, err = c.ChangeQueue(ctx, &wsdl.ChangeQueue{Queue: "night", Type_: wsdl.Of(wsdl.QueueTypePriority), Weight: 3})
	must(t, err)
	ids := []string{}
	for range 2 {
		id, err := c.Submit(ctx, client.Request{Document: document, Queue: "night"})
		must(t, err)
		ids = append(ids, id)
	}
	_, err = c.MoveJob(ctx, &wsdl.MoveJob{Job: ids[1], Place: wsdl.Of(wsdl.JobPlaceFirst), Priority: wsdl.Of(int32(50))})
	must(t, err)
	listed, err := c.Queues(ctx, &wsdl.ListQueues{Queue: "night", SampleMillis: 1})
	must(t, err)
	if len(listed.Queue) != 1 || wsdl.Or(listed.Queue[0].Items, 0) != 2 {
		t.Errorf("the queue night is %+v", listed.Queue)
	}
	waiting, _, err := c.Peek(ctx, &wsdl.PeekQueue{Queue: "night"})
	must(t, err)
	if len(waiting) != 2 || waiting[0].Job != ids[1] || waiting[1].Job != ids[0] {
		t.Errorf("in the queue night wait %+v, expected %s before %s", waiting, ids[1], ids[0])
	}
	_, _, err = c.Drain(ctx, &wsdl.DrainQueue{Queue: "night", Limit: 1})
	must(t, err)
	must(t, c.RemoveQueue(ctx, "night", "default"))
	_, err = c.Cancel(ctx, ids[0], "it waited")
	must(t, err)
}

// provoke sends every operation, in one version of SOAP, an element that it
// does not know, and headers and envelopes that are wrong.
func provoke(t *testing.T, g *grid, contracts map[string]*wsi.Service, soap12 bool) {
	t.Helper()
	space, media := "http://schemas.xmlsoap.org/soap/envelope/", "text/xml; charset=utf-8"
	if soap12 {
		space, media = "http://www.w3.org/2003/05/soap-envelope", "application/soap+xml; charset=utf-8"
	}
	post := func(address, envelope string) int {
		t.Helper()
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, address, strings.NewReader(envelope))
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Content-Type", media)
		request.Header.Set("User-Agent", stranger)
		answer, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		if _, err := io.Copy(io.Discard, answer.Body); err != nil {
			t.Fatal(err)
		}
		return answer.StatusCode
	}
	sender := 500
	if soap12 {
		sender = 400
	}
	for service, contract := range contracts {
		for _, o := range contract.Operations {
			body := `<s:Envelope xmlns:s="` + space + `"><s:Body><m:` + o.Name + ` xmlns:m="urn:mvm:1"><m:stranger/></m:` + o.Name + `></s:Body></s:Envelope>`
			if status := post(g.url+"/services/"+service, body); status != sender {
				t.Errorf("%s with a stranger in it: HTTP status %d, want %d", o.Name, status, sender)
			}
		}
	}
	for envelope, want := range map[string]int{
		`<s:Envelope xmlns:s="` + space + `"><s:Header><x:a xmlns:x="urn:x" s:mustUnderstand="1"/></s:Header><s:Body><GetBroker xmlns="urn:mvm:1"/></s:Body></s:Envelope>`: 500,
		`<s:Envelope xmlns:s="urn:another"><s:Body/></s:Envelope>`:                     500,
		`<s:Envelope xmlns:s="` + space + `"><s:Body/></s:Envelope>`:                   sender,
		`<s:Envelope xmlns:s="` + space + `"><s:Body><Nothing/></s:Body></s:Envelope>`: sender,
		`<!DOCTYPE x><s:Envelope xmlns:s="` + space + `"><s:Body/></s:Envelope>`:       sender,
		`<s:Envelope xmlns:s="` + space + `"><s:Body>`:                                 sender,
	} {
		if status := post(g.url+"/services/bootstrap", envelope); status != want {
			t.Errorf("%s: HTTP status %d, want %d", envelope, status, want)
		}
	}
	elsewhere := `<s:Envelope xmlns:s="` + space + `"><s:Body><ListNodes xmlns="urn:mvm:1"/></s:Body></s:Envelope>`
	if status := post(g.worker+"/services/broker", elsewhere); status != sender {
		t.Errorf("a broker's operation on a worker: HTTP status %d, want %d", status, sender)
	}
}
