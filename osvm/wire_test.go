package osvm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"strings"
	"testing"
	"time"
)

// replay is a connection that has been written already.
type replay struct {
	net.Conn
	in  *bytes.Reader
	out bytes.Buffer
}

func (r *replay) Read(p []byte) (int, error)       { return r.in.Read(p) }
func (r *replay) Write(p []byte) (int, error)      { return r.out.Write(p) }
func (r *replay) Close() error                     { return nil }
func (r *replay) SetReadDeadline(time.Time) error  { return nil }
func (r *replay) SetWriteDeadline(time.Time) error { return nil }

func replayed(text []byte) *wire {
	return newWire(&replay{in: bytes.NewReader(text)}, time.Minute)
}

// said is what frames are on the wire.
func said(t testing.TB, say func(w *wire) error) []byte {
	t.Helper()
	r := &replay{in: bytes.NewReader(nil)}
	if err := say(newWire(r, time.Minute)); err != nil {
		t.Fatal(err)
	}
	return r.out.Bytes()
}

// TestWireSeesWhatIsNotAsItWasSent changes, loses, doubles and swaps frames.
func TestWireSeesWhatIsNotAsItWasSent(t *testing.T) {
	frame := func(w *wire, number uint32) error {
		return w.say(frameRound, binary.BigEndian.AppendUint32(nil, number))
	}
	whole := said(t, func(w *wire) error { return errors.Join(frame(w, 1), frame(w, 2), frame(w, 3)) })
	size := len(whole) / 3
	read := func(text []byte) (frames int, err error) {
		w := replayed(text)
		for range 3 {
			if _, err = w.expect(frameRound); err != nil {
				return frames, err
			}
			frames++
		}
		return frames, nil
	}
	if frames, err := read(whole); frames != 3 || err != nil {
		t.Fatal(frames, err)
	}
	for i := range whole {
		spoiled := bytes.Clone(whole)
		spoiled[i] ^= 0x10
		if frames, err := read(spoiled); err == nil || frames != i/size {
			t.Errorf("byte %d changed: %d frames, %v", i, frames, err)
		}
	}
	part := func(i int) []byte { return whole[i*size : (i+1)*size] }
	for name, text := range map[string][]byte{
		"lost":    bytes.Join([][]byte{part(0), part(2), part(2)}, nil),
		"doubled": bytes.Join([][]byte{part(0), part(0), part(1)}, nil),
		"swapped": bytes.Join([][]byte{part(1), part(0), part(2)}, nil),
		"cut":     whole[:2*size+3],
	} {
		if _, err := read(text); err == nil {
			t.Errorf("a frame was %s, and that is not seen", name)
		}
	}
	if _, _, err := replayed([]byte{framePage, 0xff, 0xff, 0xff, 0xff}).next(); err == nil || !strings.Contains(err.Error(), "of at most") {
		t.Errorf("a frame of 4 GiB: %v", err)
	}
	_, err := replayed(said(t, func(w *wire) error { w.refuse(errors.New("no room")); return nil })).expect(frameReady)
	var refused *RefusedError
	if !errors.As(err, &refused) || refused.Reason != "no room" {
		t.Errorf("refused: %v", err)
	}
}

// TestOffersThatAreRefused holds that the source hears why, before anything is made.
func TestOffersThatAreRefused(t *testing.T) {
	good := offer{
		Version: wireVersion, Migration: strings.Repeat("0a", 16), Running: true,
		Spec: Spec{ID: "one", MemoryMiB: 128, Accelerator: TCG, Machine: "pc-q35-7.2"},
	}
	for want, spoil := range map[string]func(*offer){
		"version 7 of the protocol": func(o *offer) { o.Version = 7 },
		"32 hexadecimal digits":     func(o *offer) { o.Migration = "../../etc" },
		"its id is not":             func(o *offer) { o.Spec.ID = "../one" },
		"are not enough":            func(o *offer) { o.Spec.MemoryMiB = -1 },
		"at most":                   func(o *offer) { o.Spec.MemoryMiB = memoryMostMiB + 1 },
		"runs by kvm":               func(o *offer) { o.Spec.Accelerator = KVM },
		"a machine":                 func(o *offer) { o.Spec.Machine = "pc-q35-7.2,accel=kvm" },
		"is not like this host's":   func(o *offer) { o.Processor = "other" },
		"has 17 disks":              func(o *offer) { o.Spec.Disks = make([]Disk, 17) },
		"its image has 1 here":      func(o *offer) { o.Spec.Disks = make([]Disk, 2) },
		"is not as that of its":     func(o *offer) { o.Spec.Disks = []Disk{{Path: "/etc/shadow", Format: QCOW2, Size: 512}} },
		"its disk 0 has 513 bytes":  func(o *offer) { o.Spec.Disks = []Disk{{Format: Raw, Size: 513}} },
		"not today":                 func(o *offer) { o.Spec.ID = "unwanted" },
	} {
		o := good
		spoil(&o)
		conn := &replay{in: bytes.NewReader(said(t, func(w *wire) error { return w.sayJSON(frameHello, o) }))}
		h := &Host{accelerator: TCG, all: map[string]*Machine{}}
		_, err := h.MigrateFrom(t.Context(), conn, func(a Arrival) (Image, error) {
			if a.Spec.ID == "unwanted" {
				return Image{}, errors.New("not today")
			}
			return Image{Disks: []Disk{{Path: "disk", Format: Raw}}}, nil
		})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, expected one with %q", err, want)
		}
		var refused *RefusedError
		if _, err := replayed(conn.out.Bytes()).expect(frameWelcome); !errors.As(err, &refused) || !strings.Contains(refused.Reason, want) {
			t.Errorf("%s: the source hears %v", want, err)
		}
	}
}

// TestDisksThatDoNotArrive: what came of a disk is what was said of it, or it is given
// to no QEMU, which would follow it to files of this host's.
func TestDisksThatDoNotArrive(t *testing.T) {
	var whole bytes.Buffer
	if err := writeOverlay(&sparse{&whole}, 1<<20); err != nil {
		t.Fatal(err)
	}
	big := binary.BigEndian
	for name, c := range map[string]struct {
		spoil func(b []byte) []byte
		want  string
	}{
		"as it was said":    {func(b []byte) []byte { return b }, ""},
		"with a file below": {func(b []byte) []byte { big.PutUint64(b[8:], 104); big.PutUint32(b[16:], 11); return b }, "no overlay of 1048576 bytes"},
		"of another size":   {func(b []byte) []byte { big.PutUint64(b[24:], 2<<20); return b }, "no overlay of 1048576 bytes"},
		"with other files":  {func(b []byte) []byte { big.PutUint64(b[72:], 4); return b }, "its data are in another file"},
		"not qcow2":         {func(b []byte) []byte { return make([]byte, len(b)&^511) }, "no overlay of 1048576 bytes"},
		"cut off":           {func(b []byte) []byte { return b[:cluster] }, "and is cut off"},
		"nothing":           {func([]byte) []byte { return nil }, "of its 0 bytes"},
	} {
		file, err := anonymous()
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		i := &immigration{disks: map[int]*arrivingDisk{0: {file: file, size: 1 << 20}}}
		content := c.spoil(bytes.Clone(whole.Bytes()))
		for at := 0; at < len(content) && err == nil; at += diskPiece {
			err = i.put(append(big.AppendUint64(make([]byte, 4), uint64(at)), content[at:min(at+diskPiece, len(content))]...))
		}
		if err == nil {
			err = i.checkDisks()
		}
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: error %v, expected one with %q", name, err, c.want)
		}
	}
}

// FuzzArrival has a target take whatever frames a source may say for a machine's
// memory: it keeps them within it.
func FuzzArrival(f *testing.F) {
	frame := func(kind byte, payload ...byte) []byte {
		return append([]byte{kind, byte(len(payload) >> 8), byte(len(payload))}, payload...)
	}
	f.Add(frame(framePage, append([]byte{0, 0, 0, 3}, make([]byte, pageSize)...)...))
	f.Add(frame(frameZero, 0, 0, 0, 1, 0, 0, 0, 7))
	f.Add(frame(frameZero, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff))
	f.Add(append(frame(frameState, 1, 2, 3), frame(frameEnd)...))
	f.Add(append(frame(frameRound, 0, 0, 0, 1), frame(frameCommit)...))
	f.Add(append(frame(frameDisk, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 2, 0, 'x'), frame(frameDisk, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 3)...))
	f.Add(frame(frameDisk, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 'x'))
	h := &Host{}
	f.Fuzz(func(t *testing.T, script []byte) {
		memory, err := anonymous()
		if err != nil {
			t.Fatal(err)
		}
		defer memory.Close()
		size := int64(LeastMemoryMiB) << 20
		if err := memory.Truncate(size); err != nil {
			t.Fatal(err)
		}
		text := said(t, func(w *wire) error {
			for len(script) >= 3 {
				length := min(int(binary.BigEndian.Uint16(script[1:])), len(script)-3)
				if err := w.say(script[0], script[3:3+length]); err != nil {
					return err
				}
				script = script[3+length:]
			}
			return nil
		})
		disk, err := anonymous()
		if err != nil {
			t.Fatal(err)
		}
		defer disk.Close()
		overlay := &arrivingDisk{file: disk, size: 1 << 20}
		i := &immigration{host: h, wire: replayed(text), memory: memory, disks: map[int]*arrivingDisk{1: overlay}}
		i.offer.Spec.MemoryMiB = LeastMemoryMiB
		for over := false; !over && err == nil; {
			over, err = i.take()
		}
		if info, err := memory.Stat(); err != nil || info.Size() != size {
			t.Errorf("the memory has %d bytes: %v", info.Size(), err)
		}
		if info, err := disk.Stat(); err != nil || info.Size() > overlay.most() {
			t.Errorf("the disk's file has %d bytes: %v", info.Size(), err)
		}
		_ = i.checkDisks() // whatever it is
		if len(i.state) > stateMax || i.pages > (roundsMax+1)*int(size/pageSize) {
			t.Errorf("%d bytes of state, %d pages", len(i.state), i.pages)
		}
	})
}
