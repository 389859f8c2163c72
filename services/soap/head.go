package soap

import (
	"bytes"
	"strings"
)

// head is the head of a plain request: a call of a service, with the length of
// its body, on a connection that is to be kept.
type head struct {
	service *service
	version version // by the media type
	id      []byte  // that the caller gave the request; nil if it did not
	size    int     // bytes of the head
	length  int     // bytes of the body
}

// What readHead finds.
type finding int

const (
	odd   finding = iota // a request for net/http to judge, or none
	part                 // what may become a plain head
	whole                // a plain head
)

// Header fields of a plain request, as bits. Whatever else there is may mean
// something, if only to net/http.
const (
	fieldHost = 1 << iota
	fieldLength
	fieldType
	fieldConnection
	fieldID
	fieldOther // SOAPAction, User-Agent and the like: nobody asks for them
)

// readHead reads a request's head as far as it is plain: what SOAP stacks really
// send, with nothing in it that could mean anything else. It takes a part of
// what net/http takes, with the same meaning (FuzzHead), and says nothing of the
// rest: net/http does.
func (c *conversation) readHead(data []byte) (h head, found finding) {
	const begin, version = "POST /services/", " HTTP/1.1\r\n"
	if len(data) < len(begin) {
		if strings.HasPrefix(begin, string(data)) {
			return h, part
		}
		return h, odd
	}
	if string(data[:len(begin)]) != begin {
		return h, odd
	}
	at := len(begin)
	end := bytes.IndexByte(data[at:], '\n')
	if end < 0 {
		return h, part
	}
	line := data[at : at+end+1]
	name, ok := bytes.CutSuffix(line, []byte(version))
	if !ok {
		return h, odd
	}
	if h.service = c.server.services[string(name)]; h.service == nil {
		return h, odd
	}
	for at, seen := at+len(line), 0; ; {
		end := bytes.IndexByte(data[at:], '\n')
		if end < 0 {
			return h, part
		}
		line := data[at : at+end]
		at += end + 1
		if len(line) == 1 && line[0] == '\r' {
			const must = fieldHost | fieldLength | fieldType
			if h.size = at; seen&must != must {
				return h, odd
			}
			return h, whole
		}
		field := c.readField(line, &h)
		if field == 0 || seen&field&^fieldOther != 0 {
			return h, odd
		}
		seen |= field
	}
}

// readField reads a line of a head, without its LF, and says which field it is;
// 0 for one that is not plain.
func (c *conversation) readField(line []byte, h *head) int {
	colon := bytes.IndexByte(line, ':')
	if colon < 0 || line[len(line)-1] != '\r' {
		return 0
	}
	name, value := line[:colon], line[colon+1:len(line)-1]
	for _, b := range value {
		if b < ' ' || b > '~' {
			return 0
		}
	}
	value = bytes.Trim(value, " ")
	switch len(name) {
	case 4:
		if named(name, "Host") && isHost(value) {
			return fieldHost
		}
	case 6:
		if named(name, "Accept") {
			return fieldOther
		}
	case 10:
		switch {
		case named(name, "SOAPAction"), named(name, "User-Agent"):
			return fieldOther
		case named(name, "Connection") && named(value, "keep-alive"):
			return fieldConnection
		}
	case 12:
		switch {
		case named(name, "Content-Type"):
			if c.media == "" || string(value) != c.media {
				v, err := versionFor(string(value))
				if err != nil {
					return 0
				}
				c.media, c.version = string(value), v
			}
			h.version = c.version
			return fieldType
		case named(name, "X-Request-Id"):
			h.id = value
			return fieldID
		}
	case 14:
		if named(name, "Content-Length") && c.readLength(value, h) {
			return fieldLength
		}
		if named(name, "Accept-Charset") {
			return fieldOther
		}
	case 15:
		if named(name, "Accept-Encoding") || named(name, "Accept-Language") {
			return fieldOther
		}
	}
	return 0
}

// named says whether a name is one that is written in whatever case.
func named(name []byte, one string) bool {
	if len(name) != len(one) {
		return false
	}
	for i, b := range name {
		if b != one[i] && (b|0x20 != one[i]|0x20 || b|0x20 < 'a' || b|0x20 > 'z') {
			return false
		}
	}
	return true
}

// isHost says whether a value is a host, perhaps with a port.
func isHost(value []byte) bool {
	for _, b := range value {
		switch {
		case 'a' <= b && b <= 'z', 'A' <= b && b <= 'Z', '0' <= b && b <= '9', b == '.', b == '-', b == ':', b == '[', b == ']':
		default:
			return false
		}
	}
	return len(value) > 0
}

// readLength reads the length of a body that is not empty and for which no
// memory must be asked for.
func (c *conversation) readLength(value []byte, h *head) bool {
	if len(value) == 0 || len(value) > 6 {
		return false
	}
	for _, b := range value {
		if b < '0' || b > '9' {
			return false
		}
		h.length = 10*h.length + int(b-'0')
	}
	return 0 < h.length && h.length <= smallBody && int64(h.length) <= c.server.limits.Body
}
