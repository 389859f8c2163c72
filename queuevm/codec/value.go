package codec

import (
	"fmt"
	"math"
	"strconv"
)

// Value is what an item means, whatever its form: nil, bool, int64, uint64
// (only above the range of int64), float64, string (UTF-8), []byte, List or
// Record.
type Value any

// List is values in order.
type List []Value

// Record is named values in order; no name comes twice.
type Record []Field

// Field is one named value.
type Field struct {
	Name  string
	Value Value
}

// get finds a field.
func (r Record) get(name string) (Value, bool) {
	for _, f := range r {
		if f.Name == name {
			return f.Value, true
		}
	}
	return nil, false
}

// kind names a value in sentences.
func kind(v Value) string {
	switch v.(type) {
	case nil:
		return "nothing"
	case bool:
		return "a truth value"
	case int64, uint64:
		return "a whole number"
	case float64:
		return "a number"
	case string:
		return "text"
	case []byte:
		return "bytes"
	case List:
		return "a list"
	case Record:
		return "a record"
	}
	return fmt.Sprintf("%T", v)
}

// whole is what an unsigned number is as a value.
func whole(u uint64) Value {
	if u <= math.MaxInt64 {
		return int64(u)
	}
	return u
}

// number reads a number as JSON and lines write it: whole where it is written
// whole and 64 bits hold it.
func number(text string) (Value, error) {
	if text == "-0" { // only a float has it
		return math.Copysign(0, -1), nil
	}
	if i, err := strconv.ParseInt(text, 10, 64); err == nil {
		return i, nil
	}
	if u, err := strconv.ParseUint(text, 10, 64); err == nil {
		return u, nil
	}
	f, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return nil, fmt.Errorf("%.40q is no number of 64 bits", text)
	}
	return f, nil
}

// signed is a value as a whole number between least and most. Texts count as
// the numbers that they write: lines and XML have nothing else.
func signed(v Value, least, most int64) (int64, error) {
	switch n := plain(v).(type) {
	case int64:
		if n >= least && n <= most {
			return n, nil
		}
	case uint64:
	case float64:
		// 2^63 is a float64 and no int64, so the upper bound is strict.
		if n == math.Trunc(n) && n >= float64(least) && n < -float64(math.MinInt64) && int64(n) <= most {
			return int64(n), nil
		}
	default:
		return 0, fmt.Errorf("%s is not a whole number", kind(v))
	}
	return 0, fmt.Errorf("%v is not a whole number from %d to %d", v, least, most)
}

// unsigned is a value as a whole number up to most.
func unsigned(v Value, most uint64) (uint64, error) {
	switch n := plain(v).(type) {
	case int64:
		if n >= 0 && uint64(n) <= most {
			return uint64(n), nil
		}
	case uint64:
		if n <= most {
			return n, nil
		}
	case float64:
		if n == math.Trunc(n) && n >= 0 && n < 1<<64 && uint64(n) <= most {
			return uint64(n), nil
		}
	default:
		return 0, fmt.Errorf("%s is not a whole number", kind(v))
	}
	return 0, fmt.Errorf("%v is not a whole number from 0 to %d", v, most)
}

// float is a value as a floating point number.
func float(v Value) (float64, error) {
	switch n := plain(v).(type) {
	case int64:
		return float64(n), nil
	case uint64:
		return float64(n), nil
	case float64:
		return n, nil
	}
	return 0, fmt.Errorf("%s is not a number", kind(v))
}

// truth is a value as true or false.
func truth(v Value) (bool, error) {
	switch b := v.(type) {
	case bool:
		return b, nil
	case string:
		if b == "true" || b == "false" {
			return b == "true", nil
		}
	}
	if n, err := signed(v, 0, 1); err == nil {
		return n == 1, nil
	}
	return false, fmt.Errorf("%s is neither true nor false", kind(v))
}

// plain is a text's number, if it writes one; any other value is itself.
func plain(v Value) Value {
	if text, ok := v.(string); ok {
		if n, err := number(text); err == nil {
			return n
		}
	}
	return v
}

// text is a scalar as people read it, and number reads it back.
func text(v Value) (string, error) {
	switch s := v.(type) {
	case string:
		return s, nil
	case bool:
		return strconv.FormatBool(s), nil
	case int64:
		return strconv.FormatInt(s, 10), nil
	case uint64:
		return strconv.FormatUint(s, 10), nil
	case float64:
		return strconv.FormatFloat(s, 'g', -1, 64), nil
	}
	return "", fmt.Errorf("%s is not one word of text", kind(v))
}
