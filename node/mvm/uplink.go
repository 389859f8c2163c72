package mvm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"
)

// uplink is a socket of the agent's in a guest, whose only network is its host's:
// a connection to it says in one line of JSON where it is to lead, hears one, and
// is then a connection to there (osvm/link has the words).
type uplink string

func (u uplink) dial(ctx context.Context, address string) (net.Conn, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", string(u))
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	answer, err := ask(conn, `{"dial":`+strconv.Quote(address)+"}\n")
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err == nil && answer != "{}" {
		err = fmt.Errorf("the host of this VM answers %s", answer)
	}
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
}

// ask sends a line and reads one, and no byte of what follows it.
func ask(conn net.Conn, line string) (string, error) {
	const most = 4096
	if _, err := conn.Write([]byte(line)); err != nil {
		return "", err
	}
	var answer []byte
	for b := make([]byte, 1); len(answer) < most; answer = append(answer, b[0]) {
		if _, err := conn.Read(b); err != nil {
			return "", err
		}
		if b[0] == '\n' {
			return strings.TrimSpace(string(answer)), nil
		}
	}
	return "", errors.New("the agent of this VM answers without end")
}
