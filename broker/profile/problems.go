package profile

import (
	"fmt"
	"iter"
	"strings"

	"mvm/wsdl"
)

// maxProblems bounds what one refusal lists.
const maxProblems = 100

// problems collects everything that is wrong with one document.
type problems struct {
	list     []*wsdl.Problem
	left     int // more than the list holds
	swollen  bool
	expanded int // bytes that texts with parameters became
}

// place is where in a document something stands.
type place struct {
	path string // element path, as wsdl.Problem has it
	in   string // the registered profile it stands in, "" for the document itself
}

func (at place) child(name string) place {
	at.path += "/" + name
	return at
}

func (at place) nth(name string, index int) place {
	at.path += fmt.Sprintf("/%s[%d]", name, index+1)
	return at
}

func (at place) attribute(name string) place { return at.child("@" + name) }

// add records a problem; the message is one sentence that stands alone.
func (p *problems) add(at place, found, expected, format string, args ...any) {
	if len(p.list) >= maxProblems {
		p.left++
		return
	}
	message := fmt.Sprintf(format, args...)
	if at.in != "" {
		message = "in " + at.in + ": " + message
	}
	message = at.path + ": " + message
	p.list = append(p.list, &wsdl.Problem{Element: at.path, Found: brief(found), Expected: expected, Message: message})
}

// fault is nil when there is no problem.
func (p *problems) fault(what string) error {
	if len(p.list) == 0 {
		return nil
	}
	f := wsdl.NewFault(wsdl.FaultCodeInvalidProfile, what+" is refused", "mend what is listed and submit it again")
	f.Problem = p.list
	if p.left > 0 {
		f.Problem = append(f.Problem, &wsdl.Problem{Message: fmt.Sprintf("and %d more problems", p.left)})
	}
	return f
}

// brief shortens text to what a message can carry.
func brief(text string) string {
	const limit = 80
	if len(text) <= limit {
		return text
	}
	return strings.ToValidUTF8(text[:limit], "") + "..."
}

// quote shows text in a message.
func quote(text string) string { return fmt.Sprintf("%q", brief(text)) }

// nearest returns `; did you mean "x"?` for the name closest to word, or ""
// where none is close, where there are very many, or where nobody would read
// it any more.
func (p *problems) nearest(word string, names iter.Seq[string]) string {
	if len(p.list) >= maxProblems || len(word) > 64 {
		return ""
	}
	best, distance, looked := "", len(word)/3+2, 0
	for name := range names {
		if looked++; looked > 1000 {
			break
		}
		if len(name) > 64 {
			continue
		}
		if d := edits(strings.ToLower(word), strings.ToLower(name)); d < distance || d == distance && best != "" && name < best {
			best, distance = name, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf("; did you mean %q?", best)
}

// edits is the Levenshtein distance between two short texts.
func edits(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
