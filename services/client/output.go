package client

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"time"

	"mvm/wsdl"
)

// Stdout and Stderr are the names of a process's two streams in Output.
const (
	Stdout = "stdout"
	Stderr = "stderr"
)

// Output writes what is there of a process's stream or output file to w, and
// returns the offset after it. With follow it goes on until nothing more will
// come: until the process has ended.
func (c *Client) Output(ctx context.Context, id string, process int, name string, offset int64, follow bool, w io.Writer) (int64, error) {
	const wait = 20 * time.Second
	for {
		ask := &wsdl.GetOutput{Id: id, Process: wsdl.Of(int32(process)), Name: name, Offset: offset}
		if follow {
			ask.WaitMillis = int32(wait.Milliseconds())
		}
		var answer *wsdl.GetOutputResponse
		err := c.patiently(ctx, func() (err error) {
			answer, err = c.broker.GetOutputContext(ctx, ask)
			return err
		})
		if err != nil {
			return offset, err
		}
		var data []byte
		if answer.Data != nil {
			data = *answer.Data
		}
		if len(data) > 0 {
			if _, err := w.Write(data); err != nil {
				return offset, err
			}
		}
		offset = wsdl.Or(answer.Next, offset+int64(len(data)))
		if wsdl.Or(answer.End, false) || (len(data) == 0 && !follow) {
			return offset, nil
		}
		if len(data) == 0 {
			// A grid that answers at once although it was asked to wait is not
			// to be asked in a tight loop.
			select {
			case <-ctx.Done():
				return offset, ctx.Err()
			case <-time.After(20 * time.Millisecond):
			}
		}
	}
}

// Label names a process as people do: worker[3], or master when it is alone
// in its task.
func Label(status *wsdl.JobStatus, p *wsdl.ProcessStatus) string {
	for _, other := range status.Process {
		if other.Task == p.Task && wsdl.Or(other.Index, 0) != wsdl.Or(p.Index, 0) {
			return fmt.Sprintf("%s[%d]", p.Task, wsdl.Or(p.Index, 0))
		}
	}
	return p.Task
}

// Process finds a process by what people write: worker[3], worker for the
// first of its task, or its number over the whole job.
func Process(status *wsdl.JobStatus, name string) (*wsdl.ProcessStatus, error) {
	task, index, id := name, 0, -1
	if open := strings.IndexByte(name, '['); open >= 0 && strings.HasSuffix(name, "]") {
		n, err := strconv.Atoi(name[open+1 : len(name)-1])
		if err != nil || n < 0 {
			return nil, usagef("%q names no process: write task[index], for example worker[3]", name)
		}
		task, index = name[:open], n
	} else if n, err := strconv.Atoi(name); err == nil {
		id = n
	}
	for _, p := range status.Process {
		if id >= 0 && int(wsdl.Or(p.Id, 0)) == id {
			return p, nil
		}
		if id < 0 && p.Task == task && int(wsdl.Or(p.Index, 0)) == index {
			return p, nil
		}
	}
	return nil, wsdl.NewFault(wsdl.FaultCodeNotFound,
		fmt.Sprintf("job %s has no process %s", status.Id, name),
		"`mvm job "+status.Id+"` lists its processes")
}

// Result is one output file of a job, and where Save puts it.
type Result struct {
	Process int32  `json:"process"`
	Label   string `json:"label"`
	Name    string `json:"name"`
	Digest  string `json:"digest"`
	Size    int64  `json:"size"`
	Path    string `json:"path"` // below the folder given to Save
}

// Results lists the output files of a job, without stdout and stderr. A file
// that only one process left keeps its name; where several left one of the
// same name, each is put into a folder named after its process. If that hides
// one file behind another, all are put into such folders.
func Results(status *wsdl.JobStatus) []Result {
	times := map[string]int{}
	for _, p := range status.Process {
		for _, f := range p.File {
			times[f.Name]++
		}
	}
	results := resultsIn(status, func(name string) bool { return times[name] > 1 })
	if collide(results) {
		results = resultsIn(status, func(string) bool { return true })
	}
	return results
}

func resultsIn(status *wsdl.JobStatus, apart func(name string) bool) []Result {
	var results []Result
	for _, p := range status.Process {
		for _, f := range p.File {
			if f.Name == Stdout || f.Name == Stderr {
				continue
			}
			r := Result{Process: wsdl.Or(p.Id, 0), Label: Label(status, p), Name: f.Name, Digest: f.Digest, Size: wsdl.Or(f.Size, 0), Path: f.Name}
			if apart(f.Name) {
				r.Path = path.Join(fmt.Sprintf("%s.%d", p.Task, wsdl.Or(p.Index, 0)), f.Name)
			}
			results = append(results, r)
		}
	}
	sort.SliceStable(results, func(i, j int) bool { return results[i].Path < results[j].Path })
	return results
}

// collide says whether two results have one path, or one lies below another.
func collide(results []Result) bool {
	files := map[string]bool{}
	for _, r := range results {
		if files[r.Path] {
			return true
		}
		files[r.Path] = true
	}
	for _, r := range results {
		for dir := path.Dir(r.Path); dir != "." && dir != "/"; dir = path.Dir(dir) {
			if files[dir] {
				return true
			}
		}
	}
	return false
}

// Save writes a result below dir, verified against its digest. Names come
// from the grid, so nothing is written outside dir, not through a link either.
func (c *Client) Save(ctx context.Context, id string, r Result, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	name := filepath.FromSlash(r.Path)
	if !filepath.IsLocal(name) {
		return fmt.Errorf("output %q of %s is refused: its name leads out of %s", r.Name, r.Label, dir)
	}
	if parent := filepath.Dir(name); parent != "." {
		if err := root.MkdirAll(parent, 0o755); err != nil {
			return err
		}
	}
	if there, err := root.Stat(name); err == nil && !there.Mode().IsRegular() {
		return fmt.Errorf("output %s of %s cannot be saved: %s is there already and is no file; move it, or save into another folder", r.Name, r.Label, filepath.Join(dir, name))
	}
	// The file appears under its name only when it is whole. Until then it has one
	// that no output has: theirs do not begin with a dot.
	partial := filepath.Join(filepath.Dir(name), ".mvm-"+rand.Text())
	f, err := root.OpenFile(partial, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer root.Remove(partial)
	sum := sha256.New()
	_, err = c.Output(ctx, id, int(r.Process), r.Name, 0, true, io.MultiWriter(f, sum))
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("output %s of %s: %w", r.Name, r.Label, err)
	}
	if got := "sha256:" + hex.EncodeToString(sum.Sum(nil)); r.Digest != "" && got != r.Digest {
		return fmt.Errorf("output %s of %s arrived as %s, expected %s: ask for it again", r.Name, r.Label, got, r.Digest)
	}
	return root.Rename(partial, name)
}
