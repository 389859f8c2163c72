package osvm_test

import (
	"context"
	"net"
	"testing"

	"mvm/osvm"
	"mvm/osvm/guest"
	"mvm/osvm/vmtest"
)

// pipe is a connection over loopback.
func pipe(t testing.TB) (net.Conn, net.Conn) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	near, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	far, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return near, far
}

func admitAll(osvm.Arrival) error { return nil }

// migrate moves a machine from one host to another in this process.
func migrate(t testing.TB, from, to *osvm.Host, id string, how osvm.Migration) (*osvm.Machine, osvm.Migrated, error) {
	ctx, cancel := context.WithTimeout(t.Context(), vmtest.Limit)
	defer cancel()
	near, far := pipe(t)
	type arrived struct {
		m   *osvm.Machine
		err error
	}
	done := make(chan arrived, 1)
	go func() {
		m, err := to.MigrateFrom(ctx, far, admitAll)
		done <- arrived{m, err}
	}()
	moved, err := from.MigrateTo(ctx, id, near, how)
	there := <-done
	if there.m != nil {
		t.Cleanup(func() { _ = there.m.Destroy() })
	}
	if err == nil {
		err = there.err
	}
	return there.m, moved, err
}

func TestMigrate(t *testing.T) {
	one, two := vmtest.Host(t), vmtest.Host(t)
	m := vmtest.Machine(t, one, "traveller")
	agent := vmtest.Start(t, m)
	hello := vmtest.Call[guest.Greeting](t, agent, "Hello", guest.Nothing{})
	hosts := []*osvm.Host{one, two}
	for i := range 6 {
		how := osvm.Migration{StopAndCopy: i >= 4}
		there, moved, err := migrate(t, hosts[i%2], hosts[(i+1)%2], "traveller", how)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%+v", moved)
		if there.State() != osvm.Running {
			t.Errorf("it arrives %s", there.State())
		}
		session, got, err := there.Session(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		_ = session.Close()
		if got.Boot != hello.Boot || got.Hostname != hello.Hostname || got.Uptime < hello.Uptime {
			t.Errorf("there it is %+v, here it was %+v", got, hello)
		}
	}
}
