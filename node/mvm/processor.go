package mvm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"mvm/queuevm"
	"mvm/queuevm/client"
)

// A processor is the program of a task without a source: it dequeues from all
// its ports, has the node build the instructions that come, and applies the
// program of the last one to the data after it (LAYOUT.md, section 6). It is a
// program of the job like any other, a client of its own ports; the program that
// it applies is a child of it, with two rings of its own between them, whose
// ends are ports like any: so what an instruction says is an ordinary program.

const (
	processorWord = "processor"      // the first argument of this program when it is one
	processorPath = "/proc/self/exe" // what it is started as
	workshopFD    = 4                // the socket to the MVM process, which has instructions built

	instructionMax = 1 << 20 // bytes of an instruction
)

// Instruction is what a processor asks to have built.
type Instruction struct {
	Process  int    // whose it is; set by the MVM process
	ID       uint64 // for the answer; likewise
	Language string
	Flags    []string
	Source   []byte
}

// Built answers it: the command that runs the program, or why there is none.
type Built struct {
	ID      uint64
	Command []string
	Failure string // "" when it was built
	Output  string // what a compiler printed
}

func (i *Instruction) visit(c *fields) {
	integer(c, &i.Process)
	c.uint(&i.ID)
	c.string(&i.Language)
	list(c, &i.Flags, (*fields).string)
	c.bytes(&i.Source)
}

func (b *Built) visit(c *fields) {
	c.uint(&b.ID)
	list(c, &b.Command, (*fields).string)
	c.string(&b.Failure)
	c.string(&b.Output)
}

// parseInstruction reads "mvm-instruction 1 LANGUAGE [FLAG...]", LF, source.
func parseInstruction(item []byte) (i Instruction, err error) {
	if len(item) > instructionMax {
		return i, fmt.Errorf("it has %d bytes, at most %d are allowed", len(item), instructionMax)
	}
	head, source, found := bytes.Cut(item, []byte("\n"))
	words := strings.Fields(string(head))
	if !found || len(words) < 3 || words[0] != "mvm-instruction" || words[1] != "1" {
		return i, fmt.Errorf("it begins with %.60q, expected the line \"mvm-instruction 1 LANGUAGE [FLAG...]\" and the source after it", head)
	}
	i.Language, i.Flags, i.Source = words[2], words[3:], source
	return i, nil
}

// processor is one at work. Its main goroutine alone takes items.
type processor struct {
	arguments []string // of every program
	workshop  *wire
	outs      []*client.Port // those that still take results; only the relay of the program at work uses them
	program   *applied       // nil before the first instruction
}

// itemName says which item it is.
type itemName struct {
	port   *client.Port
	number int // from 1
}

func (n itemName) String() string { return fmt.Sprintf("item %d of port %s", n.number, n.port.Name()) }

// applied is the program of an instruction at work.
type applied struct {
	name string // which instruction it is
	vm   *queuevm.VM

	mu     sync.Mutex // guards what follows
	given  []itemName // the last items that it was given: all that it has not taken, and the one taken last
	before int        // how many it was given before these

	done chan struct{} // closed when it has ended well and its results are out
}

// runProcessor is the whole life of a processor; it returns the exit code.
func runProcessor(arguments []string) int {
	_ = unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(unsafe.StringData("mvm-processor\x00"))), 0, 0, 0)
	unix.CloseOnExec(workshopFD)
	_ = unix.SetNonblock(workshopFD, true)
	p := &processor{arguments: arguments, workshop: newWire(os.NewFile(workshopFD, "workshop"))}
	if err := p.run(); err != nil {
		return complain(err)
	}
	return 0
}

// complain writes what the attempt's failure will quote: the end of stderr.
func complain(err error) int {
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// run takes items until every port has ended. Order holds within a port. What
// comes on different ports is taken as it comes, but that no data is taken before
// there is an instruction: a port whose next item is data then waits for one on
// another port.
func (p *processor) run() error {
	names, err := client.Ports()
	if err != nil {
		return err
	}
	var ins, waiting []*client.Port
	for _, name := range names {
		port, err := client.Open(name)
		if err != nil {
			return err
		}
		if port.CanDequeue() {
			ins = append(ins, port)
		}
		if port.CanEnqueue() {
			p.outs = append(p.outs, port)
		}
	}
	taken := map[*client.Port]int{}
	first := func(port *client.Port) itemName { return itemName{port, 1} }
	held := map[*client.Port][]byte{} // data before the first instruction
	waiting = slices.Clone(ins)
	for len(waiting) > 0 {
		port, err := client.Wait(-1, waiting...)
		if err != nil {
			return err
		}
		item, err := port.Dequeue()
		if errors.Is(err, client.ErrEnd) {
			waiting = slices.DeleteFunc(waiting, func(q *client.Port) bool { return q == port })
			continue
		}
		taken[port]++
		name := itemName{port, taken[port]}
		if err != nil {
			return fmt.Errorf("%v: %w", name, err)
		}
		if port.IsInstruction() {
			if err := p.replace(name.String(), item); err != nil {
				return err
			}
			for _, port := range ins {
				if item, ok := held[port]; ok {
					if err := p.program.give(first(port), item); err != nil {
						return err
					}
					waiting = append(waiting, port)
				}
			}
			clear(held)
		} else if p.program == nil {
			held[port] = item
			waiting = slices.DeleteFunc(waiting, func(q *client.Port) bool { return q == port })
		} else if err := p.program.give(name, item); err != nil {
			return err
		}
	}
	for _, port := range ins {
		if _, ok := held[port]; ok {
			return fmt.Errorf("%v is data, and no instruction came before it on any port", first(port))
		}
	}
	return p.finish()
}

// replace has the next instruction built and started, when the one before is
// done with what it was given.
func (p *processor) replace(name string, item []byte) error {
	if err := p.finish(); err != nil {
		return err
	}
	i, err := parseInstruction(item)
	if err != nil {
		return fmt.Errorf("%s is no instruction: %w", name, err)
	}
	var built Built
	if err = p.workshop.send(&i); err == nil {
		err = p.workshop.receive(&built)
	}
	if err != nil {
		return fmt.Errorf("%s: have it built: %w", name, err)
	}
	if built.Failure != "" {
		// What the compiler printed comes first: of a long text the end is quoted.
		if built.Output != "" {
			fmt.Fprintln(os.Stderr, strings.TrimRight(built.Output, "\n"))
		}
		return fmt.Errorf("%s, an instruction in %s: %s", name, i.Language, built.Failure)
	}
	p.program, err = p.start(name, append(built.Command, p.arguments...))
	if err != nil {
		return fmt.Errorf("%s: start its program: %w", name, err)
	}
	return nil
}

// finish says END to the program at work, and waits until it has ended and all
// its results are out.
func (p *processor) finish() error {
	if p.program == nil {
		return nil
	}
	if err := p.program.vm.CloseOutside("in"); err != nil {
		return err
	}
	<-p.program.done
	return p.program.vm.Close()
}

// start runs the program of an instruction between two rings.
func (p *processor) start(name string, command []string) (*applied, error) {
	vm, err := queuevm.New(queuevm.Config{})
	if err != nil {
		return nil, err
	}
	a := &applied{name: name, vm: vm, done: make(chan struct{})}
	err = vm.AddProcess(queuevm.Process{ID: 0, Index: client.Index(), Count: client.Count(), Task: client.Task()})
	if err == nil {
		err = vm.AddChannel(queuevm.Channel{ID: 1, From: queuevm.Endpoint{Outside: "in"}, To: queuevm.Endpoint{Port: "in"}})
	}
	if err == nil && len(p.outs) > 0 {
		err = vm.AddChannel(queuevm.Channel{ID: 2, From: queuevm.Endpoint{Port: "out"}, To: queuevm.Endpoint{Outside: "out"}})
	}
	if err != nil {
		return nil, err
	}
	go func() {
		if err := vm.Run(context.Background()); err != nil {
			os.Exit(complain(err))
		}
	}()
	file, told, err := vm.Child(0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	pidfd := -1
	c := exec.Command(command[0], command[1:]...)
	c.Env, c.ExtraFiles = append(append(os.Environ(), told...), "MVM_SPIN="+os.Getenv("MVM_SPIN")), []*os.File{file}
	c.Stdout, c.Stderr = os.Stdout, os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{PidFD: &pidfd}
	if err := c.Start(); err != nil {
		return nil, err
	}
	if pidfd >= 0 {
		err = vm.Started(0, pidfd)
		unix.Close(pidfd)
		if err != nil {
			return nil, err
		}
	}
	relayed := make(chan struct{})
	go func() {
		defer close(relayed)
		p.relay(a)
	}()
	go func() {
		err := c.Wait()
		vm.Ended(0)
		<-relayed // what it gave before it failed is out
		if err := a.judge(c.ProcessState, err); err != nil {
			os.Exit(complain(err))
		}
		close(a.done)
	}()
	return a, nil
}

// relay gives each result to every port that leads out and whose taker is there.
func (p *processor) relay(a *applied) {
	if len(p.outs) == 0 {
		return
	}
	for {
		item, err := a.vm.DequeueItem(context.Background(), "out")
		if err == io.EOF {
			return
		}
		for k := 0; err == nil && k < len(p.outs); k++ {
			if item.Instruction {
				err = p.outs[k].Instruct(item.Data)
			} else {
				err = p.outs[k].Enqueue(item.Data)
			}
			if errors.Is(err, client.ErrClosed) {
				p.outs, err = slices.Delete(p.outs, k, k+1), nil
				k--
			} else if err != nil {
				err = fmt.Errorf("port %s: %w", p.outs[k].Name(), err)
			}
		}
		if err == nil && len(p.outs) == 0 {
			err = errors.New("nobody is left who takes it")
		}
		if err != nil {
			os.Exit(complain(fmt.Errorf("a result of %s: %w", a.name, err)))
		}
	}
}

// give hands the program a data item.
func (a *applied) give(name itemName, item []byte) error {
	a.mu.Lock()
	if len(a.given) >= 4096 {
		if old := a.taken() - a.before - 1; old > 0 {
			a.given = slices.Delete(a.given, 0, old)
			a.before += old
		}
	}
	a.given = append(a.given, name)
	a.mu.Unlock()
	err := a.vm.Enqueue(context.Background(), "in", item)
	if errors.Is(err, queuevm.ErrClosed) {
		<-a.done // or it has failed, which ends this process
		return fmt.Errorf("the program of %s has ended before %v", a.name, name)
	}
	if err != nil {
		return fmt.Errorf("give %v to the program of %s: %w", name, a.name, err)
	}
	return nil
}

// taken is how many items the program says that it has taken, as far as that can
// be. a.mu is held.
func (a *applied) taken() int {
	taken := 0
	for _, c := range a.vm.Inspect() {
		if c.ID == 1 {
			taken = int(c.ItemsOut)
		}
	}
	return min(max(taken, a.before), a.before+len(a.given))
}

// judge is nil when the program ended as it should: well, with all taken that it
// was given.
func (a *applied) judge(state *os.ProcessState, waited error) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if state == nil {
		return fmt.Errorf("the program of %s: %w", a.name, waited)
	}
	taken := a.taken() - a.before
	if !state.Success() {
		how := fmt.Sprintf("exited with %d", state.ExitCode())
		if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			how = "was killed by " + unix.SignalName(status.Signal())
		}
		if taken == 0 {
			return fmt.Errorf("the program of %s %s before it took an item", a.name, how)
		}
		return fmt.Errorf("the program of %s %s after it took %v", a.name, how, a.given[taken-1])
	}
	if taken < len(a.given) {
		return fmt.Errorf("the program of %s has ended before %v", a.name, a.given[taken])
	}
	return nil
}
