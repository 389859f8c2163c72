package profile

import (
	"path"
	"strconv"
	"strings"
	"unicode/utf8"
)

const nameRule = "a letter, then up to 62 letters, digits, '_', '.' or '-'"

// isName tells whether text can name a job, task, source, queue or port.
func isName(text string) bool {
	for i := range len(text) {
		c := text[i]
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		if !letter && (i == 0 || !(c >= '0' && c <= '9' || c == '_' || c == '.' || c == '-')) {
			return false
		}
	}
	return text != "" && len(text) <= 63
}

// named checks a required name attribute.
func (p *problems) named(f field, what string) bool {
	if f.bad {
		return false
	}
	if !f.set {
		p.add(f.at, "nothing", nameRule, "%s has no name", what)
		return false
	}
	if !isName(f.text) {
		p.add(f.at, f.text, nameRule, "%s is named %s, expected %s", what, quote(f.text), nameRule)
		return false
	}
	return true
}

// unfit says what keeps name from being used as a relative file name, or "".
// It refuses all that could lead out of the folder it is put in, be taken for
// an option by a compiler, or not be the same file everywhere.
func unfit(name string) string {
	switch {
	case name == "":
		return "is empty"
	case len(name) > 1000:
		return "is longer than 1000 bytes"
	case !utf8.ValidString(name):
		return "is not UTF-8"
	case strings.HasPrefix(name, "/"):
		return "is an absolute path"
	case strings.HasPrefix(name, "-"):
		return "begins with '-', which a program would take for an option"
	case strings.Contains(name, "\\"):
		return "has a backslash"
	}
	for _, r := range name {
		if r < ' ' || r == 0x7f {
			return "has a control character"
		}
	}
	for part := range strings.SplitSeq(name, "/") {
		switch {
		case part == "..":
			return "leads out of its folder by '..'"
		case part == "" || part == ".":
			return "has an empty or '.' part"
		case len(part) > 255:
			return "has a part longer than 255 bytes"
		}
	}
	return ""
}

const fileRule = "a relative path of at most 255 bytes without '..', parts that begin with '-', '@', '.' or '~', and any of \"'`$*?;|&<>"

// mistakable says what in a fit name a compiler or a program could take for
// something else than a file, or "". Nodes refuse the same (node/build).
func mistakable(name string) string {
	if len(name) > 255 {
		return "is longer than 255 bytes"
	}
	if i := strings.IndexAny(name, "\"'`$*?;|&<>\uFFFD"); i >= 0 {
		r, _ := utf8.DecodeRuneInString(name[i:])
		return "contains " + strconv.QuoteRune(r)
	}
	for part := range strings.SplitSeq(name, "/") {
		if strings.ContainsRune("-@.~", rune(part[0])) {
			return "has a part that begins with " + strconv.QuoteRune(rune(part[0]))
		}
	}
	return ""
}

// files keeps track of the file names used in one folder.
type files map[string]bool

// claim reports a name that is unfit, taken, or is a folder of another; others
// are taken in the same folder too.
func (p *problems) claim(taken, others files, at place, name, what string) bool {
	fault := unfit(name)
	if fault == "" {
		fault = mistakable(name)
	}
	if fault != "" {
		p.add(at, name, fileRule, "%s is named %s, which %s; expected %s", what, quote(name), fault, fileRule)
		return false
	}
	file, used := taken[name]
	if !used {
		file, used = others[name]
	}
	if used {
		if file {
			p.add(at, name, "a name of its own", "two files are named %s", quote(name))
		} else {
			p.add(at, name, "a name of its own", "%s is both a file and a folder of other files", quote(name))
		}
		return false
	}
	for folder := path.Dir(name); folder != "."; folder = path.Dir(folder) {
		if taken[folder] || others[folder] {
			p.add(at, name, "a name of its own", "%s is in the folder %s, which is a file too", quote(name), quote(folder))
			return false
		}
	}
	for folder := path.Dir(name); folder != "."; folder = path.Dir(folder) {
		taken[folder] = false
	}
	taken[name] = true
	return true
}

// isDigest tells whether text is written as a blob's digest is.
func isDigest(text string) bool {
	hex, ok := strings.CutPrefix(text, "sha256:")
	if !ok || len(hex) != 64 {
		return false
	}
	for i := range len(hex) {
		if c := hex[i]; !(c >= '0' && c <= '9' || c >= 'a' && c <= 'f') {
			return false
		}
	}
	return true
}

// unprintable says what keeps text from being an argument or a variable's
// value, or "": the kernel ends them at a NUL byte.
func unprintable(text string) string {
	switch {
	case strings.Contains(text, "\x00"):
		return "has a NUL byte"
	case len(text) > maxText:
		return "is too long"
	case !utf8.ValidString(text):
		return "is not UTF-8"
	}
	return ""
}

// before is the natural order of port names: a run of digits counts as a
// number, so dim2 comes before dim10.
func before(a, b string) int {
	i, j := 0, 0
	for i < len(a) && j < len(b) {
		if !digit(a[i]) || !digit(b[j]) {
			if a[i] != b[j] {
				return int(a[i]) - int(b[j])
			}
			i, j = i+1, j+1
			continue
		}
		m, n := i, j
		for m < len(a) && digit(a[m]) {
			m++
		}
		for n < len(b) && digit(b[n]) {
			n++
		}
		x, y := strings.TrimLeft(a[i:m], "0"), strings.TrimLeft(b[j:n], "0")
		if len(x) != len(y) {
			return len(x) - len(y)
		}
		if c := strings.Compare(x, y); c != 0 {
			return c
		}
		i, j = m, n
	}
	if c := (len(a) - i) - (len(b) - j); c != 0 {
		return c
	}
	return strings.Compare(a, b)
}

func digit(c byte) bool { return c >= '0' && c <= '9' }
