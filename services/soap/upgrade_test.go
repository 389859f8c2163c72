package soap

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
)

// TestUpgrade: what is said right behind the answer is not lost, and an answer
// that is not the upgrade that was asked for is told with its words.
func TestUpgrade(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/other":
			if conn, ok := AcceptUpgrade(w, "other"); ok {
				_ = conn.Close()
			}
		case "/echo":
			conn, ok := AcceptUpgrade(w, "echo")
			if !ok {
				return
			}
			defer conn.Close()
			_, _ = io.WriteString(conn, "hello ")
			_, _ = io.Copy(conn, conn)
		case "/silent":
			<-r.Context().Done()
		default:
			http.Error(w, "there is none", http.StatusNotFound)
		}
	}))
	defer server.Close()
	ask := func(ctx context.Context, path string) (net.Conn, error) {
		request, err := http.NewRequest(http.MethodGet, server.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		return Upgrade(ctx, request, "echo")
	}
	conn, err := ask(t.Context(), "/echo")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, "world"); err != nil {
		t.Fatal(err)
	}
	if err := conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if said, err := io.ReadAll(conn); err != nil || string(said) != "hello world" {
		t.Errorf("%q, %v", said, err)
	}
	_ = conn.Close()

	var refused *RefusedUpgrade
	if _, err := ask(t.Context(), "/nowhere"); !errors.As(err, &refused) || refused.Response.StatusCode != http.StatusNotFound || refused.Said != "there is none" {
		t.Errorf("nowhere: %v", err)
	}
	if _, err := ask(t.Context(), "/other"); !errors.As(err, &refused) || refused.Response.StatusCode != http.StatusSwitchingProtocols {
		t.Errorf("another protocol: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := ask(ctx, "/silent"); !errors.Is(err, context.Canceled) {
		t.Errorf("a caller that is gone: %v", err)
	}
}
