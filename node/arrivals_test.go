package node

import (
	"testing"
	"time"

	"mvm/osvm"
)

// TestArrivals: a token lets in the VM that it was given for, once, and soon.
func TestArrivals(t *testing.T) {
	var a arrivals
	take := func(authorization string, now time.Duration) bool {
		_, err := a.take(authorization, now)
		return err == nil
	}
	token, err := a.expect(arrival{id: "lab1", memory: 128}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	for _, stranger := range []string{"", bearer, bearer + "0", bearer + token + "0", "Basic " + token} {
		if take(stranger, time.Hour) {
			t.Errorf("%q is taken for a token", stranger)
		}
	}
	expected, err := a.take(bearer+token, time.Hour+arrivalLimit-1)
	if err != nil {
		t.Fatal(err)
	}
	if take(bearer+token, time.Hour) {
		t.Error("a token is good for twice")
	}
	for want, specs := range map[bool][]osvm.Spec{
		true:  {{ID: "lab1", MemoryMiB: 128}},
		false: {{ID: "lab2", MemoryMiB: 128}, {ID: "lab1", MemoryMiB: 256}, {ID: "lab1", MemoryMiB: 128, Owner: "job/1"}},
	} {
		for _, spec := range specs {
			if err := expected.is(spec); (err == nil) != want {
				t.Errorf("%+v: %v", spec, err)
			}
		}
	}
	if token, err = a.expect(arrival{id: "late"}, time.Hour); err != nil {
		t.Fatal(err)
	}
	if take(bearer+token, time.Hour+arrivalLimit) {
		t.Error("a token is good for ever")
	}
	for range mostArrivals {
		if _, err := a.expect(arrival{}, time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := a.expect(arrival{}, time.Hour); err == nil {
		t.Error("any number is expected at once")
	}
	if _, err := a.expect(arrival{}, time.Hour+arrivalLimit); err != nil {
		t.Errorf("those that did not come are expected still: %v", err)
	}
}
