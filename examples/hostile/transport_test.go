package hostile

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"
)

func mimeGroup() group {
	whole := envelope(ask)
	m := func(name, lines, body, head, says string) entry {
		return entry{name: name, send: raw(fmt.Sprintf("POST /services/bootstrap HTTP/1.1\r\nHost: grid\r\nContent-Length: %d\r\n%s\r\n%s", len(body), lines, body)), head: head, says: says}
	}
	related := "--b\r\nContent-Type: application/xop+xml; type=\"text/xml\"\r\n\r\n" + whole + "\r\n--b--\r\n"
	return group{"Media types", "SOAP is text/xml (1.1) or application/soap+xml (1.2), in UTF-8, as it is.", []entry{
		m("no Content-Type", "", whole, "415", "send one Content-Type"),
		m("an empty Content-Type", "Content-Type: \r\n", whole, "415", ""),
		m("two Content-Types", "Content-Type: text/xml\r\nContent-Type: application/soap+xml\r\n", whole, "415", "send one Content-Type"),
		m("two in one line", "Content-Type: text/xml, application/json\r\n", whole, "415", ""),
		m("application/json", "Content-Type: application/json\r\n", `{}`, "415", ""),
		m("application/xml", "Content-Type: application/xml\r\n", whole, "415", ""),
		m("a form", "Content-Type: application/x-www-form-urlencoded\r\n", "a=b", "415", ""),
		m("text/plain, as a browser would send it across sites", "Content-Type: text/plain\r\n", whole, "415", ""),
		m("multipart/related: SOAP with attachments", "Content-Type: multipart/related; boundary=b; type=\"text/xml\"\r\n", related, "415", ""),
		m("MTOM", "Content-Type: multipart/related; boundary=b; type=\"application/xop+xml\"; start-info=\"text/xml\"\r\n", related, "415", ""),
		m("multipart/form-data without a boundary", "Content-Type: multipart/form-data\r\n", related, "415", ""),
		m("charset=utf-16", "Content-Type: text/xml; charset=utf-16\r\n", in16(whole, true, true), "415", "send UTF-8"),
		m("charset=iso-8859-1", "Content-Type: text/xml; charset=iso-8859-1\r\n", whole, "415", "send UTF-8"),
		m("charset twice", "Content-Type: text/xml; charset=utf-8; charset=utf-16\r\n", whole, "415", ""),
		m("a charset that never ends", "Content-Type: text/xml; charset=\"utf-8\r\n", whole, "415", ""),
		m("charset=\"UTF-8\", which is right", "Content-Type: TEXT/XML; charset=\"UTF-8\"\r\n", whole, "200 GetBrokerResponse", ""),
		m("10,000 parameters, which are passed over", "Content-Type: text/xml"+strings.Repeat("; a=b", 10_000)+"\r\n", whole, "200 GetBrokerResponse", ""),
		m("a zip bomb: Content-Encoding: gzip", "Content-Type: text/xml\r\nContent-Encoding: gzip\r\n", "\x1f\x8b\x08", "415", "send the envelope as it is"),
		m("Content-Encoding: br, gzip, gzip", "Content-Type: text/xml\r\nContent-Encoding: br, gzip, gzip\r\n", whole, "415", ""),
		m("a SOAPAction of another operation, which does not count", "Content-Type: text/xml\r\nSOAPAction: \"urn:mvm:1/SubmitJob\"\r\n", whole, "200 GetBrokerResponse", ""),
	}}
}

func httpGroup() group {
	whole := envelope(ask)
	r := func(name, request, head, says string) entry {
		return entry{name: name, send: raw(request), head: head, says: says}
	}
	// smuggle sends a call and, hidden behind it, another request.
	hidden := "GET /services HTTP/1.1\r\nHost: hidden\r\n\r\n"
	smuggle := func(name, lines, body, head, says string) entry {
		request := "POST /services/bootstrap HTTP/1.1\r\nHost: grid\r\nContent-Type: text/xml\r\n" + lines + "\r\n" + body
		return entry{name: name, head: head, says: says, send: func(n *node) answer {
			return n.exchange(func(conn io.Writer) { _, _ = io.WriteString(conn, request) }, 2)
		}}
	}
	chunk := func(text string) string { return fmt.Sprintf("%x\r\n%s\r\n", len(text), text) }
	length := fmt.Sprintf("Content-Length: %d\r\n", len(whole))
	chunked := "Transfer-Encoding: chunked\r\n"
	const gone = "; then the connection is closed"
	methods := []entry{}
	for _, method := range []string{"PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND", "get", "POSTPOSTPOST"} {
		methods = append(methods, r("the method "+method, method+" /services/bootstrap HTTP/1.1\r\nHost: grid\r\n\r\n", "405", ""))
	}
	return group{"HTTP", "Shapes by which two readers of one connection may be made to disagree about where a request ends, and other things that are no HTTP/1.1. Where what follows is not certain the connection is closed.", append([]entry{
		smuggle("Content-Length and Transfer-Encoding: the chunks count, and nothing after them", length+chunked, "0\r\n\r\n"+hidden, "", gone),
		smuggle("a request hidden behind chunks", chunked, chunk(whole)+"0\r\n\r\n"+hidden, "200 GetBrokerResponse"+gone, ""),
		smuggle("two Content-Lengths that differ", length+"Content-Length: 0\r\n", whole, "400", gone),
		smuggle("two Content-Lengths in one line", "Content-Length: 5, 6\r\n", whole, "400", gone),
		smuggle("two Content-Lengths that are the same", length+length, whole+hidden, "200 GetBrokerResponse; then 200", ""),
		smuggle("a Content-Length of +5", "Content-Length: +5\r\n", whole, "400", gone),
		smuggle("a Content-Length of -1", "Content-Length: -1\r\n", whole, "400", gone),
		smuggle("a Content-Length of 0x10", "Content-Length: 0x10\r\n", whole, "400", gone),
		smuggle("a Content-Length of 10^30", "Content-Length: 1"+strings.Repeat("0", 30)+"\r\n", whole, "400", gone),
		smuggle("an empty Content-Length", "Content-Length: \r\n", whole, "", ""),
		smuggle("no length at all: what follows is another request, and none", "", whole+"\r\n\r\n", "500 invalidRequest: ", "; then 400"),
		smuggle("Transfer-Encoding: gzip, chunked", "Transfer-Encoding: gzip, chunked\r\n", chunk(whole)+"0\r\n\r\n"+hidden, "501", gone),
		smuggle("Transfer-Encoding: identity", "Transfer-Encoding: identity\r\n", whole, "501", gone),
		smuggle("Transfer-Encoding: xchunked", "Transfer-Encoding: xchunked\r\n"+length, whole+hidden, "501", gone),
		smuggle("Transfer-Encoding twice", chunked+chunked, chunk(whole)+"0\r\n\r\n"+hidden, "", gone),
		smuggle("Transfer-Encoding with a vertical tab", "Transfer-Encoding: \x0bchunked\r\n"+length, whole+hidden, "", gone),
		smuggle("Transfer-Encoding with a space before the colon", "Transfer-Encoding : chunked\r\n"+length, whole+hidden, "400", gone),
		smuggle("Transfer-Encoding in HTTP/1.0", chunked+"X: ", chunk(whole), "", ""),
		smuggle("a chunk whose size is no number", chunked, "zz\r\n"+whole, "400", gone),
		smuggle("a chunk whose size is negative", chunked, "-1\r\n"+whole, "400", gone),
		smuggle("a chunk whose size overflows", chunked, "fffffffffffffffff\r\n"+whole, "400", gone),
		smuggle("a chunk whose size begins with 0x", chunked, "0x10\r\n"+whole, "400", gone),
		smuggle("a chunk longer than its size", chunked, "5\r\n"+whole+"\r\n0\r\n\r\n", "400", gone),
		smuggle("a chunk with 100,000 bytes of extension", chunked, "5;"+strings.Repeat("a", 100_000)+"\r\n<a/>\n\r\n0\r\n\r\n", "400", gone),
		smuggle("chunks of one byte with an extension each", chunked, strings.Repeat("1;aaaaaaaaaaaaaaaaaaaaaaaa\r\n \r\n", 20_000)+"0\r\n\r\n", "400", gone),
		smuggle("64 KiB of trailers", chunked, chunk(whole)+"0\r\n"+strings.Repeat("X-A: b\r\n", 10_000)+"\r\n", "", gone),
		smuggle("a header line that is folded: it is unfolded (RFC 9112, section 5.2)", "X-A: b\r\n c\r\n"+length, whole+hidden, "200 GetBrokerResponse; then 200: http://hidden/", ""),
		smuggle("a header line without a colon", "X-A\r\n"+length, whole, "400", gone),
		smuggle("a header without a name", ": b\r\n"+length, whole, "400", gone),
		smuggle("a header name with a space", "X A: b\r\n"+length, whole, "400", gone),
		smuggle("a NUL in a header", "X-A: \x00\r\n"+length, whole, "400", gone),
		smuggle("a carriage return in a header", "X-A: b\rContent-Length: 0\r\n"+length, whole, "400", gone),
		smuggle("a header line that ends in LF alone, which is taken (RFC 9112, section 2.2)", "X-A: b\n"+length, whole+hidden, "200 GetBrokerResponse; then 200: http://hidden/", ""),
		smuggle("a second Host", "Host: other\r\n"+length, whole, "400", gone),
		r("no Host", "GET /services HTTP/1.1\r\n\r\n", "400", "Host"),
		r("a Host with a path", "GET /services/bootstrap?wsdl HTTP/1.1\r\nHost: a/b\r\n\r\n", "400", ""),
		r("a Host with markup, for the WSDL", "GET /services/bootstrap?wsdl HTTP/1.1\r\nHost: \"><script>\r\n\r\n", "400", ""),
		r("a forged X-Forwarded-Host, which does not count", "GET /services HTTP/1.1\r\nHost: grid\r\nX-Forwarded-Host: evil\r\nConnection: close\r\n\r\n", "200: http://grid/", ""),
		r("an absolute URI", "GET http://elsewhere/services HTTP/1.1\r\nHost: grid\r\nConnection: close\r\n\r\n", "200: http://elsewhere/", ""),
		r("CONNECT", "CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: 127.0.0.1:22\r\n\r\n", "", ""),
		r("a URI with a NUL", "GET /services/\x00 HTTP/1.1\r\nHost: grid\r\n\r\n", "400", ""),
		r("a URI of 100,000 bytes", "GET /"+strings.Repeat("a", 100_000)+" HTTP/1.1\r\nHost: grid\r\n\r\n", "431", ""),
		r("100,000 bytes of headers", "GET /services HTTP/1.1\r\nHost: grid\r\nX-A: "+strings.Repeat("a", 100_000)+"\r\n\r\n", "431", ""),
		r("20,000 headers", "GET /services HTTP/1.1\r\nHost: grid\r\n"+strings.Repeat("X-A: a\r\n", 20_000)+"\r\n", "431", ""),
		r("HTTP/0.9", "GET /services\r\n", "400", ""),
		r("HTTP/1.0, which is served", "GET /healthz HTTP/1.0\r\n\r\n", "200: ok", ""),
		r("HTTP/2 without being asked", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "", ""),
		r("HTTP/9.9", "GET /services HTTP/9.9\r\nHost: grid\r\n\r\n", "505", ""),
		r("a TLS hello", "\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03\r\n\r\n", "400", ""),
		r("an upgrade to h2c, which is passed over", "GET /healthz HTTP/1.1\r\nHost: grid\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n", "200: ok", ""),
		r("an upgrade to a WebSocket", "GET /services/bootstrap HTTP/1.1\r\nHost: grid\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n", "200: bootstrap", ""),
		r("garbage", strings.Repeat("\xff\x00\xfe", 1000)+"\r\n\r\n", "400", ""),
		{name: "two calls at once, which are answered in turn", head: "200 GetBrokerResponse; then 200 GetBrokerResponse", send: func(n *node) answer {
			return n.exchange(func(conn io.Writer) {
				_, _ = io.WriteString(conn, head("bootstrap", len(whole), "")+whole+head("bootstrap", len(whole), "")+whole)
			}, 2)
		}},
		{name: "5,000 calls at once, whose answers nobody reads", head: "200", send: func(n *node) answer {
			conn, err := net.Dial("tcp", n.address)
			if err != nil {
				return answer(err.Error())
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(500 * time.Millisecond))
			_, _ = io.WriteString(conn, strings.Repeat(head("bootstrap", len(whole), "")+whole, 5000)) // until its buffers are full
			return raw("GET /healthz HTTP/1.0\r\n\r\n")(n)
		}},
		r("Expect: something else", head("bootstrap", len(whole), "Expect: the-unexpected\r\n")+whole, "417", ""),
		r("a request id that is another header", "GET /healthz HTTP/1.1\r\nHost: grid\r\nX-Request-Id: a%0d%0aSet-Cookie: x\r\nConnection: close\r\n\r\n", "200: ok", ""),
		r("a path that leads up", "GET /services/../../../../etc/passwd HTTP/1.1\r\nHost: grid\r\nConnection: close\r\n\r\n", "301", ""),
		r("a path that leads up, encoded", "GET /services/%2e%2e/%2e%2e/etc/passwd HTTP/1.1\r\nHost: grid\r\nConnection: close\r\n\r\n", "", ""),
		r("a path with many slashes", "GET ////services//bootstrap HTTP/1.1\r\nHost: grid\r\nConnection: close\r\n\r\n", "301", ""),
		r("an encoding that ends", "GET /services/%zz HTTP/1.1\r\nHost: grid\r\n\r\n", "400", ""),
		r("the profiler of Go", "GET /debug/pprof/ HTTP/1.1\r\nHost: grid\r\n\r\n", "404", ""),
	}, methods...)}
}

// endless writes until nobody listens any more.
func endless(conn io.Writer, unit string) {
	unit = strings.Repeat(unit, 1+64<<10/len(unit))
	for {
		if _, err := io.WriteString(conn, unit); err != nil {
			return
		}
	}
}

func sizeGroup() group {
	whole := envelope(ask)
	const chunkedHead = "POST /services/bootstrap HTTP/1.1\r\nHost: grid\r\nContent-Type: text/xml\r\nTransfer-Encoding: chunked\r\n\r\n"
	say := func(name, head, says string, slow bool, say func(io.Writer)) entry {
		return entry{name: name, head: head, says: says, slow: slow, send: func(n *node) answer { return n.exchange(say, 1) }}
	}
	slowly := func(pause time.Duration, parts ...string) func(io.Writer) {
		return func(conn io.Writer) {
			for _, part := range parts {
				if _, err := io.WriteString(conn, part); err != nil {
					return
				}
				time.Sleep(pause) // the pace that is tested
			}
		}
	}
	pieces := func(text string, size int) (parts []string) {
		for ; len(text) > size; text = text[size:] {
			parts = append(parts, text[:size])
		}
		return append(parts, text)
	}
	padded := opened + `<GetBroker xmlns="urn:mvm:1">` + strings.Repeat(" ", 200_000) + `</GetBroker>` + closed
	return group{"Size, time and number", "Whoever sends too much, too slowly, or too often.", []entry{
		say("10 GB declared, and nothing sent", "413", "larger than 16777216 bytes", false, func(c io.Writer) { _, _ = io.WriteString(c, head("bootstrap", 10<<30, "")) }),
		say("10 GB declared with Expect: 100-continue", "413", "", false, func(c io.Writer) {
			_, _ = io.WriteString(c, head("bootstrap", 10<<30, "Expect: 100-continue\r\n"))
		}),
		say("10 GB declared, and sent", "413", "", true, func(c io.Writer) { _, _ = io.WriteString(c, head("bootstrap", 10<<30, "")); endless(c, " ") }),
		say("a body of chunks without end", "413", "", true, func(c io.Writer) {
			_, _ = io.WriteString(c, chunkedHead)
			endless(c, "400\r\n"+strings.Repeat(" ", 1024)+"\r\n")
		}),
		say("a body of empty text without end, to a path where nothing is", "404", "", true, func(c io.Writer) {
			_, _ = io.WriteString(c, strings.Replace(chunkedHead, "/services/bootstrap", "/nowhere", 1))
			endless(c, "1\r\n \r\n")
		}),
		{name: "100 MB sent whole before anything is read: the answer is still there", head: "413", says: "larger than", send: func(n *node) answer {
			return n.sendsFirst(head("bootstrap", 100<<20, ""), strings.Repeat(" ", 100<<20))
		}},
		say("16 MiB and one byte", "413", "", false, func(c io.Writer) {
			_, _ = io.WriteString(c, head("bootstrap", 16<<20+1, "")+strings.Repeat(" ", 16<<20+1))
		}),
		say("headers without end", "431", "", false, func(c io.Writer) {
			_, _ = io.WriteString(c, "GET /services HTTP/1.1\r\nHost: grid\r\n")
			endless(c, "X-A: b\r\n")
		}),
		say("a request line without end", "431", "", false, func(c io.Writer) { _, _ = io.WriteString(c, "GET /"); endless(c, "a") }),
		say("headers, a line a second", "400", "", true, slowly(time.Second, pieces("GET /healthz HTTP/1.1\r\n"+strings.Repeat("X-A: b\r\n", 30), 8)...)),
		say("a body that never comes", "408", "this one did not for 10s", true, slowly(0, head("bootstrap", 1000, ""))),
		say("a body, a byte a second", "408", "2048 bytes a second", true, slowly(time.Second, append([]string{head("bootstrap", len(whole), "")}, pieces(whole, 1)...)...)),
		say("a body that ends too early", "400", "ended too early", false, func(c io.Writer) {
			_, _ = io.WriteString(c, head("bootstrap", 1000, "")+"<a")
			_ = c.(*net.TCPConn).CloseWrite()
		}),
		say("a body of 200 KB at 20 KB a second: a slow but honest link, which is served", "200 GetBrokerResponse", "", true,
			slowly(500*time.Millisecond, append([]string{head("bootstrap", len(padded), "")}, pieces(padded, 10_000)...)...)),
		{name: "200 connections that send 1 MB each and stall", head: "200 GetBrokerResponse", crowd: true, send: func(n *node) answer {
			return n.beside(200, head("bootstrap", 16<<20, "")+strings.Repeat(" ", 1<<20), time.Second)
		}},
		{name: "2,500 connections that say nothing", head: "200 GetBrokerResponse", crowd: true, send: func(n *node) answer {
			return n.beside(2500, "", time.Second)
		}},
		{name: "2,500 connections with half a request each", head: "200 GetBrokerResponse", crowd: true, send: func(n *node) answer {
			return n.beside(2500, "POST /services/bootstrap HTTP/1.1\r\nHost: gr", time.Second)
		}},
		{name: "2,500 connections with half a body each", head: "200 GetBrokerResponse", crowd: true, send: func(n *node) answer {
			return n.beside(2500, head("bootstrap", 1000, "")+"<a", time.Second)
		}},
		{name: "100 readers of 20 MB who read nothing", head: "200 GetBrokerResponse", crowd: true, send: func(n *node) answer {
			return n.beside(100, strings.Repeat("GET /services/broker?wsdl HTTP/1.1\r\nHost: grid\r\n\r\n", 500), time.Second)
		}},
		{name: "5,000 connections, one after the other, that are reset", crowd: true, head: "200 GetBrokerResponse", send: func(n *node) answer {
			for range 5000 {
				conn, err := net.Dial("tcp", n.address)
				if err != nil {
					return answer(err.Error())
				}
				_, _ = io.WriteString(conn, "POST ")
				_ = conn.(*net.TCPConn).SetLinger(0)
				conn.Close()
			}
			return post("bootstrap", whole)(n)
		}},
	}}
}

// sendsFirst sends all before it reads anything.
func (n *node) sendsFirst(parts ...string) answer {
	conn, err := net.Dial("tcp", n.address)
	if err != nil {
		return answer(err.Error())
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	for _, part := range parts {
		if _, err := io.WriteString(conn, part); err != nil {
			return answer("not all could be sent: " + err.Error())
		}
	}
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return answer(err.Error())
	}
	said, _ := io.ReadAll(response.Body)
	return answer(told(response.StatusCode, response.Header.Get("Content-Type"), said))
}

// beside opens so many connections, says something on each, keeps them for a
// while, and answers what somebody else gets then.
func (n *node) beside(connections int, said string, keep time.Duration) answer {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil || limit.Cur < uint64(connections)+200 {
		return answer(fmt.Sprintf("this test may open only %d files, %v: raise ulimit -n", limit.Cur, err))
	}
	var open []net.Conn
	defer func() {
		for _, conn := range open {
			conn.Close()
		}
	}()
	for range connections {
		conn, err := net.Dial("tcp", n.address)
		if err != nil {
			return answer(err.Error())
		}
		open = append(open, conn)
		go func() { _, _ = io.WriteString(conn, said) }()
	}
	end := time.Now().Add(keep)
	for {
		if a := post("bootstrap", envelope(ask))(n); !strings.HasPrefix(string(a), "200") || time.Now().After(end) {
			return a
		}
	}
}
