package codec

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"strconv"
	"unicode/utf8"
)

// decodeJSON takes one JSON text (RFC 8259) apart. The order of an object's
// members is kept; a name that comes twice is refused, since readers disagree
// about which counts.
func decodeJSON(_ string, l Limits) (conversion, error) {
	return func(v Value) (Value, error) {
		b := v.([]byte)
		if !utf8.Valid(b) {
			return nil, fmt.Errorf("the JSON text is not UTF-8")
		}
		r := jsonReader{Decoder: json.NewDecoder(bytes.NewReader(b)), budget: budget{limits: l}}
		r.UseNumber()
		value, err := r.value()
		if err == nil {
			if _, end := r.Token(); end != io.EOF {
				err = fmt.Errorf("something follows the JSON text")
			}
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			err = fmt.Errorf("the JSON text is not complete")
		}
		if err != nil {
			return nil, fmt.Errorf("at byte %d: %w", r.InputOffset(), err)
		}
		return value, nil
	}, nil
}

type jsonReader struct {
	*json.Decoder
	budget
}

func (r *jsonReader) value() (Value, error) {
	if err := r.spend(); err != nil {
		return nil, err
	}
	token, err := r.Token()
	if err != nil {
		return nil, err
	}
	switch t := token.(type) {
	case json.Number:
		return number(t.String())
	case json.Delim:
		if err := r.enter(); err != nil {
			return nil, err
		}
		defer func() { r.depth-- }()
		if t == '[' {
			return r.list()
		}
		return r.record()
	}
	return token, nil // nil, bool or string
}

func (r *jsonReader) list() (Value, error) {
	list := List{}
	for r.More() {
		element, err := r.value()
		if err != nil {
			return nil, err
		}
		list = append(list, element)
	}
	_, err := r.Token()
	return list, err
}

func (r *jsonReader) record() (Value, error) {
	record, names := Record{}, map[string]bool{}
	for r.More() {
		token, err := r.Token()
		if err != nil {
			return nil, err
		}
		name := token.(string) // Token sees to it that members have names
		if names[name] {
			return nil, fmt.Errorf("the member %.40q comes twice", name)
		}
		names[name] = true
		value, err := r.value()
		if err != nil {
			return nil, err
		}
		record = append(record, Field{name, value})
	}
	_, err := r.Token()
	return record, err
}

// encodeJSON writes one JSON text. Bytes become base64, as JSON has none.
func encodeJSON(string, Limits) (conversion, error) {
	var out []byte
	return func(v Value) (Value, error) {
		var err error
		out, err = appendJSON(out[:0], v)
		return out, err
	}, nil
}

func appendJSON(out []byte, v Value) ([]byte, error) {
	switch t := v.(type) {
	case nil:
		return append(out, "null"...), nil
	case bool:
		return strconv.AppendBool(out, t), nil
	case int64:
		return strconv.AppendInt(out, t, 10), nil
	case uint64:
		return strconv.AppendUint(out, t, 10), nil
	case float64:
		if math.IsNaN(t) || math.IsInf(t, 0) {
			return nil, fmt.Errorf("JSON has no %v", t)
		}
		return strconv.AppendFloat(out, t, 'g', -1, 64), nil
	case string:
		return appendJSONText(out, t)
	case []byte:
		out = base64.StdEncoding.AppendEncode(append(out, '"'), t)
		return append(out, '"'), nil
	case List:
		out = append(out, '[')
		for i, element := range t {
			if i > 0 {
				out = append(out, ',')
			}
			var err error
			if out, err = appendJSON(out, element); err != nil {
				return nil, fmt.Errorf("element %d: %w", i, err)
			}
		}
		return append(out, ']'), nil
	case Record:
		out = append(out, '{')
		for i, f := range t {
			if i > 0 {
				out = append(out, ',')
			}
			var err error
			if out, err = appendJSONText(out, f.Name); err == nil {
				out, err = appendJSON(append(out, ':'), f.Value)
			}
			if err != nil {
				return nil, fmt.Errorf("%s: %w", f.Name, err)
			}
		}
		return append(out, '}'), nil
	}
	return nil, fmt.Errorf("JSON has no form for %s", kind(v))
}

// appendJSONText quotes a text. Only what RFC 8259 section 7 asks for is
// escaped: json.Marshal escapes for web pages as well.
func appendJSONText(out []byte, text string) ([]byte, error) {
	if !utf8.ValidString(text) {
		return nil, fmt.Errorf("the text is not UTF-8")
	}
	out = append(out, '"')
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == '"' || c == '\\':
			out = append(out, '\\', c)
		case c == '\n':
			out = append(out, `\n`...)
		case c < ' ':
			out = fmt.Appendf(out, `\u%04x`, c)
		default:
			out = append(out, c)
		}
	}
	return append(out, '"'), nil
}
