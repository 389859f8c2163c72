package osvm_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"mvm/osvm"
	"mvm/osvm/vmtest"
)

// status is /proc/PID/status.
func status(t *testing.T, pid int) map[string]string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(line, ":")
		all[name] = strings.Join(strings.Fields(value), " ")
	}
	return all
}

// confined looks for all that keeps a QEMU in its place whoever runs the node.
func confined(t *testing.T, pid int) {
	t.Helper()
	is := status(t, pid)
	for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapAmb"} {
		if strings.Trim(is[set], "0") != "" {
			t.Errorf("QEMU has capabilities: %s is %s", set, is[set])
		}
	}
	if is["Seccomp"] != "2" || is["NoNewPrivs"] != "1" {
		t.Errorf("QEMU has seccomp mode %s, no_new_privs %s", is["Seccomp"], is["NoNewPrivs"])
	}
}

// apart looks for namespaces of QEMU's own.
func apart(t *testing.T, pid int) {
	t.Helper()
	for _, kind := range []string{"net", "ipc", "mnt", "pid", "uts"} {
		ours, err1 := os.Readlink("/proc/self/ns/" + kind)
		its, err2 := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, kind))
		if err := errors.Join(err1, err2); err != nil || ours == its {
			t.Errorf("QEMU is in our %s namespace %s: %v", kind, its, err)
		}
	}
}

// TestIsolation looks at running QEMUs from outside.
func TestIsolation(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: users of their own for VMs were not tried: it needs root")
	}
	h := vmtest.Host(t)
	one, two := vmtest.Machine(t, h, "one"), vmtest.Machine(t, h, "two")
	vmtest.Start(t, one)
	vmtest.Start(t, two)
	t.Logf("isolation: %s", one.Isolation())
	switch one.Isolation() {
	case osvm.OwnUser:
		apart(t, one.PID())
	case osvm.OwnUserOnly:
		t.Log("SKIPPED: namespaces were not seen: this root may make none")
	default:
		t.Fatalf("root starts QEMU with isolation %q", one.Isolation())
	}
	confined(t, one.PID())
	first, second := status(t, one.PID()), status(t, two.PID())
	if strings.HasPrefix(first["Uid"], "0 ") || strings.HasPrefix(first["Gid"], "0 ") || first["Groups"] != "" || first["Uid"] == second["Uid"] {
		t.Errorf("users %q and %q, groups %q %q", first["Uid"], second["Uid"], first["Gid"], first["Groups"])
	}

	// What it holds is what it was given: no file of ours but these.
	fds := fmt.Sprintf("/proc/%d/fd", one.PID())
	entries, err := os.ReadDir(fds)
	if err != nil {
		t.Fatal(err)
	}
	image := vmtest.Image(t)
	allowed := []string{image.Kernel, image.Initrd, "/dev/null", "/run/mvm-vm-users"}
	memory := ""
	for _, e := range entries {
		to, err := os.Readlink(filepath.Join(fds, e.Name()))
		switch {
		case err != nil || !strings.HasPrefix(to, "/") || slices.Contains(allowed, to) || strings.HasSuffix(to, "/one/log"):
		case strings.HasPrefix(to, "/memfd:mvm-template"):
			memory = filepath.Join(fds, e.Name())
		default:
			t.Errorf("QEMU has %s open", to)
		}
	}
	if memory == "" {
		t.Fatal("the template's memory is not among QEMU's descriptors")
	}
	file, err := os.OpenFile(memory, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.WriteAt([]byte{1}, 0); !errors.Is(err, unix.EPERM) {
		t.Errorf("one clone can write what all share: %v", err)
	}
}

// TestIsolationWithoutRoot has a node of nobody's create a machine.
func TestIsolationWithoutRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: a node of another user was not tried: it needs root")
	}
	const nobody = 65534
	image, folder := vmtest.Image(t), t.TempDir()
	for path := folder; len(path) > len(os.TempDir()); path = filepath.Dir(path) {
		if err := os.Chmod(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	home := filepath.Join(folder, "home")
	if err := errors.Join(os.Mkdir(home, 0o700), os.Chown(home, nobody, nobody)); err != nil {
		t.Fatal(err)
	}
	for _, file := range []*string{&image.Kernel, &image.Initrd} {
		readable := filepath.Join(folder, filepath.Base(*file))
		if err := copyFile(readable, *file); err != nil {
			t.Fatal(err)
		}
		*file = readable
	}
	told := helping{Dir: home, QEMU: vmtest.QEMU(t), Image: image, IDs: []string{"one"}}
	_, answer := startHelper(t, told, func(c *exec.Cmd) {
		c.Dir = "/"
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	})
	t.Logf("isolation without root: %s", answer.Isolation)
	if answer.Isolation != osvm.OwnNamespaces && answer.Isolation != osvm.SandboxOnly {
		t.Fatalf("a node without root says that its QEMU has %q", answer.Isolation)
	}
	confined(t, answer.PIDs[0])
	if answer.Isolation == osvm.OwnNamespaces {
		apart(t, answer.PIDs[0])
	}
	if is := status(t, answer.PIDs[0]); !strings.HasPrefix(is["Uid"], "65534 ") {
		t.Errorf("its QEMU is user %s", is["Uid"])
	}
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
