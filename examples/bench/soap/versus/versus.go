// Package versus measures MVM's SOAP server against one that gSOAP generates
// from the same WSDL.
//
// What always holds: both get the same bytes from the same load, parse and
// check them whole, answer with the same content, and write one line a call to
// a log; both run as programs of their own, so that the CPU time is theirs
// alone. It must not look into either server.
package versus

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"mvm/wsdl"
)

//go:embed gsoap/server.c
var server []byte

//go:embed load.lua
var load []byte

// The contestants, as Round knows them.
const (
	MVM   = "MVM"
	GSOAP = "gSOAP"
)

// What a Round measures; latencies are in microseconds.
const (
	PerCPU = "calls a CPU second"
	Rate   = "calls a second"
	P50    = "median latency"
	P99    = "p99 latency"
)

const connections = 16

// ErrMissing is what Open returns when a program that it needs is not installed.
var ErrMissing = errors.New("not installed")

// Contest is both servers, running. Close it.
type Contest struct {
	dir     string
	running map[string]*running
}

type running struct {
	command *exec.Cmd
	url     string // of the information service
}

// Open builds both servers in the folder dir and starts them. It is called in
// the project's folder. An error that wraps ErrMissing names what to install.
func Open(ctx context.Context, dir string) (*Contest, error) {
	for program, in := range map[string]string{"wsdl2h": "gsoap", "soapcpp2": "gsoap", "gcc": "gcc", "wrk": "wrk"} {
		if _, err := exec.LookPath(program); err != nil {
			return nil, fmt.Errorf("%s of Debian's %s is %w", program, in, ErrMissing)
		}
	}
	c := &Contest{dir: dir, running: map[string]*running{}}
	if err := c.open(ctx); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func (c *Contest) open(ctx context.Context) error {
	ours := filepath.Join(c.dir, "ours")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", ours, "./examples/bench/soap")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("go build ./examples/bench/soap: %w\n%s", err, out)
	}
	if err := c.start(MVM, ours); err != nil {
		return err
	}
	if err := c.write("server.c", server); err != nil {
		return err
	}
	for _, step := range [][]string{
		{"wsdl2h", "-c", "-o", "information.h", c.running[MVM].url + "?wsdl"},
		{"soapcpp2", "-s", "-c", "-S", "-x", "-L", "-w", "information.h"},
		{"gcc", "-O2", "-w", "-o", "theirs", "server.c", "soapC.c", "soapServer.c", "-lgsoap", "-lpthread"},
	} {
		command := exec.CommandContext(ctx, step[0], step[1:]...)
		command.Dir = c.dir
		if out, err := command.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", strings.Join(step, " "), err, out)
		}
	}
	if err := c.start(GSOAP, filepath.Join(c.dir, "theirs")); err != nil {
		return err
	}
	request := request()
	if err := c.write("request.xml", request); err != nil {
		return err
	}
	if err := c.write("load.lua", load); err != nil {
		return err
	}
	for name, r := range c.running {
		if err := r.answers(ctx, request); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

func (c *Contest) write(name string, data []byte) error {
	return os.WriteFile(filepath.Join(c.dir, name), data, 0o644)
}

// start starts a server, which prints its address.
func (c *Contest) start(name, program string) error {
	log, err := os.Create(filepath.Join(c.dir, name+".log"))
	if err != nil {
		return err
	}
	defer log.Close()
	command := exec.Command(program)
	command.Stderr = log
	out, err := command.StdoutPipe()
	if err != nil {
		return err
	}
	if err := command.Start(); err != nil {
		return err
	}
	r := &running{command: command}
	c.running[name] = r
	line := make([]byte, 100)
	n, err := out.Read(line)
	if err != nil {
		return fmt.Errorf("%s did not start: %w", name, err)
	}
	r.url = strings.TrimSpace(string(line[:n])) + "/services/information"
	return nil
}

// Close ends both servers.
func (c *Contest) Close() {
	for _, r := range c.running {
		_ = r.command.Process.Kill()
		_ = r.command.Wait()
	}
}

// request is a heartbeat of a node with six attempts: some 1.3 KB, as gSOAP's
// clients write it.
func request() []byte {
	var b bytes.Buffer
	b.WriteString(`<?xml version="1.0" encoding="UTF-8"?>` + "\n" +
		`<SOAP-ENV:Envelope xmlns:SOAP-ENV="http://schemas.xmlsoap.org/soap/envelope/" xmlns:SOAP-ENC="http://schemas.xmlsoap.org/soap/encoding/" ` +
		`xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xmlns:xsd="http://www.w3.org/2001/XMLSchema" xmlns:ns1="` + wsdl.Namespace + `"><SOAP-ENV:Body>` +
		`<ns1:Heartbeat><ns1:node>node-4f1c9a77e2d0</ns1:node><ns1:incarnation>9b7fc694870a11ff</ns1:incarnation><ns1:freeSlots>4</ns1:freeSlots><ns1:freeMemory>2048</ns1:freeMemory>`)
	for i := range attempts {
		fmt.Fprintf(&b, "<ns1:attempt><ns1:job>20261122-%06d</ns1:job><ns1:number>%d</ns1:number><ns1:node>node-4f1c9a77e2d0</ns1:node><ns1:incarnation>9b7fc694870a11ff</ns1:incarnation></ns1:attempt>", i, i+1)
	}
	b.WriteString("</ns1:Heartbeat></SOAP-ENV:Body></SOAP-ENV:Envelope>\n")
	return b.Bytes()
}

const attempts = 6

// answers fails unless a server answers the request with what was in it.
func (r *running) answers(ctx context.Context, request []byte) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	post, err := http.NewRequestWithContext(ctx, http.MethodPost, r.url, bytes.NewReader(request))
	if err != nil {
		return err
	}
	post.Header.Set("Content-Type", "text/xml; charset=utf-8")
	answer, err := http.DefaultClient.Do(post)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	data, err := io.ReadAll(answer.Body)
	if err != nil {
		return err
	}
	for _, want := range []string{"HeartbeatResponse", fmt.Sprintf("20261122-%06d<", attempts-1), fmt.Sprintf("number>%d<", attempts)} {
		if answer.StatusCode != http.StatusOK || !bytes.Contains(data, []byte(want)) {
			return fmt.Errorf("the answer has status %d and is not what was asked for: %.2000s", answer.StatusCode, data)
		}
	}
	return nil
}

// Round loads one of the two for so long and returns what it measured.
func (c *Contest) Round(ctx context.Context, player string, lasting time.Duration) (map[string]float64, error) {
	r := c.running[player]
	if r == nil {
		return nil, fmt.Errorf("there is no contestant %q", player)
	}
	before, err := r.cpu()
	if err != nil {
		return nil, err
	}
	wrk := exec.CommandContext(ctx, "wrk", "-t", "1", "-c", strconv.Itoa(connections), "-d", fmt.Sprintf("%ds", max(1, int(lasting.Seconds()))), "-s", "load.lua", r.url)
	wrk.Dir = c.dir
	out, err := wrk.CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("wrk: %w\n%s", err, out)
	}
	after, err := r.cpu()
	if err != nil {
		return nil, err
	}
	var calls, seconds, p50, p99, failed float64
	_, line, _ := bytes.Cut(out, []byte("\nmeasured "))
	if _, err := fmt.Sscan(string(line), &calls, &seconds, &p50, &p99, &failed); err != nil {
		return nil, fmt.Errorf("wrk: %w\n%s", err, out)
	}
	if calls == 0 || failed > 0 || after <= before {
		return nil, fmt.Errorf("%s: %.0f calls, %.0f of them failed, in %s of CPU time\n%s", player, calls, failed, after-before, out)
	}
	return map[string]float64{PerCPU: calls / (after - before).Seconds(), Rate: calls / seconds, P50: p50, P99: p99}, nil
}

// cpu is the processor time that the server has used.
func (r *running) cpu() (time.Duration, error) {
	const tick = 10 * time.Millisecond // Linux's, as programs see it
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", r.command.Process.Pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := bytes.Cut(stat, []byte(") "))
	fields := strings.Fields(string(rest))
	if len(fields) < 13 {
		return 0, fmt.Errorf("cannot read %q", stat)
	}
	var sum time.Duration
	for _, f := range fields[11:13] { // utime, stime
		n, err := strconv.Atoi(f)
		if err != nil {
			return 0, err
		}
		sum += time.Duration(n) * tick
	}
	return sum, nil
}
