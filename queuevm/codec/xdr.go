package codec

import (
	"encoding/binary"
	"fmt"
	"math"
	"unicode/utf8"
)

// decodeXDR reads an item that is one value of a type (RFC 4506).
func decodeXDR(typ string, l Limits) (conversion, error) {
	t, err := parseXDRType(typ)
	if err != nil {
		return nil, err
	}
	return func(v Value) (Value, error) {
		r := xdrReader{bytes: v.([]byte), budget: budget{limits: l}}
		value, err := r.value(t)
		if err == nil && r.at < len(r.bytes) {
			err = fmt.Errorf("%d bytes follow the value", len(r.bytes)-r.at)
		}
		if err != nil {
			return nil, fmt.Errorf("at byte %d of %d: %w", r.at, len(r.bytes), err)
		}
		return value, nil
	}, nil
}

type xdrReader struct {
	bytes []byte
	at    int
	budget
}

// take gives the next n bytes and skips what fills them up to fours, which
// must be zero.
func (r *xdrReader) take(n int) ([]byte, error) {
	padded := (n + 3) &^ 3
	if left := len(r.bytes) - r.at; padded > left {
		return nil, fmt.Errorf("%d bytes are needed, %d are left", padded, left)
	}
	b := r.bytes[r.at : r.at+n]
	for _, fill := range r.bytes[r.at+n : r.at+padded] {
		if fill != 0 {
			return nil, fmt.Errorf("the bytes that fill up to a multiple of four are not zero")
		}
	}
	r.at += padded
	return b, nil
}

func (r *xdrReader) word() (uint32, error) {
	b, err := r.take(4)
	if err != nil {
		return 0, err
	}
	return binary.BigEndian.Uint32(b), nil
}

func (r *xdrReader) long() (uint64, error) {
	b, err := r.take(8)
	if err != nil {
		return 0, err
	}
	return binary.BigEndian.Uint64(b), nil
}

// length reads how many elements or bytes follow.
func (r *xdrReader) length(most uint32) (int, error) {
	n, err := r.word()
	if err != nil {
		return 0, err
	}
	if n > most {
		return 0, fmt.Errorf("a length of %d is over the type's %d", n, most)
	}
	return int(n), nil
}

func (r *xdrReader) value(t *xdrType) (Value, error) {
	if err := r.spend(); err != nil {
		return nil, err
	}
	switch t.kind {
	case xdrInt:
		n, err := r.word()
		return int64(int32(n)), err
	case xdrUnsigned:
		n, err := r.word()
		return int64(n), err
	case xdrHyper:
		n, err := r.long()
		return int64(n), err
	case xdrUnsignedHyper:
		n, err := r.long()
		return whole(n), err
	case xdrFloat:
		n, err := r.word()
		return float64(math.Float32frombits(n)), err
	case xdrDouble:
		n, err := r.long()
		return math.Float64frombits(n), err
	case xdrBool:
		n, err := r.word()
		if err == nil && n > 1 {
			err = fmt.Errorf("a bool is 0 or 1, not %d", n)
		}
		return n == 1, err
	case xdrEnum:
		n, err := r.word()
		if err != nil {
			return nil, err
		}
		for _, c := range t.constants {
			if c.number == int32(n) {
				return c.name, nil
			}
		}
		return nil, fmt.Errorf("%d is none of the enum's numbers", int32(n))
	case xdrString, xdrOpaque:
		n := int(t.most)
		if !t.fixed {
			var err error
			if n, err = r.length(t.most); err != nil {
				return nil, err
			}
		}
		b, err := r.take(n)
		if err != nil {
			return nil, err
		}
		if t.kind == xdrOpaque {
			return append([]byte{}, b...), nil
		}
		if !utf8.Valid(b) {
			return nil, fmt.Errorf("the string is not UTF-8")
		}
		return string(b), nil
	case xdrArray:
		return r.array(t)
	case xdrOptional:
		n, err := r.length(1)
		if err != nil || n == 0 {
			return nil, err
		}
		return r.value(t.of)
	}
	return r.record(t)
}

func (r *xdrReader) array(t *xdrType) (Value, error) {
	if err := r.enter(); err != nil {
		return nil, err
	}
	defer func() { r.depth-- }()
	n := int(t.most)
	switch {
	case t.toEnd:
		n = -1
	case !t.fixed:
		var err error
		if n, err = r.length(t.most); err != nil {
			return nil, err
		}
	}
	// Elements take four bytes and more: no length makes room for more of them
	// than the item has bytes for.
	list := make(List, 0, max(0, min(n, (len(r.bytes)-r.at)/4)))
	for i := 0; i != n && (n >= 0 || r.at < len(r.bytes)); i++ {
		element, err := r.value(t.of)
		if err != nil {
			return nil, fmt.Errorf("element %d: %w", i, err)
		}
		list = append(list, element)
	}
	return list, nil
}

func (r *xdrReader) record(t *xdrType) (Value, error) {
	if err := r.enter(); err != nil {
		return nil, err
	}
	defer func() { r.depth-- }()
	record := make(Record, 0, len(t.members))
	for _, m := range t.members {
		value, err := r.value(m.of)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", m.name, err)
		}
		record = append(record, Field{m.name, value})
	}
	return record, nil
}

// encodeXDR writes a value as a type. Numbers are taken from any kind of number
// that keeps its value, and from text that writes one; a struct from a record
// with its names or a list in its order.
func encodeXDR(typ string, l Limits) (conversion, error) {
	t, err := parseXDRType(typ)
	if err != nil {
		return nil, err
	}
	var out []byte
	return func(v Value) (Value, error) {
		var err error
		out, err = appendXDR(out[:0], t, v)
		return out, err
	}, nil
}

func appendXDR(out []byte, t *xdrType, v Value) ([]byte, error) {
	word := func(n uint32, err error) ([]byte, error) { return binary.BigEndian.AppendUint32(out, n), err }
	long := func(n uint64, err error) ([]byte, error) { return binary.BigEndian.AppendUint64(out, n), err }
	switch t.kind {
	case xdrInt:
		n, err := signed(v, math.MinInt32, math.MaxInt32)
		return word(uint32(n), err)
	case xdrUnsigned:
		n, err := unsigned(v, math.MaxUint32)
		return word(uint32(n), err)
	case xdrHyper:
		n, err := signed(v, math.MinInt64, math.MaxInt64)
		return long(uint64(n), err)
	case xdrUnsignedHyper:
		n, err := unsigned(v, math.MaxUint64)
		return long(n, err)
	case xdrFloat:
		f, err := float(v)
		if err == nil && math.IsInf(float64(float32(f)), 0) && !math.IsInf(f, 0) {
			err = fmt.Errorf("%v is too big for a float", f)
		}
		return word(math.Float32bits(float32(f)), err)
	case xdrDouble:
		f, err := float(v)
		return long(math.Float64bits(f), err)
	case xdrBool:
		b, err := truth(v)
		if b {
			return word(1, err)
		}
		return word(0, err)
	case xdrEnum:
		for _, c := range t.constants {
			if n, err := signed(v, math.MinInt32, math.MaxInt32); v == c.name || err == nil && int32(n) == c.number {
				return word(uint32(c.number), nil)
			}
		}
		return nil, fmt.Errorf("%v is none of the enum's names", v)
	case xdrString, xdrOpaque:
		return appendXDRBytes(out, t, v)
	case xdrArray:
		return appendXDRArray(out, t, v)
	case xdrOptional:
		if v == nil {
			return word(0, nil)
		}
		out = binary.BigEndian.AppendUint32(out, 1)
		return appendXDR(out, t.of, v)
	}
	return appendXDRRecord(out, t, v)
}

func appendXDRBytes(out []byte, t *xdrType, v Value) ([]byte, error) {
	b, ok := v.([]byte)
	if !ok || t.kind == xdrString {
		s, err := text(v)
		if err != nil {
			return nil, err
		}
		b = []byte(s)
	}
	switch {
	case t.fixed && len(b) != int(t.most):
		return nil, fmt.Errorf("%d bytes do not fill opaque[%d]", len(b), t.most)
	case uint64(len(b)) > uint64(t.most):
		return nil, fmt.Errorf("%d bytes are over the type's %d", len(b), t.most)
	case !t.fixed:
		out = binary.BigEndian.AppendUint32(out, uint32(len(b)))
	}
	out = append(out, b...)
	return append(out, make([]byte, -len(b)&3)...), nil
}

func appendXDRArray(out []byte, t *xdrType, v Value) ([]byte, error) {
	list, ok := v.(List)
	switch {
	case !ok:
		return nil, fmt.Errorf("%s is not a list", kind(v))
	case t.fixed && len(list) != int(t.most):
		return nil, fmt.Errorf("%d elements do not fill an array of %d", len(list), t.most)
	case uint64(len(list)) > uint64(t.most):
		return nil, fmt.Errorf("%d elements are over the type's %d", len(list), t.most)
	case !t.fixed && !t.toEnd:
		out = binary.BigEndian.AppendUint32(out, uint32(len(list)))
	}
	for i, element := range list {
		var err error
		if out, err = appendXDR(out, t.of, element); err != nil {
			return nil, fmt.Errorf("element %d: %w", i, err)
		}
	}
	return out, nil
}

func appendXDRRecord(out []byte, t *xdrType, v Value) ([]byte, error) {
	record, named := v.(Record)
	list, listed := v.(List)
	switch {
	case !named && !listed:
		return nil, fmt.Errorf("%s is not a record", kind(v))
	case len(record)+len(list) != len(t.members):
		return nil, fmt.Errorf("a struct of %d members cannot be made of %d values", len(t.members), len(record)+len(list))
	}
	for i, m := range t.members {
		var value Value
		if listed {
			value = list[i]
		} else if value, named = record.get(m.name); !named {
			return nil, fmt.Errorf("the struct's member %s is missing", m.name)
		}
		var err error
		if out, err = appendXDR(out, m.of, value); err != nil {
			return nil, fmt.Errorf("%s: %w", m.name, err)
		}
	}
	return out, nil
}
