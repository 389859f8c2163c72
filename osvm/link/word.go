package link

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"time"
)

// Every connection of a session begins with one line of JSON that says what it
// is for. To is the host's word: "agent" leads to the guest's agent, "port" to
// Port of the guest's own loopback. Dial, Publish and Withdraw are the guest's: the host
// connects to an address, RelayAddress being a server of its own, or listens for
// the guest's port, until it is told to Withdraw that. To these it answers one
// line, before all else.
type word struct {
	To      string `json:"to,omitempty"`
	Port    int    `json:"port,omitempty"`
	Dial    string `json:"dial,omitempty"`
	Publish int    `json:"publish,omitempty"`

	Withdraw int `json:"withdraw,omitempty"`
}

// reply is the host's answer: {} is yes.
type reply struct {
	Error   string `json:"error,omitempty"`
	Address string `json:"address,omitempty"` // of what is published
}

const (
	toAgent = "agent"
	toPort  = "port"

	wordMax   = 1024             // bytes of such a line
	wordLimit = 10 * time.Second // that one may take to come, once there is a connection
)

// RelayAddress is what a guest dials to reach its host itself.
const RelayAddress = "mvm.host"

// tell sends a line.
func tell(conn net.Conn, line any) error {
	text, err := json.Marshal(line)
	if err != nil {
		return err
	}
	_, err = conn.Write(append(text, '\n'))
	return err
}

// hear reads a line, and no byte of what follows it.
func hear(conn net.Conn, line any) error {
	var text []byte
	for b := make([]byte, 1); ; {
		if _, err := conn.Read(b); err != nil {
			return err
		}
		if b[0] == '\n' {
			break
		}
		if text = append(text, b[0]); len(text) > wordMax {
			return fmt.Errorf("a connection begins with a line of more than %d bytes", wordMax)
		}
	}
	if err := json.Unmarshal(text, line); err != nil {
		return fmt.Errorf("a connection begins with %.60q, not with what it is for: %w", text, err)
	}
	return nil
}

// ask sends a line and waits for its answer as long as ctx allows.
func ask(ctx context.Context, conn net.Conn, line any) (reply, error) {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	var answer reply
	err := tell(conn, line)
	if err == nil {
		err = hear(conn, &answer)
	}
	switch {
	case !stop() && err == nil: // too late, but there
		_ = conn.SetDeadline(time.Time{})
	case err != nil && ctx.Err() != nil:
		err = context.Cause(ctx)
	case err == nil && answer.Error != "":
		err = &RefusedError{answer.Error}
	}
	return answer, err
}

// RefusedError is the host's own answer to a guest: what it was asked for failed
// there. Other errors say that there is no host to ask.
type RefusedError struct{ Message string }

func (e *RefusedError) Error() string { return e.Message }

// errNoSession: between two hosts there is nobody to ask.
var errNoSession = errors.New("no host is connected to this guest")
