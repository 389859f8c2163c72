package soap

import (
	"context"
	"net/http"
	"os/exec"
	"path"
	"strings"
	"testing"
	"time"

	"mvm/wsdl"
)

// withOutput adds what curl.sh reads: stdout as a blob over plain HTTP.
type withOutput struct{ *fakeGrid }

func (g withOutput) WaitJobContext(ctx context.Context, r *wsdl.WaitJob) (*wsdl.WaitJobResponse, error) {
	response, err := g.fakeGrid.WaitJobContext(ctx, r)
	if err != nil {
		return nil, err
	}
	out, err := g.GetOutputContext(ctx, &wsdl.GetOutput{Id: r.Id, Name: "stdout"})
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	d := digest(*out.Data)
	g.blobs[d] = *out.Data
	size := int64(len(*out.Data))
	response.Job.Process[0].File = []*wsdl.File{{Name: "stdout", Digest: d, Size: &size}}
	return response, nil
}

func conformance(t *testing.T, script string, arguments ...string) string {
	t.Helper()
	v := start(t, Config{Contracts: []wsdl.Contract{}}, func(v *running) {
		grid := withOutput{v.grid}
		for _, c := range []wsdl.Contract{
			wsdl.BootstrapContract(grid), wsdl.BrokerContract(grid), wsdl.ImageContract(grid), wsdl.QueueContract(grid), wsdl.InformationContract(grid),
		} {
			var err error
			if v.services[c.Name], err = v.newService(c); err != nil {
				t.Fatal(err)
			}
		}
		v.Router().HandleFunc("/services/image/blobs/{digest}", func(w http.ResponseWriter, r *http.Request) {
			grid.mu.Lock()
			defer grid.mu.Unlock()
			_, _ = w.Write(grid.blobs[path.Base(r.URL.Path)])
		})
	})
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	command := exec.CommandContext(ctx, script, append([]string{v.url}, arguments...)...)
	out, err := command.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s\n%s", script, err, out, v.log)
	}
	return string(out)
}

func TestZeepUsesTheContracts(t *testing.T) {
	if out, err := exec.Command("/usr/bin/python3", "-c", "import zeep").CombinedOutput(); err != nil {
		t.Skipf("zeep cannot be imported, so no foreign SOAP stack was tried; install python3-zeep (%v: %s)", err, out)
	}
	t.Log(conformance(t, "../../examples/conformance/zeep.py"))
}

func TestCurlUsesTheContracts(t *testing.T) {
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip("curl is not installed, so the shell script was not tried")
	}
	if out := conformance(t, "../../examples/conformance/curl.sh", "4"); !strings.HasSuffix(out, "curl asked for 24\n") {
		t.Errorf("printed %q", out)
	}
}
