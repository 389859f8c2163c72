package profile

import (
	"fmt"
	"math/big"
	"strconv"
	"strings"
	"time"

	"mvm/wsdl"
)

// Link is the network that a queue's home imposes between each producer and the
// queue; queuevm.Link says what the words mean. The zero value imposes nothing.
type Link struct {
	Latency, Jitter time.Duration
	Bandwidth       float64 // bits a second; 0 is no bound
	Loss            float64 // 0 to 1
	Seed            uint64
}

// Bounds of what a link may be, in the units of the profile.
const (
	latencyMax   = 3_600_000     // milliseconds
	bandwidthMax = 1_000_000_000 // megabits a second
)

// CompileLink reads the properties of a link, as a live change brings them. A
// link without any property imposes nothing.
func CompileLink(l *wsdl.Link) (*Link, error) {
	var c compiler
	got := c.link(place{path: "link"}, &scope{}, l, "the link")
	if err := c.fault("the change"); err != nil {
		return nil, err
	}
	return got, nil
}

// link reads a link element, nil where there is none.
func (c *compiler) link(at place, s *scope, l *wsdl.Link, what string) *Link {
	if l == nil {
		return nil
	}
	number := func(name string, q *wsdl.Quantity, low, high string) *big.Rat {
		f := numberField(&c.problems, at, s, name, q)
		if !f.set {
			return new(big.Rat)
		}
		value, ok := new(big.Rat).SetString(f.text)
		least, _ := new(big.Rat).SetString(low)
		most, _ := new(big.Rat).SetString(high)
		if !ok || !decimal(f.text) || value.Cmp(least) < 0 || value.Cmp(most) > 0 {
			c.add(f.at, f.text, fmt.Sprintf("a decimal number from %s to %s", low, high), "the %s of %s is %s, expected a decimal number from %s to %s", name, what, quote(f.text), low, high)
			return new(big.Rat)
		}
		return value
	}
	millis := func(r *big.Rat) time.Duration {
		ns, _ := new(big.Rat).Mul(r, big.NewRat(int64(time.Millisecond), 1)).Float64()
		return time.Duration(ns + 0.5)
	}
	got := &Link{
		Latency: millis(number("latency", l.Latency, "0", strconv.Itoa(latencyMax))),
		Jitter:  millis(number("jitter", l.Jitter, "0", strconv.Itoa(latencyMax))),
	}
	got.Bandwidth, _ = new(big.Rat).Mul(number("bandwidth", l.Bandwidth, "0.000001", strconv.Itoa(bandwidthMax)), big.NewRat(1_000_000, 1)).Float64()
	got.Loss, _ = number("loss", l.Loss, "0", "1").Float64()
	got.Seed = uint64(c.whole(numberField(&c.problems, at, s, "seed", l.Seed), "the seed of "+what, 0, 1<<32-1, 0))
	if got.Jitter > got.Latency {
		c.add(at.attribute("jitter"), got.Jitter.String(), "at most the latency", "the link of %s has a jitter of %v around a latency of %v: nothing arrives before it was sent", what, got.Jitter, got.Latency)
	}
	return got
}

func decimal(text string) bool {
	ones, fraction, dotted := strings.Cut(text, ".")
	return digits(ones) && len(ones) <= 15 && (!dotted || digits(fraction) && len(fraction) <= 9)
}

// Document is the link as messages carry it.
func (l *Link) Document() *wsdl.Link {
	if l == nil {
		return nil
	}
	quantity := func(v float64) *wsdl.Quantity {
		if v == 0 {
			return nil
		}
		text := strconv.FormatFloat(v, 'f', 9, 64)
		return wsdl.Of(wsdl.Quantity(strings.TrimRight(strings.TrimRight(text, "0"), ".")))
	}
	out := &wsdl.Link{
		Latency: quantity(float64(l.Latency) / 1e6), Jitter: quantity(float64(l.Jitter) / 1e6),
		Bandwidth: quantity(l.Bandwidth / 1e6), Loss: quantity(l.Loss),
	}
	if l.Seed != 0 {
		out.Seed = wsdl.Of(wsdl.Number(strconv.FormatUint(l.Seed, 10)))
	}
	return out
}

// String is the link for people: "5ms ±1ms, 10 Mbit/s, 1 % lost".
func (l *Link) String() string {
	var parts []string
	number := func(v float64) string { return strconv.FormatFloat(v, 'g', 6, 64) }
	switch {
	case l.Jitter > 0:
		parts = append(parts, fmt.Sprintf("%v ±%v", l.Latency, l.Jitter))
	case l.Latency > 0:
		parts = append(parts, l.Latency.String())
	}
	switch {
	case l.Bandwidth >= 1e9:
		parts = append(parts, number(l.Bandwidth/1e9)+" Gbit/s")
	case l.Bandwidth >= 1e6:
		parts = append(parts, number(l.Bandwidth/1e6)+" Mbit/s")
	case l.Bandwidth > 0:
		parts = append(parts, number(l.Bandwidth/1e3)+" kbit/s")
	}
	if l.Loss > 0 {
		parts = append(parts, number(l.Loss*100)+" % lost")
	}
	return strings.Join(parts, ", ")
}
