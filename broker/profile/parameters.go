package profile

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"mvm/wsdl"
)

// maxText bounds one expanded text in bytes: Linux takes no longer argument
// or environment variable (MAX_ARG_STRLEN).
const maxText = 128<<10 - 1

// maxExpanded bounds what all the replaced parameters of a profile add up to,
// in bytes.
const maxExpanded = 64 << 20

// scope is the parameters that references in one document may name.
type scope struct {
	values map[string]string
	known  map[string]bool // declared, also those without a value
	used   map[string]bool
}

// newScope gives each declared parameter its value: the argument, or else the
// default, which may refer to the parameters before it.
func (p *problems) newScope(at place, declared []*wsdl.Parameter, arguments map[string]string, what string) *scope {
	s := &scope{values: map[string]string{}, known: map[string]bool{}, used: map[string]bool{}}
	for i, parameter := range declared {
		here := at.nth("parameter", i)
		if parameter == nil {
			p.add(here, "nothing", "a parameter", "parameter %d is empty", i+1)
			continue
		}
		if !isParameterName(parameter.Name) {
			p.add(here.attribute("name"), parameter.Name, "a letter or '_', then letters, digits or '_'",
				"%s is not a parameter's name: write a letter or '_', then letters, digits or '_'", quote(parameter.Name))
			continue
		}
		if s.known[parameter.Name] {
			p.add(here.attribute("name"), parameter.Name, "a name of its own", "the parameter %q is declared twice", parameter.Name)
			continue
		}
		value, given := arguments[parameter.Name]
		switch {
		case given:
			if fault := unprintable(value); fault != "" {
				p.add(here, value, "text", "the value given for the parameter %q %s", parameter.Name, fault)
			}
			s.values[parameter.Name] = value
		case parameter.Default != "":
			if value, ok := p.expand(here.attribute("default"), s, parameter.Default); ok {
				s.values[parameter.Name] = value
			}
		default:
			p.add(here, "no value", "a value", "the parameter %q has no default and was given no value", parameter.Name)
		}
		s.known[parameter.Name] = true
	}
	for _, name := range slices.Sorted(maps.Keys(arguments)) {
		if !s.known[name] {
			p.add(at, name, "a declared parameter", "a value is given for the parameter %s, which %s does not declare%s", quote(name), what, p.nearest(name, maps.Keys(s.known)))
		}
	}
	return s
}

// expand replaces each ${name} in text; "$${" stands for a literal "${".
// Values are put in as they are: a "${" inside a value stays.
// It is false where a problem was found; the text is then of no use.
func (p *problems) expand(at place, s *scope, text string) (string, bool) {
	if !strings.Contains(text, "${") {
		return text, true
	}
	ok := true
	var out strings.Builder
	rest := text
	for {
		i := strings.Index(rest, "${")
		if i < 0 {
			out.WriteString(rest)
			break
		}
		if i > 0 && rest[i-1] == '$' {
			out.WriteString(rest[:i-1])
			out.WriteString("${")
			rest = rest[i+2:]
			continue
		}
		out.WriteString(rest[:i])
		name, after, closed := strings.Cut(rest[i+2:], "}")
		if !closed {
			p.add(at, text, "${name}", "%s has a \"${\" without its \"}\"; a literal \"${\" is written \"$${\"", quote(text))
			return text, false
		}
		rest = after
		value, known := s.values[name]
		switch {
		case known:
			s.used[name] = true
			out.WriteString(value)
		case s.known[name]:
			s.used[name] = true // declared without a value: reported once, there
			ok = false
		default:
			p.add(at, "${"+name+"}", "a declared parameter", "${%s} names no declared parameter%s; a literal \"${\" is written \"$${\"", brief(name), p.nearest(name, maps.Keys(s.known)))
			ok = false
		}
		if p.expanded += len(value); p.expanded > maxExpanded {
			if p.expanded -= len(value); !p.swollen {
				p.swollen = true
				p.add(at, brief(text), fmt.Sprintf("at most %d bytes in all", maxExpanded), "the profile's texts become longer than %d bytes when their parameters are replaced", maxExpanded)
			}
			return "", false
		}
		if out.Len() > maxText {
			p.add(at, brief(text), fmt.Sprintf("at most %d bytes", maxText), "the text becomes longer than %d bytes when its parameters are replaced", maxText)
			return "", false
		}
	}
	return out.String(), ok
}

// Text replaces the parameters in text, a path of a file element for example,
// by the arguments given for the job and the defaults it declares. It is for
// whoever reads files before the job is compiled.
func Text(job *wsdl.Job, arguments map[string]string, text string) (string, error) {
	var ignored, p problems
	at := place{path: "job"}
	s := ignored.newScope(at, job.Parameter, arguments, "the job")
	out, _ := p.expand(at, s, text)
	for name := range s.used {
		if _, known := s.values[name]; !known {
			p.add(at, "no value", "a value", "the parameter %q has no default and was given no value", name)
		}
	}
	return out, p.fault("the text " + quote(text))
}

// field is one attribute after its parameters were replaced. It counts as not
// set where that failed, so that one mistake is reported once.
type field struct {
	text string
	at   place
	set  bool
	bad  bool
}

// over returns mine where it is set, else theirs.
func (mine field) over(theirs field) field {
	if mine.set || mine.bad {
		return mine
	}
	return theirs
}

// textField expands a text attribute.
func (p *problems) textField(at place, s *scope, name, text string) field {
	at = at.attribute(name)
	out, ok := p.expand(at, s, text)
	return field{text: out, at: at, set: out != "" && ok, bad: !ok}
}

// numberField expands an attribute that is a pointer to some kind of text.
func numberField[T ~string](p *problems, at place, s *scope, name string, number *T) field {
	if number == nil {
		return field{at: at.attribute(name)}
	}
	at = at.attribute(name)
	out, ok := p.expand(at, s, string(*number))
	return field{text: out, at: at, set: ok, bad: !ok}
}

// whole reads the field as a whole number within bounds; otherwise is its
// value where it is not set, and also after a problem.
func (p *problems) whole(f field, what string, low, high, otherwise int64) int64 {
	if !f.set {
		return otherwise
	}
	value, err := strconv.ParseInt(f.text, 10, 64)
	if err != nil || value < low || value > high || !digits(f.text) {
		p.add(f.at, f.text, fmt.Sprintf("a whole number from %d to %d", low, high),
			"%s is %s, expected a whole number from %d to %d", what, quote(f.text), low, high)
		return otherwise
	}
	return value
}

// billionths reads the field as a decimal number from 0 to 1, in units of
// 1e-9, so that nothing depends on how floating point is rounded.
func (p *problems) billionths(f field, what string, otherwise int64) int64 {
	if !f.set {
		return otherwise
	}
	ones, fraction, dotted := strings.Cut(f.text, ".")
	if digits(ones) && len(ones) <= 15 && (!dotted || digits(fraction) && len(fraction) <= 9) {
		value, _ := strconv.ParseInt(ones+fraction+strings.Repeat("0", 9-len(fraction)), 10, 64)
		if value <= 1_000_000_000 {
			return value
		}
	}
	p.add(f.at, f.text, "a decimal number from 0 to 1", "%s is %s, expected a decimal number from 0 to 1 with at most 9 decimals", what, quote(f.text))
	return otherwise
}

func digits(text string) bool {
	for i := range len(text) {
		if text[i] < '0' || text[i] > '9' {
			return false
		}
	}
	return text != ""
}

func isParameterName(name string) bool {
	for i := range len(name) {
		c := name[i]
		letter := c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return name != "" && len(name) <= 64
}
