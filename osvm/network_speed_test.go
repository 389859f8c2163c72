package osvm_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/big"
	"net"
	"regexp"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"mvm/osvm"
	"mvm/osvm/guest"
	"mvm/osvm/link"
	"mvm/osvm/vmtest"
	"mvm/osvm/vswitch"
)

// BenchmarkNetwork has two machines send each other bytes over TCP, and answer each
// other's pings: over one switch; over two, with a trunk between them as nodes make it;
// and, to compare, with their cards joined by a mere copy of bytes.
func BenchmarkNetwork(b *testing.B) {
	const megabytes, pings = 24, 200
	h := vmtest.Host(b)
	var machines [2]*osvm.Machine
	var agents [2]*link.Session
	mac := func(i int) vswitch.MAC { return vswitch.MAC{2, 0, 0, 0, 0, byte(1 + i)} }
	for i := range machines {
		machines[i] = vmtest.MachineOf(b, h, osvm.Order{ID: fmt.Sprint("peer-", i), Image: vmtest.Image(b), MemoryMiB: 128, Template: true, Network: true})
		agents[i] = vmtest.Start(b, machines[i])
		place := guest.Network{MAC: mac(i).String(), Address: fmt.Sprintf("10.86.0.%d/16", 1+i), Hosts: []string{"10.86.0.1 vm0", "10.86.0.2 vm1"}}
		if err := machines[i].Join(b.Context(), agents[i], place); err != nil {
			b.Fatal(err)
		}
	}
	run := func(i int, line string) string {
		b.Helper()
		out := vmtest.Call[guest.Output](b, agents[i], "Run", guest.Command{Words: []string{"/bin/sh", "-c", line}, Limit: vmtest.Limit})
		if out.Status != 0 {
			b.Fatalf("`%s` ends with %d and says\n%s", line, out.Status, out.Said)
		}
		return out.Said
	}
	join := map[string]func() (part func()){
		"switch": func() func() {
			s := vswitch.New(vswitch.Config{})
			for i, m := range machines {
				plug(b, s, m, mac(i))
			}
			return s.Close
		},
		"trunk": func() func() {
			one, other := vswitch.New(vswitch.Config{}), vswitch.New(vswitch.Config{})
			sealedTrunk(b, one, other)
			plug(b, one, machines[0], mac(0))
			plug(b, other, machines[1], mac(1))
			return func() { one.Close(); other.Close() }
		},
		"copy": func() func() {
			var cards [2]net.Conn
			for i, m := range machines {
				var err error
				if cards[i], err = m.Network(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
			done := make(chan struct{})
			go func() { defer close(done); link.Splice(cards[0], cards[1]) }()
			return func() { _ = cards[0].Close(); _ = cards[1].Close(); <-done }
		},
	}
	answered := regexp.MustCompile(`time=([0-9.]+) ms`)
	rates, works := map[string][]float64{}, map[string][]float64{}
	trips := map[string][]time.Duration{}
	for b.Loop() {
		for _, way := range []string{"switch", "copy", "trunk"} {
			part := join[way]()
			run(0, "ping -c 1 -W 30 vm1")
			run(1, "sleep 1000 2>&1 | nc -l -p 7000 >/dev/null 2>&1 & until grep -q :1B58 /proc/net/tcp /proc/net/tcp6; do usleep 10000; done")
			begin, cpu := time.Now(), worked(b)
			run(0, fmt.Sprintf("dd if=/dev/zero bs=65536 count=%d 2>/dev/null | nc vm1 7000", megabytes<<20/65536))
			rates[way] = append(rates[way], megabytes/time.Since(begin).Seconds())
			works[way] = append(works[way], float64((worked(b)-cpu).Microseconds())/1000/megabytes)
			for _, found := range answered.FindAllStringSubmatch(run(0, fmt.Sprintf("ping -c %d -i 0.002 vm1", pings)), -1) {
				ms, err := strconv.ParseFloat(found[1], 64)
				if err != nil {
					b.Fatal(err)
				}
				trips[way] = append(trips[way], time.Duration(ms*float64(time.Millisecond)))
			}
			part()
		}
	}
	b.ReportMetric(0, "ns/op")
	for way := range join {
		b.ReportMetric(middle(rates[way]), way+"-MiB/s")
		b.ReportMetric(middle(works[way]), way+"-cpu-ms/MiB")
		b.ReportMetric(float64(median(trips[way]).Microseconds()), way+"-us")
	}
}

func middle(all []float64) float64 {
	slices.Sort(all)
	return all[len(all)/2]
}

// worked is the processor time that this process has taken.
func worked(b *testing.B) time.Duration {
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		b.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

// sealedTrunk joins two switches as those of two nodes are.
func sealedTrunk(b *testing.B, dials, takes *vswitch.Switch) {
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
	near, far := pipe(b)
	client, server := tls.Client(near, config), tls.Server(far, config)
	taken := make(chan error, 1)
	ctx, cancel := context.WithTimeout(b.Context(), vmtest.Limit)
	defer cancel()
	go func() { taken <- server.HandshakeContext(ctx) }()
	if err := client.HandshakeContext(ctx); err != nil {
		b.Fatal(err)
	}
	if err := <-taken; err != nil {
		b.Fatal(err)
	}
	for s, conn := range map[*vswitch.Switch]net.Conn{dials: client, takes: server} {
		if _, err := s.Trunk("trunk", conn); err != nil {
			b.Fatal(err)
		}
	}
}
