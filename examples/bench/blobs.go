package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// blobCase compares how a node fetches an input of a job, verified and kept on
// disk, with a download that is hashed and thrown away.
func blobCase() *contest {
	const theirs = "curl, sha256sum"
	const size = 256 << 20
	c := &contest{
		name:   "blobs",
		title:  "256 MiB from one node to another, verified",
		method: "MVM: a worker fetches a job's input from the broker's node, from its asking to the blob being verified and in its store; the disk catches up later. The other: `curl | sha256sum` from nginx on the same machine, which keeps nothing.",
		rounds: 7,
		order:  []string{"rate"},
		units:  map[string]string{"rate": "MB/s"},
		goals: []goal{{text: "bytes a second, against curl and sha256sum", atLeast: 1, ratio: more("rate", theirs),
			holds: "hashing and writing share the cores with sending."}},
	}
	c.open = func(ctx context.Context, b *bench) ([]player, func(), error) {
		nginx, err := installed("nginx")
		if err != nil {
			return nil, nil, err
		}
		curl, err := installed("curl")
		if err != nil {
			return nil, nil, err
		}
		dir, err := b.folder("blobs")
		if err != nil {
			return nil, nil, err
		}
		if err := b.lay(dir, "trivial.c", "blob.xml"); err != nil {
			return nil, nil, err
		}
		blob := filepath.Join(dir, "blob")
		web, address, err := startNginx(nginx, dir)
		if err != nil {
			return nil, nil, err
		}
		g, err := startGrid(ctx, b, []string{"--log-level", "debug"}, 0, 1)
		if err != nil {
			return nil, web, err
		}
		stop := func() { g.stop(); web() }
		fresh := func() error {
			f, err := os.Create(blob)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = io.CopyN(f, rand.Reader, size)
			return err
		}
		rate := func(took time.Duration) sample { return sample{"rate": size / 1e6 / took.Seconds()} }
		mine := func(ctx context.Context) (sample, error) {
			if err := fresh(); err != nil {
				return nil, err
			}
			begin := time.Now()
			if _, _, err := command(ctx, dir, b.mvm, "submit", "blob.xml", "--wait", "--grid", g.url); err != nil {
				return nil, err
			}
			lines, err := g.since(begin)
			if err != nil {
				return nil, err
			}
			for _, l := range lines {
				if l.Msg == "blobs are here" {
					return rate(time.Duration(l.Micros) * time.Microsecond), nil
				}
			}
			return nil, errors.New("the worker's log does not tell when the blob was there")
		}
		yours := func(ctx context.Context) (sample, error) {
			if _, err := os.Stat(blob); err != nil { // its turn may be the first
				if err := fresh(); err != nil {
					return nil, err
				}
			}
			took, _, err := command(ctx, dir, "sh", "-c", curl+" -sf "+address+"/blob | sha256sum")
			return rate(took), err
		}
		if _, err := mine(ctx); err != nil { // builds
			return nil, stop, err
		}
		return []player{{ours, mine}, {theirs, yours}}, stop, nil
	}
	return c
}

// startNginx serves a folder on loopback.
func startNginx(nginx, dir string) (stop func(), address string, err error) {
	ports, err := freePorts(1)
	if err != nil {
		return nil, "", err
	}
	for at := dir; at != filepath.Dir(filepath.Dir(dir)); at = filepath.Dir(at) { // its workers are another user's
		if err := os.Chmod(at, 0o755); err != nil {
			return nil, "", err
		}
	}
	conf := filepath.Join(dir, "nginx.conf")
	text := fmt.Sprintf("daemon off;\nworker_processes auto;\npid %[1]s/nginx.pid;\nerror_log %[1]s/nginx.err;\nevents {}\n"+
		"http {\n access_log off;\n sendfile on;\n client_body_temp_path %[1]s/t1;\n proxy_temp_path %[1]s/t2;\n fastcgi_temp_path %[1]s/t3;\n uwsgi_temp_path %[1]s/t4;\n scgi_temp_path %[1]s/t5;\n"+
		" server {\n  listen 127.0.0.1:%[2]d;\n  root %[1]s;\n }\n}\n", dir, ports[0])
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		return nil, "", err
	}
	c := exec.Command(nginx, "-c", conf, "-p", dir)
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var out strings.Builder
	c.Stderr = &out
	if err := c.Start(); err != nil {
		return nil, "", err
	}
	stop = func() {
		c.Process.Signal(syscall.SIGTERM)
		c.Wait()
	}
	for deadline := time.Now().Add(10 * time.Second); readFile(filepath.Join(dir, "nginx.pid")) == ""; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			stop()
			return nil, "", fmt.Errorf("nginx does not start: %s", out.String())
		}
	}
	return stop, fmt.Sprintf("http://127.0.0.1:%d", ports[0]), nil
}
