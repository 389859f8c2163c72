// Command mvm is the whole toolkit in one program: the node server with its
// services, the laboratory on one machine, and the verbs of a grid's user.
// `mvm help` lists them; package services/client has all but `mvm node`.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"

	"mvm/broker"
	"mvm/node"
	"mvm/node/mvm"
	"mvm/osvm"
	"mvm/osvm/pid1"
	"mvm/queuevm"
	"mvm/services/bootstrap"
	"mvm/services/client"
	"mvm/services/image"
	"mvm/services/information"
	"mvm/services/soap"
	"mvm/services/store"
	"mvm/wsdl"
)

// Version is the program's, as nodes tell it to the grid.
const Version = "0.1.0"

// defaultPort is where a node listens when it is not told.
const defaultPort = "7480"

func main() {
	// A node that has no slim MVM process in it starts itself again as one.
	if mvm.IsProcess(os.Args) {
		os.Exit(mvm.Main(os.Args))
	}
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// run is main with everything that it touches given to it.
func run(args []string, stdout, stderr io.Writer) int {
	// What Go does at Ctrl-\ is of use to nobody who runs a lab.
	signals := []os.Signal{os.Interrupt, syscall.SIGTERM, syscall.SIGQUIT}
	if !signal.Ignored(syscall.SIGHUP) { // as nohup(1) leaves it
		signals = append(signals, syscall.SIGHUP)
	}
	ctx, stop := signal.NotifyContext(context.Background(), signals...)
	defer stop()
	root := rootCommand()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err != nil {
		client.PrintError(stderr, "mvm", err)
	}
	return client.ExitCode(err)
}

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "mvm",
		Short: "A grid toolkit for virtual laboratories",
		Long: `MVM runs programs on a grid of nodes. A job profile, one XML document, ships
their source code and says how their processes are wired; nodes compile it at
run time, connect the processes, run them, and leave nothing behind.`,
		Example: `  mvm lab examples/jobs/sunspots/sunspots.xml    # a grid for one job, on this machine
  mvm node                                       # a node with all roles
  mvm submit job.xml --wait                      # run a job on it`,
		Version:       Version,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			text := fmt.Sprintf("there is no verb %q;", args[0])
			if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
				text += " did you mean " + strings.Join(near, " or ") + "?"
			}
			return client.Usage(errors.New(text + " `mvm help` lists the verbs"))
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetVersionTemplate("mvm {{.Version}}\n")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		// pflag tells which function of Go's could not read a value.
		text := regexp.MustCompile(`strconv\.\w+: parsing ".*": `).ReplaceAllString(err.Error(), "")
		return client.Usage(fmt.Errorf("%s; see `%s --help`", text, cmd.CommandPath()))
	})
	root.SuggestionsMinimumDistance = 2
	root.AddCommand(client.Commands(imageMaker{})...)
	root.AddCommand(nodeCommand())
	root.SetHelpCommand(helpCommand(root))
	return root
}

// helpCommand is cobra's help, but for a topic that is not there: that is wrong
// usage, not a reason to print everything.
func helpCommand(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use:   "help [VERB]",
		Short: "Help about any verb",
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			var names []string
			for _, c := range root.Commands() {
				names = append(names, c.Name())
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(_ *cobra.Command, args []string) error {
			verb, rest, err := root.Find(args)
			if err != nil || len(rest) > 0 {
				return client.Usage(fmt.Errorf("there is no help on %q; `mvm help` lists the verbs", strings.Join(args, " ")))
			}
			return verb.Help()
		},
	}
}

// nodeOptions are the flags of `mvm node`.
type nodeOptions struct {
	listen, data, join, state, name, advertise string
	goCache, compilers, queueLimits            string
	roles, plainLinks                          []string
	slots, cacheLimit                          int
	accelerator, vmTemplates                   string
	vmBoot                                     time.Duration
	insecure                                   bool
	logFormat, logLevel                        string

	// lease is what the information service gives nodes, and the broker counts on:
	// how long after it sent a heartbeat a node may keep what the answer named.
	lease time.Duration

	// For a parent process that starts nodes, as `mvm lab` does.
	listenFD       int
	exitWithParent bool
	temporary      bool
	killAt         string // for tests: where the broker kills its own process
}

func nodeCommand() *cobra.Command {
	var o nodeOptions
	cmd := &cobra.Command{
		Use:   "node",
		Short: "Run a node: publish the services, wait to be woken for jobs",
		Long: `Runs a node of the grid until Ctrl-C. Without --join it has all roles and is a
grid by itself; with --join it becomes a worker of the grid that the node at
URL belongs to. When it is ready it prints its address on one line.

Roles: backend keeps the state and the blobs and knows the nodes, frontend is
the broker, worker runs jobs. A front end that is no back end needs --state.

A node has no credentials yet, so it listens on loopback only; --insecure lets
it listen elsewhere, where whoever reaches it can run programs on it.

Links between the nodes of a job carry TLS unless both their ends are loopback
addresses. --plain-links leaves it out where both ends are in the networks that
it names, and both nodes say so: items then go quicker, and whoever can listen
there can read and change them. Direct channels exist only there.`,
		Example: `  mvm node
  mvm node --listen 127.0.0.1:7481 --join http://127.0.0.1:7480 --slots 8
  mvm node --listen 10.0.0.7:7480 --insecure --data /var/lib/mvm --log-format json`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return client.Usage(fmt.Errorf("`mvm node` does not take %q; see `mvm node --help`", args[0]))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd) },
	}
	f := cmd.Flags()
	f.StringVar(&o.listen, "listen", "127.0.0.1:"+defaultPort, "`HOST:PORT` to listen on; port 0 is any free one")
	f.StringVar(&o.data, "data", "", "data `DIR` (default: mvm, or mvm-PORT for another port than 7480, below $XDG_STATE_HOME or ~/.local/state)")
	f.StringSliceVar(&o.roles, "roles", nil, "`backend,frontend,worker` (default: all without --join, worker with it)")
	f.IntVar(&o.slots, "slots", 0, "processes it runs at once (default: as many as cores)")
	f.StringVar(&o.join, "join", "", "`URL` of any node of the grid to join")
	f.StringVar(&o.state, "state", "", "`ENDPOINTS` of an external etcd, separated by commas (default: an embedded one)")
	f.BoolVar(&o.insecure, "insecure", false, "listen on an address that others reach, without credentials")
	f.StringSliceVar(&o.plainLinks, "plain-links", nil, "`CIDR`s of networks that nobody listens to: links within them are not encrypted")
	f.StringVar(&o.name, "name", "", "the node's `NAME` for people (default: the host's)")
	f.StringVar(&o.advertise, "advertise", "", "`HOST:PORT` under which others reach it (default: what it listens on)")
	f.StringVar(&o.goCache, "go-cache", "", "`DIR` for what Go compiled, which the nodes of a machine may share (default: in --data)")
	f.StringVar(&o.compilers, "compilers", "", "`FILE` that remembers what this machine's compilers are, which its nodes may share (default: in --data)")
	f.StringVar(&o.queueLimits, "queue-limits", "", "`FILE` that says what the queues of jobs may have here: types, codecs, number, memory")
	f.StringVar(&o.accelerator, "accelerator", string(osvm.Auto), "what OS-level VMs run with: auto, kvm, tcg, or none for a node without VMs")
	f.StringVar(&o.vmTemplates, "vm-templates", "", "`DIR` for booted VMs of which others are clones, which the nodes of a machine may share (default: in --data)")
	f.DurationVar(&o.vmBoot, "vm-boot", 0, "`TIME` that the guest of a VM may take to answer as it boots (default 2m, or 10m from a disk of its own)")
	f.IntVar(&o.cacheLimit, "cache-limit", 4096, "`MIB` of builds that are kept, and of what Go compiled, each; what was not used for longest goes")
	f.DurationVar(&o.lease, "lease", 10*time.Second, "`TIME` without an answer to its heartbeats after which a node ends its jobs; then they may go elsewhere (back and front ends, alike)")
	f.StringVar(&o.logFormat, "log-format", "text", "text or json")
	f.StringVar(&o.logLevel, "log-level", "info", "debug, info, warning or error")
	f.IntVar(&o.listenFD, "listen-fd", 0, "serve on this inherited socket instead of --listen")
	f.BoolVar(&o.exitWithParent, "exit-with-parent", false, "end when standard input does")
	f.BoolVar(&o.temporary, "temporary", false, "remove the data folder at the end")
	f.StringVar(&o.killAt, "kill-at", "", "kill this process with SIGKILL when its broker passes `POINT` for the N-th time, written POINT or POINT:N")
	for _, hidden := range []string{"listen-fd", "exit-with-parent", "temporary", "kill-at"} {
		f.MarkHidden(hidden)
	}
	cmd.RegisterFlagCompletionFunc("roles", cobra.FixedCompletions([]string{"backend", "frontend", "worker"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// run serves until the context ends, or the parent's pipe.
func (o *nodeOptions) run(cmd *cobra.Command) error {
	ctx, stop := context.WithCancel(cmd.Context())
	defer stop()
	if o.exitWithParent {
		go func() {
			io.Copy(io.Discard, os.Stdin)
			stop()
		}()
	}
	if o.slots < 0 || o.slots == 0 && cmd.Flags().Changed("slots") {
		return client.Usage(fmt.Errorf("--slots %d: write how many processes run at once, or leave it out for as many as cores; --roles says whether any do", o.slots))
	}
	if o.lease < time.Second {
		return client.Usage(fmt.Errorf("--lease %v: a node must be able to miss a heartbeat; write at least 1s", o.lease))
	}
	if o.vmBoot < 0 {
		return client.Usage(fmt.Errorf("--vm-boot %v: a guest needs some time to boot; leave it out for the default", o.vmBoot))
	}
	if o.cacheLimit < 1 {
		return client.Usage(fmt.Errorf("--cache-limit %d: write how many MiB are kept", o.cacheLimit))
	}
	if known := []osvm.Accelerator{osvm.Auto, osvm.KVM, osvm.TCG, "none"}; !slices.Contains(known, osvm.Accelerator(o.accelerator)) {
		return client.Usage(fmt.Errorf("--accelerator %s: there are %v", o.accelerator, known))
	}
	if o.join != "" && !isGridURL(o.join) {
		return client.Usage(fmt.Errorf("--join %s: write it as http://host:port, the address of any node of the grid", o.join))
	}
	roles, err := o.chosenRoles()
	if err != nil {
		return err
	}
	log, err := o.log(cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	listener, url, err := o.open(ctx)
	if err != nil {
		return err
	}
	defer listener.Close()
	dir, err := o.dataDir()
	if err != nil {
		return err
	}
	if o.temporary {
		defer os.RemoveAll(dir)
	}
	calls := soap.NewClient(soap.ClientConfig{})
	caller := &bootstrap.Watcher{Caller: calls}
	if o.join != "" {
		caller.Bootstrap = strings.TrimSuffix(o.join, "/") + "/services/bootstrap"
	}
	s := &server{options: o, roles: roles, dir: dir, url: url, log: log, caller: caller, calls: calls}
	return s.run(ctx, listener, func() { fmt.Fprintln(cmd.OutOrStdout(), url) })
}

func (o *nodeOptions) chosenRoles() ([]wsdl.Role, error) {
	all := []wsdl.Role{wsdl.RoleBackend, wsdl.RoleFrontend, wsdl.RoleWorker}
	if len(o.roles) == 0 {
		if o.join != "" {
			return []wsdl.Role{wsdl.RoleWorker}, nil
		}
		return all, nil
	}
	var roles []wsdl.Role
	for _, text := range o.roles {
		role := wsdl.Role(strings.TrimSpace(text))
		if !slices.Contains(all, role) {
			return nil, client.Usage(fmt.Errorf("--roles: there is no role %q, but backend, frontend and worker", text))
		}
		roles = append(roles, role)
	}
	backend, frontend := slices.Contains(roles, wsdl.RoleBackend), slices.Contains(roles, wsdl.RoleFrontend)
	switch {
	case frontend && !backend && o.state == "":
		return nil, client.Usage(errors.New("--roles: a frontend that is no backend needs --state, the etcd that it shares with the backend"))
	case !backend && o.join == "":
		return nil, client.Usage(errors.New("--roles: a node that is no backend needs --join, the address of any node of its grid"))
	}
	return roles, nil
}

func (o *nodeOptions) log(w io.Writer) (*logrus.Logger, error) {
	log := logrus.New()
	log.SetOutput(w)
	level, err := logrus.ParseLevel(o.logLevel)
	if err != nil {
		return nil, client.Usage(fmt.Errorf("--log-level %s: there are debug, info, warning and error", o.logLevel))
	}
	log.SetLevel(level)
	switch o.logFormat {
	case "text":
		log.SetFormatter(&logrus.TextFormatter{FullTimestamp: true})
	case "json":
		log.SetFormatter(soap.NewLogFormatter())
	default:
		return nil, client.Usage(fmt.Errorf("--log-format %s: there are text and json", o.logFormat))
	}
	return log, nil
}

func isGridURL(text string) bool {
	u, err := url.Parse(text)
	return err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != ""
}

func (o *nodeOptions) dataDir() (string, error) {
	dir := o.data
	if dir == "" && o.temporary {
		return os.MkdirTemp("", "mvm-node-")
	}
	if dir == "" {
		state := os.Getenv("XDG_STATE_HOME")
		if state == "" {
			home, err := os.UserHomeDir()
			if err != nil {
				return "", fmt.Errorf("no data folder: %w; name one with --data", err)
			}
			state = filepath.Join(home, ".local", "state")
		}
		// A folder for each port, so that several nodes of one user need no flag
		// to tell them apart, and each finds its own again.
		switch _, port, err := net.SplitHostPort(o.listen); {
		case err != nil:
			return "", err // open has refused it before
		case port == "0":
			return "", client.Usage(errors.New("a node on a port that changes keeps its data in no place of its own; name one with --data"))
		case port == defaultPort:
			dir = filepath.Join(state, "mvm")
		default:
			dir = filepath.Join(state, "mvm-"+port)
		}
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	return dir, os.MkdirAll(dir, 0o700)
}

// open listens, and tells under which base address others reach the node. An
// address that is not loopback is refused: nodes have no credentials yet.
func (o *nodeOptions) open(ctx context.Context) (listener net.Listener, base string, err error) {
	if o.listenFD > 0 {
		f := os.NewFile(uintptr(o.listenFD), "socket")
		defer f.Close()
		if listener, err = net.FileListener(f); err != nil {
			return nil, "", fmt.Errorf("--listen-fd %d: %w", o.listenFD, err)
		}
	} else {
		if err := o.mayListen(); err != nil {
			return nil, "", err
		}
		if listener, err = listen(ctx, o.listen); err != nil {
			if why := syscall.Errno(0); errors.As(err, &why) {
				err = why // without what of Go's said it
			}
			return nil, "", fmt.Errorf("--listen %s: %w; choose another address", o.listen, err)
		}
	}
	address := listener.Addr().(*net.TCPAddr)
	switch {
	case o.advertise != "":
		if _, _, err := net.SplitHostPort(o.advertise); err != nil {
			listener.Close()
			return nil, "", client.Usage(fmt.Errorf("--advertise %s: write it as HOST:PORT", o.advertise))
		}
		base = "http://" + o.advertise
	case address.IP.IsUnspecified():
		ip, err := outward(o.join)
		if err != nil {
			listener.Close()
			return nil, "", fmt.Errorf("%w; name the address under which others reach this node with --advertise", err)
		}
		base = "http://" + net.JoinHostPort(ip.String(), fmt.Sprint(address.Port))
	default:
		base = "http://" + address.String()
	}
	return listener, base, nil
}

// outward is this machine's address as others see it: the one that leads to
// the grid that is joined, else the first that is not loopback.
func outward(join string) (net.IP, error) {
	if u, err := url.Parse(join); err == nil && u.Port() != "" {
		// Connecting a UDP socket only asks the routing table.
		if c, err := net.Dial("udp", u.Host); err == nil {
			defer c.Close()
			return c.LocalAddr().(*net.UDPAddr).IP, nil
		}
	}
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	for _, a := range addresses {
		if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() {
			return n.IP, nil
		}
	}
	return nil, errors.New("this machine has no address but loopback")
}

func (o *nodeOptions) mayListen() error {
	for _, network := range o.plainLinks {
		if _, err := netip.ParsePrefix(network); err != nil {
			return client.Usage(fmt.Errorf("--plain-links %s: write networks as ADDRESS/BITS, for example 10.1.0.0/16", network))
		}
	}
	host, _, err := net.SplitHostPort(o.listen)
	if err != nil {
		return client.Usage(fmt.Errorf("--listen %s: write it as HOST:PORT", o.listen))
	}
	ip := net.ParseIP(host)
	if o.insecure || host == "localhost" || (ip != nil && ip.IsLoopback()) {
		return nil
	}
	return client.Usage(fmt.Errorf("--listen %s: others reach this address, and without credentials whoever does can run programs here; listen on 127.0.0.1, or say --insecure", o.listen))
}

// listen listens, and waits a moment for an address that is in use. A node that
// was killed as it started a program leaves it to that one, which has a copy of
// every descriptor from its fork to its exec: 50 ms were seen on a busy machine.
func listen(ctx context.Context, address string) (net.Listener, error) {
	const patience, pause = 2 * time.Second, 10 * time.Millisecond
	for late := time.After(patience); ; {
		listener, err := net.Listen("tcp", address)
		if !errors.Is(err, syscall.EADDRINUSE) {
			return listener, err
		}
		select {
		case <-time.After(pause):
		case <-late:
			return nil, err
		case <-ctx.Done():
			return nil, err
		}
	}
}

// imageMaker makes images' files for the command line.
type imageMaker struct{}

func (imageMaker) Build(ctx context.Context, folder string, gcc bool) (*image.Manifest, error) {
	agent, err := pid1.Program()
	if err != nil {
		return nil, err
	}
	files, err := fs.Sub(queuevm.ClientFiles(), "c")
	if err != nil {
		return nil, err
	}
	build, m := osvm.BuildMinimal, &image.Manifest{Architecture: "amd64", Languages: []string{"c", "shell"}, Description: "Debian's kernel and busybox, with tcc and musl"}
	if gcc {
		build, m.Languages, m.Description = osvm.BuildGCC, []string{"c", "cpp", "shell"}, "Debian's kernel and busybox, with gcc and g++ on a disk"
	}
	made, err := build(ctx, folder, agent, files)
	if err != nil {
		return nil, err
	}
	m.LeastMemory, m.CommandLine, m.Release = made.LeastMemoryMiB, made.CommandLine, made.Release
	m.Files = []image.File{{Part: image.Kernel}, {Part: image.Initrd}}
	if len(made.Disks) > 0 {
		m.Files = append(m.Files, image.File{Part: image.Disk, Format: made.Disks[0].Format})
	}
	return m, nil
}

func (imageMaker) Import(ctx context.Context, folder, disk string) (*image.Manifest, error) {
	agent, err := pid1.Program()
	if err != nil {
		return nil, err
	}
	made, err := osvm.ImportDisk(ctx, folder, disk, agent)
	if err != nil {
		return nil, err
	}
	return &image.Manifest{
		Architecture: "amd64", LeastMemory: made.LeastMemoryMiB, Release: made.Release, Description: "a cloud image as it came, and a seed with the agent",
		Files: []image.File{{Part: image.Disk, Format: made.Disks[0].Format}, {Part: image.Seed, Format: made.Disks[1].Format}},
	}, nil
}

// server is one running node: its parts, wired.
type server struct {
	options *nodeOptions
	roles   []wsdl.Role
	dir     string
	url     string
	log     *logrus.Logger
	caller  *bootstrap.Watcher
	calls   *soap.Client // beneath caller

	images *image.Store
	store  *store.Store // nil on a worker
	broker *broker.Service
	info   *information.Service
	node   *node.Node
}

func (s *server) has(role wsdl.Role) bool { return slices.Contains(s.roles, role) }

// run wires the parts and serves until ctx ends; ready is called once the node
// serves and is registered.
func (s *server) run(ctx context.Context, listener net.Listener, ready func()) error {
	if err := s.open(ctx); err != nil {
		return err
	}
	if s.store != nil {
		defer s.store.Close()
		// A small grid's state is some 10 MB, so the collector would come every
		// dozen jobs. This is never touched and takes no memory, but it is counted.
		defer runtime.KeepAlive(make([]byte, 16<<20))
	}
	face, err := s.face(ctx)
	if err != nil {
		return err
	}
	s.calls.Near(s.url, face)

	// The node ends first: its last reports still find the broker.
	serving, stopServing := context.WithCancel(context.WithoutCancel(ctx))
	defer stopServing()
	living, stopLiving := context.WithCancel(ctx)
	defer stopLiving()
	var parts sync.WaitGroup
	failed := make(chan error, 8) // one for each part, and to spare
	start := func(name string, part func() error) {
		parts.Go(func() {
			if err := part(); err != nil {
				failed <- fmt.Errorf("%s: %w", name, err)
				stopLiving()
			}
		})
	}
	start("server", func() error { return face.Serve(serving, listener) })
	if s.broker != nil {
		start("broker", func() error { return s.broker.Run(serving) })
	}
	if s.info != nil {
		start("information", func() error { return s.info.Run(serving) })
	}
	start("blobs", func() error { return s.sweep(serving) })
	s.caller.Registered = sync.OnceFunc(ready)
	err = s.node.Run(living)
	stopServing()
	parts.Wait()
	close(failed)
	for part := range failed {
		err = errors.Join(err, part)
	}
	return err
}

// open opens the blobs, then the state and the node at once: both wait for disk
// and other programs most of the time.
func (s *server) open(ctx context.Context) (err error) {
	if s.images, err = image.New(image.Config{Dir: filepath.Join(s.dir, "image")}); err != nil {
		return err
	}
	opened := make(chan error, 1)
	go func() { opened <- s.openNode() }()
	err = s.openState(ctx)
	if err = errors.Join(err, <-opened); err != nil && s.store != nil {
		s.store.Close()
	}
	return err
}

// openState opens the state on back and front ends, with the services over it.
func (s *server) openState(ctx context.Context) (err error) {
	if !s.has(wsdl.RoleBackend) && !s.has(wsdl.RoleFrontend) {
		return nil
	}
	c := store.Config{Log: s.log}
	if s.options.state != "" {
		c.Endpoints = strings.Split(s.options.state, ",")
	} else {
		c.Dir = filepath.Join(s.dir, "state")
	}
	if s.store, err = store.Open(ctx, c); err != nil {
		return err
	}
	if s.has(wsdl.RoleBackend) {
		if s.info, err = information.New(information.Config{Store: s.store, Lease: s.options.lease, BrokerURL: s.brokerURL, Log: s.log}); err != nil {
			return err
		}
	}
	if s.has(wsdl.RoleFrontend) {
		var pass func(string)
		if s.options.killAt != "" {
			if pass, err = killAt(s.options.killAt); err != nil {
				return err
			}
		}
		s.broker, err = broker.New(broker.Config{
			Journal: s.store, Blobs: s.images, Caller: s.caller, URL: func() string { return s.url }, Lease: s.options.lease, Log: s.log, Pass: pass})
	}
	return err
}

// killAt kills this process, as kill -9 does, when the broker passes a point
// for the n-th time.
func killAt(text string) (func(point string), error) {
	at, count, counted := strings.Cut(text, ":")
	n := int64(1)
	if counted {
		var err error
		if n, err = strconv.ParseInt(count, 10, 64); err != nil || n < 1 {
			return nil, client.Usage(fmt.Errorf("--kill-at %s: write it as POINT or POINT:N", text))
		}
	}
	if points := slices.Concat(broker.Points(), broker.ChangePoints(), broker.SetPoints()); !slices.Contains(points, at) {
		return nil, client.Usage(fmt.Errorf("--kill-at: there is no point %q, but %s", at, strings.Join(points, ", ")))
	}
	var passed atomic.Int64
	return func(point string) {
		if point == at && passed.Add(1) == n {
			syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	}, nil
}

func (s *server) openNode() (err error) {
	c := node.Config{
		Name: s.options.name, Dir: filepath.Join(s.dir, "node"), URL: s.url, Roles: s.roles, Version: Version,
		Slots: s.options.slots, GoCache: s.options.goCache, CacheMax: int64(s.options.cacheLimit) << 20, PlainLinks: s.options.plainLinks, Compilers: s.options.compilers, QueueLimits: s.options.queueLimits,
		JoinURL: s.options.join, BrokerURL: s.brokerURL, Caller: s.caller, Images: s.images, Log: s.log, EndVMs: s.options.temporary,
	}
	if s.has(wsdl.RoleBackend) {
		c.JoinURL, c.InformationURL = "", s.url+"/services/information"
	}
	if !s.has(wsdl.RoleWorker) {
		c.Slots = -1
	}
	if a := s.options.accelerator; a != "none" {
		c.Accelerator, c.VMTemplates, c.VMBoot = osvm.Accelerator(a), s.options.vmTemplates, s.options.vmBoot
	}
	s.node, err = node.New(c)
	return err
}

// face makes the SOAP and HTTP face of the node: every node publishes the same
// services, and one without the broker's role says whom to ask.
func (s *server) face(ctx context.Context) (*soap.Server, error) {
	var published []*wsdl.Service
	boot, err := bootstrap.New(bootstrap.Config{
		Node:        s.node.ID(),
		Base:        func() string { return s.url },
		Broker:      s.brokerURL,
		BrokerNode:  func() string { return s.front().Node },
		Image:       func() string { return s.front().Image },
		Information: s.informationURL,
		Services:    func() []*wsdl.Service { return published },
		Reach:       reach,
	})
	if err != nil {
		return nil, err
	}
	// Images are kept where the broker is, whose node has the blobs.
	images := image.Images{Home: func() string { return s.front().Image }, Caller: s.caller}
	if s.broker != nil {
		images.Registry = s.store
	}
	service := image.NewService(s.images, func() string { return s.url }, images)
	if err := service.Settle(ctx); err != nil {
		return nil, err
	}
	contracts := []wsdl.Contract{wsdl.BootstrapContract(boot), wsdl.ImageContract(service)}
	if s.broker != nil {
		contracts = append(contracts, wsdl.QueueContract(s.broker.Queue(s.node.Queue())), wsdl.BrokerContract(s.broker))
	} else {
		contracts = append(contracts, wsdl.QueueContract(s.node.Queue()), soap.Elsewhere(wsdl.BrokerContract(nil), s.brokerURL))
	}
	if s.info != nil {
		contracts = append(contracts, wsdl.InformationContract(s.info))
	}
	contracts = append(contracts, wsdl.VMContract(s.node.Machines()))
	for _, c := range contracts {
		at := s.url + "/services/" + c.Name
		published = append(published, &wsdl.Service{Name: c.Name, Url: at, Wsdl: at + "?wsdl", Node: s.node.ID(), Description: c.Description})
	}
	face, err := soap.NewServer(soap.Config{Contracts: contracts, Log: s.log, Quiet: []string{"information/Heartbeat", "GET /healthz", "GET /metrics"}})
	if err != nil {
		return nil, err
	}
	face.Router().Handle("/bootstrap", boot.Text()).Methods(http.MethodGet, http.MethodHead)
	face.Router().Handle("/services/vm/{id}/console", s.node.Console()).Methods(http.MethodGet)
	face.Router().Handle("/services/vm/{id}/port", s.node.Port()).Methods(http.MethodGet)
	face.Router().Handle("/services/vm/{id}/network", s.node.Card()).Methods(http.MethodGet)
	face.Router().Handle("/services/vm/networks/{tag}", s.node.LANs()).Methods(http.MethodGet)
	face.Router().Handle("/services/vm/arrivals", s.node.Arrivals()).Methods(http.MethodGet)
	face.Router().Handle("/services/vm/checkpoints", s.node.Checkpoints()).Methods(http.MethodPost)
	face.Router().Handle("/services/vm/checkpoints/{digest}", s.node.Checkpoints()).Methods(http.MethodGet)
	face.Router().Handle("/services/image/blobs/{digest}", s.images.Handler()).Methods(http.MethodGet, http.MethodHead)
	return face, nil
}

// front is where the broker is, with its blobs beside it: here, or on the node
// of the grid that has the role; zero until that is known.
func (s *server) front() (f bootstrap.Place) {
	switch {
	case s.has(wsdl.RoleFrontend):
		return bootstrap.Place{Node: s.node.ID(), Broker: s.url + "/services/broker", Image: s.url + "/services/image"}
	case !s.has(wsdl.RoleBackend):
		return s.caller.Place()
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	records, err := s.store.Nodes(ctx)
	if err != nil {
		return f
	}
	for _, record := range records {
		n, err := information.Decode(record)
		if err != nil || !record.Alive {
			continue
		}
		if slices.ContainsFunc(n.Role, func(role *wsdl.Role) bool { return wsdl.Or(role, "") == wsdl.RoleFrontend }) {
			return bootstrap.Place{Node: n.Id, Broker: n.Url + "/services/broker", Image: n.Url + "/services/image"}
		}
	}
	return f
}

func (s *server) brokerURL() string { return s.front().Broker }

func (s *server) informationURL() string {
	if s.has(wsdl.RoleBackend) {
		return s.url + "/services/information"
	}
	return s.caller.Place().Information
}

// sweep removes blobs that nobody needs any more, from time to time.
func (s *server) sweep(ctx context.Context) error {
	const pause = 10 * time.Minute
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-time.After(pause):
			if _, err := s.images.Sweep(now); err != nil {
				s.log.WithError(err).Warn("sweep of blobs")
			}
		}
	}
}

// reach tries whether a node answers at a base address.
func reach(ctx context.Context, base string) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/healthz", nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("it answers %s", response.Status)
	}
	return nil
}
