package osvm_test

import (
	"fmt"
	"net"
	"strings"
	"testing"

	"mvm/osvm"
	"mvm/osvm/guest"
	"mvm/osvm/link"
	"mvm/osvm/vmtest"
	"mvm/osvm/vswitch"
)

// plug connects a machine's network card with a switch.
func plug(t testing.TB, s *vswitch.Switch, m *osvm.Machine, mac vswitch.MAC) *vswitch.Port {
	t.Helper()
	conn, err := m.Network(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	port, err := s.Guest(vswitch.Card{Name: m.ID, MAC: mac}, conn)
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// inhabited is a machine with a session of its agent's.
type inhabited struct {
	*osvm.Machine
	agent *link.Session
}

// inside runs a command in a guest, which must succeed.
func inside(t *testing.T, m inhabited, command string) string {
	t.Helper()
	out := shell(t, m.agent, command)
	if out.Status != 0 {
		t.Errorf("in %s `%s` ends with %d and says\n%s\nits console says\n%s", m.ID, command, out.Status, out.Said, m.Console().Last())
	}
	return out.Said
}

// trunk joins two switches.
func trunk(t *testing.T, a, b *vswitch.Switch) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	there, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	here, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	for s, conn := range map[*vswitch.Switch]net.Conn{a: here, b: there} {
		if _, err := s.Trunk("trunk", conn); err != nil {
			t.Fatal(err)
		}
	}
}

// TestNetwork: clones of one template on two switches with a trunk reach each other
// by name, one on a third with the same addresses reaches nobody, no guest speaks by
// another's address, and all go on when their host is adopted.
func TestNetwork(t *testing.T) {
	folder := t.TempDir()
	h := vmtest.HostIn(t, folder)
	here, there, elsewhere := vswitch.New(vswitch.Config{}), vswitch.New(vswitch.Config{}), vswitch.New(vswitch.Config{})
	trunk(t, here, there)
	of := map[string]*vswitch.Switch{"a": here, "b": here, "c": there, "x": elsewhere}
	index := map[string]int{"a": 0, "b": 1, "c": 2, "x": 0}
	mac := func(id string) vswitch.MAC { return vswitch.MAC{2, 0, 0, 0, 0, byte(1 + index[id])} }
	machines := map[string]inhabited{}
	ports := map[string]*vswitch.Port{}
	for _, id := range []string{"a", "b", "c", "x"} {
		m := vmtest.MachineOf(t, h, osvm.Order{ID: id, Image: vmtest.Image(t), MemoryMiB: 128, Template: true, Network: true})
		ports[id] = plug(t, of[id], m, mac(id))
		s := vmtest.Start(t, m)
		machines[id] = inhabited{m, s}
		if err := m.Join(t.Context(), s, guest.Network{
			MAC: mac(id).String(), Address: fmt.Sprintf("10.86.0.%d/16", 1+index[id]), MTU: vswitch.MTU,
			Hosts: []string{"10.86.0.1 vm0", "10.86.0.2 vm1 peer", "10.86.0.3 vm2"},
		}); err != nil {
			t.Fatalf("%v\n%s", err, m.Console().Last())
		}
	}
	const ping = "ping -c 1 -W 30 "
	inside(t, machines["a"], ping+"vm1 && "+ping+"peer && "+ping+"vm2")
	inside(t, machines["c"], ping+"vm1")
	long := fmt.Sprint(vswitch.MTU - 28) // less the headers of IP and ICMP
	before := ports["a"].Counts().In
	inside(t, machines["a"], strings.Repeat("ping -c 1 -W 30 -s "+long+" vm2 && ", 20)+"true")
	if n := ports["a"].Counts().In - before; n >= 40 {
		t.Errorf("20 pings of %s bytes are %d frames", long, n)
	}
	if said := inside(t, machines["a"], "ping -c 1 -W 1 10.87.0.1 2>&1 && echo there || true"); strings.Contains(said, "\nthere") {
		t.Errorf("a guest reaches what is outside:\n%s", said)
	}
	// Another job's guest has nothing of these, nor they of it.
	const calls = 200
	heard, called := ports["b"].Counts().Out, ports["x"].Counts().In
	inside(t, machines["x"], fmt.Sprintf("ping -c %d -i 0.005 -W 1 10.86.255.255 >/dev/null 2>&1 || true", calls))
	if said := inside(t, machines["x"], "ping -c 1 -W 1 vm2 2>&1 && echo there || true"); strings.Contains(said, "\nthere") {
		t.Errorf("a guest of another network reaches vm2:\n%s", said)
	}
	if n := ports["x"].Counts().In - called; n < calls {
		t.Errorf("the other network's guest has sent %d frames", n)
	}
	if n := ports["b"].Counts().Out - heard; n > calls/2 { // its own neighbours have something to say, too
		t.Errorf("%d frames came to b meanwhile", n)
	}
	// Whoever takes b's address has no network.
	inside(t, machines["a"], "ip link set eth0 down; ip link set eth0 address "+mac("b").String()+"; ip link set eth0 up; ip address show eth0")
	if said := inside(t, machines["a"], "ping -c 1 -W 1 vm2 2>&1 && echo there || true"); strings.Contains(said, "\nthere") {
		t.Errorf("a guest speaks by another's address:\n%s", said)
	}
	if ports["a"].Counts().Spoofed == 0 {
		t.Error("nothing was seen of that")
	}
	inside(t, machines["a"], "ip link set eth0 down; ip link set eth0 address "+mac("a").String()+"; ip link set eth0 up; "+ping+"vm1")

	for _, m := range machines {
		_ = m.agent.Close() // its port serves one at a time
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	here.Close()
	there.Close()
	h = vmtest.HostIn(t, folder)
	here = vswitch.New(vswitch.Config{})
	for _, id := range []string{"a", "b", "c"} {
		m, err := h.Get(id)
		if err != nil {
			t.Fatal(err)
		}
		machines[id] = inhabited{m, session(t, t.Context(), m)}
		plug(t, here, m, mac(id))
	}
	inside(t, machines["a"], ping+"vm1")
	inside(t, machines["b"], ping+"vm2")
	for _, m := range h.List() {
		if err := m.Destroy(); err != nil {
			t.Error(err)
		}
	}
	here.Close()
	elsewhere.Close()
}

// TestNoNetwork: a machine without a network card says so.
func TestNoNetwork(t *testing.T) {
	m := vmtest.Machine(t, vmtest.Host(t), "alone")
	if _, err := m.Network(t.Context()); err == nil || !strings.Contains(err.Error(), "no network card") {
		t.Errorf("%v", err)
	}
	s := vmtest.Start(t, m)
	out := shell(t, s, "ls /sys/class/net")
	if strings.TrimSpace(out.Said) != "lo" {
		t.Errorf("it has %s", out.Said)
	}
}

// TestNetworkMoves moves a machine amid a TCP connection, which goes on once its card is
// connected where it is now.
func TestNetworkMoves(t *testing.T) {
	hosts := []*osvm.Host{vmtest.Host(t), vmtest.Host(t)}
	here, there := vswitch.New(vswitch.Config{}), vswitch.New(vswitch.Config{})
	defer here.Close()
	defer there.Close()
	trunk(t, here, there)
	mac := func(i int) vswitch.MAC { return vswitch.MAC{2, 0, 0, 0, 0, byte(1 + i)} }
	var machines [2]inhabited
	for i := range machines {
		m := vmtest.MachineOf(t, hosts[0], osvm.Order{ID: fmt.Sprint("vm", i), Image: vmtest.Image(t), MemoryMiB: 128, Template: true, Network: true})
		plug(t, here, m, mac(i))
		machines[i] = inhabited{m, vmtest.Start(t, m)}
		place := guest.Network{MAC: mac(i).String(), Address: fmt.Sprintf("10.86.0.%d/16", 1+i), Hosts: []string{"10.86.0.1 vm0", "10.86.0.2 vm1"}}
		if err := m.Join(t.Context(), machines[i].agent, place); err != nil {
			t.Fatal(err)
		}
	}
	inside(t, machines[1], "sleep 1000 2>&1 | nc -l -p 7000 >/got 2>&1 & until grep -q :1B58 /proc/net/tcp /proc/net/tcp6; do usleep 10000; done")
	inside(t, machines[0], "(i=0; while [ ! -e /enough ]; do i=$((i+1)); echo $i; usleep 5000; done; echo end) 2>/dev/null | nc vm1 7000 >/dev/null 2>&1 &")
	more := func() {
		t.Helper()
		inside(t, machines[1], "n=$(wc -l </got); i=0; until [ $(wc -l </got) -ge $((n+20)) ]; do usleep 50000; i=$((i+1)); [ $i -lt 1000 ] || exit 1; done")
	}
	more()
	_ = machines[0].agent.Close()
	m, moved, err := migrate(t, hosts[0], hosts[1], "vm0", osvm.Migration{})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", moved)
	plug(t, there, m, mac(0))
	machines[0] = inhabited{m, session(t, t.Context(), m)}
	more()
	inside(t, machines[0], "touch /enough")
	got := inside(t, machines[1], "i=0; until tail -n 1 /got | grep -q end; do usleep 50000; i=$((i+1)); [ $i -lt 1000 ] || exit 1; done; cat /got")
	lines := strings.Fields(got)
	for i, line := range lines[:len(lines)-1] {
		if line != fmt.Sprint(i+1) {
			t.Fatalf("line %d is %q", i+1, line)
		}
	}
	t.Logf("%d lines went over the connection", len(lines))
}
