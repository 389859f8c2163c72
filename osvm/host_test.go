package osvm_test

import (
	"errors"
	"testing"

	"mvm/osvm"
	"mvm/osvm/guest"
	"mvm/osvm/vmtest"
)

// TestHost has two warm machines on one host: found, listed, and gone.
func TestHost(t *testing.T) {
	h := vmtest.Host(t)
	one := vmtest.Machine(t, h, "one")
	two := vmtest.Machine(t, h, "two")
	if one.State() != osvm.Created {
		t.Errorf("a new machine is %s", one.State())
	}
	if _, err := h.Create(t.Context(), osvm.Order{ID: "one", Image: vmtest.Image(t)}); !errors.Is(err, osvm.ErrExists) {
		t.Errorf("a second machine of one name: %v", err)
	}
	agent := vmtest.Start(t, two)
	if got := vmtest.Call[guest.Greeting](t, agent, "Hello", guest.Nothing{}); got.Hostname != "two" {
		t.Errorf("it calls itself %q", got.Hostname)
	}
	if got, err := h.Get("two"); got != two || err != nil || two.State() != osvm.Running {
		t.Errorf("Get: %v, %v, %s", got, err, two.State())
	}
	if all := h.List(); len(all) != 2 || all[0] != one || all[1] != two {
		t.Errorf("listed: %v", all)
	}
	if err := one.Destroy(); err != nil {
		t.Error(err)
	}
	if _, err := h.Get("one"); !errors.Is(err, osvm.ErrUnknown) {
		t.Errorf("the destroyed one: %v", err)
	}
	vmtest.Machine(t, h, "one")
}
