// Package conformance holds a grid's use in the hands of other people's SOAP
// stacks: each folder is one stack's client, which knows nothing but a node's
// address. Its tests run them all against four real nodes and judge every SOAP
// message on the wire.
package conformance

import (
	"bytes"
	"crypto/rand"
	"encoding/csv"
	"fmt"
	"io"
	"math"
	"math/cmplx"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// stack is somebody's SOAP stack. Its client is run as: command GRID VERSION FOLDER.
type stack struct {
	name    string
	agent   string // what its requests' User-Agent begins with
	needs   string // what to install
	probe   []string
	command []string
	build   func() error // nil, or makes the client first; may be called again
}

func stacks(t *testing.T, g *grid) []stack {
	t.Helper()
	folder := t.TempDir()
	build := sync.OnceValue(func() error {
		out, err := exec.CommandContext(t.Context(), "gsoap/build.sh", g.url, folder).CombinedOutput()
		if err != nil {
			return fmt.Errorf("build.sh: %w\n%s", err, out)
		}
		return nil
	})
	return []stack{
		{"zeep", "Zeep/", "python3-zeep", []string{"/usr/bin/python3", "-c", "import zeep"}, []string{"/usr/bin/python3", "zeep/grid.py"}, nil},
		{"gSOAP", "gSOAP/", "gsoap libgsoap-dev libssl-dev gcc", []string{"sh", "-c", "command -v wsdl2h soapcpp2 gcc && echo '#include <stdsoap2.h>\n#include <openssl/evp.h>' | gcc -E - >/dev/null"},
			[]string{filepath.Join(folder, "grid")}, build},
		{"node-soap", "node-soap/", "nodejs npm", []string{"node", "-e", "require('soap')"}, []string{"node", "node-soap/grid.js"}, nil},
		{"PHP", "PHP-SOAP/", "php-cli php-soap", []string{"php", "-r", "new ReflectionClass('SoapClient');"}, []string{"php", "php/grid.php"}, nil},
		{"SOAP::Lite", "SOAP::Lite/", "libsoap-lite-perl", []string{"perl", "-MSOAP::Lite", "-e1"}, []string{"perl", "perl/grid.pl"}, nil},
	}
}

// operations are the columns of the table: each client says one line about each,
// which begins with its name.
func operations() []string {
	return []string{"import", "broker", "submit", "follow", "output", "blob", "queue", "fault", "cancel"}
}

// told is what the line about an operation must say: what only a grid that did
// it can have answered.
func told() map[string]string {
	return map[string]string{
		"import": "; 4 nodes, 0 VMs", "follow": "succeeded", "output": "11.01 years", "blob": fmt.Sprint(blobSize, " bytes"),
		"queue": "WHO IS THERE", "fault": `: SubmitJob/job/task[1]/@count: "many"`, "cancel": "enough slept",
	}
}

const blobSize = 20_000_000

// TestStacks runs every stack in both versions of SOAP, prints the table, and
// judges what was on the wire meanwhile.
func TestStacks(t *testing.T) {
	modules, err := filepath.Abs(filepath.Join(root, ".stamp", "node-soap", "node_modules"))
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("NODE_PATH", modules)
	g := startGrid(t)
	var table strings.Builder
	fmt.Fprintf(&table, "| stack | SOAP | %s |\n|---|---|%s\n", strings.Join(operations(), " | "), strings.Repeat("---|", len(operations())))
	rows := 0
	all := stacks(t, g)
	var building sync.WaitGroup // a compiler takes a while; others may use it
	defer building.Wait()
	for _, s := range all {
		if s.build != nil {
			building.Go(func() { s.build() }) // whoever needs it hears of an error
		}
	}
	for _, s := range all {
		if out, err := exec.Command(s.probe[0], s.probe[1:]...).CombinedOutput(); err != nil {
			t.Run(s.name, func(t *testing.T) {
				say := fmt.Sprintf("%s IS NOT HERE AND WAS NOT TRIED: install %s, or run make setup (%v: %s)", s.name, s.needs, err, bytes.TrimSpace(out))
				if os.Getenv("MVM_CONFORMANCE") == "all" {
					t.Fatal(say)
				}
				t.Skip(say)
			})
			fmt.Fprintf(&table, "| %s | not here: install %s |\n", s.name, s.needs)
			continue
		}
		for _, version := range []string{"1.1", "1.2"} {
			t.Run(s.name+"/"+version, func(t *testing.T) {
				rows++
				done := s.run(t, g, version)
				fmt.Fprintf(&table, "| %s | %s |", s.name, version)
				for _, operation := range operations() {
					cell := "yes"
					if !done[operation] {
						cell = "NO"
						t.Errorf("%s, SOAP %s: %s failed", s.name, version, operation)
					}
					fmt.Fprintf(&table, " %s |", cell)
				}
				table.WriteString("\n")
			})
		}
	}
	t.Run("messages", func(t *testing.T) { judgeMessages(t, g) })
	t.Logf("\n%s", table.String())
	if !t.Failed() && rows == 2*len(all) {
		if want, err := os.ReadFile("TABLE.md"); err != nil || !strings.HasSuffix(string(want), table.String()) {
			t.Errorf("TABLE.md does not end in this table (%v)", err)
		}
	}
}

// run runs a stack's client in one version of SOAP and tells which operations
// are done and right.
func (s stack) run(t *testing.T, g *grid, version string) map[string]bool {
	folder := t.TempDir()
	for _, name := range []string{"fft.c", "sunspots.csv"} {
		data, err := os.ReadFile(filepath.Join("../jobs/sunspots", name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(folder, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	blob := make([]byte, blobSize) // of its own, so that it is not there already
	rand.Read(blob)
	if err := os.WriteFile(filepath.Join(folder, "blob"), blob, 0o600); err != nil {
		t.Fatal(err)
	}
	before := len(g.records.all())
	began := time.Now()
	if s.build != nil {
		if err := s.build(); err != nil {
			t.Error(err)
			return nil
		}
	}
	command := exec.CommandContext(t.Context(), s.command[0], append(s.command[1:], g.url, version, folder)...)
	command.WaitDelay = time.Second
	timeout := time.AfterFunc(2*time.Minute, func() { command.Process.Kill() })
	defer timeout.Stop()
	var said strings.Builder
	var complaint strings.Builder
	command.Stdout, command.Stderr = &said, &complaint
	failed := command.Run()
	t.Logf("%s, SOAP %s, %.1f s:\n%s%s", s.name, version, time.Since(began).Seconds(), said.String(), complaint.String())

	done := map[string]bool{}
	for line := range strings.Lines(said.String()) {
		name, says, _ := strings.Cut(line, ":")
		if done[name] = strings.Contains(says, told()[name]); !done[name] {
			t.Errorf("%s says %q, which lacks %q", name, says, told()[name])
		}
	}
	if failed != nil || complaint.Len() > 0 {
		t.Errorf("%s ended with %v and said on stderr: %s", s.command[0], failed, complaint.String())
	}
	read := func(name string) []byte {
		data, err := os.ReadFile(filepath.Join(folder, name))
		if err != nil {
			t.Log(err)
		}
		return data
	}
	if done["output"] {
		if err := checkSunspots(read("sunspots.csv"), read("stdout"), read("spectrum.csv")); err != nil {
			t.Error(err)
			done["output"] = false
		}
	}
	if done["blob"] && !bytes.Equal(read("blob.back"), blob) {
		t.Error("the blob that came back is another")
		done["blob"] = false
	}
	s.checkWire(t, g.records.all()[before:], version)
	return done
}

// checkWire makes sure that the client spoke the version that it was told to.
func (s stack) checkWire(t *testing.T, exchanges []exchange, version string) {
	media := map[string]string{"1.1": "text/xml", "1.2": "application/soap+xml"}[version]
	calls, wrong := 0, map[string]int{}
	for _, x := range exchanges {
		if x.request.Method != "POST" || !strings.Contains(x.request.UserAgent(), s.agent) {
			continue
		}
		calls++
		for _, header := range []http.Header{x.request.Header, x.response.Header} {
			if got, _, _ := strings.Cut(header.Get("Content-Type"), ";"); got != media {
				wrong[got]++
			}
		}
	}
	if len(wrong) > 0 {
		t.Errorf("SOAP %s is %s; these were seen besides: %v", version, media, wrong)
	}
	if calls < 20 {
		t.Errorf("only %d calls of %s were seen on the wire", calls, s.name)
	}
}

// checkSunspots computes the power spectrum by the definition of the discrete
// Fourier transform, of the series without its mean under a Hann window padded
// to 4096 months, and compares.
func checkSunspots(data, stdout, spectrum []byte) error {
	const points = 4096
	column := func(text []byte) (values []float64, err error) {
		rows, err := csv.NewReader(bytes.NewReader(text)).ReadAll()
		if err != nil || len(rows) == 0 {
			return nil, fmt.Errorf("no table: %w", errOr(err, io.ErrUnexpectedEOF))
		}
		for _, row := range rows[1:] {
			v, err := strconv.ParseFloat(row[1], 64)
			if err != nil {
				return nil, err
			}
			values = append(values, v)
		}
		return values, nil
	}
	series, err := column(data)
	if err != nil {
		return err
	}
	got, err := column(spectrum)
	if err != nil {
		return fmt.Errorf("spectrum.csv: %w", err)
	}
	mean := 0.0
	for _, v := range series {
		mean += v / float64(len(series))
	}
	for i := range series {
		series[i] = (series[i] - mean) * 0.5 * (1 - math.Cos(2*math.Pi*float64(i)/float64(len(series)-1)))
	}
	want := make([]float64, points/2-1)
	for k := range want {
		var sum complex128
		turn, step := complex(1, 0), cmplx.Exp(complex(0, -2*math.Pi*float64(k+1)/points))
		for _, v := range series {
			sum += complex(v, 0) * turn
			turn *= step
		}
		want[k] = real(sum)*real(sum) + imag(sum)*imag(sum)
	}
	peak := slices.Index(want, slices.Max(want))
	if say := fmt.Sprintf("the strongest cycle is %.2f years", points/12.0/float64(peak+1)); !strings.Contains(string(stdout), say) {
		return fmt.Errorf("stdout is %q, want it to say %q", stdout, say)
	}
	if len(got) != len(want) {
		return fmt.Errorf("spectrum.csv has %d values, want %d", len(got), len(want))
	}
	for k := range want {
		if math.Abs(got[k]-want[k]) > 1e-6*want[peak] {
			return fmt.Errorf("power at %d is %g, by definition %g", k+1, got[k], want[k])
		}
	}
	return nil
}

func errOr(err, otherwise error) error {
	if err != nil {
		return err
	}
	return otherwise
}
