package broker

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"mvm/services/store"
	"mvm/wsdl"
)

// Ledger is what Audit found.
type Ledger struct {
	Jobs []JobEntry // by id
	// Problems are what does not fit together, a sentence each. A broker that was
	// killed may leave live marks and pins behind, which the next one removes as
	// it starts; there is no other excuse.
	Problems []string
}

// JobEntry is a job as the journal has it.
type JobEntry struct {
	ID       string
	Name     string
	Token    string
	State    wsdl.JobState // pending when it is under way
	Reason   string
	Attempt  int // number of the newest attempt, 0 before the first
	Failures int // attempts that ran and failed
	Ended    time.Time
}

// Audit reads the state of a grid whose front end does not run, every key of
// it, and says what does not fit together:
//
//   - a job has its record, its token and its status, and no token or status is
//     without a job;
//   - a job that has ended has its results, a succeeded one nothing but good
//     ends, another one a reason; and neither attempt nor live mark;
//   - another has at most one attempt that is not over: first its members, then
//     its go, then reports of its members; and nothing is named live but those
//     members, under the incarnations they were journalled with;
//   - a job that has not ended belongs to a queue that is there;
//   - every value can be read, and every blob that is referred to is here and
//     pinned, and nothing else is pinned by the broker.
//
// An error means that the state could not be read.
func Audit(ctx context.Context, state *store.Store, blobs Blobs) (*Ledger, error) {
	all, err := state.List(ctx, "")
	if err != nil {
		return nil, err
	}
	live, problems, err := state.Audit(ctx)
	if err != nil {
		return nil, err
	}
	a := &auditor{images: blobs, ledger: &Ledger{Problems: problems}, values: map[string][]byte{}, needed: map[string]string{}, sets: map[string]bool{}}
	for _, kv := range all {
		a.values[kv.Key] = kv.Value
		known := kv.Key == epochKey
		for _, prefix := range []string{"grid/", jobsPrefix, tokensPrefix, statusPrefix, resultsPrefix, attemptsPrefix, profilesPrefix, queuesPrefix, setsPrefix} {
			known = known || strings.HasPrefix(kv.Key, prefix)
		}
		if !known {
			a.bad("%s: no key of this grid's", kv.Key)
		}
	}
	members := map[store.Attempt]bool{}
	for _, kv := range all {
		if id, ok := strings.CutPrefix(kv.Key, statusPrefix); ok {
			a.job(id, a.attemptsOf(all, id), members)
		}
	}
	a.strays(all)
	for _, l := range live {
		if !members[l] {
			a.bad("attempt %d at job %s is named live on node %s, incarnation %s, and has no such member", l.Number, l.Job, l.Node, l.Incarnation)
		}
	}
	a.pins()
	return a.ledger, nil
}

type auditor struct {
	images Blobs
	ledger *Ledger
	values map[string][]byte
	needed map[string]string // by digest: who refers to it
	sets   map[string]bool   // under which checkpoints are pinned
}

func (a *auditor) bad(format string, args ...any) {
	a.ledger.Problems = append(a.ledger.Problems, fmt.Sprintf(format, args...))
}

// read unpacks a value, and notes what it refers to.
func (a *auditor) read(key string, v any) bool {
	value, there := a.values[key]
	if !there {
		a.bad("%s: it is missing", key)
		return false
	}
	if digest, ok := strings.CutPrefix(string(value), "@"); ok {
		a.needed[digest] = key
	}
	if err := unpack(a.images, value, v); err != nil {
		a.bad("%s: %v", key, err)
		return false
	}
	return true
}

// attemptsOf are the records of a job's attempts, by number.
func (a *auditor) attemptsOf(all []store.KV, id string) map[int]map[string]string {
	attempts := map[int]map[string]string{}
	from, _ := slices.BinarySearchFunc(all, attemptsPrefix+id+"/", func(kv store.KV, key string) int { return strings.Compare(kv.Key, key) })
	for _, kv := range all[from:] {
		if !strings.HasPrefix(kv.Key, attemptsPrefix+id+"/") {
			break
		}
		_, number, rest, ok := parseAttemptKey(kv.Key)
		if !ok {
			a.bad("%s: no attempt's key", kv.Key)
			continue
		}
		if attempts[number] == nil {
			attempts[number] = map[string]string{}
		}
		attempts[number][rest] = kv.Key
	}
	return attempts
}

// job audits one job, and adds to members whom its attempt may be live on.
func (a *auditor) job(id string, attempts map[int]map[string]string, members map[store.Attempt]bool) {
	var what spec
	var s status
	a.read(jobsPrefix+id, &what)
	if !a.read(statusPrefix+id, &s) {
		return
	}
	var token string
	if a.read(tokenKey(s.Token), &token) && token != id {
		a.bad("job %s: its token %q is that of job %s", id, s.Token, token)
	}
	for _, digest := range s.Blobs {
		a.needed[digest] = statusPrefix + id
	}
	entry := JobEntry{ID: id, Name: s.Name, Token: s.Token, State: s.Phase, Reason: s.Reason, Attempt: s.Attempt, Failures: s.Failures, Ended: s.Ended}
	if final(s.Phase) {
		a.ended(id, &s, attempts)
	} else {
		entry.State = wsdl.JobStatePending
		if _, there := a.values[queueKey(s.Queue)]; !there && s.Queue != "" {
			a.bad("job %s: it belongs to the queue %s, which is not there", id, s.Queue)
		}
		if _, there := a.values[resultsPrefix+id]; there {
			a.bad("job %s: it has results, and has not ended", id)
		}
		if _, there := a.values[setsPrefix+id]; there {
			var newest set
			if a.read(setsPrefix+id, &newest) {
				a.sets[newest.Pins] = true
				for _, m := range newest.Members {
					if !a.images.Has(m.Record) {
						a.bad("%s refers to blob %s, which is not here", setsPrefix+id, m.Record)
					}
				}
			}
		}
		for number, records := range attempts {
			switch {
			case number < s.Attempt || number == s.Attempt && s.Gone:
				a.bad("job %s: attempt %d is over, and has records", id, number)
			case len(attempts) > 1:
				a.bad("job %s: attempt %d is one of %d that are not over", id, number, len(attempts))
			}
			entry.Attempt = max(entry.Attempt, number)
			a.attempt(id, number, records, s.Size, members)
		}
	}
	a.ledger.Jobs = append(a.ledger.Jobs, entry)
}

func (a *auditor) ended(id string, s *status, attempts map[int]map[string]string) {
	if _, there := a.values[setsPrefix+id]; there {
		a.bad("job %s: it has ended, and has a checkpoint", id)
	}
	if len(attempts) > 0 {
		a.bad("job %s: it has ended, and has records of %d attempts", id, len(attempts))
	}
	var r result
	if !a.read(resultsPrefix+id, &r) {
		return
	}
	if len(r.Processes) != s.Size {
		a.bad("job %s: it has %d processes, and results of %d", id, s.Size, len(r.Processes))
	}
	for _, p := range r.Processes {
		for _, f := range p.Files {
			a.needed[f.Digest] = resultsPrefix + id
		}
		if s.Phase == wsdl.JobStateSucceeded && (!p.ended() || p.failed()) {
			a.bad("job %s: it succeeded, and %s is %s", id, p.label(), p.State)
		}
	}
	switch {
	case s.Phase != wsdl.JobStateSucceeded && s.Reason == "":
		a.bad("job %s: it is %s for no reason", id, s.Phase)
	case s.Ended.IsZero():
		a.bad("job %s: it is %s at no time", id, s.Phase)
	}
}

func (a *auditor) attempt(id string, number int, records map[string]string, size int, members map[store.Attempt]bool) {
	var record attemptRecord
	if !a.read(attemptKey(id, number)+"attempt", &record) {
		return
	}
	owner := map[int]int{}
	for i, m := range record.Members {
		members[store.Attempt{Job: partID(id, m.Part), Number: number, Node: m.Node, Incarnation: m.Incarnation}] = true
		for _, p := range m.Processes {
			if _, twice := owner[p]; twice || p < 0 || p >= size {
				a.bad("attempt %d at job %s: its process %d of %d is nobody's, or two members'", number, id, p, size)
			}
			owner[p] = i
		}
	}
	if len(owner) != size {
		a.bad("attempt %d at job %s: its members have %d of %d processes", number, id, len(owner), size)
	}
	for rest, key := range records {
		if n, ok := parseChangeKey(rest); ok {
			var c change
			if a.read(key, &c) && c.Number != n {
				a.bad("%s: it holds change %d", key, c.Number)
			}
			if _, there := records[fmt.Sprintf("change/%06d", n-1)]; n > 1 && !there {
				a.bad("%s: there is no change before it", key)
			}
			if _, there := records["go"]; !there {
				a.bad("%s: the attempt has not begun", key)
			}
			continue
		}
		switch rest {
		case "attempt":
		case "go":
			var start goRecord
			if a.read(key, &start) && len(start.Proxies) != len(record.Members) {
				a.bad("%s: %d proxies of %d members", key, len(start.Proxies), len(record.Members))
			}
		default:
			var r report
			i, sequence, ok := parseReportKey(rest)
			switch {
			case !ok || i >= len(record.Members):
				a.bad("%s: no member's report", key)
				continue
			case !a.read(key, &r):
				continue
			case r.Sequence != sequence:
				a.bad("%s: it holds report %d", key, r.Sequence)
			}
			for _, p := range r.Processes {
				if at, there := owner[p.ID]; !there || at != i {
					a.bad("%s: it tells of process %d, which is another's", key, p.ID)
				}
				for _, f := range p.Files {
					a.needed[f.Digest] = key
				}
			}
		}
	}
}

// strays finds what belongs to no job.
func (a *auditor) strays(all []store.KV) {
	for _, kv := range all {
		id := ""
		switch prefix, rest, _ := strings.Cut(strings.TrimPrefix(kv.Key, "broker/"), "/"); {
		case !strings.HasPrefix(kv.Key, "broker/"):
			continue
		case prefix == "tokens":
			if !a.read(kv.Key, &id) {
				continue
			}
		case prefix == "profiles":
			p := new(registered)
			if !a.read(kv.Key, p) {
				continue
			}
			content, err := p.decode()
			if err != nil {
				a.bad("%s: %v", kv.Key, err)
				continue
			}
			for _, digest := range digestsIn(content) {
				a.needed[digest] = kv.Key
			}
			continue
		case prefix == "queues":
			if _, settings, err := readQueue(a.images, kv); err != nil {
				a.bad("%s: %v", kv.Key, err)
			} else if err := settings.Check(); err != nil {
				a.bad("%s: %v", kv.Key, err)
			}
			continue
		default:
			id, _, _ = strings.Cut(rest, "/")
		}
		if _, there := a.values[statusPrefix+id]; !there {
			a.bad("%s: there is no job %s", kv.Key, id)
		}
	}
}

func (a *auditor) pins() {
	pinned := map[string]bool{}
	for _, owner := range a.images.Owners() {
		if strings.HasPrefix(owner, setPins) {
			if !a.sets[owner] {
				a.bad("blobs are pinned as %s, which is no checkpoint", owner)
			}
			delete(a.sets, owner)
			continue
		}
		digest, ok := strings.CutPrefix(owner, pinPrefix)
		if !ok {
			continue
		}
		pinned[digest] = true
		if a.needed[digest] == "" {
			a.bad("blob %s is pinned, and nothing refers to it", digest)
		}
	}
	for owner := range a.sets {
		a.bad("nothing is pinned for the checkpoint %s", owner)
	}
	for digest, by := range a.needed {
		switch {
		case !a.images.Has(digest):
			a.bad("%s refers to blob %s, which is not here", by, digest)
		case !pinned[digest]:
			a.bad("%s refers to blob %s, which is not pinned", by, digest)
		}
	}
}
