// Package codec converts the items of a channel on their way, so that programs
// that write one form can talk to programs that read another (the encoder and
// decoder of the paper's queue-level VM, section 2.2).
//
// A Chain is a row of steps. A decode step takes an item's bytes apart into
// values; an encode step makes bytes of values again. What always holds: a
// chain that New accepts begins and ends with bytes; an item either converts
// whole or is refused with a sentence that says where; nothing that an item
// holds makes a conversion use more than a small multiple of Limits.Item.
//
// The package must never do I/O, look at a clock or keep anything of an item
// after Convert returned.
package codec

import (
	"cmp"
	"errors"
	"fmt"
	"strings"
)

// The codecs. Lines, JSON, XML and XDR stand between bytes and values; raw
// takes bytes for a value as they are; base64 and zstd make bytes of bytes.
const (
	Raw    = "raw"
	Lines  = "lines"
	JSON   = "json"
	XML    = "xml"
	XDR    = "xdr"
	Base64 = "base64"
	Zstd   = "zstd"
)

// Step is one conversion.
type Step struct {
	Codec  string
	Decode bool // from the codec's form to what it stands for; else the other way
	// Type says what the bytes hold, where they do not say it themselves: for
	// xdr a type specifier of RFC 4506 ("double<>", "struct { int id; }"), for
	// xml the name of the root element that is written (default "item").
	Type string
	// Program is a codec that is registered, as NAME@VERSION, in place of Codec:
	// what makes bytes of bytes by means that this package does not know.
	Program string
}

// Conversion is what a registered codec does to items, as
// SeveralConverter.ConvertAll of package queuevm does.
type Conversion func(items [][]byte) ([][]byte, error)

func (s Step) String() string {
	way := "encode "
	if s.Decode {
		way = "decode "
	}
	way += cmp.Or(s.Program, s.Codec)
	if s.Type != "" {
		return way + " " + s.Type
	}
	return way
}

// StepError says which step of a chain cannot stand where it is, or could not go
// on with an item.
type StepError struct {
	Number int // from 1
	Step   Step
	Err    error
}

func (e *StepError) Error() string { return fmt.Sprintf("step %d, %s: %v", e.Number, e.Step, e.Err) }
func (e *StepError) Unwrap() error { return e.Err }

// Limits bound what one item may cost.
type Limits struct {
	Item   int // bytes of an item before, after and between steps; 0 is 64 MiB
	Values int // in one item: a decoded value takes some 24 bytes however few it was written in; 0 is 4 Mi
	Depth  int // of values inside values; 0 is 64
}

const (
	defaultItem   = 64 << 20
	defaultValues = 4 << 20
	defaultDepth  = 64
)

// budget is what is left of Limits while one item is taken apart.
type budget struct {
	limits Limits
	values int
	depth  int
}

// spend counts one value.
func (b *budget) spend() error {
	if b.values++; b.values > b.limits.Values {
		return fmt.Errorf("the item holds more than %d values", b.limits.Values)
	}
	return nil
}

// enter goes into a list or record; the caller leaves with b.depth--.
func (b *budget) enter() error {
	if b.depth++; b.depth > b.limits.Depth {
		return fmt.Errorf("the values are nested more than %d deep", b.limits.Depth)
	}
	return nil
}

// Chain converts items, one at a time: it keeps buffers and is for one
// goroutine.
type Chain struct {
	steps       []Step
	conversions []conversion // nil where programs has one
	programs    []Conversion
	limits      Limits
}

// conversion is one step made ready. Between steps an item is a []byte or any
// other Value.
type conversion func(Value) (Value, error)

// state is what an item is between two steps.
type state int

const (
	isBytes state = iota
	isValue
)

// form is how a codec stands between states, and how its conversions are made.
type form struct {
	value  bool // its decoded side is a value
	typed  bool // it takes a Type
	encode func(typ string, l Limits) (conversion, error)
	decode func(typ string, l Limits) (conversion, error)
}

func formOf(name string) (form, bool) {
	switch name {
	case Raw:
		return form{value: true, encode: encodeRaw, decode: decodeRaw}, true
	case Lines:
		return form{value: true, encode: encodeLines, decode: decodeLines}, true
	case JSON:
		return form{value: true, encode: encodeJSON, decode: decodeJSON}, true
	case XML:
		return form{value: true, typed: true, encode: encodeXML, decode: decodeXML}, true
	case XDR:
		return form{value: true, typed: true, encode: encodeXDR, decode: decodeXDR}, true
	case Base64:
		return form{encode: encodeBase64, decode: decodeBase64}, true
	case Zstd:
		return form{encode: encodeZstd, decode: decodeZstd}, true
	}
	return form{}, false
}

// Names lists the codecs.
func Names() []string { return []string{Raw, Lines, JSON, XML, XDR, Base64, Zstd} }

// New makes a chain, or says, as a *StepError, which step cannot stand where it
// is; any other error is about the chain as a whole. No steps is
// the chain that changes nothing. open makes what the registered codecs do; with
// nil in its place the chain is only checked.
func New(steps []Step, limits Limits, open func(Step) (Conversion, error)) (*Chain, error) {
	if limits.Item <= 0 {
		limits.Item = defaultItem
	}
	if limits.Values <= 0 {
		limits.Values = defaultValues
	}
	if limits.Depth <= 0 {
		limits.Depth = defaultDepth
	}
	c := &Chain{steps: steps, limits: limits}
	at := isBytes
	for i, s := range steps {
		step, program, next, err := ready(s, at, limits, open)
		if err != nil {
			return nil, &StepError{i + 1, s, err}
		}
		c.conversions, c.programs = append(c.conversions, step), append(c.programs, program)
		at = next
	}
	if at == isValue {
		return nil, fmt.Errorf("the chain ends with values that were decoded and not encoded: add an encode step")
	}
	return c, nil
}

// ready makes one step's conversion, or the program's in its place, and says what an
// item is after it.
func ready(s Step, at state, limits Limits, open func(Step) (Conversion, error)) (conversion, Conversion, state, error) {
	f, known := formOf(s.Codec)
	switch {
	case s.Program != "" && s.Codec != "":
		return nil, nil, 0, fmt.Errorf("it is both %s and the registered codec %s", s.Codec, s.Program)
	case s.Program != "":
		f = form{typed: true}
	case !known:
		return nil, nil, 0, fmt.Errorf("there is no codec %q; there are %s", s.Codec, strings.Join(Names(), ", "))
	}
	if s.Type != "" && !f.typed {
		return nil, nil, 0, fmt.Errorf("%s takes no type", s.Codec)
	}
	before, after := isBytes, isBytes
	make := f.encode
	if f.value {
		before = isValue
	}
	if s.Decode {
		before, after, make = after, before, f.decode
	}
	switch {
	case before == isValue && at == isBytes:
		return nil, nil, 0, fmt.Errorf("%s writes values, and here are bytes: decode them first, with raw if they are to stay as they are", s.Codec)
	case before == isBytes && at == isValue:
		return nil, nil, 0, fmt.Errorf("this takes bytes, and here are decoded values: encode them first")
	}
	if s.Program != "" {
		program, err := registered(s, open)
		return nil, program, after, err
	}
	step, err := make(s.Type, limits)
	return step, nil, after, err
}

// registered makes the conversion of a step that is a program.
func registered(s Step, open func(Step) (Conversion, error)) (Conversion, error) {
	if open == nil {
		return func([][]byte) ([][]byte, error) { return nil, errors.New("this chain was only checked") }, nil
	}
	return open(s)
}

// Convert takes an item through the chain. What it answers may share memory
// with the item and is good until the next call. An error says which step could
// not go on, where in the item, and why.
func (c *Chain) Convert(item []byte) ([]byte, error) {
	if err := c.fits(item); err != nil {
		return nil, err
	}
	for from := 0; from < len(c.steps); {
		var err error
		if item, from, err = c.convert(item, from); err != nil {
			return nil, err
		}
		if from < len(c.steps) {
			made, err := c.run(from, [][]byte{item})
			if err != nil {
				return nil, err
			}
			item = made[0]
			from++
		}
	}
	return item, nil
}

// All takes items through the chain, where that is worth it: each of its registered
// codecs gets all of them before the next step does. It answers those before the first that is refused, and
// why that one is; all of them are good for ever.
func (c *Chain) All(items [][]byte) (converted [][]byte, err error) {
	for _, item := range items {
		if err = c.fits(item); err != nil {
			break
		}
		converted = append(converted, item)
	}
	for from := 0; from < len(c.steps); from++ {
		next := from
		for k, item := range converted {
			var wrong error
			if item, next, wrong = c.convert(item, from); wrong != nil {
				converted, err = converted[:k], wrong
				break
			}
			if next > from { // it may lie in a buffer of the chain's
				item = append([]byte{}, item...)
			}
			converted[k] = item
		}
		for next < len(c.steps) && c.programs[next] == nil {
			next++ // where nothing is left
		}
		if from = next; from < len(c.steps) {
			var wrong error
			if converted, wrong = c.run(from, converted); wrong != nil {
				err = wrong
			}
		}
	}
	return converted, err
}

func (c *Chain) fits(item []byte) error {
	if len(item) > c.limits.Item {
		return fmt.Errorf("an item of %d bytes is over the limit of %d for a channel with codecs", len(item), c.limits.Item)
	}
	return nil
}

// convert takes an item through the steps from one on, up to the next program, and
// says which that is. A chain's programs stand where an item is bytes.
func (c *Chain) convert(item []byte, from int) ([]byte, int, error) {
	var v Value = item
	for ; from < len(c.steps) && c.programs[from] == nil; from++ {
		var err error
		if v, err = c.conversions[from](v); err != nil {
			return nil, from, &StepError{from + 1, c.steps[from], err}
		}
		if b, ok := v.([]byte); ok {
			if err := c.gave(from, b); err != nil {
				return nil, from, err
			}
		}
	}
	return v.([]byte), from, nil // New saw to it that a chain ends with bytes
}

// run gives items to the program of a step.
func (c *Chain) run(step int, items [][]byte) ([][]byte, error) {
	if len(items) == 0 {
		return nil, nil
	}
	made, err := c.programs[step](items)
	if err != nil {
		err = &StepError{step + 1, c.steps[step], err}
	}
	for k, item := range made {
		if err := c.gave(step, item); err != nil {
			return made[:k], err
		}
	}
	return made, err
}

// gave refuses what a step made of an item where it is too much.
func (c *Chain) gave(step int, item []byte) error {
	if len(item) > c.limits.Item {
		return fmt.Errorf("step %d, %s: gives %d bytes, over the limit of %d", step+1, c.steps[step], len(item), c.limits.Item)
	}
	return nil
}
