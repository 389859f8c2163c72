package jobqueue

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"mvm/queuevm"
)

var update = flag.Bool("update", false, "write the golden transcripts anew")

// TestTranscripts plays testdata/*.txt: each line that begins with ">" is a
// call, and what follows it is what became of it.
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no transcripts: %v", err)
	}
	for _, name := range files {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txt"), func(t *testing.T) {
			golden, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			got := play(t, string(golden))
			if *update {
				if err := os.WriteFile(name, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got != string(golden) {
				t.Errorf("the transcript differs; it is now (go test -run TestTranscripts -update writes it):\n%s", got)
			}
		})
	}
}

func play(t *testing.T, transcript string) string {
	s := New[string]()
	var out strings.Builder
	arrival := uint64(0)
	for line := range strings.Lines(transcript) {
		line = strings.TrimSuffix(line, "\n")
		if strings.HasPrefix(line, "#") {
			fmt.Fprintln(&out, line)
			continue
		}
		if !strings.HasPrefix(line, ">") {
			continue
		}
		fmt.Fprintln(&out, line)
		words := strings.Fields(line[1:])
		options := map[string]string{}
		var names []string
		for _, word := range words[1:] {
			if name, value, ok := strings.Cut(word, "="); ok {
				options[name] = value
			} else {
				names = append(names, word)
			}
		}
		number := func(name string, or int) int {
			if options[name] == "" {
				return or
			}
			n, err := strconv.Atoi(options[name])
			if err != nil {
				t.Fatal(line, err)
			}
			return n
		}
		settings := func(was Settings) Settings {
			if kind := options["type"]; kind != "" {
				was.Type = queuevm.QueueType(kind)
			}
			was.Weight, was.Capacity = number("weight", was.Weight), number("capacity", was.Capacity)
			was.Held = number("held", 0) == 1
			return was
		}
		var err error
		switch words[0] {
		case "make":
			err = s.Make(names[0], settings(DefaultSettings()))
		case "change":
			was, _ := s.State(names[0])
			err = s.Change(names[0], settings(was.Settings))
		case "remove":
			err = s.Remove(names[0])
		case "enter":
			for _, id := range names[1:] {
				arrival++
				if err = s.Reserve(names[0]); err != nil {
					break
				}
				s.Enter(&Job[string]{ID: id, Place: Place{names[0], number("priority", 50), arrival}, Size: number("size", 1), Ready: options["ready"] != "0", Value: id})
				s.Unreserve(names[0])
			}
		case "again": // it was accepted before
			s.Enter(&Job[string]{ID: names[1], Place: Place{names[0], number("priority", 50), uint64(number("arrival", 0))}, Size: number("size", 1), Ready: true, Paid: options["paid"] == "1", Value: names[1]})
		case "ready":
			s.Ready(names[0])
		case "leave":
			s.Leave(names[0])
		case "move":
			p := s.Get(names[0]).Place
			p.Queue, p.Priority, p.Arrival = names[1], number("priority", p.Priority), uint64(number("arrival", int(p.Arrival)))
			s.Move(names[0], p)
		case "round":
			free, most := number("slots", 1), number("jobs", -1)
			var placed []string
			s.Round(func(j *Job[string]) Answer {
				switch {
				case most == 0:
					return Enough
				case j.Size > free:
					return Passed
				}
				most--
				free -= j.Size
				placed = append(placed, j.Value)
				return Placed
			})
			fmt.Fprintln(&out, "    placed "+strings.Join(placed, " "))
		case "rounds": // one slot at a time
			var placed []string
			for range number("of", 1) {
				free := 1
				s.Round(func(j *Job[string]) Answer {
					if j.Size > free {
						return Passed
					}
					free -= j.Size
					placed = append(placed, j.Value)
					return Placed
				})
			}
			fmt.Fprintln(&out, "    placed "+strings.Join(placed, " "))
		default:
			t.Fatalf("what is %q?", line)
		}
		if err != nil {
			fmt.Fprintf(&out, "    refused: %v\n", err)
		}
		for _, name := range s.Names() {
			state, _ := s.State(name)
			if name == Default && len(s.Names()) > 1 && state.Depth == 0 {
				continue
			}
			fmt.Fprintf(&out, "  %s:", name)
			for _, j := range s.Peek(name, state.Depth) {
				if j.Ready {
					fmt.Fprint(&out, " "+j.Value)
				} else {
					fmt.Fprint(&out, " ("+j.Value+")")
				}
			}
			fmt.Fprintln(&out)
		}
	}
	return out.String()
}

// Whatever comes, goes, moves and changes, everyone is in one queue, in its
// order, and what is counted is what is there.
func TestNobodyIsLost(t *testing.T) {
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 3))
		s := New[string]()
		names := []string{Default, "a", "b", "c"}
		waits := map[string]bool{}
		next := 0
		for range 500 {
			name := names[rng.IntN(len(names))]
			any := ""
			for id := range waits {
				any = max(any, id)
				if rng.IntN(4) == 0 {
					break
				}
			}
			switch rng.IntN(9) {
			case 0:
				_ = s.Make(name, Settings{Type: queuevm.QueueFifo, Weight: 1 + rng.IntN(9), Capacity: rng.IntN(20)})
			case 1:
				if state, there := s.State(name); there {
					state.Held, state.Capacity, state.Weight = rng.IntN(4) == 0, rng.IntN(9), 1+rng.IntN(9)
					state.Type = []queuevm.QueueType{queuevm.QueueFifo, queuevm.QueuePriority}[rng.IntN(2)]
					if err := s.Change(name, state.Settings); err != nil {
						t.Fatal(err)
					}
				}
			case 2:
				state, there := s.State(name)
				if err := s.Remove(name); (err == nil) != (there && name != Default && state.Depth == 0) {
					t.Fatalf("seed %d: removing %s of depth %d: %v", seed, name, state.Depth, err)
				}
			case 3, 4:
				state, there := s.State(name)
				err := s.Reserve(name)
				if full := state.Capacity > 0 && state.Depth >= state.Capacity; !there && !errors.Is(err, ErrUnknown) || there && full != errors.Is(err, ErrFull) {
					t.Fatalf("seed %d: a place in %s, there %v, %d of %d: %v", seed, name, there, state.Depth, state.Capacity, err)
				}
				if err == nil {
					next++
					id := fmt.Sprintf("j%03d", next)
					waits[id] = true
					s.Enter(&Job[string]{ID: id, Place: Place{name, rng.IntN(3), uint64(next)}, Size: 1 + rng.IntN(3), Ready: rng.IntN(5) > 0, Value: id})
					s.Unreserve(name)
				}
			case 5:
				if s.Leave(any) != waits[any] {
					t.Fatalf("seed %d: %s was in: %v", seed, any, waits[any])
				}
				delete(waits, any)
			case 6:
				s.Move(any, Place{name, rng.IntN(3), uint64(rng.IntN(next + 1))})
			case 7:
				s.Ready(any)
			case 8:
				room := rng.IntN(6)
				offered := map[string]bool{}
				s.Round(func(j *Job[string]) Answer {
					if offered[j.ID] || !waits[j.ID] || !j.Ready {
						t.Fatalf("seed %d: %s is offered, twice %v, waits %v, ready %v", seed, j.ID, offered[j.ID], waits[j.ID], j.Ready)
					}
					offered[j.ID] = true
					if j.Size > room {
						return Passed
					}
					room -= j.Size
					delete(waits, j.ID)
					return Placed
				})
			}
			depth := 0
			for _, name := range s.Names() {
				state, _ := s.State(name)
				depth += state.Depth
				jobs := s.Peek(name, state.Depth)
				ready := 0
				for i, j := range jobs {
					if j.Ready {
						ready++
					}
					if !waits[j.ID] {
						t.Fatalf("seed %d: %s waits in %s, and has gone", seed, j.ID, name)
					}
					if i > 0 && state.Type.Compare(jobs[i-1].rank(), j.rank()) > 0 {
						t.Fatalf("seed %d: %s: %s stands before %s", seed, name, jobs[i-1].ID, j.ID)
					}
				}
				if q := s.queues[name]; q.ready != ready || q.reserved != 0 || q.in-q.out != uint64(len(jobs)) {
					t.Fatalf("seed %d: %s: %d ready of %d, %d reserved, %d in, %d out; counted %d", seed, name, q.ready, len(jobs), q.reserved, q.in, q.out, ready)
				}
			}
			if depth != len(waits) || s.Len() != depth {
				t.Fatalf("seed %d: %d wait, expected %d, and %d are known", seed, depth, len(waits), s.Len())
			}
		}
	}
}

// Over time each queue that has jobs gets room by its weight, whatever their
// sizes, and none starves.
func TestShares(t *testing.T) {
	s := New[string]()
	weights := map[string]int{"light": 1, "middle": 3, "heavy": 6}
	for name, weight := range weights {
		if err := s.Make(name, Settings{Type: queuevm.QueueFifo, Weight: weight}); err != nil {
			t.Fatal(err)
		}
	}
	rng := rand.New(rand.NewPCG(1, 1))
	n := 0
	got := map[string]int{}
	total := 0
	for range 20_000 {
		for name := range weights {
			for {
				state, _ := s.State(name)
				if state.Depth > 3 {
					break
				}
				n++
				s.Enter(&Job[string]{ID: fmt.Sprint(n), Place: Place{Queue: name, Arrival: uint64(n)}, Size: 1 + rng.IntN(4), Ready: true, Since: time.Time{}, Value: name})
			}
		}
		served := false
		s.Round(func(j *Job[string]) Answer {
			if served {
				return Enough
			}
			served = true
			got[j.Value] += j.Size
			total += j.Size
			return Placed
		})
	}
	for name, weight := range weights {
		if share, want := float64(got[name])/float64(total), float64(weight)/10; share < want*0.99 || share > want*1.01 {
			t.Errorf("%s has the share %.3f, expected %.1f", name, share, want)
		}
	}
}
