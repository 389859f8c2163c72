package node

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"mvm/services/image"
	"mvm/wsdl"
)

// What a process leaves in the place of an output is taken only if it is a file
// of its own, of a size that can be kept.
func TestOutputsAreFilesOfTheProcess(t *testing.T) {
	images, err := image.New(image.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	work, secret := t.TempDir(), filepath.Join(t.TempDir(), "secret")
	folder := processFolder(work, 0)
	at := func(name string) string { return filepath.Join(folder, name) }
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(at("folder"), 0o700))
	must(os.WriteFile(secret, []byte("secret"), 0o600))
	must(os.WriteFile(at("good"), []byte("good"), 0o600))
	must(os.Symlink(secret, at("link")))
	must(os.Symlink("good", at("link-within")))
	must(os.Symlink(filepath.Dir(secret), at("linked")))
	must(unix.Mkfifo(at("fifo"), 0o600))
	socket, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	must(err)
	defer unix.Close(socket)
	must(unix.Bind(socket, &unix.SockaddrUnix{Name: at("socket")}))
	if err := unix.Mknod(at("device"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 5))); err != nil {
		t.Logf("no device is tried: %v", err)
		must(os.Symlink("/dev/zero", at("device")))
	}
	must(os.WriteFile(at("sparse"), nil, 0o600))
	must(os.Truncate(at("sparse"), 1<<40))
	spec := &wsdl.ProcessSpec{Id: wsdl.Of(int32(0))}
	refused := []string{"link", "link-within", "linked/secret", "fifo", "socket", "device", "folder", "sparse", "../secret", "/etc/passwd", "folder/../../secret"}
	for _, name := range append(refused, "good", "missing") {
		spec.Output = append(spec.Output, &wsdl.OutputFile{Name: name, Optional: name == "missing"})
	}
	files, missing, trouble, full := collect(t.Context(), images, work, spec)
	if full != nil {
		t.Errorf("it has to do with room: %v", full)
	}
	var names []string
	for _, f := range files {
		names = append(names, f.Name)
	}
	if !slices.Equal(names, []string{"stdout", "stderr", "good"}) {
		t.Errorf("kept %v; trouble %v", names, trouble)
	}
	for _, name := range refused {
		if !slices.ContainsFunc(missing, func(why string) bool { return strings.Contains(why, name+" cannot be kept") }) {
			t.Errorf("%s is not refused: %v", name, missing)
		}
	}
	t.Log(strings.Join(missing, "\n"))
}
