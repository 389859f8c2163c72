package profile

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"mvm/wsdl"
)

// End reads one end of an edge between processes, queues and the outside of a
// compiled job, as a person writes it while the job runs: task:port,
// task[index]:port, outside:name, queue:name or queue:ID. The queue is not
// looked up: it may have been made since. Process is -1 but for a process's
// port. The error is a sentence.
func (j *Job) End(text string) (end End, queue string, err error) {
	const rule = "task:port, task[index]:port, queue:name or outside:name"
	name, port, ok := strings.Cut(text, ":")
	if !ok {
		return End{}, "", fmt.Errorf("%s is no end of an edge: expected %s", quote(text), rule)
	}
	if name == "queue" {
		if name, _, _ := strings.Cut(port, "#"); !isName(name) && !digits(port) {
			return End{}, "", fmt.Errorf("%s: %s is no queue's name", quote(text), quote(port))
		}
		return End{Process: -1}, port, nil
	}
	if !isName(port) {
		return End{}, "", fmt.Errorf("%s: %s is no port's name: write %s", quote(text), quote(port), nameRule)
	}
	if name == "outside" {
		return End{Process: -1, Outside: port}, "", nil
	}
	name, rest, indexed := strings.Cut(name, "[")
	index := 0
	if indexed {
		number, closed := strings.CutSuffix(rest, "]")
		if !closed || !digits(number) || len(number) > 9 {
			return End{}, "", fmt.Errorf("%s is no end of an edge: expected %s", quote(text), rule)
		}
		index, _ = strconv.Atoi(number)
	}
	i := slices.IndexFunc(j.Tasks, func(t Task) bool { return t.Name == name })
	if i < 0 {
		names := make([]string, len(j.Tasks))
		for i := range j.Tasks {
			names[i] = j.Tasks[i].Name
		}
		return End{}, "", fmt.Errorf("%s: the job has no task %s%s", quote(text), quote(name), Nearest(name, names))
	}
	task := j.Tasks[i]
	switch {
	case index >= task.Count:
		return End{}, "", fmt.Errorf("%s: the task %q has %d processes, so its index goes from 0 to %d", quote(text), name, task.Count, task.Count-1)
	case !indexed && task.Count > 1:
		return End{}, "", fmt.Errorf("%s: the task %q has %d processes: write %s[0]:%s to %s[%d]:%s", quote(text), name, task.Count, name, port, name, task.Count-1, port)
	}
	return End{Process: task.First + index, Port: port}, "", nil
}

// Nearest is `; did you mean "x"?` for the name that is closest to word, or ""
// where none is close.
func Nearest(word string, names []string) string {
	return new(problems).nearest(word, slices.Values(names))
}

// Label is what people call an end: sender[0]:out, queue:jobs or outside:numbers.
// queues are those of the job, by ID.
func (j *Job) Label(e End, queues []Queue) string {
	switch {
	case e.Outside != "":
		return "outside:" + e.Outside
	case e.Queue > 0:
		return "queue:" + queues[e.Queue-1].Name
	}
	return j.Processes[e.Process].Label() + ":" + e.Port
}

// CompileQueue checks a queue element by itself, as a live change brings it, and
// makes the served queue of it; its ID is 1. sources are those of its registered
// codecs and rule; served says whether such a queue needs a home.
func CompileQueue(queue *wsdl.Queue, link *wsdl.Link, lookup Lookup) (q Queue, sources []Source, served bool, err error) {
	c := &compiler{lookup: lookup, out: &Job{}}
	c.scope = c.newScope(place{path: "change"}, nil, nil, "the change")
	c.compileQueues(place{path: "change"}, []*wsdl.Queue{queue})
	l := c.link(place{path: "change/link"}, c.scope, link, "the edge")
	kind := c.queues[queue.Name]
	if err := c.fault("the change"); err != nil {
		return Queue{}, nil, false, err
	}
	if kind == nil || kind.name == "fifo" {
		return Queue{}, nil, false, wsdl.Faultf(wsdl.FaultCodeInvalidRequest, "the queue has no name")
	}
	w := &wirer{compiler: c}
	w.queue(kind, l)
	return c.out.Queues[0], c.logic, kind.served() || l != nil, nil
}
