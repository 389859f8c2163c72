package osvm

import (
	"errors"
	"os"
	"testing"
)

func TestChoose(t *testing.T) {
	if chosen, against, err := Choose(TCG); chosen != TCG || against != nil || err != nil {
		t.Errorf("tcg: %s, %v, %v", chosen, against, err)
	}
	if _, _, err := Choose("xen"); err == nil {
		t.Error("xen was chosen")
	}
	chosen, against, err := Choose(Auto)
	if err != nil || (chosen == KVM) != (against == nil) {
		t.Fatalf("auto: %s, %v, %v", chosen, against, err)
	}
	t.Logf("auto chose %s: %v", chosen, against)
	if _, err := os.Stat("/dev/kvm"); err != nil && chosen != TCG {
		t.Errorf("auto chose %s where there is no /dev/kvm", chosen)
	}
	only, _, err := Choose(KVM)
	if (err == nil) != (chosen == KVM) || err == nil && only != KVM {
		t.Errorf("kvm: %s, %v; auto chose %s", only, err, chosen)
	}
	if err != nil && !errors.Is(err, ErrSlow) && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, os.ErrPermission) {
		t.Errorf("kvm is refused for %v", err)
	}
}
