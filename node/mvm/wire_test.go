package mvm

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"reflect"
	"testing"
	"time"
)

// FuzzCodec: what arrives is what was sent, every field of it, as encoding/json
// shows them.
func FuzzCodec(f *testing.F) {
	for seed := range uint64(200) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed uint64) {
		random := rand.New(rand.NewPCG(seed, 1))
		for _, sent := range []message{new(Start), new(Ready), new(Request), new(FromProcess)} {
			fill(reflect.ValueOf(sent).Elem(), random)
			var pipe bytes.Buffer
			w := newWire(&pipe)
			if err := w.send(sent); err != nil {
				t.Fatal(err)
			}
			got := reflect.New(reflect.TypeOf(sent).Elem()).Interface().(message)
			if err := w.receive(got); err != nil {
				t.Fatalf("%v: of %+v", err, sent)
			}
			want, _ := json.Marshal(sent)
			have, _ := json.Marshal(got)
			if !bytes.Equal(want, have) {
				t.Fatalf("sent %.9000s\ngot  %.9000s", want, have)
			}
		}
	})
}

// fill gives every field of a value, or of half of what it points to, something
// that is seldom zero.
func fill(v reflect.Value, random *rand.Rand) {
	switch v.Kind() {
	case reflect.Pointer:
		if random.IntN(2) == 0 {
			v.Set(reflect.New(v.Type().Elem()))
			fill(v.Elem(), random)
		}
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			v.Set(reflect.ValueOf(time.Unix(random.Int64N(1<<33), random.Int64N(1e9))))
			return
		}
		for _, field := range v.Fields() {
			fill(field, random)
		}
	case reflect.Slice:
		if n := random.IntN(4); n > 0 {
			v.Set(reflect.MakeSlice(v.Type(), n, n))
			for i := range n {
				fill(v.Index(i), random)
			}
		}
	case reflect.String:
		text := make([]rune, random.IntN(20))
		for i := range text {
			text[i] = 1 + random.Int32N(0x2000)
		}
		v.SetString(string(text))
	case reflect.Bool:
		v.SetBool(random.IntN(2) == 0)
	case reflect.Int, reflect.Int64:
		v.SetInt(int64(random.Uint64()) >> random.IntN(64))
	case reflect.Uint8, reflect.Uint32, reflect.Uint64:
		v.SetUint(random.Uint64() >> random.IntN(64) & (1<<v.Type().Bits() - 1))
	case reflect.Float64:
		v.SetFloat(float64(random.Int32N(1<<20)) / 8)
	case reflect.Interface: // nothing that can be sent
	default:
		panic("a control message has a field of kind " + v.Kind().String())
	}
}
