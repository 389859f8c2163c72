package client

import (
	"context"
	"crypto/rand"
	"time"

	"mvm/wsdl"
)

// Request is what Submit and Plan take: a loaded profile, or the name of a
// registered one.
type Request struct {
	Document *Document // from Load; or else
	Profile  string    // a registered job profile's name
	Version  int       // and its version; 0 is the newest
	// Queue is where the job waits, whatever its policy says; "" is as that says.
	Queue string
	// Arguments are values for the profile's parameters.
	Arguments map[string]string
	// Token makes Submit idempotent: the same token submits once. Default: a
	// random one.
	Token string
	// Uploaded, if set, is told how many bytes of files are on the grid, and
	// how many there are.
	Uploaded func(done, total int64)
}

// Submit uploads the profile's files and submits the job. When the id is
// returned, the job is durable. A refused profile is a *wsdl.Fault with code
// invalidProfile or unsupported whose problems name lines of the file.
func (c *Client) Submit(ctx context.Context, r Request) (id string, err error) {
	message := &wsdl.SubmitJob{Token: r.Token, Profile: r.Profile, Version: int32(r.Version), Argument: assignments(r.Arguments), Queue: r.Queue}
	if message.Token == "" {
		message.Token = rand.Text()
	}
	if r.Document != nil {
		if message.Job, err = c.ship(ctx, r.Document, r.Arguments, r.Uploaded); err != nil {
			return "", err
		}
	}
	err = c.patiently(ctx, func() error {
		answer, err := c.broker.SubmitJobContext(ctx, message)
		if err == nil {
			id = answer.Id
		}
		return err
	})
	return id, r.Document.locate(fits(err))
}

// Plan asks where each process would go now, and why not elsewhere. Nothing
// runs.
func (c *Client) Plan(ctx context.Context, r Request) (*wsdl.PlanJobResponse, error) {
	message := &wsdl.PlanJob{Profile: r.Profile, Version: int32(r.Version), Argument: assignments(r.Arguments), Queue: r.Queue}
	var err error
	if r.Document != nil {
		if message.Job, err = c.ship(ctx, r.Document, r.Arguments, r.Uploaded); err != nil {
			return nil, err
		}
	}
	plan, err := c.broker.PlanJobContext(ctx, message)
	return plan, r.Document.locate(fits(err))
}

// fits says what to do about a profile that is too large for one message.
func fits(err error) error {
	if wsdl.CodeOf(err) != wsdl.FaultCodeTooLarge {
		return err
	}
	return wsdl.NewFault(wsdl.FaultCodeTooLarge, "the profile is too large for one message: "+err.Error(),
		"put what is long into files beside the profile and name them with from: they are uploaded by themselves, whatever their size")
}

// Job is the job as it is now.
func (c *Client) Job(ctx context.Context, id string) (*wsdl.JobStatus, error) {
	answer, err := c.broker.GetJobContext(ctx, &wsdl.GetJob{Id: id})
	if err != nil {
		return nil, err
	}
	return answer.Job, nil
}

// Wait returns the job once it has ended. changed, if not nil, is called with
// each new state of it, the first included. The context bounds the wait.
func (c *Client) Wait(ctx context.Context, id string, changed func(*wsdl.JobStatus)) (*wsdl.JobStatus, error) {
	if changed == nil {
		for {
			if status, err := c.next(ctx, id, 0); err != nil || Ended(status) {
				return status, err
			}
		}
	}
	var status *wsdl.JobStatus
	err := c.patiently(ctx, func() (err error) {
		status, err = c.Job(ctx, id)
		return err
	})
	for err == nil {
		changed(status)
		if Ended(status) {
			return status, nil
		}
		seen := status.Revision
		// It is below what was seen after a restart of the broker by a clock that
		// was set back.
		for err == nil && status.Revision == seen {
			status, err = c.next(ctx, id, seen)
		}
	}
	return nil, err
}

// next is one long poll: the job once its revision is above seen, or with 0 once
// it has ended, or after the longest time that the broker waits.
func (c *Client) next(ctx context.Context, id string, seen int64) (status *wsdl.JobStatus, err error) {
	timeout := 30 * time.Second
	if deadline, ok := ctx.Deadline(); ok {
		timeout = max(min(timeout, time.Until(deadline)), time.Millisecond)
	}
	err = c.patiently(ctx, func() error {
		answer, err := c.broker.WaitJobContext(ctx, &wsdl.WaitJob{Id: id, Revision: seen, TimeoutMillis: int32(timeout.Milliseconds())})
		if err == nil {
			status = answer.Job
		}
		return err
	})
	if err == nil && ctx.Err() != nil {
		err = ctx.Err()
	}
	return status, err
}

// Ended tells whether the job is in a state that it will not leave.
func Ended(status *wsdl.JobStatus) bool {
	switch wsdl.Or(status.State, "") {
	case wsdl.JobStateSucceeded, wsdl.JobStateFailed, wsdl.JobStateCancelled:
		return true
	}
	return false
}

// JobFilter narrows Jobs. Its zero value lists all.
type JobFilter struct {
	State wsdl.JobState // "" is any
	Name  string        // part of the job's name
	Limit int           // 0 is no limit
}

// Jobs lists jobs, newest first, without their processes and builds.
func (c *Client) Jobs(ctx context.Context, f JobFilter) ([]*wsdl.JobStatus, error) {
	const page = 1000 // the most that the broker answers at once
	ask := &wsdl.ListJobs{Name: f.Name}
	if f.State != "" {
		ask.State = &f.State
	}
	var jobs []*wsdl.JobStatus
	for {
		ask.Limit = page
		if f.Limit > 0 {
			ask.Limit = int32(min(page, f.Limit-len(jobs)))
		}
		answer, err := c.broker.ListJobsContext(ctx, ask)
		if err != nil {
			return nil, err
		}
		jobs = append(jobs, answer.Job...)
		if len(answer.Job) < int(ask.Limit) || (f.Limit > 0 && len(jobs) >= f.Limit) {
			return jobs, nil
		}
		ask.Before = jobs[len(jobs)-1].Id
	}
}

// Cancel ends the job. Cancelling an ended job changes nothing; the state that
// it has then is returned.
func (c *Client) Cancel(ctx context.Context, id, reason string) (wsdl.JobState, error) {
	answer, err := c.broker.CancelJobContext(ctx, &wsdl.CancelJob{Id: id, Reason: reason})
	if err != nil {
		return "", err
	}
	return wsdl.Or(answer.State, ""), nil
}

func assignments(values map[string]string) []*wsdl.Assignment {
	var list []*wsdl.Assignment
	for _, name := range sorted(values) {
		list = append(list, &wsdl.Assignment{Name: name, Value: values[name]})
	}
	return list
}
