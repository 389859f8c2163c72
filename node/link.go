package node

import (
	"fmt"
	"strconv"
	"time"

	"mvm/queuevm"
	"mvm/wsdl"
)

// linkOf is a link as the queue-level VM takes it; nil imposes nothing.
func linkOf(l *wsdl.Link) (out queuevm.Link, err error) {
	if l == nil {
		return out, nil
	}
	number := func(name string, q *wsdl.Quantity) (value float64) {
		if q == nil || err != nil {
			return 0
		}
		if value, err = strconv.ParseFloat(string(*q), 64); err != nil {
			err = fmt.Errorf("%s %q is not a number", name, *q)
		}
		return value
	}
	millis := func(v float64) time.Duration { return time.Duration(v*float64(time.Millisecond) + 0.5) }
	out.Latency, out.Jitter = millis(number("latency", l.Latency)), millis(number("jitter", l.Jitter))
	out.Bandwidth, out.Loss = number("bandwidth", l.Bandwidth)*1e6, number("loss", l.Loss)
	if l.Seed != nil && err == nil {
		if out.Seed, err = strconv.ParseUint(string(*l.Seed), 10, 64); err != nil {
			err = fmt.Errorf("seed %q is not a whole number", *l.Seed)
		}
	}
	return out, err
}
