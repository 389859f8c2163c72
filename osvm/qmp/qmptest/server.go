// Package qmptest is a QEMU's monitor without a QEMU, for tests: it greets,
// answers commands as the test says, and tells of events when the test wants.
//
// It must never be imported by anything but tests.
package qmptest

import (
	"bytes"
	"encoding/json"
	"net"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// Greeting is what QEMU 7.2.22 says first.
const Greeting = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian 1:7.2"}, "capabilities": ["oob"]}}`

// Call is a command as it came.
type Call struct {
	Name      string
	Arguments json.RawMessage
	ID        json.RawMessage
	Files     int // that came with it; the server closes them
}

// Answer gives the line that answers a command, "" for none. One client's
// commands come one after another.
type Answer func(*Server, Call) string

// Server is a monitor's other end, for one client after another.
type Server struct {
	Path string // of its socket

	answer   Answer
	greeting string
	listener *net.UnixListener
	tasks    sync.WaitGroup

	mu     sync.Mutex // guards client
	client *net.UnixConn
}

// Start makes a server that says greeting, or nothing where that is empty. It
// ends with the test.
func Start(t testing.TB, greeting string, answer Answer) *Server {
	t.Helper()
	s := &Server{Path: filepath.Join(t.TempDir(), "qmp"), greeting: greeting, answer: answer}
	var err error
	if s.listener, err = net.ListenUnix("unix", &net.UnixAddr{Name: s.Path, Net: "unix"}); err != nil {
		t.Fatal(err)
	}
	s.tasks.Add(1)
	go s.accept()
	t.Cleanup(func() {
		_ = s.listener.Close()
		s.HangUp()
		s.tasks.Wait()
	})
	return s
}

// Done answers that a command was carried out.
func Done(_ *Server, c Call) string { return `{"return": {}, "id": ` + string(c.ID) + `}` }

// Say sends one line to the client that is connected.
func (s *Server) Say(line string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.client != nil {
		_, _ = s.client.Write([]byte(line + "\r\n"))
	}
}

// HangUp cuts the client off.
func (s *Server) HangUp() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.client != nil {
		_ = s.client.Close()
		s.client = nil
	}
}

func (s *Server) accept() {
	defer s.tasks.Done()
	for {
		client, err := s.listener.AcceptUnix()
		if err != nil {
			return
		}
		s.mu.Lock()
		s.client = client
		s.mu.Unlock()
		if s.greeting != "" {
			s.Say(s.greeting)
		}
		s.serve(client)
	}
}

func (s *Server) serve(client *net.UnixConn) {
	var pending []byte
	files := 0
	for {
		buffer, rights := make([]byte, 64<<10), make([]byte, 256)
		n, r, _, _, err := client.ReadMsgUnix(buffer, rights)
		if err != nil || n == 0 {
			return
		}
		files += closeAll(rights[:r])
		pending = append(pending, buffer[:n]...)
		for {
			line, rest, whole := bytes.Cut(pending, []byte("\n"))
			if !whole {
				break
			}
			pending = rest
			var command struct {
				Execute   string          `json:"execute"`
				Arguments json.RawMessage `json:"arguments"`
				ID        json.RawMessage `json:"id"`
			}
			if err := json.Unmarshal(line, &command); err != nil {
				s.Say(`{"error": {"class": "GenericError", "desc": "JSON parse error"}}`)
				continue
			}
			call := Call{Name: command.Execute, Arguments: command.Arguments, ID: command.ID, Files: files}
			files = 0
			if call.Name == "qmp_capabilities" {
				s.Say(Done(s, call))
			} else if answer := s.answer(s, call); answer != "" {
				s.Say(answer)
			}
		}
	}
}

func closeAll(rights []byte) int {
	messages, err := unix.ParseSocketControlMessage(rights)
	if err != nil {
		return 0
	}
	count := 0
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			continue
		}
		for _, fd := range fds {
			_ = unix.Close(fd)
			count++
		}
	}
	return count
}
