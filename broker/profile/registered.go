package profile

import (
	"fmt"
	"slices"

	"mvm/wsdl"
)

// maxNesting bounds how often a registered profile may start from another.
const maxNesting = 8

// registered finds the registered profile that an element names and opens the
// scope of its parameters. ok is false where there is none to merge.
func (c *compiler) registered(kind wsdl.ProfileKind, at place, s *scope, name string, version *wsdl.Number, set []*wsdl.Assignment, depth int) (*wsdl.Profile, *scope, place, bool) {
	profile := c.textField(at, s, "profile", name)
	number := numberField(&c.problems, at, s, "version", version)
	if !profile.set {
		if number.set {
			c.add(number.at, number.text, "a profile attribute beside it", "version says which version of a registered profile, but no profile is named")
		}
		if len(set) > 0 {
			c.add(at.nth("set", 0), "set", "a profile attribute", "set gives a value to a registered profile's parameter, but no profile is named")
		}
		return nil, nil, at, false
	}
	wanted := c.whole(number, "the version", 1, 1<<31-1, 0)
	what := fmt.Sprintf("registered %s %q", kind, profile.text)
	if depth >= maxNesting {
		c.add(profile.at, profile.text, "a profile that ends somewhere", "the %s starts from another, and so on more than %d times", what, maxNesting)
		return nil, nil, at, false
	}
	if c.lookup == nil {
		c.add(profile.at, profile.text, "a profile written out", "the %s is known only to a grid that stays, where `mvm profiles register` has put it; submit the job there", what)
		return nil, nil, at, false
	}
	found, err := c.lookup(kind, profile.text, int32(wanted))
	if err == nil && (found == nil || kind == wsdl.ProfileKindTopology && found.Topology == nil || kind == wsdl.ProfileKindResources && found.Resources == nil) {
		err = fmt.Errorf("it has no content")
	}
	if err != nil {
		c.add(profile.at, profile.text, fmt.Sprintf("the name of a registered %s", kind), "the %s cannot be used: %v", what, err)
		return nil, nil, at, false
	}
	what = fmt.Sprintf("%s version %d", what, found.Version)
	values := map[string]string{}
	for i, assignment := range set {
		here := at.nth("set", i)
		if assignment == nil {
			c.add(here, "nothing", "a name and a value", "set %d is empty", i+1)
			continue
		}
		key := c.textField(here, s, "name", assignment.Name)
		value := c.textField(here, s, "value", assignment.Value)
		if _, twice := values[key.text]; twice {
			c.add(key.at, key.text, "a name of its own", "the parameter %s is set twice", quote(key.text))
		}
		if !key.bad {
			values[key.text] = value.text
		}
	}
	var declared []*wsdl.Parameter
	if kind == wsdl.ProfileKindTopology {
		declared = found.Topology.Parameter
	} else {
		declared = found.Resources.Parameter
	}
	inner := at
	inner.in = what
	opened := c.newScope(inner, declared, values, "the "+what)
	return found, opened, inner, true
}

// unregistered refuses parameters of an element that is not registered.
func (c *compiler) unregistered(at place, parameters []*wsdl.Parameter) {
	if len(parameters) > 0 && at.in == "" {
		c.add(at.nth("parameter", 0), "parameter", "parameters of the job", "only a registered profile has parameters of its own here; declare them at the top of the job")
	}
}

// need is a Resources element before its numbers are read.
type need struct {
	cores, memory field
	require       []requirement
}

type requirement struct {
	at              place
	property        wsdl.NodeProperty
	equals, minimum field
}

func (c *compiler) compileResources(at place, resources *wsdl.Resources, what string) Resources {
	n := c.mergeResources(at, c.scope, resources, 0)
	out := Resources{
		Cores:     int(c.whole(n.cores, "the cores of "+what, 0, maxCores, 0)),
		MemoryMiB: c.whole(n.memory, "the memory of "+what, 0, maxMemory, 0),
	}
	for _, r := range n.require {
		if requirement, ok := c.compileRequirement(r, what); ok {
			out.Require = append(out.Require, requirement)
		}
	}
	return out
}

// mergeResources puts what is written here over the registered profile that
// it starts from. A requirement replaces those on the same property, but
// languages add up: a node has several.
func (c *compiler) mergeResources(at place, s *scope, resources *wsdl.Resources, depth int) need {
	c.unregistered(at, resources.Parameter)
	mine := need{
		cores:  numberField(&c.problems, at, s, "cores", resources.Cores),
		memory: numberField(&c.problems, at, s, "memory", resources.Memory),
	}
	if len(resources.Require) > 1000 {
		c.add(at, fmt.Sprint(len(resources.Require)), "at most 1000 requirements", "there are %d requirements, expected at most 1000", len(resources.Require))
		return mine
	}
	for i, r := range resources.Require {
		here := at.nth("require", i)
		if r == nil {
			c.add(here, "nothing", "a requirement", "requirement %d is empty", i+1)
			continue
		}
		mine.require = append(mine.require, requirement{
			at: here, property: wsdl.Or(r.Property, ""),
			equals: c.textField(here, s, "equals", r.Equals), minimum: numberField(&c.problems, here, s, "minimum", r.Minimum),
		})
	}
	found, opened, inner, ok := c.registered(wsdl.ProfileKindResources, at, s, resources.Profile, resources.Version, resources.Set, depth)
	if !ok {
		return mine
	}
	theirs := c.mergeResources(inner, opened, found.Resources, depth+1)
	mine.cores, mine.memory = mine.cores.over(theirs.cores), mine.memory.over(theirs.memory)
	var kept []requirement
	for _, r := range theirs.require {
		replaced := r.property != wsdl.NodePropertyCompiler && slices.ContainsFunc(mine.require, func(m requirement) bool { return m.property == r.property })
		if !replaced {
			kept = append(kept, r)
		}
	}
	mine.require = append(kept, mine.require...)
	return mine
}

func (c *compiler) compileRequirement(r requirement, what string) (Requirement, bool) {
	if r.equals.bad || r.minimum.bad {
		return Requirement{}, false
	}
	number := false
	switch r.property {
	case wsdl.NodePropertyCores, wsdl.NodePropertyMemory, wsdl.NodePropertyDisk, wsdl.NodePropertySlots:
		number = true
	case wsdl.NodePropertyName, wsdl.NodePropertyOs, wsdl.NodePropertyArch, wsdl.NodePropertyCompiler, wsdl.NodePropertyQemu, wsdl.NodePropertyCleaning:
	default:
		const known = "name, os, arch, cores, memory, disk, slots, compiler, qemu or cleaning"
		c.add(r.at.attribute("property"), string(r.property), known, "%s requires the property %s, expected %s", what, quote(string(r.property)), known)
		return Requirement{}, false
	}
	out := Requirement{Property: string(r.property), Equals: r.equals.text}
	switch {
	case r.equals.set == r.minimum.set:
		found := "both"
		if !r.equals.set {
			found = "neither"
		}
		c.add(r.at, found, "exactly one of equals and minimum", "%s requires the property %s with %s of equals and minimum, expected exactly one", what, r.property, found)
		return Requirement{}, false
	case r.minimum.set && !number:
		c.add(r.minimum.at, "minimum", "equals", "%s requires a minimum of the property %s, which is a text; use equals", what, r.property)
		return Requirement{}, false
	case r.minimum.set:
		out.Minimum = c.whole(r.minimum, fmt.Sprintf("the minimum of %s of %s", r.property, what), 0, maxMemory, 0)
	case number && (!digits(r.equals.text) || len(r.equals.text) > 18):
		c.add(r.equals.at, r.equals.text, "a whole number", "%s requires %s to be %s, expected a whole number", what, r.property, quote(r.equals.text))
		return Requirement{}, false
	case r.property == wsdl.NodePropertyQemu && r.equals.text != "true" && r.equals.text != "false":
		c.add(r.equals.at, r.equals.text, "true or false", "%s requires qemu to be %s, expected true or false", what, quote(r.equals.text))
		return Requirement{}, false
	case r.property == wsdl.NodePropertyCompiler && !slices.Contains([]string{"c", "cpp", "go", "python", "shell"}, r.equals.text):
		c.add(r.equals.at, r.equals.text, "c, cpp, go, python or shell", "%s requires a compiler for %s, expected c, cpp, go, python or shell", what, quote(r.equals.text))
		return Requirement{}, false
	case r.property == wsdl.NodePropertyCleaning && !slices.Contains([]string{"pidNamespace", "cgroup", "subreaper"}, r.equals.text):
		c.add(r.equals.at, r.equals.text, "pidNamespace, cgroup or subreaper", "%s requires the cleaning %s, expected pidNamespace, cgroup or subreaper", what, quote(r.equals.text))
		return Requirement{}, false
	}
	return out, true
}
