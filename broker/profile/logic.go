package profile

import (
	"fmt"

	"mvm/queuevm/codec"
	"mvm/wsdl"
)

// LogicSource is what the source of a registered codec or rule is called where
// it is built: no source of a profile can have a colon in its name.
func LogicSource(kind wsdl.ProfileKind, program string) string { return string(kind) + ":" + program }

// CheckLogic refuses a codec or rule that could not be built, whatever job uses
// it. The error is a *wsdl.Fault.
func CheckLogic(kind wsdl.ProfileKind, source *wsdl.Source) error {
	c := &compiler{}
	at := place{path: string(kind)}
	c.scope = c.newScope(at, nil, nil, "the "+string(kind))
	c.compileSource(at, "the "+string(kind), source)
	return c.fault("the " + string(kind))
}

// Chain resolves what converts and orders the items of a queue outside of any
// job's document, as for a queue that is changed while it is used: steps, the
// rule as NAME@VERSION ("" for none), and the sources of what is registered.
// The error is a *wsdl.Fault.
func Chain(encoders []*wsdl.Encoder, rule string, version *wsdl.Number, lookup Lookup) ([]codec.Step, string, []Source, error) {
	c := &compiler{lookup: lookup, out: &Job{}}
	at := place{path: "queue"}
	c.scope = c.newScope(at, nil, nil, "the queue")
	steps := c.steps(at, "the queue", encoders)
	program := c.rule(at, "the queue", &wsdl.Queue{Rule: rule, Version: version})
	if err := c.fault("the change of the queue"); err != nil {
		return nil, "", nil, err
	}
	return steps, program, c.logic, nil
}

// encoder finds the registered codec of a step, "" where it is a built-in one.
func (c *compiler) encoder(at place, what string, encoder *wsdl.Encoder) (program string, ok bool) {
	name := c.textField(at, c.scope, "registered", encoder.Registered)
	if name.bad {
		return "", false
	}
	const expected = "exactly one of codec and registered"
	switch {
	case encoder.Codec != nil && name.set:
		c.add(at, "both", expected, "%s has both codec and registered, expected exactly one", what)
		return "", false
	case encoder.Codec == nil && !name.set:
		c.add(at, "neither", expected, "%s has neither codec nor registered, expected exactly one", what)
		return "", false
	}
	return c.program(wsdl.ProfileKindCodec, at, name, encoder.Version, "registered")
}

// rule finds the registered rule of a queue, "" where it has none.
func (c *compiler) rule(at place, what string, queue *wsdl.Queue) string {
	name := c.textField(at, c.scope, "rule", queue.Rule)
	if name.bad {
		return ""
	}
	if kind := wsdl.Or(queue.Type, wsdl.QueueTypeFifo); name.set && kind != wsdl.QueueTypeFifo && kind != wsdl.QueueTypeWork && kind != wsdl.QueueTypeBroadcast {
		c.add(name.at, name.text, "the type fifo, work or broadcast", "%s has a rule and the type %s, which is a rule itself: with a rule it is fifo, work or broadcast", what, kind)
	}
	program, _ := c.program(wsdl.ProfileKindRule, at, name, queue.Version, "rule")
	return program
}

// program finds registered logic, and keeps its source; NAME@VERSION is what it
// is called. attribute is where its name stands.
func (c *compiler) program(kind wsdl.ProfileKind, at place, name field, version *wsdl.Number, attribute string) (program string, ok bool) {
	number := numberField(&c.problems, at, c.scope, "version", version)
	if !name.set {
		if number.set {
			c.add(number.at, number.text, "the attribute "+attribute+" beside it", "version says which version of a registered %s, but none is named", kind)
		}
		return "", !number.set
	}
	wanted := c.whole(number, "the version", 1, 1<<31-1, 0)
	what := fmt.Sprintf("registered %s %q", kind, name.text)
	if c.lookup == nil {
		c.add(name.at, name.text, "a built-in one", "the %s is known only to a grid that stays, where `mvm profiles register` has put it; submit the job there", what)
		return "", false
	}
	found, err := c.lookup(kind, name.text, int32(wanted))
	var source *wsdl.Source
	if found != nil && kind == wsdl.ProfileKindCodec {
		source = found.Codec
	} else if found != nil {
		source = found.Rule
	}
	if err == nil && source == nil {
		err = fmt.Errorf("it has no content")
	}
	if err != nil {
		c.add(name.at, name.text, fmt.Sprintf("the name of a registered %s", kind), "the %s cannot be used: %v", what, err)
		return "", false
	}
	program = fmt.Sprintf("%s@%d", name.text, found.Version)
	called := LogicSource(kind, program)
	for _, s := range c.logic {
		if s.Name == called {
			return program, true
		}
	}
	outer := c.scope
	inner := at
	inner.in = fmt.Sprintf("%s version %d", what, found.Version)
	c.scope = c.newScope(inner, nil, nil, "the "+inner.in)
	result := c.compileSource(inner, "its source", source)
	c.scope = outer
	result.Name = called
	c.logic = append(c.logic, result)
	return program, true
}
