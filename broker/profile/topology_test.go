package profile

import (
	"fmt"
	"slices"
	"strings"
)

// wires is a job's channels in one comparable text, by process IDs.
func wires(job *Job) string {
	var out []string
	for _, c := range job.Channels {
		out = append(out, fmt.Sprintf("%d:%s>%d:%s", c.From.Process, c.From.Port, c.To.Process, c.To.Port))
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}
