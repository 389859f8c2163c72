package osvm

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/pierrec/lz4/v4"
)

// Places in a bzImage (Linux, Documentation/arch/x86/boot.rst).
const (
	setupSectorsAt  = 0x1f1
	headerAt        = 0x202 // "HdrS"
	versionAt       = 0x206
	payloadAt       = 0x248
	payloadLengthAt = 0x24c
	sector          = 512
)

// uncompressedMax bounds what a kernel may hold; Debian's have some 55 MB.
const uncompressedMax = 1 << 30

// ErrKernel is wrapped by what is wrong with a kernel's file.
var ErrKernel = errors.New("not a kernel that can be unpacked")

// vmlinux unpacks the ELF image that a bzImage holds. QEMU boots it 0.1 to 0.3 s
// sooner under TCG than a kernel that unpacks itself.
func vmlinux(bzImage []byte) ([]byte, error) {
	if len(bzImage) < payloadLengthAt+4 || string(bzImage[headerAt:headerAt+4]) != "HdrS" {
		return nil, fmt.Errorf("%w: it is no bzImage", ErrKernel)
	}
	little := binary.LittleEndian
	if version := little.Uint16(bzImage[versionAt:]); version < 0x208 {
		return nil, fmt.Errorf("%w: its boot protocol is %d.%02d, expected 2.08 or newer", ErrKernel, version>>8, version&0xff)
	}
	begin := (uint64(bzImage[setupSectorsAt])+1)*sector + uint64(little.Uint32(bzImage[payloadAt:]))
	end := begin + uint64(little.Uint32(bzImage[payloadLengthAt:]))
	if begin > end || end > uint64(len(bzImage)) {
		return nil, fmt.Errorf("%w: its payload is said to be at %d to %d of %d bytes", ErrKernel, begin, end, len(bzImage))
	}
	payload := bzImage[begin:end]
	if len(payload) < 8 || little.Uint32(payload) != 0x184c2102 {
		return nil, fmt.Errorf("%w: its payload begins with % x; LZ4 is what Debian's cloud kernels have", ErrKernel, payload[:min(len(payload), 6)])
	}
	size := little.Uint32(payload[len(payload)-4:]) // the build adds it
	if size > uncompressedMax {
		return nil, fmt.Errorf("%w: it says that it has %d bytes", ErrKernel, size)
	}
	image, err := io.ReadAll(io.LimitReader(lz4.NewReader(bytes.NewReader(payload[:len(payload)-4])), int64(size)+1))
	if err == nil && len(image) != int(size) {
		err = fmt.Errorf("it has not the %d bytes that it says", size)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: its payload: %w", ErrKernel, err)
	}
	if !bytes.HasPrefix(image, []byte(elf.ELFMAG)) {
		return nil, fmt.Errorf("%w: what it holds is no ELF image", ErrKernel)
	}
	return image, nil
}

// module is a kernel module as its file tells of itself.
type module struct {
	name    string
	depends []string
	file    []byte
}

// readModule takes name and dependencies from the module's .modinfo.
func readModule(file []byte) (module, error) {
	object, err := elf.NewFile(bytes.NewReader(file))
	if err != nil {
		return module{}, err
	}
	section := object.Section(".modinfo")
	if section == nil {
		return module{}, errors.New("it has no .modinfo: it is no kernel module")
	}
	information, err := section.Data()
	if err != nil {
		return module{}, err
	}
	m := module{file: file}
	for field := range strings.SplitSeq(string(information), "\x00") {
		if name, ok := strings.CutPrefix(field, "name="); ok {
			m.name = name
		}
		if depends, ok := strings.CutPrefix(field, "depends="); ok && depends != "" {
			m.depends = strings.Split(depends, ",")
		}
	}
	if m.name == "" {
		return module{}, errors.New("its .modinfo has no name")
	}
	return m, nil
}

// inOrder lists the wanted modules and all that they depend on, each after what
// it depends on: as they have to be loaded.
func inOrder(modules map[string]module, wanted []string) ([]module, error) {
	var order []module
	const begun, done = 1, 2
	state := map[string]int{}
	var visit func(name string, chain []string) error
	visit = func(name string, chain []string) error {
		chain = append(slices.Clip(chain), name)
		m, there := modules[name]
		switch {
		case state[name] == done:
			return nil
		case state[name] == begun:
			return fmt.Errorf("kernel modules depend on each other in a circle: %s", strings.Join(chain, " -> "))
		case !there:
			return fmt.Errorf("the kernel's package has no module %s", strings.Join(chain, " -> "))
		}
		state[name] = begun
		for _, needed := range m.depends {
			if err := visit(needed, chain); err != nil {
				return err
			}
		}
		state[name] = done
		order = append(order, m)
		return nil
	}
	for _, name := range wanted {
		if err := visit(name, nil); err != nil {
			return nil, err
		}
	}
	return order, nil
}
