package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// slurm is a Slurm of one node, with a controller and an authentication daemon
// of its own, on loopback.
type slurm struct {
	dir, conf, sbatch string
	daemons           []*exec.Cmd
	floods            int
}

// startSlurm starts the daemons and returns when the node is idle.
func startSlurm(ctx context.Context, b *bench) (s *slurm, err error) {
	var paths []string
	for _, name := range []string{"munged", "slurmctld", "slurmd", "sbatch", "sinfo", "scancel"} {
		path, err := installed(name)
		if err != nil {
			return nil, err
		}
		paths = append(paths, path)
	}
	s = &slurm{sbatch: paths[3]}
	if s.dir, err = b.folder("slurm"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.stop()
		}
	}()
	// Others than this program's user must reach the socket.
	for dir := s.dir; dir != filepath.Dir(b.dir); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			return nil, err
		}
	}
	for _, folder := range []string{"state", "spool"} {
		if err := os.Mkdir(filepath.Join(s.dir, folder), 0o700); err != nil {
			return nil, err
		}
	}
	key := make([]byte, 1024)
	rand.Read(key)
	in := func(name string) string { return filepath.Join(s.dir, name) }
	if err := os.WriteFile(in("munge.key"), key, 0o400); err != nil {
		return nil, err
	}
	host, err := os.Hostname()
	if err != nil {
		return nil, err
	}
	host = before(host, ".")
	ports, err := freePorts(2)
	if err != nil {
		return nil, err
	}
	// Of what was tried (defer, back-fill, longer and shorter intervals, more and
	// fewer processors claimed) this gave the most jobs a second.
	s.conf = in("slurm.conf")
	conf := fmt.Sprintf(`ClusterName=bench
SlurmctldHost=%[1]s(127.0.0.1)
SlurmUser=root
SlurmctldPort=%[3]d
SlurmdPort=%[4]d
AuthType=auth/munge
AuthInfo=socket=%[2]s/munge.socket
CredType=cred/munge
StateSaveLocation=%[2]s/state
SlurmdSpoolDir=%[2]s/spool
SlurmctldPidFile=%[2]s/slurmctld.pid
SlurmdPidFile=%[2]s/slurmd.pid
SlurmctldLogFile=%[2]s/slurmctld.log
SlurmdLogFile=%[2]s/slurmd.log
SlurmctldDebug=error
SlurmdDebug=error
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0,sched_min_interval=10000,default_queue_depth=1000
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MinJobAge=2
MaxJobCount=20000
MaxArraySize=10000
ReturnToService=2
SlurmdParameters=config_overrides
NodeName=%[1]s NodeAddr=127.0.0.1 CPUs=%[5]d State=UNKNOWN
PartitionName=all Nodes=%[1]s Default=YES MaxTime=INFINITE State=UP
`, host, s.dir, ports[0], ports[1], 32*runtime.NumCPU())
	if err := os.WriteFile(s.conf, []byte(conf), 0o644); err != nil {
		return nil, err
	}
	for _, args := range [][]string{
		{paths[0], "--foreground", "--force", "--key-file=" + in("munge.key"), "--socket=" + in("munge.socket"), "--pid-file=" + in("munged.pid"),
			"--log-file=" + in("munged.log"), "--seed-file=" + in("munged.seed")},
		{paths[1], "-D", "-c", "-f", s.conf},
		{paths[2], "-D", "-f", s.conf},
	} {
		c := exec.Command(args[0], args[1:]...)
		c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		if err := c.Start(); err != nil {
			return nil, err
		}
		s.daemons = append(s.daemons, c)
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		state := exec.CommandContext(ctx, paths[4], "-h", "-o", "%t")
		state.Env = s.environment()
		if out, err := state.Output(); err == nil && strings.TrimSpace(string(out)) == "idle" {
			return s, nil
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("node of slurm does not become idle: %s %s", tail(in("slurmctld.log")), tail(in("slurmd.log")))
		}
	}
}

func (s *slurm) environment() []string { return append(os.Environ(), "SLURM_CONF="+s.conf) }

// flood submits an array of n jobs and returns when each has run: each adds a
// byte to a file.
func (s *slurm) flood(ctx context.Context, n int) (time.Duration, error) {
	s.floods++
	ran := filepath.Join(s.dir, fmt.Sprintf("ran-%d", s.floods))
	script := filepath.Join(s.dir, fmt.Sprintf("job-%d.sh", s.floods))
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho >>"+ran+"\n"), 0o755); err != nil {
		return 0, err
	}
	submit := exec.CommandContext(ctx, s.sbatch, "--quiet", "--array=1-"+strconv.Itoa(n), "--output=/dev/null", "--ntasks=1", "--chdir=/", script)
	submit.Env = s.environment()
	begin := time.Now()
	if out, err := submit.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("sbatch: %w: %s", err, out)
	}
	for deadline := begin.Add(2 * time.Minute); ; time.Sleep(2 * time.Millisecond) {
		if info, err := os.Stat(ran); err == nil && info.Size() >= int64(n) {
			return time.Since(begin), nil
		}
		if ctx.Err() != nil || time.Now().After(deadline) {
			return 0, fmt.Errorf("%d jobs did not run in 2 minutes: %s", n, tail(filepath.Join(s.dir, "slurmctld.log")))
		}
	}
}

// stop ends the daemons, the last one first.
func (s *slurm) stop() {
	for i := len(s.daemons) - 1; i >= 0; i-- {
		c := s.daemons[i]
		c.Process.Signal(syscall.SIGTERM)
		stubborn := time.AfterFunc(10*time.Second, func() { c.Process.Kill() })
		c.Wait()
		stubborn.Stop()
	}
}

// freePorts are TCP ports on loopback that nobody listens on just now.
func freePorts(n int) (ports []int, err error) {
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}
