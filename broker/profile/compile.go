package profile

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"mvm/wsdl"
)

// Lookup finds a registered profile; version 0 asks for the newest. Its error
// becomes part of a problem.
type Lookup func(kind wsdl.ProfileKind, name string, version int32) (*wsdl.Profile, error)

// Bounds of single values, wide enough for any real machine.
const (
	maxWallTime = 366 * 24 * 3600 // seconds
	maxRetries  = 1000
	maxCores    = 1 << 16
	maxMemory   = 1 << 40 // MiB
	maxCopies   = 1 << 20 // file names
)

// Compile checks the whole job and resolves it. arguments are values for its
// parameters. lookup finds registered topologies and resources and may be nil
// where none are known. file reads the graph of a topology by its path or
// digest and may be nil where graphs are inline only.
//
// The error is a *wsdl.Fault with code invalidProfile. It lists all problems;
// Positions.Locate adds their lines.
func Compile(job *wsdl.Job, arguments map[string]string, lookup Lookup, file func(reference string) ([]byte, error)) (*Job, error) {
	c := &compiler{lookup: lookup, file: file, out: &Job{}}
	c.compile(job, arguments)
	what := "the job profile"
	if isName(job.Name) {
		what += " " + quote(job.Name)
	}
	if err := c.fault(what); err != nil {
		return nil, err
	}
	return c.out, nil
}

// compiler holds one compilation.
type compiler struct {
	problems
	*scope
	lookup Lookup
	file   func(reference string) ([]byte, error)
	out    *Job
	queues map[string]*queueKind
	tasks  map[string]int // name to index in out.Tasks
	logic  []Source       // of registered codecs and rules that queues use
	names  []field        // of the job's sources
	copied int            // file names that are not shared between processes
	broken bool           // the processes are not known, so nothing can be wired
}

func (c *compiler) compile(job *wsdl.Job, arguments map[string]string) {
	at := place{path: "job"}
	c.scope = c.newScope(at, job.Parameter, arguments, "the job")
	name := c.textField(at, c.scope, "name", job.Name)
	c.named(name, "the job")
	c.out.Name, c.out.Description = name.text, job.Description

	c.compileQueues(at, job.Queue)
	sources := c.compileSources(at, job.Source)
	c.out.Sources = append(c.out.Sources, c.logic...)
	c.compileTasks(at, job, sources)
	if !c.broken {
		c.wire(at, job)
	}
	c.compilePolicy(at, job.Policy)
}

func (c *compiler) compileSources(at place, sources []*wsdl.Source) map[string]bool {
	known := map[string]bool{}
	for i, source := range sources {
		here := at.nth("source", i)
		if source == nil {
			c.add(here, "nothing", "a source", "source %d is empty", i+1)
			continue
		}
		name := c.textField(here, c.scope, "name", source.Name)
		what := fmt.Sprintf("source %d", i+1)
		if c.named(name, what) {
			what = "the source " + quote(name.text)
			if known[name.text] {
				c.add(name.at, name.text, "a name of its own", "two sources are named %s", quote(name.text))
			}
		}
		known[name.text] = true
		c.names = append(c.names, name)
		result := c.compileSource(here, what, source)
		result.Name = name.text
		c.out.Sources = append(c.out.Sources, result)
	}
	return known
}

// compileSource resolves one source but for its name.
func (c *compiler) compileSource(here place, what string, source *wsdl.Source) Source {
	language := wsdl.Or(source.Language, "")
	switch language {
	case wsdl.LanguageC, wsdl.LanguageCpp, wsdl.LanguageGo_, wsdl.LanguagePython, wsdl.LanguageShell:
	default:
		c.add(here.attribute("language"), string(language), "c, cpp, go, python or shell",
			"%s has the language %s, expected c, cpp, go, python or shell", what, quote(string(language)))
	}
	result := Source{Language: string(language)}
	taken := files{}
	for j, file := range source.File {
		if file == nil {
			c.add(here.nth("file", j), "nothing", "a file", "file %d of %s is empty", j+1, what)
			continue
		}
		f := c.compileFile(here.nth("file", j), taken, nil, fmt.Sprintf("file %d of %s", j+1, what), wsdl.InputFile(*file))
		if why := unfitSource(language, f.Name); why != "" {
			c.add(here.nth("file", j), f.Name, "another file", "%s: %s", what, why)
		}
		result.Files = append(result.Files, f)
	}
	if len(source.File) == 0 {
		c.add(here, "no file", "at least one file", "%s has no file", what)
	}
	for j, flag := range source.Flag {
		before := len(c.list) + c.left
		flag = c.word(here.nth("flag", j), flag, fmt.Sprintf("flag %d of %s", j+1, what))
		if why := unfitFlag(language, flag); why != "" && len(c.list)+c.left == before {
			c.add(here.nth("flag", j), flag, "another flag, or none", "%s: %s", what, why)
		}
		result.Flags = append(result.Flags, flag)
	}
	return result
}

// word expands a text that becomes an argument or a variable's value.
func (c *compiler) word(at place, text, what string) string {
	out, ok := c.expand(at, c.scope, text)
	if fault := unprintable(out); ok && fault != "" {
		c.add(at, out, "text", "%s %s", what, fault)
	}
	return out
}

// compileFile resolves a file given in exactly one of the four ways. A file
// that only the submitting client can read (path) has no digest yet.
func (c *compiler) compileFile(at place, taken, others files, what string, file wsdl.InputFile) File {
	name := c.textField(at, c.scope, "name", file.Name)
	from := c.textField(at, c.scope, "path", file.Path)
	digest := c.textField(at, c.scope, "digest", file.Digest)
	out := File{Name: name.text}
	content := contained(file.Content, file.Text, file.Path, file.Digest)
	c.oneForm(at, what, file.Text != "", content, from.set || from.bad, digest.set || digest.bad)
	switch {
	case file.Text != "":
		out.Digest = DigestOf([]byte(file.Text))
	case content:
		out.Digest = DigestOf(*file.Content)
	case digest.set:
		c.digested(digest, what)
		out.Digest = digest.text
	case from.set && !name.set && !name.bad:
		out.Name = path.Base(from.text)
	}
	if name.bad || from.bad {
		return out
	}
	if out.Name == "" {
		c.add(at, "no name", "a name", "%s has no name; only a file given by path has one by itself", what)
		return out
	}
	c.claim(taken, others, name.at, out.Name, what)
	return out
}

// oneForm checks that a file is given in exactly one way.
func (c *compiler) oneForm(at place, what string, text, content, from, digest bool) {
	var forms []string
	for _, form := range []struct {
		name  string
		given bool
	}{{"text", text}, {"content", content}, {"path", from}, {"digest", digest}} {
		if form.given {
			forms = append(forms, form.name)
		}
	}
	const expected = "exactly one of text, content, path and digest"
	switch len(forms) {
	case 1:
	case 0:
		c.add(at, "none of them", expected, "%s is given in no way, expected %s; an empty file is written <content/>", what, expected)
	default:
		c.add(at, strings.Join(forms, " and "), expected, "%s is given in %d ways (%s), expected %s", what, len(forms), strings.Join(forms, " and "), expected)
	}
}

func (c *compiler) digested(digest field, what string) bool {
	if digest.set && !isDigest(digest.text) {
		c.add(digest.at, digest.text, "sha256: and 64 hexadecimal digits", "%s has the digest %s, expected sha256: and 64 hexadecimal digits in lower case", what, quote(digest.text))
		return false
	}
	return digest.set
}

// DigestOf is the digest of a blob with these bytes.
func DigestOf(data []byte) string {
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func (c *compiler) compileTasks(at place, job *wsdl.Job, sources map[string]bool) {
	c.tasks = map[string]int{}
	var common []File
	shared := files{}
	for i, input := range job.Input {
		if input == nil {
			c.add(at.nth("input", i), "nothing", "an input file", "input %d is empty", i+1)
			continue
		}
		common = append(common, c.compileFile(at.nth("input", i), shared, nil, fmt.Sprintf("input %d of the job", i+1), *input))
	}
	if len(job.Task) == 0 {
		c.add(at, "no task", "at least one task", "the job has no task")
	}
	used, known := map[string]bool{}, true
	total := int64(0)
	var patterns []Process
	var elements []int // which element of the document each pattern is from
	for i, task := range job.Task {
		if task == nil {
			c.add(at.nth("task", i), "nothing", "a task", "task %d is empty", i+1)
			c.broken = true
			continue
		}
		pattern := c.compileTask(at.nth("task", i), i, task, sources)
		inputs := files{}
		pattern.Inputs = common
		if len(task.Input) > 0 && c.copies(at.nth("task", i), len(common)+len(task.Input)) {
			pattern.Inputs = slices.Clone(common)
		}
		for j, input := range task.Input {
			what := fmt.Sprintf("input %d of the task %s", j+1, quote(pattern.Task))
			if input == nil {
				c.add(at.nth("task", i).nth("input", j), "nothing", "an input file", "%s is empty", what)
				continue
			}
			pattern.Inputs = append(pattern.Inputs, c.compileFile(at.nth("task", i).nth("input", j), inputs, shared, what, *input))
		}
		c.out.Tasks = append(c.out.Tasks, Task{Name: pattern.Task, Source: pattern.Source, First: int(total), Count: pattern.Count})
		used[pattern.Source] = true
		known = known && (sources[pattern.Source] || task.Processor)
		patterns, elements = append(patterns, pattern), append(elements, i)
		total += int64(pattern.Count)
		if total > MaxProcesses {
			c.add(at.nth("task", i).attribute("count"), fmt.Sprint(total), fmt.Sprintf("at most %d processes", MaxProcesses),
				"with the task %s the job has %d processes, expected at most %d", quote(pattern.Task), total, MaxProcesses)
			c.broken = true
			return
		}
	}
	for _, name := range c.names {
		if known && name.set && !used[name.text] {
			c.add(name.at, name.text, "the source of a task, or no such source", "no task runs the source %s", quote(name.text))
		}
	}
	c.out.Processes = make([]Process, 0, total)
	for i, pattern := range patterns {
		element := elements[i]
		outputs := c.compileOutputs(at.nth("task", element), job.Task[element], &pattern)
		for index := range pattern.Count {
			process := pattern
			process.ID, process.Index = len(c.out.Processes), index
			process.Outputs = outputs.every
			if only := outputs.single[index]; len(only) > 0 && c.copies(at.nth("task", element), len(outputs.every)+len(only)) {
				process.Outputs = append(slices.Clone(outputs.every), only...)
			}
			c.out.Processes = append(c.out.Processes, process)
		}
	}
}

// compileTask resolves what all processes of a task have in common.
func (c *compiler) compileTask(at place, i int, task *wsdl.Task, sources map[string]bool) Process {
	name := c.textField(at, c.scope, "name", task.Name)
	what := fmt.Sprintf("task %d", i+1)
	if c.named(name, what) {
		what = "the task " + quote(name.text)
		if _, taken := c.tasks[name.text]; taken {
			c.add(name.at, name.text, "a name of its own", "two tasks are named %s", quote(name.text))
		} else if name.text == "outside" || name.text == "queue" {
			c.add(name.at, name.text, "another name", "a task cannot be named %q: edges write outside:name for what is outside the job, and queue:name for a queue", name.text)
		} else {
			c.tasks[name.text] = len(c.out.Tasks)
		}
	}
	source := c.textField(at, c.scope, "source", task.Source)
	switch {
	case task.Processor:
		if source.set {
			c.add(source.at, source.text, "no source", "%s is a bare processor, which builds the instructions that it dequeues, and so has no source", what)
		}
	case source.bad:
	case !source.set:
		c.add(at.attribute("source"), "nothing", "the name of a source", "%s names no source to run", what)
	case !sources[source.text]:
		c.add(source.at, source.text, "the name of a source of this job", "%s runs the source %s, which the job does not have%s", what, quote(source.text), c.nearest(source.text, maps.Keys(sources)))
	}
	count := numberField(&c.problems, at, c.scope, "count", task.Count)
	c.broken = c.broken || count.bad
	before := len(c.list) + c.left
	process := Process{
		Task: name.text, Source: source.text,
		Count: int(c.whole(count, "the count of "+what, 1, MaxProcesses, 1)),
	}
	c.broken = c.broken || len(c.list)+c.left > before
	for j, argument := range task.Argument {
		process.Arguments = append(process.Arguments, c.word(at.nth("argument", j), argument, fmt.Sprintf("argument %d of %s", j+1, what)))
	}
	seen := map[string]bool{}
	for j, variable := range task.Environment {
		here := at.nth("environment", j)
		if variable == nil {
			c.add(here, "nothing", "a variable", "variable %d of %s is empty", j+1, what)
			continue
		}
		key := c.textField(here, c.scope, "name", variable.Name)
		value := c.word(here.attribute("value"), variable.Value, fmt.Sprintf("the variable %s of %s", quote(key.text), what))
		switch {
		case key.bad:
		case !isParameterName(key.text):
			c.add(key.at, key.text, "a letter or '_', then letters, digits or '_'", "%s has an environment variable named %s, expected a letter or '_', then letters, digits or '_'", what, quote(key.text))
		case strings.HasPrefix(key.text, "MVM_"):
			c.add(key.at, key.text, "a name that does not begin with MVM_", "%s sets the environment variable %q, but names that begin with MVM_ are reserved", what, key.text)
		case seen[key.text]:
			c.add(key.at, key.text, "a name of its own", "%s sets the environment variable %q twice", what, key.text)
		}
		seen[key.text] = true
		process.Environment = append(process.Environment, Variable{Name: key.text, Value: value})
	}
	if task.Resources != nil {
		process.Need = c.compileResources(at.child("resources"), task.Resources, what)
	}
	return process
}

// outputs are the output files of a task: those of every process, and those
// of single ones.
type outputs struct {
	every  []Output
	single map[int][]Output
}

// copies reports whether so many more file names fit into the bound on those
// that processes do not share.
func (c *compiler) copies(at place, more int) bool {
	if c.copied += more; c.copied <= maxCopies {
		return true
	}
	if !c.broken {
		c.broken = true
		c.add(at, fmt.Sprint(c.copied), fmt.Sprintf("at most %d", maxCopies), "with this task the job has %d names of input and output files to keep, expected at most %d", c.copied, maxCopies)
	}
	return false
}

func (c *compiler) compileOutputs(at place, task *wsdl.Task, process *Process) outputs {
	out := outputs{single: map[int][]Output{}}
	every, single := files{}, map[int]files{}
	for j, output := range task.Output {
		here := at.nth("output", j)
		what := fmt.Sprintf("output %d of the task %s", j+1, quote(process.Task))
		if output == nil {
			c.add(here, "nothing", "an output file", "%s is empty", what)
			continue
		}
		name := c.textField(here, c.scope, "name", output.Name)
		index := numberField(&c.problems, here, c.scope, "process", output.Process)
		if name.bad || index.bad {
			continue
		}
		result := Output{Name: name.text, Optional: output.Optional}
		if !index.set {
			if c.claim(every, nil, name.at, name.text, what) {
				for _, one := range single {
					if one[name.text] {
						c.add(name.at, name.text, "a name of its own", "two outputs of the task %s are named %s", quote(process.Task), quote(name.text))
						break
					}
				}
			}
			out.every = append(out.every, result)
			continue
		}
		i := int(c.whole(index, "the process of "+what, 0, int64(process.Count)-1, 0))
		if every[name.text] {
			c.add(name.at, name.text, "a name of its own", "two outputs of the task %s are named %s", quote(process.Task), quote(name.text))
			continue
		}
		if single[i] == nil {
			single[i] = files{}
		}
		c.claim(single[i], nil, name.at, name.text, what)
		out.single[i] = append(out.single[i], result)
	}
	return out
}

func (c *compiler) compilePolicy(at place, policy *wsdl.JobPolicy) {
	out := c.out
	out.WallTime, out.Priority, out.Nodes = 3600*time.Second, 50, 1
	if policy == nil {
		return
	}
	at = at.child("policy")
	number := func(name string, value *wsdl.Number, low, high, otherwise int64) int64 {
		return c.whole(numberField(&c.problems, at, c.scope, name, value), "the policy's "+name, low, high, otherwise)
	}
	out.WallTime = time.Duration(number("wallTime", policy.WallTime, 0, maxWallTime, 3600)) * time.Second
	out.Retries = int(number("retries", policy.Retries, 0, maxRetries, 0))
	out.Priority = int(number("priority", policy.Priority, 0, 100, 50))
	if queue := c.textField(at, c.scope, "queue", policy.Queue); queue.set && c.named(queue, "the policy's queue") {
		out.Queue = queue.text // which there are the broker knows
	}
	out.Nodes = int(number("nodes", policy.Nodes, 1, MaxProcesses, 1))
	if !c.broken && out.Nodes > len(out.Processes) {
		c.add(at.attribute("nodes"), fmt.Sprint(out.Nodes), fmt.Sprintf("at most %d", len(out.Processes)),
			"the policy wants at least %d nodes, but the job has only %d to put on them", out.Nodes, len(out.Processes))
	}
	perVM := int(number("perVM", policy.PerVM, 0, MaxProcesses, 0))
	out.Checkpoint = time.Duration(number("checkpoint", policy.Checkpoint, 0, maxWallTime, 0)) * time.Second
	if out.Checkpoint > 0 {
		c.compileCheckpoint(at.attribute("checkpoint"), policy)
	}
	switch isolation := wsdl.Or(policy.Isolation, wsdl.IsolationProcess); isolation {
	case wsdl.IsolationProcess:
		if perVM > 0 {
			c.add(at.attribute("perVM"), fmt.Sprint(perVM), `isolation="vm" with it`, "the policy says how many processes one VM has, but its isolation is process: there are no VMs")
		}
		if policy.Vm != nil {
			c.add(at.child("vm"), "vm", `isolation="vm" with it`, "the policy says what its VMs may take, but its isolation is process: there are no VMs")
		}
	case wsdl.IsolationVm:
		c.compileVM(at, policy, perVM)
		return
	default:
		c.add(at.attribute("isolation"), string(isolation), "process or vm", "the policy's isolation is %s, expected process or vm", quote(string(isolation)))
	}
	if network := wsdl.Or(policy.Network, wsdl.NetworkNone); network != wsdl.NetworkNone {
		c.add(at.attribute("network"), string(network), "isolation=\"vm\" with it", "the policy's network is %s, but its isolation is process: there are no VMs for it to join", quote(string(network)))
	}
	if policy.Image != "" {
		c.add(at.attribute("image"), policy.Image, "isolation=\"vm\" with it", "the policy names the image %s, but its isolation is process: there is no VM to begin from it", quote(policy.Image))
	}
}

// compileVM is for a job whose processes run in OS-level VMs.
func (c *compiler) compileVM(at place, policy *wsdl.JobPolicy, most int) {
	image := c.textField(at, c.scope, "image", policy.Image)
	switch {
	case policy.Image == "":
		c.add(at.attribute("image"), "", "a registered image", "the policy's isolation is vm, and no image is named that the VMs are begun from: write image=\"NAME\"; `mvm image ls` lists those that are registered")
	case image.set:
		c.out.VM = &VM{Image: image.text, Most: most, Limits: c.compileVMLimits(at.child("vm"), policy.Vm)}
	}
	switch joined := wsdl.Or(policy.Network, wsdl.NetworkNone) == wsdl.NetworkJob; {
	case joined && len(c.out.Processes) > MaxNetwork:
		c.add(at.attribute("network"), string(wsdl.NetworkJob), fmt.Sprintf("at most %d processes", MaxNetwork), "the job has %d processes, and at most %d can have a network", len(c.out.Processes), MaxNetwork)
	case c.out.VM != nil:
		c.out.VM.Network = joined
	}
	for i := range c.out.Channels {
		if channel := &c.out.Channels[i]; channel.Direct {
			c.add(at.attribute("isolation"), "vm", "no direct channels", "an edge from %s is direct, and the policy's isolation is vm: nothing but its node's proxies leads into a VM; leave the edge to them", c.out.Label(channel.From, nil))
			return
		}
	}
}

// Bounds of what a VM can be limited to. Below the least it would look dead.
const (
	mostVMPercent = 100_000
	mostVMLimit   = 1 << 40
	leastVMRate   = 64 // KiB a second over the network
)

func (c *compiler) compileVMLimits(at place, vm *wsdl.VMResources) VMLimits {
	if vm == nil {
		return VMLimits{}
	}
	number := func(name string, value *wsdl.Number, high int64) int64 {
		return c.whole(numberField(&c.problems, at, c.scope, name, value), "the "+name+" of a VM", 0, high, 0)
	}
	limits := VMLimits{
		CPUPercent: number("cpu", vm.Cpu, mostVMPercent), DiskMiB: number("disk", vm.Disk, mostVMLimit),
		DiskRate: number("diskRate", vm.DiskRate, mostVMLimit), NetworkRate: number("networkRate", vm.NetworkRate, mostVMLimit),
	}
	if rate := limits.NetworkRate; rate > 0 && rate < leastVMRate {
		c.add(at.attribute("networkRate"), fmt.Sprint(rate), fmt.Sprintf("0, or at least %d", leastVMRate), "a VM with %d KiB a second over the network would look dead: at least %d, or 0 for no limit", rate, leastVMRate)
	}
	return limits
}

// compileCheckpoint refuses checkpoints that could not be gone on from: all that a
// job is must be in its VMs.
func (c *compiler) compileCheckpoint(at place, policy *wsdl.JobPolicy) {
	value := fmt.Sprint(int(c.out.Checkpoint / time.Second))
	if wsdl.Or(policy.Isolation, wsdl.IsolationProcess) != wsdl.IsolationVm {
		c.add(at, value, `0, or isolation="vm"`, "checkpoints are of OS-level VMs, and this job's processes are in none")
		return
	}
	for i := range c.out.Channels {
		for _, end := range []End{c.out.Channels[i].From, c.out.Channels[i].To} {
			if end.Outside != "" {
				c.add(at, value, "0, or no edge outside the job",
					"the queue %s leads outside the job: what went through it since a checkpoint cannot be taken back", quote(end.Outside))
				return
			}
		}
	}
}
