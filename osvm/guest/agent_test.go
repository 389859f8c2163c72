package guest

import (
	"bytes"
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"mvm/osvm/link"
)

// TestBecome: a guest is one node at a time, and the one that it was told last.
func TestBecome(t *testing.T) {
	var mu sync.Mutex // guards lived
	var lived []string
	running := make(chan string)
	a := &Agent{node: func(ctx context.Context, identity []byte, _ *link.Inside) {
		running <- string(identity)
		<-ctx.Done()
		mu.Lock()
		defer mu.Unlock()
		lived = append(lived, string(identity))
	}}
	for _, who := range []string{"first", "second"} {
		a.become([]byte(who))
		if got := <-running; got != who {
			t.Errorf("it is %s, not %s", got, who)
		}
		a.become([]byte(who)) // again changes nothing
	}
	a.stop()
	<-a.gone
	mu.Lock()
	defer mu.Unlock()
	if !slices.Equal(lived, []string{"first", "second"}) {
		t.Errorf("there were %v", lived)
	}
}

// FuzzIdentity reads first words: what is read says the same again.
func FuzzIdentity(f *testing.F) {
	word, err := Identity{Hostname: "one", Time: time.Now(), Randomness: make([]byte, 64), Node: []byte("a node")}.Word()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(word)
	f.Add(word[:len(word)-1])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, word []byte) {
		read, err := readIdentity(word)
		if err != nil {
			return
		}
		again, err := read.Word()
		if err != nil || !bytes.HasPrefix(word, again) {
			t.Errorf("% x is read as %+v, which is % x, %v", word, read, again, err)
		}
	})
}
