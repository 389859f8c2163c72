package codec

import (
	"encoding/base64"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/klauspost/compress/zstd"
)

func decodeRaw(string, Limits) (conversion, error) {
	return func(v Value) (Value, error) { return v, nil }, nil
}

func encodeRaw(string, Limits) (conversion, error) {
	return func(v Value) (Value, error) {
		switch b := v.(type) {
		case []byte:
			return b, nil
		case string:
			return []byte(b), nil
		}
		return nil, fmt.Errorf("raw writes bytes and text, not %s", kind(v))
	}, nil
}

// decodeLines makes a list of an item's lines. A line ends with LF or CR LF;
// the last may go without.
func decodeLines(_ string, l Limits) (conversion, error) {
	return func(v Value) (Value, error) {
		b := v.([]byte)
		if !utf8.Valid(b) {
			return nil, fmt.Errorf("the lines are not UTF-8")
		}
		list, spent := List{}, budget{limits: l}
		for rest := string(b); rest != ""; {
			if err := spent.spend(); err != nil {
				return nil, err
			}
			line, after, _ := strings.Cut(rest, "\n")
			list, rest = append(list, strings.TrimSuffix(line, "\r")), after
		}
		return list, nil
	}, nil
}

// encodeLines writes a list as a line for each element, and a single value as
// one line.
func encodeLines(string, Limits) (conversion, error) {
	return func(v Value) (Value, error) {
		list, ok := v.(List)
		if !ok {
			list = List{v}
		}
		out := []byte{}
		for i, element := range list {
			line, err := text(element)
			if err == nil && strings.ContainsAny(line, "\r\n") {
				err = fmt.Errorf("a text with a line break is not one line")
			}
			if err != nil {
				return nil, fmt.Errorf("line %d: %w", i+1, err)
			}
			out = append(append(out, line...), '\n')
		}
		return out, nil
	}, nil
}

func encodeBase64(string, Limits) (conversion, error) {
	var out []byte
	return func(v Value) (Value, error) {
		out = base64.StdEncoding.AppendEncode(out[:0], v.([]byte))
		return out, nil
	}, nil
}

// decodeBase64 takes what RFC 4648 section 4 writes, with line breaks in it or
// not.
func decodeBase64(string, Limits) (conversion, error) {
	var out []byte
	return func(v Value) (Value, error) {
		var err error
		if out, err = base64.StdEncoding.AppendDecode(out[:0], v.([]byte)); err != nil {
			return nil, fmt.Errorf("not base64: %w", err)
		}
		return out, nil
	}, nil
}

// Items are small beside files: a window of one mebibyte keeps what a channel
// costs in memory bounded, also where there are a thousand.
const zstdWindow = 1 << 20

func encodeZstd(string, Limits) (conversion, error) {
	var (
		encoder *zstd.Encoder
		out     []byte
	)
	return func(v Value) (Value, error) {
		if encoder == nil { // made late: most channels never see an item in this process
			var err error
			encoder, err = zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(zstdWindow), zstd.WithLowerEncoderMem(true))
			if err != nil {
				return nil, err
			}
		}
		out = encoder.EncodeAll(v.([]byte), out[:0])
		return out, nil
	}, nil
}

func decodeZstd(_ string, l Limits) (conversion, error) {
	var (
		decoder *zstd.Decoder
		out     []byte
	)
	return func(v Value) (Value, error) {
		if decoder == nil {
			var err error
			decoder, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
				zstd.WithDecoderMaxMemory(uint64(l.Item)), zstd.WithDecoderMaxWindow(uint64(max(l.Item, zstdWindow))))
			if err != nil {
				return nil, err
			}
		}
		var err error
		if out, err = decoder.DecodeAll(v.([]byte), out[:0]); err != nil {
			return nil, fmt.Errorf("not zstd, or more than %d bytes of it: %w", l.Item, err)
		}
		return out, nil
	}, nil
}
