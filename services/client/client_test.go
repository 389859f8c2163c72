package client

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"mvm/wsdl"
)

// local is a wsdl.Caller that hands calls to contracts in this process, by
// their address.
type local map[string]wsdl.Contract

func (l local) Call(ctx context.Context, url, operation string, request, response any) error {
	contract, ok := l[url]
	if !ok {
		return wsdl.NewFault(wsdl.FaultCodeUnavailable, "nobody listens at "+url, "")
	}
	for _, op := range contract.Operations {
		if op.Name == operation {
			answer, err := op.Call(ctx, request)
			if err != nil {
				return err
			}
			reflect.ValueOf(response).Elem().Set(reflect.ValueOf(answer).Elem())
			return nil
		}
	}
	return wsdl.Faultf(wsdl.FaultCodeInvalidRequest, "no operation %s", operation)
}

// fakeGrid is a grid with one job, whose states follow each other at each wait.
type fakeGrid struct {
	wsdl.BootstrapContext
	wsdl.BrokerContext
	wsdl.ImageContext

	mu      sync.Mutex // guards the fields below
	states  []*wsdl.JobStatus
	at      int
	down    int // so many broker calls fail before one goes through
	submits []*wsdl.SubmitJob
	blobs   map[string][]byte
	files   map[string][]byte // by name
}

func (g *fakeGrid) dial(t *testing.T) *Client {
	t.Helper()
	const base = "http://grid:1"
	c, err := Config{Patience: 5 * time.Second, Caller: local{
		base + "/services/bootstrap": wsdl.BootstrapContract(g),
		base + "/services/broker":    wsdl.BrokerContract(g),
		base + "/services/image":     wsdl.ImageContract(g),
	}}.Dial(t.Context(), "grid:1/")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (g *fakeGrid) GetBrokerContext(context.Context, *wsdl.GetBroker) (*wsdl.GetBrokerResponse, error) {
	return &wsdl.GetBrokerResponse{Url: "http://grid:1/services/broker", Image: "http://grid:1/services/image", Node: "n1"}, nil
}

func (g *fakeGrid) unavailable() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.down > 0 {
		g.down--
		return wsdl.NewFault(wsdl.FaultCodeUnavailable, "connection refused", "")
	}
	return nil
}

func (g *fakeGrid) SubmitJobContext(_ context.Context, r *wsdl.SubmitJob) (*wsdl.SubmitJobResponse, error) {
	g.mu.Lock()
	g.submits = append(g.submits, r)
	g.mu.Unlock()
	if err := g.unavailable(); err != nil {
		return nil, err
	}
	return &wsdl.SubmitJobResponse{Id: "j-1"}, nil
}

func (g *fakeGrid) GetJobContext(_ context.Context, r *wsdl.GetJob) (*wsdl.GetJobResponse, error) {
	if r.Id != "j-1" {
		return nil, wsdl.NewFault(wsdl.FaultCodeNotFound, "there is no job "+r.Id, "`mvm jobs` lists them")
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return &wsdl.GetJobResponse{Job: g.states[g.at]}, nil
}

func (g *fakeGrid) WaitJobContext(_ context.Context, r *wsdl.WaitJob) (*wsdl.WaitJobResponse, error) {
	if err := g.unavailable(); err != nil {
		return nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.at+1 < len(g.states) {
		g.at++
	}
	return &wsdl.WaitJobResponse{Job: g.states[g.at]}, nil
}

func (g *fakeGrid) GetOutputContext(_ context.Context, r *wsdl.GetOutput) (*wsdl.GetOutputResponse, error) {
	data, ok := g.files[r.Name]
	if !ok {
		return nil, wsdl.NewFault(wsdl.FaultCodeNotFound, "no "+r.Name, "")
	}
	const chunk = 3
	part := wsdl.Binary(data[min(r.Offset, int64(len(data))):min(r.Offset+chunk, int64(len(data)))])
	next := r.Offset + int64(len(part))
	return &wsdl.GetOutputResponse{Data: &part, Next: &next, End: wsdl.Of(next == int64(len(data)))}, nil
}

func (g *fakeGrid) StatBlobContext(_ context.Context, r *wsdl.StatBlob) (*wsdl.StatBlobResponse, error) {
	data, ok := g.blobs[r.Digest]
	if !ok {
		return nil, wsdl.NewFault(wsdl.FaultCodeNotFound, "no blob", "")
	}
	sum := sha256.Sum256(data)
	return &wsdl.StatBlobResponse{Blob: &wsdl.Blob{Digest: r.Digest, Received: wsdl.Of(int64(len(data))),
		Complete: wsdl.Of("sha256:"+hex.EncodeToString(sum[:]) == r.Digest)}}, nil
}

func (g *fakeGrid) PutBlobContext(_ context.Context, r *wsdl.PutBlob) (*wsdl.PutBlobResponse, error) {
	if r.Offset != int64(len(g.blobs[r.Digest])) {
		return nil, wsdl.Faultf(wsdl.FaultCodeConflict, "offset %d, have %d", r.Offset, len(g.blobs[r.Digest]))
	}
	g.blobs[r.Digest] = append(g.blobs[r.Digest], *r.Data...)
	return &wsdl.PutBlobResponse{}, nil
}

func status(state wsdl.JobState, revision int64) *wsdl.JobStatus {
	return &wsdl.JobStatus{Id: "j-1", Name: "test", State: &state, Revision: revision}
}

func TestWaitSeesEveryStateAndOutlastsABrokersRestart(t *testing.T) {
	g := &fakeGrid{down: 3, states: []*wsdl.JobStatus{
		status(wsdl.JobStatePending, 1), status(wsdl.JobStateAwakening, 2), status(wsdl.JobStateRunning, 3), status(wsdl.JobStateSucceeded, 4)}}
	c := g.dial(t)
	var seen []string
	job, err := c.Wait(t.Context(), "j-1", func(job *wsdl.JobStatus) { seen = append(seen, string(*job.State)) })
	if err != nil || *job.State != wsdl.JobStateSucceeded {
		t.Fatalf("Wait: %v, %v", job, err)
	}
	if got := strings.Join(seen, " "); got != "pending awakening running succeeded" {
		t.Errorf("states seen: %s", got)
	}
}

func TestWaitOutlastsAClockThatIsSetBack(t *testing.T) {
	g := &fakeGrid{states: []*wsdl.JobStatus{
		status(wsdl.JobStatePending, 1000), status(wsdl.JobStateRunning, 1001), status(wsdl.JobStateRunning, 3), status(wsdl.JobStateSucceeded, 4)}}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	job, err := g.dial(t).Wait(ctx, "j-1", nil)
	if err != nil || *job.State != wsdl.JobStateSucceeded {
		t.Fatalf("Wait: %v, %v", job, err)
	}
}

func TestSubmitRepeatsWithOneToken(t *testing.T) {
	g := &fakeGrid{down: 2}
	id, err := g.dial(t).Submit(t.Context(), Request{Profile: "heat", Version: 2, Arguments: map[string]string{"b": "2", "a": "1"}})
	if err != nil || id != "j-1" {
		t.Fatalf("Submit: %q, %v", id, err)
	}
	if len(g.submits) != 3 {
		t.Fatalf("%d submits, want 3: two that failed, one that went through", len(g.submits))
	}
	first := g.submits[0]
	if first.Token == "" || first.Profile != "heat" || first.Version != 2 || len(first.Argument) != 2 || first.Argument[0].Name != "a" {
		t.Errorf("submitted %+v", first)
	}
	for _, s := range g.submits {
		if s.Token != first.Token {
			t.Error("a repeated submit has another token: the job could run twice")
		}
	}
}

func TestUploadGoesOnWhereItWasCutOff(t *testing.T) {
	data := bytes.Repeat([]byte("0123456789abcdef"), uploadChunk/16*2+5)
	sum := sha256.Sum256(data)
	digest := "sha256:" + hex.EncodeToString(sum[:])
	g := &fakeGrid{blobs: map[string][]byte{digest: bytes.Clone(data[:1000])}}
	c := g.dial(t)
	var sent int64
	if err := c.upload(t.Context(), digest, bytes.NewReader(data), int64(len(data)), func(n int64) { sent += n }); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(g.blobs[digest], data) {
		t.Error("the uploaded blob differs")
	}
	if sent != int64(len(data)) {
		t.Errorf("%d bytes told as sent, want %d", sent, len(data))
	}
	empty := sha256.Sum256(nil)
	digest = "sha256:" + hex.EncodeToString(empty[:])
	if err := c.upload(t.Context(), digest, bytes.NewReader(nil), 0, func(int64) {}); err != nil {
		t.Fatal(err)
	}
	if _, ok := g.blobs[digest]; !ok {
		t.Error("an empty file was not uploaded")
	}
}

func TestSaveStaysInItsFolder(t *testing.T) {
	data := []byte("result of a process")
	sum := sha256.Sum256(data)
	digest := "sha256:" + hex.EncodeToString(sum[:])
	g := &fakeGrid{files: map[string][]byte{"out.txt": data, "../up": data, "link/out": data}}
	c := g.dial(t)
	dir := filepath.Join(t.TempDir(), "results")
	if err := c.Save(t.Context(), "j-1", Result{Name: "out.txt", Path: "worker.0/out.txt", Digest: digest}, dir); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(filepath.Join(dir, "worker.0", "out.txt")); !bytes.Equal(got, data) {
		t.Errorf("saved %q", got)
	}
	outside := t.TempDir()
	if err := os.Symlink(outside, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"../up", "/etc/passwd", "link/out"} {
		if err := c.Save(t.Context(), "j-1", Result{Name: name, Path: name, Digest: digest}, dir); err == nil {
			t.Errorf("%s was saved", name)
		}
	}
	if left, _ := os.ReadDir(outside); len(left) > 0 {
		t.Error("a link led out of the folder")
	}
	// Neither does it touch what is there under other names.
	beside, long := filepath.Join(dir, "out.txt.partial"), strings.Repeat("n", 255)
	if err := os.WriteFile(beside, []byte("mine"), 0o644); err != nil {
		t.Fatal(err)
	}
	g.files[long] = data
	for _, path := range []string{"out.txt", long} {
		if err := c.Save(t.Context(), "j-1", Result{Name: path, Path: path, Digest: digest}, dir); err != nil {
			t.Error(err)
		}
	}
	if got, err := os.ReadFile(beside); string(got) != "mine" {
		t.Errorf("a file beside the output became %q: %v", got, err)
	}
	if err := c.Save(t.Context(), "j-1", Result{Name: "out.txt", Path: "worker.0", Digest: digest}, dir); err == nil || !strings.Contains(err.Error(), "move it") {
		t.Errorf("saved over a folder: %v", err)
	}
	wrong := strings.Replace(digest, digest[7:9], "00", 1)
	if err := c.Save(t.Context(), "j-1", Result{Name: "out.txt", Path: "bad.txt", Digest: wrong}, dir); err == nil {
		t.Error("bytes with another digest were saved")
	}
	if _, err := os.Stat(filepath.Join(dir, "bad.txt")); err == nil {
		t.Error("what failed its digest is there under its name")
	}
}

func TestResultsOfSeveralProcessesDoNotCollide(t *testing.T) {
	process := func(id, index int32, task string, files ...string) *wsdl.ProcessStatus {
		p := &wsdl.ProcessStatus{Id: &id, Index: &index, Task: task}
		for _, f := range append(files, Stdout, Stderr) {
			p.File = append(p.File, &wsdl.File{Name: f})
		}
		return p
	}
	job := &wsdl.JobStatus{Process: []*wsdl.ProcessStatus{
		process(0, 0, "master", "field.png"), process(1, 0, "worker", "part"), process(2, 1, "worker", "part")}}
	var got []string
	for _, r := range Results(job) {
		got = append(got, r.Label+"="+r.Path)
	}
	if text := strings.Join(got, " "); text != "master=field.png worker[0]=worker.0/part worker[1]=worker.1/part" {
		t.Errorf("results: %s", text)
	}
	for _, hidden := range []string{"worker.1/part", "worker.0", "worker.1/part/more"} {
		*job.Process[0] = *process(0, 0, "master", "field.png", hidden)
		got = nil
		for _, r := range Results(job) {
			got = append(got, r.Path)
		}
		if text := strings.Join(got, " "); text != "master.0/field.png master.0/"+hidden+" worker.0/part worker.1/part" {
			t.Errorf("results beside %s: %s", hidden, text)
		}
	}
	if p, err := Process(job, "worker[1]"); err != nil || *p.Id != 2 {
		t.Errorf("worker[1] is %v, %v", p, err)
	}
	if p, err := Process(job, "2"); err != nil || *p.Index != 1 {
		t.Errorf("process 2 is %v, %v", p, err)
	}
	if _, err := Process(job, "worker[7]"); ExitCode(err) != ExitNotFound {
		t.Errorf("worker[7]: %v", err)
	}
	if _, err := Process(job, "worker[x]"); ExitCode(err) != ExitUsage {
		t.Errorf("worker[x]: %v", err)
	}
}

func TestExitCodesSayWhatWentWrong(t *testing.T) {
	for _, c := range []struct {
		err  error
		want int
	}{
		{nil, 0},
		{&Exit{Code: ExitFailed}, 1},
		{usagef("no"), 2},
		{fmt.Errorf("x: %w", wsdl.NewFault(wsdl.FaultCodeInvalidProfile, "m", "")), 3},
		{wsdl.NewFault(wsdl.FaultCodeUnsupported, "m", ""), 3},
		{wsdl.NewFault(wsdl.FaultCodeUnavailable, "m", ""), 4},
		{wsdl.NewFault(wsdl.FaultCodeNotFound, "m", ""), 5},
		{outcome(status(wsdl.JobStateCancelled, 1)), 6},
		{context.DeadlineExceeded, 4},
		{wsdl.NewFault(wsdl.FaultCodeTimeout, "m", ""), 4},
		{&Exit{Code: ExitTimeout}, 7},
		{wsdl.NewFault(wsdl.FaultCodeForbidden, "m", ""), 8},
		{errors.New("x"), 9},
		{context.Canceled, 130},
	} {
		if got := ExitCode(c.err); got != c.want {
			t.Errorf("ExitCode(%v) = %d, want %d", c.err, got, c.want)
		}
		if want := fmt.Sprintf("\n%5d  ", c.want); !strings.Contains(ExitCodes, want) {
			t.Errorf("ExitCodes does not explain %d", c.want)
		}
	}
}

func TestErrorsAreToldWhole(t *testing.T) {
	fault := wsdl.NewFault(wsdl.FaultCodeBuildFailed, "the source fft does not compile", "mend it")
	fault.Output = "fft.c:3: error\n"
	fault.Problem = []*wsdl.Problem{{Element: "job/source[1]", Line: 4, Message: "line 4: no such thing"}, {Message: "more"}}
	var b bytes.Buffer
	PrintError(&b, "mvm", fmt.Errorf("upload of x: %w", &inFile{"a.xml", fault}))
	want := "mvm: upload of x: the source fft does not compile\n" +
		"  a.xml:4: job/source[1]: no such thing\n  more\n  | fft.c:3: error\n  advice: mend it\n"
	if b.String() != want {
		t.Errorf("printed\n%swant\n%s", b.String(), want)
	}
}

// What comes from a grid or a file cannot give a terminal orders, or make a
// line read as what it is not.
func TestNothingOrdersTheTerminal(t *testing.T) {
	const bad = "a\x1b]0;title\x07\x1b[2J\x9b1m\u009b2J\u202eexe\u2066\u2028b\r\x7fc"
	orders := func(r rune) bool { return r != '\n' && r != '\t' && obeyed(r) }
	fault := wsdl.NewFault(wsdl.FaultCodeInternal, bad, bad)
	fault.Address, fault.RequestId, fault.Output = bad, bad, "1\t2\n"+bad
	fault.Problem = []*wsdl.Problem{{Element: bad, Message: bad}}
	var b strings.Builder
	PrintError(&b, "mvm", fault)
	PrintError(&b, "mvm", errors.New(bad))
	PrintError(&b, "mvm", fmt.Errorf("%s: %w", bad, fault))
	rows := newTable(&b, "NAME")
	rows.row(bad)
	_ = rows.flush()
	describeEnd(&b, &wsdl.JobStatus{Id: bad, Name: bad, Reason: bad, State: wsdl.Of(wsdl.JobStateFailed)})
	if i := strings.IndexFunc(b.String(), orders); i >= 0 {
		t.Errorf("printed: %q in\n%q", b.String()[i:i+4], b.String())
	}
	b.Reset()
	good := strings.ToValidUTF8(bad, "\ufffd")
	if err := writeJSON(&b, map[string]string{"name": good}); err != nil {
		t.Fatal(err)
	}
	var back map[string]string
	if err := json.Unmarshal([]byte(b.String()), &back); err != nil || back["name"] != good || strings.IndexFunc(b.String(), orders) >= 0 {
		t.Errorf("as JSON: %q, %v", b.String(), err)
	}
}

func TestJSONHasTimesAndNoXMLNames(t *testing.T) {
	job := status(wsdl.JobStateRunning, 7)
	job.Submitted = *wsdl.Date(time.Date(2026, 2, 3, 4, 5, 6, 0, time.UTC))
	job.Attempt = wsdl.Of(int32(0))
	job.Process = []*wsdl.ProcessStatus{{Id: wsdl.Of(int32(0)), Task: "a"}}
	var b bytes.Buffer
	if err := writeJSON(&b, []*wsdl.JobStatus{job}); err != nil {
		t.Fatal(err)
	}
	var got []map[string]any
	if err := json.Unmarshal(b.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if got[0]["submitted"] != "2026-02-03T04:05:06Z" || got[0]["attempt"] != 0.0 || got[0]["state"] != "running" {
		t.Errorf("JSON: %s", &b)
	}
	if strings.Contains(b.String(), "XMLName") || strings.Contains(b.String(), "ended") {
		t.Errorf("JSON has what it should not: %s", &b)
	}
	b.Reset()
	if err := writeJSON(&b, []*wsdl.Node(nil)); err != nil || strings.TrimSpace(b.String()) != "[]" {
		t.Errorf("an empty list is %q, %v", b.String(), err)
	}
}

func TestSlotsAreSpreadEvenly(t *testing.T) {
	for _, c := range []struct {
		processes, nodes int
		want             string
	}{{8, 4, "[2 2 2 2]"}, {9, 4, "[3 2 2 2]"}, {1, 3, "[1 1 1]"}, {64, 4, "[16 16 16 16]"}} {
		if got := fmt.Sprint(spread(c.processes, c.nodes)); got != c.want {
			t.Errorf("spread(%d, %d) = %s, want %s", c.processes, c.nodes, got, c.want)
		}
	}
	if got := ranges([]int{0, 1, 2, 5, 7, 8}); got != "0-2,5,7-8" {
		t.Errorf("ranges: %s", got)
	}
}

func TestLinesAreLabelledWhole(t *testing.T) {
	var b bytes.Buffer
	l := &labeller{label: "w[1]", w: &b}
	for _, part := range []string{"one\ntw", "o\n\nthr", "ee"} {
		l.Write([]byte(part))
	}
	l.close()
	if want := "w[1] | one\nw[1] | two\nw[1] | \nw[1] | three\n"; b.String() != want {
		t.Errorf("got %q, want %q", b.String(), want)
	}
}

func TestGridAddressesAsPeopleWriteThem(t *testing.T) {
	for text, want := range map[string]string{
		"host:1": "http://host:1", "http://host:1/": "http://host:1", "http://host:1/bootstrap": "http://host:1",
		"https://host/services/broker?wsdl": "https://host", "": "", "ftp://x": "", "http://": "",
	} {
		got, err := baseURL(text)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("baseURL(%q) = %q, %v", text, got, err)
		}
	}
}

// How many slots are free changes with every other job: that is no news.
func TestWhyAJobWaitsIsToldOnce(t *testing.T) {
	var out bytes.Buffer
	view := &jobView{p: newProgress(&out, true)}
	for k, reason := range []string{"1 node has 5 free slots", "1 node has 6 free slots", "", "no node is up", "no node is up"} {
		job := status(wsdl.JobStatePending, int64(k))
		job.Reason = reason
		view.changed(job)
	}
	if want := "pending: 1 node has 5 free slots\npending: no node is up\n"; out.String() != want {
		t.Errorf("told:\n%s", out.String())
	}
}

// A node that is stopped still takes connections: its kernel does.
func TestDialSilentNode(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, err = Config{Patience: 50 * time.Millisecond}.Dial(t.Context(), l.Addr().String())
	if wsdl.CodeOf(err) != wsdl.FaultCodeUnavailable || !strings.Contains(err.Error(), "has not answered for 50ms") {
		t.Fatalf("%v: not that the node is silent", err)
	}
}
