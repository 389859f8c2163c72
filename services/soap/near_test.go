package soap

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"

	"mvm/wsdl"
)

type principalKey struct{}

// A near call passes the Guard and is logged and counted like any other, but no
// connection carries it; what it knows of its caller is when that one gives up.
func TestNear(t *testing.T) {
	var asked []string
	var inherited any
	guard := guardFunc(func(ctx context.Context, r *http.Request, operation string) (context.Context, error) {
		asked = append(asked, r.RemoteAddr+" "+operation+" "+r.Host)
		inherited = ctx.Value(principalKey{})
		if operation == "broker/CancelJob" {
			return nil, wsdl.Faultf(wsdl.FaultCodeForbidden, "not you")
		}
		return ctx, nil
	})
	v := start(t, Config{Guard: guard})
	c := NewClient(ClientConfig{})
	t.Cleanup(c.Close)
	// Until the server serves, a call waits for it as for any other.
	if _, err := wsdl.NewBrokerClient(c, v.url+"/services/broker").ListJobs(&wsdl.ListJobs{}); err != nil {
		t.Fatal(err)
	}
	c.Near(v.url, v.Server)
	asked = nil
	before := strings.Count(v.log.String(), "ListJobs")
	broker := wsdl.NewBrokerClient(c, v.url+"/services/broker")
	ctx := context.WithValue(context.Background(), principalKey{}, "the caller's own")
	if _, err := broker.ListJobsContext(ctx, &wsdl.ListJobs{}); err != nil {
		t.Fatal(err)
	}
	if len(asked) != 1 || asked[0] != NearAddress+" broker/ListJobs "+strings.TrimPrefix(v.url, "http://") || inherited != nil {
		t.Errorf("the Guard was asked %q, with %v of the caller's context", asked, inherited)
	}
	if n := strings.Count(v.log.String(), "ListJobs") - before; n != 1 {
		t.Errorf("the log has %d lines of it", n)
	}
	if _, err := broker.CancelJob(&wsdl.CancelJob{Id: "x"}); wsdl.CodeOf(err) != wsdl.FaultCodeForbidden {
		t.Errorf("the Guard refuses: %v", err)
	}
	if text := v.get(t, "/metrics").body; !strings.Contains(text, `mvm_requests_total{code="ok",operation="ListJobs",service="broker"} 2`) {
		t.Error("it is not counted")
	}
	// A shutdown ends it as it ends every call.
	ended := make(chan error, 1)
	go func() {
		_, err := broker.WaitJobContext(context.Background(), &wsdl.WaitJob{Id: "forever"})
		ended <- err
	}()
	<-v.grid.polls
	if err := v.stop(); err != nil {
		t.Error(err)
	}
	if err := <-ended; err == nil {
		t.Error("a call lasts longer than its server")
	}
	if _, err := broker.ListJobs(&wsdl.ListJobs{}); wsdl.CodeOf(err) != wsdl.FaultCodeUnavailable {
		t.Errorf("after the shutdown: %v", err)
	}
	// Another address is another server.
	other := start(t, Config{})
	if _, err := wsdl.NewBrokerClient(c, other.url+"/services/broker").ListJobs(&wsdl.ListJobs{}); err != nil {
		t.Errorf("elsewhere: %v", err)
	}
	gone, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := broker.ListJobsContext(gone, &wsdl.ListJobs{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled before: %v", err)
	}
}
