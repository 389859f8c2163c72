package client

import (
	"bytes"
	"encoding"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"reflect"
	"sort"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	xsd "github.com/hooklift/gowsdl/soap"
	"golang.org/x/sys/unix"

	"mvm/wsdl"
)

// isTerminal tells whether w is a terminal: only there do bars move.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil && os.Getenv("TERM") != "dumb"
}

// writeJSON prints v for programs: the contracts' types with the names that
// the schema gives their elements, and times as RFC 3339.
func writeJSON(w io.Writer, v any) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	if err := e.Encode(plain(reflect.ValueOf(v))); err != nil {
		return err
	}
	// JSON leaves some characters as they are that a terminal would obey.
	return writeSpelled(w, b.String(), `\u%04x`)
}

// writeSpelled writes text with what a terminal would obey spelled out in the
// text's own way, so that it still means the same.
func writeSpelled(w io.Writer, text, form string) error {
	var b strings.Builder
	for _, r := range text {
		if r != '\n' && obeyed(r) {
			fmt.Fprintf(&b, form, r)
		} else {
			b.WriteRune(r)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// plain turns the generated types into maps: their time type has no JSON form,
// and their XMLName is nobody's business.
func plain(v reflect.Value) any {
	if !v.IsValid() {
		return nil
	}
	switch t := v.Interface().(type) {
	case xsd.XSDDateTime:
		if t.ToGoTime().IsZero() {
			return nil
		}
		return t.ToGoTime().UTC().Format(time.RFC3339Nano)
	case encoding.TextMarshaler:
		if v.Kind() != reflect.Pointer || !v.IsNil() {
			return t
		}
	}
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		if v.IsNil() {
			return nil
		}
		return plain(v.Elem())
	case reflect.Slice:
		list := make([]any, v.Len())
		for i := range list {
			list[i] = plain(v.Index(i))
		}
		return list
	case reflect.Struct:
		return object{v}
	}
	return v.Interface()
}

// object prints a struct in the order of its fields.
type object struct{ v reflect.Value }

func (o object) MarshalJSON() ([]byte, error) {
	var b strings.Builder
	b.WriteByte('{')
	for i := range o.v.NumField() {
		field := o.v.Type().Field(i)
		name, options, _ := strings.Cut(field.Tag.Get("json"), ",")
		if name == "" || name == "-" || !field.IsExported() {
			continue
		}
		value := o.v.Field(i)
		empty := value.IsZero() || (value.Kind() == reflect.Slice && value.Len() == 0)
		shown := plain(value)
		if strings.Contains(options, "omitempty") && (empty || shown == nil) {
			continue
		}
		text, err := json.Marshal(shown)
		if err != nil {
			return nil, err
		}
		if b.Len() > 1 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, "%q:%s", name, text)
	}
	b.WriteByte('}')
	return []byte(b.String()), nil
}

// table prints aligned columns for people.
type table struct {
	w *tabwriter.Writer
}

func newTable(w io.Writer, head ...string) *table {
	t := &table{tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)}
	if len(head) > 0 {
		t.row(head...)
	}
	return t
}

// row adds a line; control characters in cells, which come from the grid, are
// not passed on to the terminal.
func (t *table) row(cells ...string) {
	for i, c := range cells {
		if c == "" {
			c = "-"
		}
		cells[i] = printable(c)
	}
	fmt.Fprintln(t.w, strings.Join(cells, "\t"))
}

func (t *table) flush() error { return t.w.Flush() }

// printable is text on one line without what a terminal would obey rather than
// show. What comes from the grid or from a file goes through here.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if obeyed(r) {
			return ' '
		}
		return r
	}, text)
}

// obeyed says whether a character changes how a terminal shows others: controls,
// with the escape sequences that they begin, other line ends than \n, and those
// that turn the direction of writing, so that a text reads as what it is not.
func obeyed(r rune) bool {
	return unicode.Is(unicode.Cc, r) || unicode.Is(unicode.Zl, r) || unicode.Is(unicode.Zp, r) || unicode.Is(unicode.Bidi_Control, r)
}

// shorten cuts text to n characters.
func shorten(text string, n int) string {
	runes := []rune(printable(text))
	if len(runes) <= n {
		return string(runes)
	}
	return string(runes[:n-1]) + "…"
}

// bytesText is a number of bytes for people.
func bytesText(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	value, unit := float64(n)/1024, 0
	for value >= 1024 && unit < len(units)-1 {
		value, unit = value/1024, unit+1
	}
	return fmt.Sprintf("%.1f %ciB", value, units[unit])
}

// durationText is a duration with three digits that matter.
func durationText(d time.Duration) string {
	switch {
	case d < time.Millisecond:
		return d.Round(time.Microsecond).String()
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Minute:
		return d.Round(10 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}

func dateOf(d *xsd.XSDDateTime) time.Time {
	if d == nil {
		return time.Time{}
	}
	return d.ToGoTime()
}

func timeText(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Local().Format("2006-01-02 15:04:05")
}

// took is how long the job has run, or ran.
func took(job *wsdl.JobStatus) string {
	start, end := dateOf(job.Started), dateOf(job.Ended)
	if start.IsZero() {
		return ""
	}
	if end.IsZero() {
		end = time.Now()
	}
	return durationText(max(end.Sub(start), 0))
}

func plural(n int, one string) string {
	if n == 1 {
		return "1 " + one
	}
	if strings.HasSuffix(one, "s") {
		return fmt.Sprintf("%d %ses", n, one)
	}
	return fmt.Sprintf("%d %ss", n, one)
}

func sorted[V any](m map[string]V) []string {
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}
