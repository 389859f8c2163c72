package soap

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"mvm/wsdl"
)

// fakeGrid implements the five contracts well enough to submit a job, follow
// it and read its output: the job's first source text is the output.
type fakeGrid struct {
	wsdl.BrokerContext // what is not overridden panics, which is a test, too
	wsdl.QueueContext
	wsdl.InformationContext

	base func() string

	mu    sync.Mutex // guards what follows
	jobs  map[string]*wsdl.SubmitJob
	order []string
	blobs map[string][]byte
	items [][]byte
	polls chan struct{} // receives when a long poll begins
}

func (g *fakeGrid) contracts() []wsdl.Contract {
	return []wsdl.Contract{
		wsdl.BootstrapContract(g), wsdl.BrokerContract(g), wsdl.ImageContract(g), wsdl.QueueContract(g), wsdl.InformationContract(g),
	}
}

func (g *fakeGrid) GetBrokerContext(context.Context, *wsdl.GetBroker) (*wsdl.GetBrokerResponse, error) {
	b := g.base() + "/services/"
	return &wsdl.GetBrokerResponse{Url: b + "broker", Node: "n1", Image: b + "image", Information: b + "information"}, nil
}

func (g *fakeGrid) JoinContext(_ context.Context, r *wsdl.Join) (*wsdl.JoinResponse, error) {
	return &wsdl.JoinResponse{Broker: r.Node.Id}, nil
}

func (g *fakeGrid) ListServicesContext(context.Context, *wsdl.ListServices) (*wsdl.ListServicesResponse, error) {
	var services []*wsdl.Service
	for _, name := range []string{"bootstrap", "broker", "image", "queue", "information"} {
		url := g.base() + "/services/" + name
		services = append(services, &wsdl.Service{Name: name, Url: url, Wsdl: url + "?wsdl"})
	}
	return &wsdl.ListServicesResponse{Service: services}, nil
}

func (g *fakeGrid) SubmitJobContext(_ context.Context, r *wsdl.SubmitJob) (*wsdl.SubmitJobResponse, error) {
	if r.Job == nil {
		return nil, wsdl.NewFault(wsdl.FaultCodeNotFound, fmt.Sprintf("there is no profile %q", r.Profile), "register it first")
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	id := "job-" + r.Token
	if g.jobs[id] == nil {
		g.jobs[id] = r
		g.order = append(g.order, id)
	}
	return &wsdl.SubmitJobResponse{Id: id}, nil
}

func (g *fakeGrid) status(id string) (*wsdl.JobStatus, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	j := g.jobs[id]
	if j == nil {
		f := wsdl.NewFault(wsdl.FaultCodeNotFound, fmt.Sprintf("there is no job %q", id), "list the jobs to see which there are")
		f.Problem = []*wsdl.Problem{{Element: "id", Message: "unknown"}}
		return nil, f
	}
	now := time.Date(2026, 11, 22, 13, 0, 0, 5000, time.UTC)
	return &wsdl.JobStatus{
		Id: id, Name: j.Job.Name, State: wsdl.Of(wsdl.JobStateSucceeded), Revision: 7, Attempt: wsdl.Of[int32](1),
		Submitted: *wsdl.Date(now), Ended: wsdl.Date(now.Add(time.Second)), Argument: j.Argument,
		Process: []*wsdl.ProcessStatus{{
			Id: wsdl.Of[int32](0), Task: j.Job.Task[0].Name, Index: wsdl.Of[int32](0), State: wsdl.Of(wsdl.ProcessStateExited), ExitCode: wsdl.Of[int32](0),
		}},
	}, nil
}

func (g *fakeGrid) GetJobContext(_ context.Context, r *wsdl.GetJob) (*wsdl.GetJobResponse, error) {
	s, err := g.status(r.Id)
	return &wsdl.GetJobResponse{Job: s}, err
}

func (g *fakeGrid) WaitJobContext(ctx context.Context, r *wsdl.WaitJob) (*wsdl.WaitJobResponse, error) {
	if r.Id == "forever" {
		g.polls <- struct{}{}
		<-ctx.Done()
		return nil, ctx.Err()
	}
	s, err := g.status(r.Id)
	return &wsdl.WaitJobResponse{Job: s}, err
}

func (g *fakeGrid) ListJobsContext(_ context.Context, r *wsdl.ListJobs) (*wsdl.ListJobsResponse, error) {
	switch r.Name {
	case "error":
		return nil, errors.New("the disk is on fire")
	case "nothing":
		return nil, nil
	}
	return &wsdl.ListJobsResponse{}, nil
}

func (g *fakeGrid) CancelJobContext(_ context.Context, r *wsdl.CancelJob) (*wsdl.CancelJobResponse, error) {
	s, err := g.status(r.Id)
	if err != nil {
		return nil, err
	}
	return &wsdl.CancelJobResponse{State: s.State}, nil
}

func (g *fakeGrid) GetOutputContext(_ context.Context, r *wsdl.GetOutput) (*wsdl.GetOutputResponse, error) {
	if _, err := g.status(r.Id); err != nil {
		return nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	output := g.jobs[r.Id].Job.Source[0].File[0].Text
	// What the conformance scripts' program prints.
	if _, rest, ok := strings.Cut(output, "# prints: "); ok {
		output, _, _ = strings.Cut(rest, "\n")
		output += "\n"
	}
	data := wsdl.Binary(output[min(int(r.Offset), len(output)):])
	return &wsdl.GetOutputResponse{Data: &data, Next: wsdl.Of(int64(len(output))), End: wsdl.Of(true)}, nil
}

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func (g *fakeGrid) PutBlobContext(_ context.Context, r *wsdl.PutBlob) (*wsdl.PutBlobResponse, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	have := g.blobs[r.Digest]
	if int(r.Offset) == len(have) && r.Data != nil {
		have = append(have, *r.Data...)
		g.blobs[r.Digest] = have
	}
	return &wsdl.PutBlobResponse{Blob: g.blob(r.Digest)}, nil
}

func (g *fakeGrid) blob(d string) *wsdl.Blob {
	n := int64(len(g.blobs[d]))
	return &wsdl.Blob{Digest: d, Size: &n, Received: &n, Complete: wsdl.Of(digest(g.blobs[d]) == d)}
}

func (g *fakeGrid) GetBlobContext(_ context.Context, r *wsdl.GetBlob) (*wsdl.GetBlobResponse, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	all := g.blobs[r.Digest]
	length := int(r.Length)
	if length == 0 {
		length = 4 << 20
	}
	from := min(int(r.Offset), len(all))
	data := wsdl.Binary(all[from:min(from+length, len(all))])
	return &wsdl.GetBlobResponse{Blob: g.blob(r.Digest), Data: &data}, nil
}

func (g *fakeGrid) StatBlobContext(_ context.Context, r *wsdl.StatBlob) (*wsdl.StatBlobResponse, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return &wsdl.StatBlobResponse{Blob: g.blob(r.Digest)}, nil
}

func (g *fakeGrid) RegisterImageContext(_ context.Context, r *wsdl.RegisterImage) (*wsdl.RegisterImageResponse, error) {
	return &wsdl.RegisterImageResponse{Name: r.Name, Version: 1, Digest: r.Digest}, nil
}

func (g *fakeGrid) GetImageContext(_ context.Context, r *wsdl.GetImage) (*wsdl.GetImageResponse, error) {
	return nil, wsdl.Faultf(wsdl.FaultCodeNotFound, "no image %q is registered", r.Name)
}

func (g *fakeGrid) ListImagesContext(context.Context, *wsdl.ListImages) (*wsdl.ListImagesResponse, error) {
	return &wsdl.ListImagesResponse{}, nil
}

func (g *fakeGrid) RemoveImageContext(_ context.Context, r *wsdl.RemoveImage) (*wsdl.RemoveImageResponse, error) {
	return nil, wsdl.Faultf(wsdl.FaultCodeNotFound, "no image %q is registered", r.Name)
}

func (g *fakeGrid) ListBlobsContext(context.Context, *wsdl.ListBlobs) (*wsdl.ListBlobsResponse, error) {
	return &wsdl.ListBlobsResponse{}, nil
}

func (g *fakeGrid) EnqueueContext(_ context.Context, r *wsdl.Enqueue) (*wsdl.EnqueueResponse, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, i := range r.Item {
		g.items = append(g.items, *i)
	}
	return &wsdl.EnqueueResponse{Accepted: wsdl.Of(int32(len(r.Item)))}, nil
}

func (g *fakeGrid) DequeueContext(_ context.Context, r *wsdl.Dequeue) (*wsdl.DequeueResponse, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	response := &wsdl.DequeueResponse{End: wsdl.Of(false)}
	for _, i := range g.items {
		response.Item = append(response.Item, wsdl.Of(wsdl.Binary(i)))
	}
	g.items = nil
	return response, nil
}

// running is a server that a test talks to.
type running struct {
	*Server
	grid *fakeGrid
	mute bool // net/http gets all connections
	url  string
	log  *lockedBuffer
	stop func() error // ends Serve and returns what it returned
}

type lockedBuffer struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// start serves until the test ends. mount is called before.
func start(t testing.TB, config Config, mount ...func(*running)) *running {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	v := &running{url: "http://" + listener.Addr().String(), log: new(lockedBuffer)}
	v.grid = &fakeGrid{base: func() string { return v.url }, jobs: map[string]*wsdl.SubmitJob{}, blobs: map[string][]byte{}, polls: make(chan struct{}, 8)}
	if config.Contracts == nil {
		config.Contracts = v.grid.contracts()
	}
	config.Log = logrus.New()
	config.Log.SetOutput(v.log)
	config.Log.SetFormatter(&logrus.JSONFormatter{})
	if v.Server, err = NewServer(config); err != nil {
		t.Fatal(err)
	}
	for _, m := range mount {
		m(v)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	if v.mute {
		listener = muteListener{listener}
	}
	go func() { done <- v.Serve(ctx, listener) }()
	v.stop = sync.OnceValue(func() error { cancel(); return <-done })
	t.Cleanup(func() { _ = v.stop() })
	return v
}

// reply is a whole HTTP answer.
type reply struct {
	status int
	header http.Header
	body   string
}

func (v *running) post(t testing.TB, service, media, body string, headers ...string) reply {
	t.Helper()
	r, err := http.NewRequest("POST", v.url+"/services/"+service, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if media != "" {
		r.Header.Set("Content-Type", media)
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	return do(t, r)
}

func (v *running) get(t testing.TB, path string) reply {
	t.Helper()
	r, err := http.NewRequest("GET", v.url+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	return do(t, r)
}

func do(t testing.TB, r *http.Request) reply {
	t.Helper()
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	data, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return reply{answer.StatusCode, answer.Header, string(data)}
}

func envelope11(body string) string {
	return `<e:Envelope xmlns:e="` + namespace11 + `"><e:Body>` + body + `</e:Body></e:Envelope>`
}

func envelope12(body string) string {
	return `<e:Envelope xmlns:e="` + namespace12 + `"><e:Body>` + body + `</e:Body></e:Envelope>`
}
