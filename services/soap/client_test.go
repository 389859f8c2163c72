package soap

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
	"unicode"

	"mvm/wsdl"
)

func testJob() *wsdl.Job {
	return &wsdl.Job{
		Name:      "hello",
		Parameter: []*wsdl.Parameter{{Name: "n", Default: "4"}},
		Source: []*wsdl.Source{{Name: "main", Language: wsdl.Of(wsdl.LanguagePython), File: []*wsdl.SourceFile{{
			Name: "main.py", Text: "if 1 < 2 && '\"':\n\tprint(\"é ]]> \u2028\")\r\n",
		}}}},
		Task: []*wsdl.Task{{Name: "t", Source: "main", Count: wsdl.Of(wsdl.Number("${n}")), Argument: []string{"", "-x", ""}}},
	}
}

// clients are one of each version of SOAP and one near the server, and refuse
// what does not fit the schema.
func clients(t testing.TB, v *running) map[string]*Client {
	m := map[string]*Client{"1.1": NewClient(ClientConfig{Strict: true}), "1.2": NewClient(ClientConfig{Strict: true, SOAP12: true}),
		"near": NewClient(ClientConfig{Strict: true})}
	m["near"].Near(v.url, v.Server)
	t.Cleanup(func() {
		for _, c := range m {
			c.Close()
		}
	})
	return m
}

func TestClientCarriesValuesThereAndBack(t *testing.T) {
	v := start(t, Config{})
	for number, c := range clients(t, v) {
		t.Run(number, func(t *testing.T) {
			where, err := wsdl.NewBootstrapClient(c, v.url+"/services/bootstrap").GetBroker(&wsdl.GetBroker{})
			if err != nil {
				t.Fatal(err)
			}
			broker := wsdl.NewBrokerClient(c, where.Url)
			job := testJob()
			id, err := broker.SubmitJob(&wsdl.SubmitJob{Token: number, Job: job})
			if err != nil {
				t.Fatal(err)
			}
			got := v.grid.jobs[id.Id].Job
			if strings.Join(got.Task[0].Argument, "|") != "|-x|" || *got.Task[0].Count != "${n}" {
				t.Errorf("arguments %q, count %v", got.Task[0].Argument, *got.Task[0].Count)
			}
			if got.Source[0].File[0].Text != job.Source[0].File[0].Text {
				t.Errorf("text %q", got.Source[0].File[0].Text)
			}
			status, err := broker.WaitJob(&wsdl.WaitJob{Id: id.Id})
			if err != nil {
				t.Fatal(err)
			}
			j := status.Job
			if *j.State != wsdl.JobStateSucceeded || *j.Process[0].ExitCode != 0 || j.Submitted.ToGoTime().UnixMicro() != 1795352400000005 || j.Started != nil {
				t.Errorf("status %+v, process %+v", j, j.Process[0])
			}

			image := wsdl.NewImageClient(c, where.Image)
			blob := make([]byte, 4<<20)
			for i := range blob {
				blob[i] = byte(rand.Uint32())
			}
			if _, err := image.PutBlob(&wsdl.PutBlob{Digest: digest(blob), Size: wsdl.Of(int64(len(blob))), Data: wsdl.Of(wsdl.Binary(blob))}); err != nil {
				t.Fatal(err)
			}
			back, err := image.GetBlob(&wsdl.GetBlob{Digest: digest(blob)})
			if err != nil || !bytes.Equal(*back.Data, blob) || !*back.Blob.Complete {
				t.Errorf("the blob came back changed (%v)", err)
			}

			queue := wsdl.NewQueueClient(c, v.url+"/services/queue")
			items := []*wsdl.Binary{wsdl.Of(wsdl.Binary("")), wsdl.Of(wsdl.Binary("a\x00b"))}
			if _, err := queue.Enqueue(&wsdl.Enqueue{Job: "j", Queue: "q", Item: items}); err != nil {
				t.Fatal(err)
			}
			taken, err := queue.Dequeue(&wsdl.Dequeue{Job: "j", Queue: "q"})
			if err != nil || len(taken.Item) != 2 || len(*taken.Item[0]) != 0 || string(*taken.Item[1]) != "a\x00b" {
				t.Errorf("items came back changed: %v (%v)", taken, err)
			}
		})
	}
}

func TestClientGetsTypedFaults(t *testing.T) {
	v := start(t, Config{})
	for number, c := range clients(t, v) {
		t.Run(number, func(t *testing.T) {
			broker := wsdl.NewBrokerClient(c, v.url+"/services/broker")
			ctx := WithRequestID(context.Background(), "my-own-id")
			_, err := broker.GetJobContext(ctx, &wsdl.GetJob{Id: "nope"})
			var f *wsdl.Fault
			if !errors.As(err, &f) || *f.Code != wsdl.FaultCodeNotFound || f.Advice == "" || len(f.Problem) != 1 || f.RequestId != "my-own-id" {
				t.Errorf("fault %+v (%v)", f, err)
			}
			if !strings.Contains(v.log.String(), `"request":"my-own-id"`) {
				t.Error("the log has no line with the request id")
			}
			// A plain error, a panic, and no answer at all.
			for name, want := range map[string]string{"error": "the disk is on fire", "nothing": "ListJobsResponse"} {
				_, err = broker.ListJobs(&wsdl.ListJobs{Name: name})
				if wsdl.CodeOf(err) != wsdl.FaultCodeInternal || !strings.Contains(err.Error(), want) {
					t.Errorf("%s: %v", name, err)
				}
			}
			_, err = broker.PlanJob(&wsdl.PlanJob{})
			if wsdl.CodeOf(err) != wsdl.FaultCodeInternal || strings.Contains(err.Error(), "nil pointer") {
				t.Errorf("after a panic: %v", err)
			}
			if !strings.Contains(v.log.String(), "nil pointer") || !strings.Contains(v.log.String(), "fake") && !strings.Contains(v.log.String(), "goroutine") {
				t.Error("the log has no stack of the panic")
			}
			// What the schema refuses.
			_, err = broker.SubmitJob(&wsdl.SubmitJob{Token: "t", Job: &wsdl.Job{Name: "x", Task: []*wsdl.Task{{Count: wsdl.Of(wsdl.Number("many"))}}}})
			if !errors.As(err, &f) || *f.Code != wsdl.FaultCodeInvalidProfile || f.Problem[0].Element != "SubmitJob/job/task[1]/@count" {
				t.Errorf("invalid profile: %v", err)
			}
			_, err = broker.CancelJob(&wsdl.CancelJob{})
			if wsdl.CodeOf(err) != wsdl.FaultCodeNotFound {
				t.Errorf("an empty id is a value: %v", err)
			}
		})
	}
}

func TestClientTellsWhyThereIsNoAnswer(t *testing.T) {
	c := NewClient(ClientConfig{Response: 1000})
	defer c.Close()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	url := "http://" + listener.Addr().String()
	listener.Close()
	_, err = wsdl.NewBrokerClient(c, url).GetJob(&wsdl.GetJob{Id: "x"})
	if wsdl.CodeOf(err) != wsdl.FaultCodeUnavailable || !strings.Contains(err.Error(), url) {
		t.Errorf("nobody listens: %v", err)
	}

	t.Run("far", func(t *testing.T) { tellsWhy(t, start(t, Config{}), c) })
	t.Run("near", func(t *testing.T) {
		v := start(t, Config{})
		c := NewClient(ClientConfig{Response: 1000})
		c.Near(v.url, v.Server)
		tellsWhy(t, v, c)
	})
}

func tellsWhy(t *testing.T, v *running, c *Client) {
	broker := wsdl.NewBrokerClient(c, v.url+"/services/broker")
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	_, err := broker.WaitJobContext(ctx, &wsdl.WaitJob{Id: "forever"})
	if wsdl.CodeOf(err) != wsdl.FaultCodeTimeout || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("deadline: %v", err)
	}
	<-v.grid.polls
	ctx, cancel = context.WithCancel(context.Background())
	go func() { <-v.grid.polls; cancel() }()
	_, err = broker.WaitJobContext(ctx, &wsdl.WaitJob{Id: "forever"})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err = wsdl.NewBrokerClient(c, v.url+"/services/nowhere").GetJob(&wsdl.GetJob{Id: "x"}); wsdl.CodeOf(err) != wsdl.FaultCodeNotFound {
		t.Errorf("no such service: %v", err)
	}
	if _, err = wsdl.NewBrokerClient(c, v.url+"/services/broker?wsdl").GetJob(&wsdl.GetJob{Id: "x"}); wsdl.CodeOf(err) != wsdl.FaultCodeNotFound {
		t.Errorf("query on a POST: %v", err)
	}
	image := wsdl.NewImageClient(c, v.url+"/services/image")
	data := wsdl.Binary(make([]byte, 2000))
	if _, err := image.PutBlob(&wsdl.PutBlob{Digest: "d", Size: wsdl.Of(int64(1)), Data: &data}); err != nil {
		t.Fatal(err)
	}
	if _, err = image.GetBlob(&wsdl.GetBlob{Digest: "d"}); wsdl.CodeOf(err) != wsdl.FaultCodeTooLarge {
		t.Errorf("too large an answer: %v", err)
	}
}

func TestElsewhereNamesTheNodeToAsk(t *testing.T) {
	v := start(t, Config{Contracts: []wsdl.Contract{Elsewhere(wsdl.BrokerContract(nil), func() string { return "http://other/services/broker" })}})
	for number, c := range clients(t, v) {
		_, err := wsdl.NewBrokerClient(c, v.url+"/services/broker").ListNodes(&wsdl.ListNodes{})
		var f *wsdl.Fault
		if !errors.As(err, &f) || *f.Code != wsdl.FaultCodeWrongNode || f.Address != "http://other/services/broker" {
			t.Errorf("SOAP %s: %v", number, err)
		}
	}
}

// Something else than a grid's node at an address is a service that is not
// there, told in one short line.
func TestClientMeetsNoSOAPServer(t *testing.T) {
	page := "<!DOCTYPE html>\r\n<html>\x00\x1b[31m<title>It works!</title>\n" + strings.Repeat("<p>more</p>\n", 500)
	for name, c := range map[string]struct {
		status      int
		media, body string
		want        wsdl.FaultCode
		say         string
	}{
		"page":         {200, "text/html; charset=utf-8", page, wsdl.FaultCodeUnavailable, "HTTP status 200, text/html: <!DOCTYPE html> <html> [31m<title>It works!</title>"},
		"error page":   {500, "text/html", page, wsdl.FaultCodeUnavailable, "HTTP status 500, text/html"},
		"lost page":    {404, "text/html", page, wsdl.FaultCodeUnavailable, "HTTP status 404, text/html"},
		"lost text":    {404, "text/plain", "404 page not found\n", wsdl.FaultCodeUnavailable, "HTTP status 404, text/plain: 404 page not found"},
		"odd method":   {405, "", "", wsdl.FaultCodeUnavailable, "HTTP status 405, no content type: nothing readable"},
		"redirect":     {302, "text/html", "", wsdl.FaultCodeUnavailable, "HTTP status 302"},
		"JSON":         {200, "application/json", `{"error":"no"}`, wsdl.FaultCodeUnavailable, `{"error":"no"}`},
		"other XML":    {200, "text/xml", "<rss>\n" + strings.Repeat("<item/>\n", 500) + "</rss>", wsdl.FaultCodeUnavailable, "HTTP status 200, text/xml: <rss> <item/>"},
		"not even XML": {200, "text/xml", "\xff\xfe" + page, wsdl.FaultCodeUnavailable, "HTTP status 200, text/xml"},
		"proxy":        {503, "text/html", page, wsdl.FaultCodeBusy, "HTTP status 503"},
		"slow proxy":   {504, "text/html", page, wsdl.FaultCodeTimeout, "HTTP status 504"},
		"other fault": {500, "text/xml", envelope11("<e:Fault><faultcode>e:Server</faultcode><faultstring>oops\n" + strings.Repeat("\tat java.lang.Thread\n", 500) + "</faultstring></e:Fault>"),
			wsdl.FaultCodeInternal, "oops at java.lang.Thread"},
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header()["Content-Type"] = nil
			if c.media != "" {
				w.Header().Set("Content-Type", c.media)
			}
			w.WriteHeader(c.status)
			_, _ = w.Write([]byte(c.body))
		}))
		client := NewClient(ClientConfig{})
		_, err := wsdl.NewBrokerClient(client, server.URL).GetJob(&wsdl.GetJob{Id: "x"})
		client.Close()
		server.Close()
		if err == nil {
			t.Errorf("%s: no error", name)
			continue
		}
		if wsdl.CodeOf(err) != c.want || !strings.Contains(err.Error(), c.say) {
			t.Errorf("%s: %s %q", name, wsdl.CodeOf(err), err)
		}
		if len(err.Error()) > 400 || strings.ContainsFunc(err.Error(), func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("%s: no short line: %q", name, err)
		}
	}
}
