package broker

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"mvm/broker/jobqueue"
	"mvm/wsdl"
)

// playAnyOrder drives one life with random events and checks each answer.
func playAnyOrder(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 7))
	l := parseLife(t, []string{"tasks=a*2,b*2", "wall=1m"})
	l.Retries = rng.IntN(3)
	if seed%2 == 0 {
		l.Every = time.Second
	}
	// What the world holds, by node: the number of the attempt that may run there.
	holds := map[string]int{}
	attempts, ended := 0, 0
	sequence := map[string]int64{}
	kept := "" // of the newest checkpoint that is journalled: what its members go on from
	for range 400 {
		var e event
		pick := func() int { return rng.IntN(max(1, len(l.Members))) }
		number := l.Attempt
		if rng.IntN(8) == 0 {
			number-- // from an attempt that is over
		}
		if len(l.Members) == 0 && rng.IntN(20) > 0 || l.Gone {
			if rng.IntN(40) == 0 {
				e = cancelled{}
			} else {
				e = placed{Members: []member{{Node: "n1", Processes: []int{0, 1}}, {Node: "n2", Processes: []int{2, 3}}}}
			}
		} else {
			i := pick()
			switch rng.IntN(18) {
			case 0, 1:
				e = awoke{Attempt: number, Member: i}
			case 2:
				e = refused{Attempt: number, Member: i, Code: []wsdl.FaultCode{wsdl.FaultCodeBusy, wsdl.FaultCodeUnavailable, wsdl.FaultCodeStale, wsdl.FaultCodeInternal}[rng.IntN(4)]}
			case 3:
				e = instantiated{Attempt: number, Member: i}
			case 4:
				e = unstarted{Attempt: number, Member: i, Code: []wsdl.FaultCode{wsdl.FaultCodeStale, wsdl.FaultCodeInternal}[rng.IntN(2)]}
			case 5, 6, 7, 8:
				m := l.Members[i]
				if rng.IntN(3) > 0 {
					sequence[m.Node]++
				}
				code := rng.IntN(8) / 7
				e = reported{Attempt: number, Member: i, Report: report{Sequence: max(1, sequence[m.Node]), Quiet: int64(rng.IntN(3)),
					Processes: []process{{ID: m.Processes[rng.IntN(len(m.Processes))], State: wsdl.ProcessStateExited, ExitCode: &code}}}}
			case 9, 10:
				e = terminated{Attempt: number, Member: i, Sequence: int64(rng.IntN(3))}
				if number == l.Attempt && l.Phase == wsdl.JobStateTerminating {
					holds[l.Members[i].Node] = 0
				} else {
					continue // nobody acknowledges what was not asked
				}
			case 11:
				if rng.IntN(4) == 0 {
					e = lost{Attempt: number, Member: i}
				} else {
					e = cancelled{}
					if rng.IntN(10) > 0 {
						continue
					}
				}
			case 12:
				e = rejoined{Attempt: number, Member: i}
				if number == l.Attempt {
					holds[l.Members[i].Node] = 0
				}
			case 13:
				if e = (absent{Attempt: number, Member: i}); rng.IntN(2) == 0 {
					e = present{Attempt: number, Member: i}
				}
			case 14:
				x := answered{Attempt: number, Round: 1 + rng.IntN(2), Answers: make([]quiet, len(l.Members))}
				for k := range x.Answers {
					x.Answers[k] = quiet{Failed: rng.IntN(9) == 0, Quiet: rng.IntN(9) > 0, Period: int64(rng.IntN(2)), Waits: []waiting{{Process: k, Other: 1 - k}}}
				}
				e = x
			case 15, 16:
				x := saved{Attempt: number, Number: l.Sets - int64(rng.IntN(5)/4)}
				if rng.IntN(3) > 0 {
					x.Set = &set{Attempt: number, Number: x.Number, Blobs: []string{"x"}}
					for _, m := range l.Members {
						x.Set.Members = append(x.Set.Members, setMember{Node: m.Node, Processes: m.Processes, Record: fmt.Sprint(number, x.Number)})
					}
				}
				if x.Number < 1 {
					continue // none was begun
				}
				e = x
			default:
				timers := []timer{probeTimer, wallTimer, dropTimer, flushTimer, expireTimer, startTimer, absentTimer, holdTimer, setTimer}
				x := elapsed{Attempt: number, Timer: timers[rng.IntN(len(timers))], Turn: rng.IntN(3)}
				if x.Timer == startTimer || x.Timer == absentTimer {
					x.Members = []int{i}
				}
				if x.Timer == setTimer && l.Every == 0 {
					continue // no such timer was set
				}
				if x.Timer == expireTimer {
					if number != l.Attempt || !l.Members[i].Dropped {
						continue // no such timer was set
					}
					x.Members = []int{i}
					holds[l.Members[i].Node] = 0
				}
				e = x
			}
		}
		if rng.IntN(60) == 0 && !final(l.Phase) {
			crash(l)
			e = recovered{}
		} else if rng.IntN(40) == 0 {
			e = moved{Place: jobqueue.Place{Priority: rng.IntN(3)}, Waiting: rng.IntN(2) == 0}
		}
		was := l.Phase
		durable := l.Running
		for _, a := range l.step(time.Time{}, e) {
			if ended > 0 {
				t.Fatalf("seed %d: after its end the job wants %T", seed, a)
			}
			switch a := a.(type) {
			case commit:
				if a.Attempt {
					attempts++
					if attempts != l.Attempt {
						t.Fatalf("seed %d: attempt %d follows %d", seed, l.Attempt, attempts-1)
					}
					clear(sequence)
				}
				durable = durable || a.Go
				if a.Set {
					if kept = ""; l.Set != nil {
						kept = l.Set.Members[0].Record
					}
				}
				if a.Requeue || a.End {
					for node, n := range holds {
						if n != 0 {
							t.Fatalf("seed %d: attempt %d is over while %s may run it", seed, n, node)
						}
					}
				}
			case snapshot:
				if l.Every == 0 || !durable {
					t.Fatalf("seed %d: a checkpoint before the go is durable, or of a job that has none", seed)
				}
			case awaken:
				// What was journalled last is gone on from, by all or by none.
				if m := l.Members[a.Member]; l.Set == nil && m.Restore != "" || l.Set != nil && m.Restore != kept {
					t.Fatalf("seed %d: %s goes on from %q, and the journal has %q", seed, m.Node, m.Restore, kept)
				}
				if attempts != l.Attempt {
					t.Fatalf("seed %d: awakened before the attempt is durable", seed)
				}
				if n := holds[l.Members[a.Member].Node]; n != 0 && n != l.Attempt {
					t.Fatalf("seed %d: attempt %d begins on a node that may run %d", seed, l.Attempt, n)
				}
				holds[l.Members[a.Member].Node] = l.Attempt
			case instantiate:
				if !durable {
					t.Fatalf("seed %d: instantiated before the go is durable", seed)
				}
				holds[l.Members[a.Member].Node] = l.Attempt
			case done:
				ended++
			}
		}
		if final(was) && l.Phase != was {
			t.Fatalf("seed %d: the job was %s and is %s", seed, was, l.Phase)
		}
		if l.Phase == wsdl.JobStateSucceeded {
			for _, p := range l.Processes {
				if p.failed() || !p.ended() {
					t.Fatalf("seed %d: it succeeded with process %d %s", seed, p.ID, p.State)
				}
			}
		}
		if l.Failures > l.Retries+1 {
			t.Fatalf("seed %d: %d failures, %d retries", seed, l.Failures, l.Retries)
		}
	}
}
