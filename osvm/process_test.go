package osvm

import (
	"os"
	"path/filepath"
	"testing"
)

// TestBoundFile: what QEMU writes begins anew where it was too long, at the end of
// what there is.
func TestBoundFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	log, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	for _, step := range []struct{ write, want string }{{"12345", "12345"}, {"67890+", ""}, {"again", "again"}} {
		if _, err := log.WriteString(step.write); err != nil {
			t.Fatal(err)
		}
		boundFile(path, 10)
		if text, err := os.ReadFile(path); err != nil || string(text) != step.want {
			t.Errorf("after %s: %q, %v", step.write, text, err)
		}
	}
}
