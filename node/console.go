package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/gorilla/mux"

	"mvm/osvm"
	"mvm/services/soap"
	"mvm/wsdl"
)

// consoleUpgrade is the protocol that a connection to a console becomes: from then
// on both sides send what was typed and what was written, as it is.
const consoleUpgrade = "mvm-console"

// consoleStall is how long somebody at a console may take nothing of it: meanwhile
// the guest waits.
const consoleStall = time.Minute

// Console attaches to the serial port of a VM's guest: GET of a path with the
// variable id, which asks for an upgrade to mvm-console. The query's who is what
// others are told of who has it; force=true takes it over.
func (n *Node) Console() http.Handler {
	v := &machines{node: n}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		m, err := v.find(r.Context(), mux.Vars(r)["id"])
		switch {
		case wsdl.CodeOf(err) == wsdl.FaultCodeNotFound:
			sayPlainly(w, http.StatusNotFound, err)
			return
		case err != nil:
			sayPlainly(w, http.StatusServiceUnavailable, err)
			return
		case !asks(w, r, consoleUpgrade, "a console is no page; `mvm vm console` attaches to it"):
			return
		}
		view, err := m.Console().Attach(whoOf(r), r.URL.Query().Get("force") == "true")
		if err != nil {
			sayPlainly(w, http.StatusConflict, fmt.Errorf("VM %s: %w; --force takes it over", m.ID, err))
			return
		}
		defer view.Close()
		conn, ok := soap.AcceptUpgrade(w, consoleUpgrade)
		if !ok {
			return
		}
		defer conn.Close()
		n.attachTo(r.Context(), conn, view)
	})
}

// attachTo connects somebody with a console until either is gone.
func (n *Node) attachTo(ctx context.Context, conn net.Conn, view *osvm.View) {
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	stopped := context.AfterFunc(n.living, func() { _ = conn.Close() })
	defer stopped()
	go func() {
		_, _ = io.Copy(view, conn) // however it ends, nothing more is typed
		_ = view.Close()
	}()
	var buffer [16 << 10]byte
	for {
		size, err := view.Read(buffer[:])
		if err != nil {
			return
		}
		_ = conn.SetWriteDeadline(time.Now().Add(consoleStall))
		if _, err := conn.Write(buffer[:size]); err != nil {
			return
		}
	}
}

// asks tells whether a request asks for an upgrade; one that does not is answered.
func asks(w http.ResponseWriter, r *http.Request, protocol, otherwise string) bool {
	if strings.EqualFold(r.Header.Get("Upgrade"), protocol) {
		return true
	}
	w.Header().Set("Upgrade", protocol)
	w.Header().Set("Connection", "Upgrade")
	sayPlainly(w, http.StatusUpgradeRequired, errors.New(otherwise))
	return false
}

// whoOf is who asks, as others are told: by its own word, and where that is from.
func whoOf(r *http.Request) string {
	const most = 100
	who := strings.Map(func(c rune) rune {
		if c < ' ' || c == 0x7f {
			return -1
		}
		return c
	}, strings.ToValidUTF8(r.URL.Query().Get("who"), ""))
	from, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		from = r.RemoteAddr
	}
	if who == "" {
		return from
	}
	return string([]rune(who)[:min(len([]rune(who)), most)]) + " from " + from
}

// sayPlainly answers an error where SOAP has no say.
func sayPlainly(w http.ResponseWriter, status int, err error) {
	http.Error(w, err.Error(), status)
}
