package guest

import (
	"errors"
	"io"
	"os"
	"time"
)

// How often the port is read again while no host is there: often at first, as in a
// clone whose host is about to connect, then seldom, because every look costs a
// guest whose instructions are translated.
const (
	hostless     = 5 * time.Millisecond
	hostlessLong = 50 * time.Millisecond
	hostlessSoon = 40 // looks
)

// device is the port as a pipe without an end: while no host is connected the
// driver answers "end of file", and that is none.
type device struct{ *os.File }

func openDevice(path string) (device, error) {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	return device{file}, err
}

func (d device) Read(into []byte) (int, error) {
	for looks := 0; ; looks++ {
		n, err := d.File.Read(into)
		if n > 0 || !errors.Is(err, io.EOF) {
			return n, err
		}
		if looks < hostlessSoon {
			time.Sleep(hostless)
		} else {
			time.Sleep(hostlessLong)
		}
	}
}
