package profile

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
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
