// Package hostile is a catalogue of what strangers may send to a node, by
// mistake or in malice, and of what they get for it. Its test sends all of it to
// a real node, one after the other and some at once, while others use that node,
// and holds the answers to HOSTILE.md.
package hostile

import (
	"bufio"
	"encoding/xml"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write HOSTILE.md anew")

// The bounds that the node is held to, whatever is sent.
const (
	mostMemory  = 1024             // MiB resident, at any time
	mostLatency = 15 * time.Second // of any call of a bystander, also on a busy machine
	median      = time.Second      // of them all
)

// entry is one thing that is sent.
type entry struct {
	name string
	send func(n *node) answer
	head string // how the answer must begin: status and fault code
	says string // what must be in it besides
	slow bool   // the answer takes seconds of waiting: others are sent meanwhile

	// crowd takes all connections: it comes when those that must keep theirs
	// for long are done.
	crowd bool
}

// group is a chapter of the catalogue.
type group struct {
	name, about string
	entries     []entry
}

// answer is what the sender got: what the catalogue shows.
type answer string

func TestCatalogue(t *testing.T) {
	groups := []group{xmlGroup(), envelopeGroup(), schemaGroup(), mimeGroup(), httpGroup(), sizeGroup(), namesGroup(), profilesGroup(), queuesGroup(), outputsGroup(), commandsGroup()}
	n := startNode(t)
	others := n.watch()
	before, err := n.held()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]answer{}
	var mu sync.Mutex // guards got
	run := func(g group, e entry) {
		begin := time.Now()
		a := tidy(n, e.send(n))
		took := time.Since(begin)
		if !strings.HasPrefix(string(a), e.head) || !strings.Contains(string(a), e.says) {
			t.Errorf("%s: %s: %s\nwant %s ... %s", g.name, e.name, a, e.head, e.says)
		}
		if took > 20*time.Second {
			t.Errorf("%s: %s: took %s", g.name, e.name, took)
		}
		if peak := int(others.recent.Swap(0)); took > time.Second || peak > mostMemory/2 {
			t.Logf("%s: %s: %s, up to %d MiB resident", g.name, e.name, took.Round(time.Millisecond), peak)
		}
		mu.Lock()
		defer mu.Unlock()
		if _, twice := got[g.name+"/"+e.name]; twice {
			t.Errorf("%s: %s: is there twice", g.name, e.name)
		}
		got[g.name+"/"+e.name] = a
	}
	var slow sync.WaitGroup
	for _, g := range groups {
		for _, e := range g.entries {
			if e.slow {
				slow.Go(func() { run(g, e) })
			}
		}
	}
	for _, g := range groups {
		for _, e := range g.entries {
			if !e.slow && !e.crowd {
				run(g, e)
			}
		}
	}
	slow.Wait()
	for _, g := range groups {
		for _, e := range g.entries {
			if e.crowd {
				run(g, e)
			}
		}
	}
	close(others.stop)
	others.done.Wait()
	document(t, groups, got)

	slices.Sort(others.took)
	last := len(others.took) - 1
	t.Logf("%d entries; at most %d MiB resident; %d calls beside them, half within %s, 99 %% within %s, all within %s; %d jobs",
		len(got), others.largest.Load(), last+1, others.took[last/2], others.took[last*99/100], others.took[last], others.jobs.Load())
	for _, failure := range others.failures {
		t.Errorf("a bystander: %s", failure)
	}
	if others.took[last] > mostLatency || others.took[last/2] > median || others.jobs.Load() == 0 {
		t.Errorf("bystanders were not served well")
	}
	if others.largest.Load() > mostMemory {
		t.Errorf("%d MiB were resident, expected at most %d", others.largest.Load(), mostMemory)
	}
	var now held
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		http.DefaultClient.CloseIdleConnections()
		now, err = n.held()
		if err == nil && now.inFlight <= 1 && now.connections <= 8 && now.descriptors <= before.descriptors+10 && now.goroutines <= before.goroutines+20 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the node holds %+v, %v; before it was %+v", now, err, before)
		}
	}
}

// document holds what was answered to HOSTILE.md.
func document(t *testing.T, groups []group, got map[string]answer) {
	t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, `# Hostile and broken input

What strangers may send to a node, by mistake or in malice, and what they get. The test beside this file sends all of it to a real node and compares; %sgo test ./examples/hostile -update%s writes it anew. Meanwhile others call the same node and run jobs on it: half of their calls are answered within %s and each within %s, on a machine that is busy with the test; the node has at most %d MiB resident at any time; and in the end it has given back all connections, descriptors and goroutines but for a few of its own.

An answer is shown as its HTTP status, the fault's code where it is a SOAP fault, and the sentences that say what is wrong, shortened where it says more.

What bounds the cost, with the defaults (services/soap, Limits; wsdl, Limits):

- A request has at most 16 MiB. It holds 64 KiB, or twice what has arrived of it; all above 64 KiB share 256 MiB.
- It must arrive at 2 KiB a second, measured over 10 s: a slow but honest link is served. Where others wait for the memory that it holds it must arrive at 256 KiB a second, measured over 2 s.
- Headers have at most 64 KiB and 10 s. The reader of an answer has 60 s for each MiB. A kept connection may rest for 2 minutes.
- There are at most 2048 connections, or half of the files that the node may open if that is less. One too many costs the one that has been silent for the longest its place; an upload or a download only where hardly any is silent; a call that is being carried out never. When all are, a new connection gets 503 and is told to come again.
- An answer that does not need the request's body goes out at once. The rest of the body is thrown away for up to 10 s, so that whoever sends all before reading gets to read it; only who sends longer than that sees a reset.
- A document has at most 64 levels, 600,000 elements, and in an element 64 attributes and 64 KiB; a name has 256 bytes. Reading ends at the hundredth problem.
- An output file has at most 16 GiB, and nine tenths of what is free on the node's disk.
`, "`", "`", median, mostLatency, mostMemory)
	for _, g := range groups {
		fmt.Fprintf(&b, "\n## %s\n\n%s\n\n| what is sent | what the sender gets |\n|---|---|\n", g.name, g.about)
		for _, e := range g.entries {
			fmt.Fprintf(&b, "| %s | %s |\n", cell(e.name), cell(string(got[g.name+"/"+e.name])))
		}
	}
	if *update {
		if err := os.WriteFile("HOSTILE.md", []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile("HOSTILE.md")
	if err != nil {
		t.Fatal(err)
	}
	if b.String() != string(want) {
		is, was := strings.Split(b.String(), "\n"), strings.Split(string(want), "\n")
		for i := range max(len(is), len(was)) {
			if i >= len(is) || i >= len(was) || is[i] != was[i] {
				t.Errorf("HOSTILE.md:%d is not what the node answers now: %q; -update writes it anew", i+1, is[min(i, len(is)-1)])
			}
		}
	}
}

func cell(text string) string {
	return strings.NewReplacer("|", `\|`, "\n", " ", "<", "&lt;", "*", `\*`, "_", `\_`, "`", "\\`", "[", `\[`).Replace(text)
}

// tidy leaves out of an answer what differs from run to run, and its length.
func tidy(n *node, a answer) answer {
	text := strings.ReplaceAll(string(a), n.address, "HOST")
	text = regexp.MustCompile(`j-[0-9a-z]{8,}`).ReplaceAllString(text, "JOB")
	text = regexp.MustCompile(`node-[0-9a-f]{12}`).ReplaceAllString(text, "NODE")
	text = regexp.MustCompile(`request id [0-9a-f]{16}`).ReplaceAllString(text, "request id ID")
	text = strings.Join(strings.Fields(text), " ")
	if len(text) > 260 {
		text = strings.ToValidUTF8(text[:260], "") + " ..."
	}
	return answer(text)
}

const (
	namespace11 = "http://schemas.xmlsoap.org/soap/envelope/"
	namespace12 = "http://www.w3.org/2003/05/soap-envelope"
)

func envelope(body string) string {
	return `<e:Envelope xmlns:e="` + namespace11 + `"><e:Body>` + body + `</e:Body></e:Envelope>`
}

// head is the head of a call, with more header lines, each with its end.
func head(service string, length int, more string) string {
	return fmt.Sprintf("POST /services/%s HTTP/1.1\r\nHost: grid\r\nContent-Type: text/xml\r\nContent-Length: %d\r\n%s\r\n", service, length, more)
}

// post sends a body to a service.
func post(service, body string) func(*node) answer {
	return raw(head(service, len(body), "") + body)
}

// call sends an operation's element to a service.
func call(service, element string) func(*node) answer { return post(service, envelope(element)) }

// raw sends bytes on a connection of their own and reads one answer.
func raw(request string) func(*node) answer {
	return func(n *node) answer {
		return n.exchange(func(conn io.Writer) { _, _ = io.WriteString(conn, request) }, 1)
	}
}

// exchange opens a connection, has say write to it, and reads so many answers,
// at most until 20 s have passed.
func (n *node) exchange(say func(io.Writer), answers int) answer {
	conn, err := net.Dial("tcp", n.address)
	if err != nil {
		return answer("no connection: " + err.Error())
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	go say(conn)
	from := bufio.NewReader(conn)
	var all []string
	for range answers {
		response, err := http.ReadResponse(from, nil)
		switch {
		case err == io.EOF || err == io.ErrUnexpectedEOF || len(all) > 0 && errors.Is(err, syscall.ECONNRESET):
			all = append(all, "the connection is closed")
		case err != nil:
			all = append(all, "no answer: "+regexp.MustCompile(`127\.0\.0\.1:\d+`).ReplaceAllString(err.Error(), "HOST"))
		default:
			said, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
			if err != nil {
				said = append(said, (" and then " + err.Error())...)
			}
			all = append(all, told(response.StatusCode, response.Header.Get("Content-Type"), said))
			continue
		}
		break
	}
	return answer(strings.Join(all, "; then "))
}

// told is a response in a line.
func told(status int, media string, said []byte) string {
	text := strings.TrimSpace(string(said))
	if !strings.Contains(media, "xml") {
		if status == http.StatusOK && len(text) > 60 {
			text = strings.ToValidUTF8(text[:60], "") + " ..."
		}
		return fmt.Sprintf("%d: %s", status, text)
	}
	d := xml.NewDecoder(strings.NewReader(text))
	var code, soap, message, advice, problem string
	var path []string
	for {
		token, err := d.Token()
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Sprintf("%d with XML that cannot be read: %v", status, err)
		}
		switch x := token.(type) {
		case xml.StartElement:
			path = append(path, x.Name.Local)
			if len(path) == 3 && x.Name.Local != "Fault" {
				return fmt.Sprintf("%d %s", status, x.Name.Local)
			}
		case xml.EndElement:
			path = path[:len(path)-1]
		case xml.CharData:
			is := func(end ...string) bool { return len(path) >= len(end) && slices.Equal(path[len(path)-len(end):], end) }
			switch {
			case is("GridFault", "code"):
				code = string(x)
			case is("GridFault", "message"):
				message += string(x)
			case is("GridFault", "advice"):
				advice += string(x)
			case is("problem", "message") && strings.Count(problem, "; ") < 1:
				if problem != "" {
					problem += "; "
				}
				problem += string(x)
			case is("faultstring") || is("Reason", "Text"):
				soap += string(x)
			}
		}
	}
	if code == "" {
		return fmt.Sprintf("%d: %s", status, soap)
	}
	if problem != "" {
		problem = ": " + problem
	}
	return fmt.Sprintf("%d %s: %s%s", status, code, message, problem)
}
