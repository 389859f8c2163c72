package broker

// Points are the places where a crash of the broker makes a difference, in the
// order in which a job passes them: before and after each kind of transaction
// (TestCrashAtEveryCommit stops it at each in the process, the soak kills the
// process), and around each call to a node.
func Points() []string {
	points := []string{"before takeover", "after takeover", "recovered"}
	for _, step := range []string{"submit", "attempt", "Awaken", "go", "Instantiate", "report", "outcome", "Terminate", "drop", "requeue", "end", "move", "queue"} {
		points = append(points, "before "+step, "after "+step)
	}
	return points
}

// ChangePoints are those that only a live change of a job's queues passes.
func ChangePoints() []string {
	var points []string
	for _, step := range []string{"change", "ApplyChange", "changed"} {
		points = append(points, "before "+step, "after "+step)
	}
	return points
}

// SetPoints are those that only the checkpoints of a job in VMs pass.
func SetPoints() []string {
	var points []string
	for _, step := range []string{"take", "save", "set"} {
		points = append(points, "before "+step, "after "+step)
	}
	return points
}

func (b *Service) pass(point string) {
	if b.config.Pass != nil {
		b.config.Pass(point)
	}
}

// point names a transaction by the most that it does.
func (c commit) point() string {
	switch {
	case c.End:
		return "end"
	case c.Requeue:
		return "requeue"
	case c.Outcome:
		return "outcome"
	case c.Go:
		return "go"
	case c.Attempt:
		return "attempt"
	case c.Report != nil:
		return "report"
	case c.Set:
		return "set"
	case c.Moved:
		return "move"
	case c.Changed:
		return "changed"
	case c.Change > 0:
		return "change"
	}
	return "drop"
}
