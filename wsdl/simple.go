package wsdl

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"
)

// expected says in words what a value of the type looks like.
func (t *schemaType) expected() string {
	switch {
	case len(t.values) > 0:
		return "one of " + strings.Join(t.values, ", ")
	case t.name == "Number":
		return "a whole number not below 0, or ${name}"
	case t.name == "Quantity":
		return "a decimal number not below 0, or ${name}"
	}
	switch t.kind {
	case kindComplex:
		return "elements"
	case kindBoolean:
		return "true or false"
	case kindInt:
		return "a whole number from -2147483648 to 2147483647"
	case kindLong:
		return "a whole number from -9223372036854775808 to 9223372036854775807"
	case kindDateTime:
		return "a time such as 2026-01-31T12:00:00Z"
	case kindBase64:
		return "base64"
	}
	if t.pattern > 0 {
		return "a text that fits " + t.name
	}
	return "a text"
}

// judge returns what is wrong with a value of a simple type, or "".
func (t *schemaType) judge(value string) string {
	switch t.kind {
	case kindBoolean:
		if why := schemaBoolean(strings.TrimSpace(value)); why != "" {
			return why
		}
	case kindInt, kindLong:
		bits := 32
		if t.kind == kindLong {
			bits = 64
		}
		if _, err := strconv.ParseInt(strings.TrimSpace(value), 10, bits); err != nil {
			return fmt.Sprintf("%s is not %s", quote(value), t.expected())
		}
	case kindDateTime:
		if !dateTime(value) {
			return fmt.Sprintf("%s is not %s", quote(value), t.expected())
		}
	case kindBase64:
		return base64Error(value)
	}
	if len(t.values) > 0 {
		for _, v := range t.values {
			if v == value {
				return ""
			}
		}
		what := fmt.Sprintf("%s is not %s", quote(value), t.expected())
		if near := nearest(value, t.values); near != "" {
			what += fmt.Sprintf("; did you mean %q?", near)
		}
		return what
	}
	if t.pattern > 0 && !schemaPatterns[t.pattern-1]().MatchString(value) {
		return fmt.Sprintf("%s is not %s", quote(value), t.expected())
	}
	return ""
}

func schemaBoolean(value string) string {
	switch value {
	case "true", "false", "1", "0":
		return ""
	}
	return fmt.Sprintf("%s is neither true nor false", quote(value))
}

var dateTimeForm = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`\A[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?(Z|[+-](0[0-9]|1[0-4]):[0-5][0-9])?\z`)
})

// dateTime accepts what both XML Schema and Go can read. gowsdl's own type
// turns what it cannot read into the zero time, without a word.
func dateTime(value string) bool {
	if !dateTimeForm().MatchString(value) || strings.HasPrefix(value, "0000") {
		return false
	}
	layout := "2006-01-02T15:04:05"
	if len(value) > 19 && strings.ContainsAny(value[19:], "Z+-") {
		layout = time.RFC3339
		if strings.Contains(value[19:], "14:") && !strings.HasSuffix(value, "14:00") {
			return false
		}
	}
	_, err := time.Parse(layout, value)
	return err == nil
}

// base64Error judges base64 without white space, and without decoding it.
func base64Error(value string) string {
	n := len(value)
	for n > 0 && len(value)-n < 2 && value[n-1] == '=' {
		n--
	}
	for i := range n {
		if base64Digit(value[i]) < 0 {
			return fmt.Sprintf("%s is no base64", strconv.QuoteRune(rune(value[i])))
		}
	}
	if len(value)%4 != 0 {
		return fmt.Sprintf("base64 of %d characters, which is no multiple of 4", len(value))
	}
	// The bits that the last digit has beyond the last byte are 0.
	if pad := len(value) - n; pad > 0 && base64Digit(value[n-1])&(1<<(2*pad)-1) != 0 {
		return "base64 that ends within a byte"
	}
	return ""
}

func base64Digit(c byte) int {
	switch {
	case 'A' <= c && c <= 'Z':
		return int(c - 'A')
	case 'a' <= c && c <= 'z':
		return int(c-'a') + 26
	case '0' <= c && c <= '9':
		return int(c-'0') + 52
	case c == '+':
		return 62
	case c == '/':
		return 63
	}
	return -1
}

// nearest returns the name that was probably meant, or "".
func nearest(name string, names []string) string {
	best, least := "", 1+min(2, len(name)/3)
	for _, n := range names {
		if strings.EqualFold(n, name) {
			return n
		}
		if d := distance(strings.ToLower(name), strings.ToLower(n)); d < least {
			best, least = n, d
		}
	}
	return best
}

// distance is the number of insertions, deletions, replacements and swaps of
// neighbours between two short words.
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return 64
	}
	var rows [3][65]int
	before, last, now := &rows[0], &rows[1], &rows[2]
	for j := range len(b) + 1 {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		now[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			now[j] = min(last[j]+1, now[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				now[j] = min(now[j], before[j-2]+1)
			}
		}
		before, last, now = last, now, before
	}
	return last[len(b)]
}

// ValidName tells whether a registered profile, a queue of jobs or an image may be named
// so: names become parts of keys and of command lines.
func ValidName(name string) bool {
	for i, r := range name {
		letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z'
		if !letter && (i == 0 || !(r >= '0' && r <= '9' || r == '_' || r == '.' || r == '-')) {
			return false
		}
	}
	return name != "" && len(name) <= 63
}
