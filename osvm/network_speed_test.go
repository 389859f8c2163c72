package osvm_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"mvm/osvm"
	"mvm/osvm/guest"
	"mvm/osvm/link"
	"mvm/osvm/vmtest"
	"mvm/osvm/vswitch"
)

// speaker measures a TCP connection: as many round trips of a byte as it is told, of
// which it says the middle one, then so many megabytes one way, until the other side has
// all of them.
const speaker = `#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + t.tv_nsec / 1e9; }
static int order(const void *a, const void *b) { double d = *(double *)a - *(double *)b; return (d > 0) - (d < 0); }
static void die(const char *what) { perror(what); exit(1); }
int main(int argc, char **argv) {
	static char block[65536];
	struct sockaddr_in at;
	memset(&at, 0, sizeof at);
	at.sin_family = AF_INET, at.sin_port = htons(7000);
	int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
	if (argc == 1) {
		setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
		if (bind(fd, (struct sockaddr *)&at, sizeof at) != 0 || listen(fd, 1) != 0) die("listen");
		if (fork() != 0) return 0;
		for (int i = 0; i < 3; i++) close(i);
		for (;;) {
			int c = accept(fd, NULL, NULL);
			setsockopt(c, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
			ssize_t n;
			long sum = 0;
			while ((n = read(c, block, sizeof block)) > 0) {
				if (n == 1 && block[0] == 'p') write(c, block, 1);
				else sum += n;
			}
			write(c, &sum, sizeof sum);
			close(c);
		}
	}
	int pings = atoi(argv[2]);
	long bytes = atol(argv[3]) << 20, got = 0;
	double *took = calloc(pings, sizeof *took);
	inet_pton(AF_INET, argv[1], &at.sin_addr);
	if (connect(fd, (struct sockaddr *)&at, sizeof at) != 0) die("connect");
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	for (int i = 0; i < pings; i++) {
		double begin = now();
		if (write(fd, "p", 1) != 1 || read(fd, block, 1) != 1) die("ping");
		took[i] = now() - begin;
	}
	qsort(took, pings, sizeof *took, order);
	double begin = now();
	memset(block, 'b', sizeof block);
	for (long left = bytes; left > 0; left -= sizeof block)
		if (write(fd, block, sizeof block) != sizeof block) die("write");
	shutdown(fd, SHUT_WR);
	if (read(fd, &got, sizeof got) != sizeof got || got != bytes) die("not all has come");
	printf("%f %f\n", took[pings / 2] * 1e6, bytes / 1048576.0 / (now() - begin));
	return 0;
}
`

// direct is a QEMU whose network card is joined with that of the one that was started
// before it by QEMU itself, where MVM's has its switch.
const direct = `#!/bin/sh
umask 0
way="stream,id=network,server=on,addr.type=unix,addr.path=%[1]s/wire"
mkdir %[1]s/first 2>/dev/null || way="stream,id=network,server=off,addr.type=unix,addr.path=%[1]s/wire"
for word; do
	shift
	case "$word" in stream,id=network,*) word="$way";; esac
	set -- "$@" "$word"
done
exec %[2]s "$@"
`

// BenchmarkNetwork has two machines send each other bytes over TCP: over one switch; over
// two, with a trunk between them as nodes make it; and, to compare, over a connection
// that their QEMUs make to each other (-netdev stream), in which MVM has no part.
func BenchmarkNetwork(b *testing.B) {
	const megabytes, pings = 8, 200
	mac := func(i int) vswitch.MAC { return vswitch.MAC{2, 0, 0, 0, 0, byte(1 + i)} }
	address := func(i int) string { return fmt.Sprintf("10.86.0.%d", 1+i) }
	type pair struct {
		machines [2]*osvm.Machine
		agents   [2]*link.Session
	}
	run := func(agent *link.Session, words ...string) string {
		b.Helper()
		out := vmtest.Call[guest.Output](b, agent, "Run", guest.Command{Words: words, Limit: vmtest.Limit})
		if out.Status != 0 {
			b.Fatalf("%.60q ends with %d and says\n%s", words, out.Status, out.Said)
		}
		return out.Said
	}
	paired := func(h *osvm.Host, mtu int) *pair {
		p := &pair{}
		for i := range p.machines {
			m := vmtest.MachineOf(b, h, osvm.Order{ID: fmt.Sprint("peer-", i), Image: vmtest.Image(b), MemoryMiB: 128, Template: true, Network: true})
			p.machines[i], p.agents[i] = m, vmtest.Start(b, m)
			if err := m.Join(b.Context(), p.agents[i], guest.Network{MAC: mac(i).String(), Address: address(i) + "/16", MTU: mtu}); err != nil {
				b.Fatal(err)
			}
			run(p.agents[i], "/bin/sh", "-c", "cat >/tmp/speaker.c <<'END'\n"+speaker+"END\ngcc -o /tmp/speaker /tmp/speaker.c")
		}
		run(p.agents[1], "/tmp/speaker")
		return p
	}
	ours := paired(vmtest.Host(b), vswitch.MTU)
	warm := func(wrapper string) *osvm.Host { // its templates are there by now
		q := vmtest.QEMU(b)
		q.Path = wrapper
		h, err := osvm.NewHost(b.Context(), osvm.HostConfig{Dir: b.TempDir(), Templates: vmtest.Templates(b), QEMU: q, Accelerator: osvm.TCG})
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = h.Close() })
		return h
	}
	folder, err := os.MkdirTemp("", "wire-") // of a path that fits into a socket's address
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = os.RemoveAll(folder) })
	wrapper := filepath.Join(folder, "qemu")
	err = os.WriteFile(wrapper, fmt.Appendf(nil, direct, folder, vmtest.QEMU(b).Path), 0o755)
	if err == nil {
		err = os.Chmod(folder, 0o777) // QEMU runs as somebody else
	}
	if err != nil {
		b.Fatal(err)
	}
	theirs := paired(warm(wrapper), 0)
	work := func(p *pair) (sum time.Duration) {
		for _, m := range p.machines {
			s, err := m.Statistics(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			sum += s.CPU
		}
		return sum
	}
	ways := []struct {
		name string
		of   *pair
		join func() (part func())
	}{
		{"switch", ours, func() func() {
			s := vswitch.New(vswitch.Config{})
			for i, m := range ours.machines {
				plug(b, s, m, mac(i))
			}
			return s.Close
		}},
		{"qemu", theirs, func() func() { return func() {} }},
		{"trunk", ours, func() func() {
			one, other := vswitch.New(vswitch.Config{}), vswitch.New(vswitch.Config{})
			sealed(b, one, other)
			plug(b, one, ours.machines[0], mac(0))
			plug(b, other, ours.machines[1], mac(1))
			return func() { one.Close(); other.Close() }
		}},
	}
	own := func() time.Duration {
		var used unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &used); err != nil {
			b.Fatal(err)
		}
		return time.Duration(used.Utime.Nano() + used.Stime.Nano())
	}
	rates, trips, works, owns := map[string][]float64{}, map[string][]float64{}, map[string][]float64{}, map[string][]float64{}
	for b.Loop() {
		for _, way := range ways {
			part := way.join()
			run(way.of.agents[0], "/bin/ping", "-c", "1", "-W", "30", address(1)) // whose place is known then
			before, mine := work(way.of), own()
			var trip, rate float64
			if _, err := fmt.Sscan(run(way.of.agents[0], "/tmp/speaker", address(1), fmt.Sprint(pings), fmt.Sprint(megabytes)), &trip, &rate); err != nil {
				b.Fatal(err)
			}
			works[way.name] = append(works[way.name], float64((work(way.of) - before).Milliseconds()))
			owns[way.name] = append(owns[way.name], float64((own() - mine).Milliseconds()))
			trips[way.name], rates[way.name] = append(trips[way.name], trip), append(rates[way.name], rate)
			part()
		}
	}
	b.ReportMetric(0, "ns/op")
	for _, way := range ways {
		b.ReportMetric(middle(trips[way.name]), way.name+"-us")
		b.ReportMetric(middle(rates[way.name]), way.name+"-MiB/s")
		b.ReportMetric(middle(works[way.name]), way.name+"-cpu-ms")     // of both QEMUs
		b.ReportMetric(middle(owns[way.name]), way.name+"-host-cpu-ms") // of this process
	}
}

func middle(all []float64) float64 {
	slices.Sort(all)
	return all[len(all)/2]
}

// sealed joins two switches by a trunk as those of two nodes are: TLS over TCP.
func sealed(b *testing.B, dials, takes *vswitch.Switch) {
	b.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		b.Fatal(err)
	}
	config := &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{{Certificate: [][]byte{certificate}, PrivateKey: private}}, InsecureSkipVerify: true}
	listener, err := tls.Listen("tcp", "127.0.0.1:0", config)
	if err != nil {
		b.Fatal(err)
	}
	defer listener.Close()
	taken := make(chan error, 1)
	go func() {
		conn, err := listener.Accept()
		if err == nil {
			_, err = takes.Trunk("trunk", conn)
		}
		taken <- err
	}()
	conn, err := tls.Dial("tcp", listener.Addr().String(), config)
	if err == nil {
		_, err = dials.Trunk("trunk", conn)
	}
	if err != nil {
		b.Fatal(err)
	}
	if err := <-taken; err != nil {
		b.Fatal(err)
	}
}
