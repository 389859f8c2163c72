package mvm

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"mvm/node/build"
	"mvm/node/confine"
	"mvm/queuevm"
	"mvm/queuevm/codec"
)

// What a registered codec or rule may have.
const (
	logicMemory = 512              // MiB
	logicTime   = 30 * time.Second // for one item
	logicWords  = 2 << 10          // bytes kept of what it printed last
)

// Logic is a registered codec or rule that was built: its source's name
// (codec:NAME@VERSION, rule:NAME@VERSION) and its command from build.Command.
type Logic struct {
	Source   string
	Artifact string // the folder that it lies in
	Command  []string
}

// know makes registered logic known, for the queues that are made or changed
// from then on.
func (p *process) know(all []Logic) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range all {
		p.logic[l.Source] = l
	}
}

// rule makes what orders a queue, nil where its type does: when the queue is made,
// and when it is changed. It starts with the first item unless begin was called.
func (p *process) rule(q Queue) queuevm.Rule {
	if q.Program == "" {
		return nil
	}
	return &ranker{p.registered("rule", q.Program, logicWords)}
}

// ranker is a registered rule.
type ranker struct{ *registered }

// Rank asks the program for an item's place.
func (r *ranker) Rank(item queuevm.Item) (rank int64, drop bool, err error) {
	places, err := r.RankAll([]queuevm.Item{item})
	if err != nil {
		return 0, false, err
	}
	return places[0].Rank, places[0].Drop, nil
}

// RankAll asks it for those of several.
func (r *ranker) RankAll(items []queuevm.Item) (places []queuevm.Place, err error) {
	questions := make([]question, len(items))
	for k, item := range items {
		kind := byte(0)
		if item.Instruction {
			kind = 1
		}
		questions[k] = question{[]byte{kind, item.Priority}, item.Data}
	}
	answers, err := r.ask(questions)
	for _, a := range answers {
		switch {
		case a.status == answersRefused:
			return places, fmt.Errorf("%s: %s", r.name, strings.ToValidUTF8(string(a.data), "\uFFFD"))
		case a.status == answersDropped:
			places = append(places, queuevm.Place{Drop: true})
		case len(a.data) != 8:
			r.end()
			return places, fmt.Errorf("%s: it answers with a rank of %d bytes, expected 8", r.name, len(a.data))
		default:
			places = append(places, queuevm.Place{Rank: int64(binary.BigEndian.Uint64(a.data))})
		}
	}
	if err != nil {
		err = fmt.Errorf("%s: %w", r.name, err)
	}
	return places, err
}

// Close ends the program.
func (r *ranker) Close() error {
	r.end()
	return nil
}

// programs are the registered ones among what converts and orders a queue; nil is
// for what is not there.
func programs(converter *queuevm.Converter, rule *queuevm.Rule) (all []*registered) {
	if converter != nil {
		if c, ok := (*converter).(*chain); ok {
			all = append(all, c.programs...)
		}
	}
	if rule != nil {
		if r, ok := (*rule).(*ranker); ok {
			all = append(all, r.registered)
		}
	}
	return all
}

// begin starts what runs for a queue that is kept here.
func (p *process) begin(converter *queuevm.Converter, rule *queuevm.Rule) error {
	for _, program := range programs(converter, rule) {
		if err := program.begin(); err != nil {
			return fmt.Errorf("%s: %w", program.source, err)
		}
	}
	return nil
}

// converter makes what converts a queue's items of its steps, nil of none: when
// the queue is made, and when it is changed. Its registered codecs start with the
// first item unless begin was called.
func (p *process) converter(q Queue) (queuevm.Converter, error) {
	if len(q.Steps) == 0 {
		return nil, nil
	}
	most := min(max(q.Capacity, 1), queuevm.ConvertedMax)
	var c chain
	made, err := codec.New(q.Steps, codec.Limits{Item: most}, func(s Step) (codec.Conversion, error) {
		way := "encode"
		if s.Decode {
			way = "decode"
		}
		r := p.registered("codec", s.Program, most, way, s.Type)
		c.programs = append(c.programs, r)
		return r.convert, nil
	})
	switch {
	case err != nil:
		return nil, err
	case len(c.programs) == 0:
		return made, nil
	}
	c.Chain = made
	return &c, nil
}

// chain is a queue's converter that has registered codecs in it. The queue closes it
// when it uses it no more.
type chain struct {
	*codec.Chain
	programs []*registered
}

// ConvertAll spares each of the programs a switch to it and back for every item.
func (c *chain) ConvertAll(items [][]byte) ([][]byte, error) { return c.All(items) }

func (c *chain) Close() error {
	for _, r := range c.programs {
		r.end()
	}
	return nil
}

// registered is a registered codec or rule that runs for one step of one queue.
// Questions come from one goroutine at a time; end may come from any.
type registered struct {
	process *process
	name    string // for people: NAME@VERSION
	source  string
	most    int // bytes of an answer
	args    []string
	limit   time.Duration // for one item

	questions io.Writer
	answers   *bufio.Reader
	deadline  func(time.Time) // for both
	question  []byte

	mu     sync.Mutex // guards what follows
	begun  bool
	over   bool // end was called
	pidfd  int
	pipes  []*os.File    // to and from it
	words  []byte        // what it printed last
	ended  chan struct{} // closed when it has
	status syscall.WaitStatus
}

func (p *process) registered(kind, program string, most int, args ...string) *registered {
	return &registered{process: p, name: program, source: kind + ":" + program, most: most, args: args, limit: cmp.Or(p.start.LogicTime, logicTime), pidfd: -1, ended: make(chan struct{})}
}

var errEnded = errors.New("the queue uses it no more")

// begin starts the program, unless it has been.
func (r *registered) begin() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.over:
		return errEnded
	case r.begun:
		return nil
	}
	p := r.process
	p.mu.Lock()
	logic, known := p.logic[r.source]
	ending := p.ending
	p.mu.Unlock()
	switch {
	case ending != "":
		return errors.New("the attempt is ending: " + ending)
	case !known:
		return fmt.Errorf("%s was not built on this node", r.source)
	}
	var ends [6]*os.File // read and write of its standard input, output and error
	var err error
	for i := 0; i < len(ends) && err == nil; i += 2 {
		ends[i], ends[i+1], err = os.Pipe()
	}
	theirs := []*os.File{ends[0], ends[3], ends[5]}
	defer func() {
		for _, f := range theirs {
			f.Close()
		}
		if err != nil {
			for _, f := range []*os.File{ends[1], ends[2], ends[4]} {
				f.Close()
			}
		}
	}()
	if err == nil {
		err = r.start(logic, theirs)
	}
	if err != nil {
		return fmt.Errorf("start it: %w", err)
	}
	r.begun, r.pipes = true, []*os.File{ends[1], ends[2]}
	r.questions, r.answers = ends[1], bufio.NewReaderSize(ends[2], 64<<10)
	r.deadline = func(t time.Time) { ends[1].SetDeadline(t); ends[2].SetDeadline(t) }
	go r.listen(ends[4])
	return nil
}

// start has it confined and run; r.mu is held.
func (r *registered) start(logic Logic, files []*os.File) error {
	p := r.process
	if p.start.Confinement < 0 {
		return errors.New("this node cannot confine it, and so runs none")
	}
	program := confine.Program{
		Argv: append(append([]string{}, logic.Command...), r.args...), Folders: []string{logic.Artifact}, Hidden: []string{p.start.WorkDir},
		DataMiB: logicMemory, Level: confine.Level(p.start.Confinement), Dies: !p.namespace,
	}
	p.mu.Lock()
	p.lastLogic++
	cell := p.memoryCell(fmt.Sprintf("logic%d", p.lastLogic), logicMemory)
	p.mu.Unlock()
	c := child{path: "/proc/self/exe", argv: append([]string{ProcessName, confinedWord}, program.Arguments()...), dir: "/", cell: cell}
	program.Level.Attributes(&c.attributes)
	for _, f := range files {
		c.files = append(c.files, f.Fd())
	}
	var err error
	barred := p.spawner.do(cell != nil, func() {
		begin := func() error {
			return p.spawner.start(c, func(_, pidfd int) {
				if fd, err := unix.FcntlInt(uintptr(pidfd), unix.F_DUPFD_CLOEXEC, 0); err == nil {
					r.pidfd = fd
				}
			}, func(status syscall.WaitStatus, _ *syscall.Rusage) {
				if cell != nil {
					_ = os.Remove(cell.path) // or the node does
				}
				r.status = status // before it is told
				close(r.ended)
			})
		}
		if err = begin(); errors.Is(err, errNoCell) {
			_ = os.Remove(c.cell.path) // or the node does
			c.cell, cell = nil, nil
			err = begin()
		}
	})
	return cmp.Or(err, barred)
}

// listen keeps the last of what the program prints on its standard error.
func (r *registered) listen(from *os.File) {
	defer from.Close()
	buffer := make([]byte, 4<<10)
	for {
		n, err := from.Read(buffer)
		r.mu.Lock()
		r.words = append(r.words, buffer[:n]...)
		r.words = r.words[max(0, len(r.words)-logicWords):]
		r.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// end ends the program, and whatever it is doing, at once.
func (r *registered) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.over = true
	if r.pidfd >= 0 {
		_ = unix.PidfdSendSignal(r.pidfd, unix.SIGKILL, nil, 0)
		unix.Close(r.pidfd)
		r.pidfd = -1
	}
	for _, f := range r.pipes {
		f.Close()
	}
}

// What a program answers for an item (LAYOUT.md, section 10).
const (
	answersItem    = 0
	answersRefused = 1
	answersDropped = 2
)

// question is an item, and what stands before it.
type question struct{ before, item []byte }

// answer is what a program says to it.
type answer struct {
	status byte
	data   []byte
}

// pipeFree is how many bytes of questions surely have room in the pipe.
const pipeFree = 32 << 10

// ask sends items, one after the other, and reads the answers, which come in the same
// order: all of them, so that those to the next questions are these. Any error is the
// end of the program, which has answered those before.
func (r *registered) ask(questions []question) (answers []answer, err error) {
	if err := r.begin(); err != nil {
		return nil, err
	}
	r.question = r.question[:0]
	for _, q := range questions {
		r.question = binary.BigEndian.AppendUint32(r.question, uint32(len(q.before)+len(q.item)))
		r.question = append(append(r.question, q.before...), q.item...)
	}
	began := time.Now()
	r.deadline(began.Add(r.limit))
	defer r.deadline(time.Time{})
	sent := make(chan error, 1)
	send := func() {
		_, err := r.questions.Write(r.question)
		sent <- err
	}
	if len(r.question) <= pipeFree {
		send()
	} else { // the program may answer the first before it has read the last
		go send()
	}
	for len(answers) < len(questions) {
		a, err := r.read()
		if err != nil {
			// Both pipes end with it, so nobody writes any more.
			<-sent
			return answers, err
		}
		answers = append(answers, a)
		if now := time.Now(); now.Sub(began) > r.limit/16 { // the limit is each item's
			began = now
			r.deadline(began.Add(r.limit))
		}
	}
	if err := <-sent; err != nil { // it has answered before it had read
		return answers[:len(answers)-1], r.explain(err)
	}
	return answers, nil
}

// read reads one answer.
func (r *registered) read() (answer, error) {
	var head [5]byte
	if _, err := io.ReadFull(r.answers, head[:]); err != nil {
		return answer{}, r.explain(err)
	}
	size := binary.BigEndian.Uint32(head[1:])
	if head[0] > answersDropped {
		r.end()
		return answer{}, fmt.Errorf("it answers with the status %d: an answer begins with 0, 1 or 2", head[0])
	}
	if uint64(size) > uint64(r.most) {
		r.end()
		return answer{}, fmt.Errorf("it answers with %d bytes, over the limit of %d", size, r.most)
	}
	data := make([]byte, size)
	if _, err := io.ReadFull(r.answers, data); err != nil {
		return answer{}, r.explain(err)
	}
	return answer{head[0], data}, nil
}

// explain says why there is no answer, and ends the program.
func (r *registered) explain(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		r.end()
		return fmt.Errorf("it did not answer within %v%s", r.limit, r.said())
	}
	select {
	case <-r.ended:
	case <-time.After(time.Second): // it closed a descriptor and goes on
		r.end()
		return fmt.Errorf("it closed its standard input or output%s", r.said())
	}
	how := fmt.Sprintf("ended with exit status %d", r.status.ExitStatus())
	switch {
	case r.status.Signaled():
		how = "was ended by " + unix.SignalName(r.status.Signal())
	case r.status.ExitStatus() == 0:
		how = "ended"
	}
	r.end()
	return fmt.Errorf("it %s and gave no answer%s", how, r.said())
}

// said is the last of what the program printed, as the end of a sentence.
func (r *registered) said() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	text := strings.TrimSpace(strings.ToValidUTF8(string(r.words), "\uFFFD"))
	if text == "" {
		return ""
	}
	return "; it printed last: " + text
}

// convert is what a registered codec does to items.
func (r *registered) convert(items [][]byte) (converted [][]byte, err error) {
	questions := make([]question, len(items))
	for k, item := range items {
		questions[k].item = item
	}
	answers, err := r.ask(questions)
	for _, a := range answers {
		switch a.status {
		case answersRefused:
			return converted, errors.New(strings.ToValidUTF8(string(a.data), "\uFFFD"))
		case answersDropped:
			r.end()
			return converted, errors.New("it drops the item: only a rule may")
		}
		converted = append(converted, a.data)
	}
	return converted, err
}

// confinedWord is the first argument of this program when it is to confine itself
// and then to become another.
const confinedWord = "confined"

// confineWord is its third argument when it is to find out how that works.
const confineWord = "confine"

// Confinement is how registered codecs and rules are confined on a machine.
type Confinement struct {
	Level   int      // a confine.Level, -1 where none can be run
	Missing []string // walls that do not stand
}

// Confine finds out how they are confined by MVM processes at this level of
// cleaning. It starts the program twice or more; ask once and keep the answer.
func Confine(binary *os.File, cleaning string) (Confinement, error) {
	none := Confinement{Level: -1, Missing: []string{confine.Namespaces, confine.Landlock, confine.Seccomp}}
	in, out, err := os.Pipe()
	if err != nil {
		return none, err
	}
	defer in.Close()
	process, err := begin(&LaunchConfig{Binary: binary, Cleaning: cleaning, Mark: "probe"}, nil, out, confineWord)
	out.Close()
	if err != nil {
		return none, err
	}
	text, err := io.ReadAll(in)
	if _, failed := process.Wait(); err == nil {
		err = failed
	}
	var level int
	if n, _ := fmt.Sscanf(string(text), "%d\n", &level); n != 1 {
		return none, errors.Join(err, errors.New("no program can be confined on this machine"))
	}
	_, list, _ := strings.Cut(string(text), "\n")
	found := Confinement{Level: level, Missing: strings.Fields(list)}
	if !confine.Enough(found.Missing) {
		found.Level = -1
	}
	return found, nil
}

// tryConfinement writes the best level that works here, and what walls it lacks.
func tryConfinement(to *os.File) error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	for _, level := range confine.Levels() {
		in, out, err := os.Pipe()
		if err != nil {
			return err
		}
		program := confine.Program{DataMiB: logicMemory, Level: level}
		attributes := &syscall.ProcAttr{Dir: "/", Files: []uintptr{null.Fd(), out.Fd(), null.Fd()}, Sys: &syscall.SysProcAttr{}}
		level.Attributes(attributes.Sys)
		pid, err := syscall.ForkExec("/proc/self/exe", append([]string{ProcessName, confinedWord}, program.Arguments()...), attributes)
		out.Close()
		if err != nil {
			in.Close()
			continue
		}
		missing, _ := io.ReadAll(in)
		in.Close()
		var status syscall.WaitStatus
		if _, err := syscall.Wait4(pid, &status, 0, nil); err == nil && status.ExitStatus() == 0 {
			_, err := fmt.Fprintf(to, "%d\n%s\n", level, missing)
			return err
		}
	}
	return errors.New("none works")
}

// LogicOf is the Logic of a source that was built.
func LogicOf(source, artifact string) (Logic, error) {
	command, err := build.Command(artifact, nil)
	if err != nil {
		return Logic{}, err
	}
	folder, err := filepath.EvalSymlinks(artifact)
	return Logic{Source: source, Artifact: cmp.Or(folder, artifact), Command: command}, err
}
