package worker

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"mvm/osvm/vmtest"
)

// networkByHand has VMs that were made by hand with one network and key, on two nodes,
// reach each other by name, also once they have moved, a third was cloned of one, and
// its node was killed; one that was made with another key reaches nobody.
func (l *lab) networkByHand(t *testing.T) {
	key, other := filepath.Join(l.dir, "lab.key"), filepath.Join(l.dir, "other.key")
	for path, text := range map[string]string{key: "the key of the laboratory\n", other: "the key of somebody else\n"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	create := func(name, node, key string) {
		t.Helper()
		l.must("vm", "create", "minimal", "--name", name, "--memory", "192", "--node", node, "--network", "lab", "--network-key", key)
	}
	t.Cleanup(func() { // what is left by a failure
		for _, vm := range []string{"one", "two", "three", "stranger"} {
			_, _ = l.mvm("vm", "destroy", vm)
		}
	})
	create("one", "worker1", key)
	create("two", "worker2", key)
	create("stranger", "worker2", other)
	create("one", "worker1", key) // is there
	if text, err := l.mvm("vm", "create", "minimal", "--name", "one", "--memory", "192", "--node", "worker1", "--network", "lab", "--network-key", other); err == nil || !strings.Contains(text, "not as it is wished now") {
		t.Errorf("one, wished with another key: %v, %s", err, text)
	}
	calls := func(from, line string) string {
		t.Helper()
		l.eventually("where jobs can be", from, regexp.MustCompile("(?m)^"+from+" .* up ").MatchString, "nodes")
		text := l.must("submit", "--wait", l.write(map[string]string{"job.xml": fmt.Sprintf(`<job xmlns="urn:mvm:1" name="calls">
  <source name="calls" language="shell"><file path="calls.sh"/></source>
  <task name="calls" source="calls"><resources><require property="name" equals="%s"/></resources></task>
  <policy wallTime="300"/>
</job>`, from), "calls.sh": "#!/bin/sh\n" + line + "\n"}))
		job, _, _ := strings.Cut(text, "\n")
		return l.must("logs", job, "--process", "calls[0]")
	}
	// A name is known as soon as the nodes have found each other.
	reach := func(name string) string {
		return fmt.Sprintf("i=0; until ping -c 1 -W 5 %s; do i=$((i+1)); [ $i -lt 60 ] || { cat /etc/hosts; exit 1; }; sleep 1; done\n", name)
	}
	t.Log(calls("one", reach("two")))
	if said := calls("stranger", "ping -c 1 -W 2 one 2>&1; cat /etc/hosts"); strings.Contains(said, "bytes from") || strings.Contains(said, " one\n") || !strings.Contains(said, " stranger\n") {
		t.Errorf("who has another key reaches the others:\n%s", said)
	}
	address := l.must("vm", "inspect", "two")
	t.Log(l.must("vm", "migrate", "two", "worker1"))
	l.must("vm", "clone", "two", "--name", "three", "--network", "lab", "--network-key", key)
	l.must("vm", "migrate", "one", "worker2")
	l.killNode("worker1")()
	l.eventually("back", "one", func(text string) bool { return strings.Contains(text, "running") }, "vm", "inspect", "three")
	t.Log(calls("one", reach("two")+reach("three")))
	if now := l.must("vm", "inspect", "two"); networkOf(now) == "" || networkOf(now) != networkOf(address) {
		t.Errorf("two was at %q, and is at %q", networkOf(address), networkOf(now))
	}
	for _, vm := range []string{"one", "two", "three", "stranger"} {
		l.must("vm", "destroy", vm)
	}
	l.clean()
}

// TestNetworkOfTheFirstNode kills the node that has all roles and a VM in a network: its
// next life looks for the network's other nodes when it knows the grid, and not before.
func TestNetworkOfTheFirstNode(t *testing.T) {
	l := newLab(t, 0)
	key := filepath.Join(l.dir, "lab.key")
	if err := os.WriteFile(key, []byte("the key of the laboratory\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := l.front.Stop(); err != nil {
		t.Fatal(err)
	}
	listen := strings.TrimPrefix(l.front.URL, "http://")
	begin := func() {
		t.Helper()
		l.front = l.start("front", "--listen", listen, "--accelerator", "tcg", "--vm-templates", vmtest.Templates(t))
	}
	begin()
	for _, vm := range []string{"one", "two"} { // each with a network of its own
		l.must("vm", "create", "minimal", "--name", vm, "--memory", "192", "--network", vm, "--network-key", key)
	}
	for range 2 {
		l.front.Kill()
		begin()
		for _, vm := range []string{"one", "two"} {
			l.eventually("back", vm, func(text string) bool { return strings.Contains(text, "running") }, "vm", "inspect", vm)
		}
	}
	for _, vm := range []string{"one", "two"} {
		l.must("vm", "destroy", vm)
	}
}

// networkOf is the line about a network of what is known of a VM.
func networkOf(text string) string {
	_, after, _ := strings.Cut(text, "\nnetwork ")
	line, _, _ := strings.Cut(after, "\n")
	return strings.TrimSpace(line)
}
