package bootstrap

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"mvm/wsdl"
)

func newService(t *testing.T, change func(*Config)) *Service {
	t.Helper()
	text := func(s string) func() string { return func() string { return s } }
	c := Config{
		Node: "n1", Base: text("http://n1:8080"),
		Broker: text("http://b:1/services/broker"), BrokerNode: text("b"),
		Image: text("http://b:1/services/image"), Information: text("http://b:1/services/information"),
		Services: func() []*wsdl.Service {
			return []*wsdl.Service{
				{Name: "bootstrap", Url: "http://n1:8080/services/bootstrap", Description: "The first."},
				{Name: "queue", Url: "http://n1:8080/services/queue", Description: "Queues."},
			}
		},
	}
	if change != nil {
		change(&c)
	}
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func nowhere(c *Config) {
	none := func() string { return "" }
	c.Broker, c.Image, c.Information = none, none, none
}

func wantCode(t *testing.T, err error, code wsdl.FaultCode) {
	t.Helper()
	if wsdl.CodeOf(err) != code {
		t.Fatalf("expected a fault %s, got %v", code, err)
	}
}

func TestGetBroker(t *testing.T) {
	r, err := newService(t, nil).GetBroker(&wsdl.GetBroker{})
	if err != nil || r.Url != "http://b:1/services/broker" || r.Node != "b" || r.Image != "http://b:1/services/image" || r.Information != "http://b:1/services/information" {
		t.Fatalf("%+v, %v", r, err)
	}
	_, err = newService(t, nowhere).GetBroker(&wsdl.GetBroker{})
	wantCode(t, err, wsdl.FaultCodeUnavailable)
	l, err := newService(t, nil).ListServices(&wsdl.ListServices{})
	if err != nil || len(l.Service) != 2 || l.Service[1].Name != "queue" {
		t.Fatalf("%+v, %v", l, err)
	}
	if _, err := New(Config{}); err == nil {
		t.Fatal("an empty configuration was good")
	}
}

func TestJoin(t *testing.T) {
	for _, c := range []struct {
		name, own, remote string
		reached           string // the only base that answers; "any": nobody tries
		want              string
		code              wsdl.FaultCode
	}{
		{name: "its own", own: "http://w:9000", remote: "10.0.0.7:5555", reached: "any", want: "http://w:9000"},
		{name: "a path is left out", own: "http://w:9000/services/queue", reached: "any", want: "http://w:9000"},
		{name: "listening everywhere", own: "http://0.0.0.0:9000", remote: "10.0.0.7:5555", reached: "any", want: "http://10.0.0.7:9000"},
		{name: "listening everywhere, IPv6", own: "https://[::]:9000", remote: "[fd00::7]:5555", reached: "any", want: "https://[fd00::7]:9000"},
		{name: "without a host", own: "http://:9000", remote: "10.0.0.7", reached: "any", want: "http://10.0.0.7:9000"},
		{name: "everywhere, from nowhere", own: "http://0.0.0.0:9000", reached: "any", code: wsdl.FaultCodeInvalidRequest},
		{name: "its own answers", own: "http://w:9000", remote: "10.0.0.7:5555", reached: "http://w:9000", want: "http://w:9000"},
		{name: "only the other answers", own: "http://w:9000", remote: "10.0.0.7:5555", reached: "http://10.0.0.7:9000", want: "http://10.0.0.7:9000"},
		{name: "none answers", own: "http://w:9000", remote: "10.0.0.7:5555", reached: "none", code: wsdl.FaultCodeUnavailable},
		{name: "no address", own: "w:9000", reached: "any", code: wsdl.FaultCodeInvalidRequest},
		{name: "none at all", own: "", reached: "any", code: wsdl.FaultCodeInvalidRequest},
		{name: "another scheme", own: "file://w/x", reached: "any", code: wsdl.FaultCodeInvalidRequest},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newService(t, func(config *Config) {
				config.Remote = func(context.Context) string { return c.remote }
				if c.reached != "any" {
					config.Reach = func(_ context.Context, base string) error {
						if base == c.reached {
							return nil
						}
						return errors.New("nobody there")
					}
				}
			})
			r, err := s.Join(&wsdl.Join{Node: &wsdl.Node{Id: "w", Url: c.own}})
			if c.code != "" {
				wantCode(t, err, c.code)
				return
			}
			if err != nil || r.Url != c.want || r.Broker != "http://b:1/services/broker" || r.Information != "http://b:1/services/information" || r.Image != "http://b:1/services/image" {
				t.Fatalf("%+v, %v", r, err)
			}
		})
	}
	_, err := newService(t, nil).Join(&wsdl.Join{})
	wantCode(t, err, wsdl.FaultCodeInvalidRequest)
	_, err = newService(t, nowhere).Join(&wsdl.Join{Node: &wsdl.Node{Url: "http://w:1"}})
	wantCode(t, err, wsdl.FaultCodeUnavailable)
}

func TestText(t *testing.T) {
	server := httptest.NewServer(newService(t, nil).Text())
	defer server.Close()
	r, err := http.Get(server.URL + "/bootstrap")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil || r.StatusCode != 200 || r.Header.Get("Content-Type") != "text/plain; charset=utf-8" {
		t.Fatalf("%v %v %v", r.Status, r.Header, err)
	}
	text := string(body)
	if first, _, _ := strings.Cut(text, "\n"); first != "broker: http://b:1/services/broker" {
		t.Errorf("the first line is %q", first)
	}
	for _, part := range []string{
		"\nimage: http://b:1/services/image\n", "http://n1:8080/services/queue", "Queues.", "?wsdl", "<GetBroker xmlns=\"urn:mvm:1\"/>",
		"mvm submit --grid http://n1:8080",
	} {
		if !strings.Contains(text, part) {
			t.Errorf("%q is missing in:\n%s", part, text)
		}
	}
	for _, line := range strings.Split(text, "\n") {
		if len(line) > 100 {
			t.Errorf("a line of %d characters: %s", len(line), line)
		}
	}
	post, err := http.Post(server.URL, "text/plain", nil)
	if err != nil {
		t.Fatal(err)
	}
	post.Body.Close()
	if post.StatusCode != 405 || post.Header.Get("Allow") != "GET, HEAD" {
		t.Errorf("POST: %v", post.Status)
	}
	w := httptest.NewRecorder()
	newService(t, nowhere).Text().ServeHTTP(w, httptest.NewRequest("GET", "/bootstrap", nil))
	if w.Code != 503 || !strings.HasPrefix(w.Body.String(), "broker: not known yet") {
		t.Errorf("without a broker: %d %s", w.Code, w.Body)
	}
}
