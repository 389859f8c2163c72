package guest

import (
	"errors"
	"io"
	"os"
	"time"
)

// hostless is how often the port is read again while no host is there.
const hostless = 5 * time.Millisecond

// device is the port as a pipe without an end: while no host is connected the
// driver answers "end of file", and that is none.
type device struct{ *os.File }

func openDevice(path string) (device, error) {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	return device{file}, err
}

func (d device) Read(into []byte) (int, error) {
	for {
		n, err := d.File.Read(into)
		if n > 0 || !errors.Is(err, io.EOF) {
			return n, err
		}
		time.Sleep(hostless)
	}
}
