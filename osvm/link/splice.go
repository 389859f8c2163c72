package link

import (
	"io"
	"net"
	"sync"
)

// closeWrite tells the other side that nothing more is sent. A connection of a
// session goes on to receive after its Close.
func closeWrite(conn net.Conn) {
	if half, ok := conn.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
		return
	}
	_ = conn.Close()
}

// Splice carries bytes both ways until both ends have said all, or one fails.
func Splice(a, b net.Conn) {
	var both sync.WaitGroup
	for _, way := range [][2]net.Conn{{a, b}, {b, a}} {
		both.Go(func() {
			_, _ = io.Copy(onlyWriter{way[0]}, onlyReader{way[1]})
			closeWrite(way[0])
		})
	}
	both.Wait()
	_ = a.Close()
	_ = b.Close()
}

// onlyReader and onlyWriter hide what io.Copy would try first, which for a
// stream on one side is nothing but detours.
type (
	onlyReader struct{ io.Reader }
	onlyWriter struct{ io.Writer }
)
