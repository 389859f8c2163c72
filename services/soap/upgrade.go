package soap

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// refusalMost is how much of an answer that is no upgrade is kept, in bytes.
const refusalMost = 4096

// RefusedUpgrade is the error of an upgrade that the server answers otherwise.
type RefusedUpgrade struct {
	Response *http.Response // its body has been read, and can be again: the first 4 KiB
	Said     string         // that
}

func (e *RefusedUpgrade) Error() string {
	return fmt.Sprintf("it answers %s: %s", e.Response.Status, e.Said)
}

// Upgrade makes a connection that a node's services leave to a protocol other
// than SOAP (RFC 9110, section 7.8): the request, whose URL says where to, asks
// for it. ctx is for the time until there is one; the error is a RefusedUpgrade
// where the server says no.
func Upgrade(ctx context.Context, request *http.Request, protocol string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", request.URL.Host)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	reader, err := ask(conn, request, protocol)
	if !stop() { // it is closed, or is about to be
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return &upgraded{conn, reader}, nil
}

func ask(conn net.Conn, request *http.Request, protocol string) (*bufio.Reader, error) {
	request.Header.Set("Connection", "Upgrade")
	request.Header.Set("Upgrade", protocol)
	if err := request.Write(conn); err != nil {
		return nil, err
	}
	reader := bufio.NewReader(conn)
	response, err := http.ReadResponse(reader, request)
	if err != nil {
		return nil, err
	}
	if response.StatusCode == http.StatusSwitchingProtocols && strings.EqualFold(response.Header.Get("Upgrade"), protocol) {
		return reader, nil
	}
	said, _ := io.ReadAll(io.LimitReader(response.Body, refusalMost))
	response.Body = io.NopCloser(bytes.NewReader(said))
	return nil, &RefusedUpgrade{response, strings.TrimSpace(string(said))}
}

// AcceptUpgrade makes the connection of a request that asks for the protocol the
// caller's, without the time limits that the request had. Where it cannot, that
// is answered.
func AcceptUpgrade(w http.ResponseWriter, protocol string) (net.Conn, bool) {
	conn, ahead, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return nil, false
	}
	_ = conn.SetDeadline(time.Time{})
	if _, err := io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: "+protocol+"\r\nConnection: Upgrade\r\n\r\n"); err != nil {
		_ = conn.Close()
		return nil, false
	}
	return &upgraded{conn, ahead.Reader}, true
}

// upgraded is a connection of which some has been read ahead.
type upgraded struct {
	net.Conn
	reader *bufio.Reader
}

func (u *upgraded) Read(p []byte) (int, error) { return u.reader.Read(p) }

// CloseWrite says that nothing more is sent.
func (u *upgraded) CloseWrite() error {
	if half, ok := u.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return u.Close()
}
