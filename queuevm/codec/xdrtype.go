package codec

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"text/scanner"
)

type xdrKind int

const (
	xdrInt xdrKind = iota
	xdrUnsigned
	xdrHyper
	xdrUnsignedHyper
	xdrFloat
	xdrDouble
	xdrBool
	xdrEnum
	xdrString
	xdrOpaque
	xdrArray
	xdrOptional
	xdrStruct
)

// xdrType is a type of RFC 4506, section 4.
type xdrType struct {
	kind      xdrKind
	of        *xdrType // array, optional
	fixed     bool     // array, opaque: exactly most, which is not written
	toEnd     bool     // array: without a length, up to the item's end
	most      uint32   // array, string, opaque: elements or bytes
	members   []xdrMember
	constants []xdrConstant
}

type xdrMember struct {
	name string
	of   *xdrType
}

type xdrConstant struct {
	name   string
	number int32
}

const (
	maxXDRText  = 4096 // a type's text
	maxXDRDepth = 16   // of types inside types
	maxXDRFixed = 1 << 20
)

// parseXDRType reads a type as RFC 4506 section 6.3 writes a declaration,
// without the name: "double", "int[3]", "double<>", "string<80>", "opaque[16]",
// "hyper*", "struct { int id; double row<>; }", "enum { RED = 1, BLUE = 2 }".
// Beyond the RFC, "double[]" is as many as the item holds, without a length: a
// C program that sends its array in network order writes just that. Unions,
// quadruples and named types are not there.
func parseXDRType(text string) (*xdrType, error) {
	if text == "" {
		return nil, fmt.Errorf("xdr needs a type, for example double<> or struct { int id; double value; }")
	}
	if len(text) > maxXDRText {
		return nil, fmt.Errorf("the type is longer than %d bytes", maxXDRText)
	}
	p := &xdrParser{text: text}
	p.Init(strings.NewReader(text))
	p.Mode = scanner.ScanIdents | scanner.ScanInts
	p.Error = func(*scanner.Scanner, string) {} // what cannot be scanned is refused as a token
	p.next()
	t, err := p.specifier(0)
	if err == nil {
		t, err = p.suffix(t, true)
	}
	if err == nil && p.token != scanner.EOF {
		err = p.unexpected("the end")
	}
	if err != nil {
		return nil, fmt.Errorf("in the type %.80q: %w", text, err)
	}
	return t, nil
}

type xdrParser struct {
	scanner.Scanner
	text  string
	token rune
}

func (p *xdrParser) next() string {
	was := p.TokenText()
	p.token = p.Scan()
	return was
}

func (p *xdrParser) unexpected(wanted string) error {
	found := p.TokenText()
	if p.token == scanner.EOF {
		found = "the end"
	}
	return fmt.Errorf("at character %d: found %.20q, expected %s", p.Position.Offset+1, found, wanted)
}

func (p *xdrParser) want(token rune, what string) error {
	if p.token != token {
		return p.unexpected(what)
	}
	p.next()
	return nil
}

// specifier reads what comes before a declaration's name.
func (p *xdrParser) specifier(depth int) (*xdrType, error) {
	if depth > maxXDRDepth {
		return nil, fmt.Errorf("types are nested more than %d deep", maxXDRDepth)
	}
	if p.token != scanner.Ident {
		return nil, p.unexpected("a type")
	}
	switch p.TokenText() {
	case "int":
		return p.simple(xdrInt)
	case "hyper":
		return p.simple(xdrHyper)
	case "float":
		return p.simple(xdrFloat)
	case "double":
		return p.simple(xdrDouble)
	case "bool":
		return p.simple(xdrBool)
	case "string":
		return p.simple(xdrString)
	case "opaque":
		return p.simple(xdrOpaque)
	case "unsigned":
		p.next()
		switch {
		case p.token == scanner.Ident && p.TokenText() == "int":
			return p.simple(xdrUnsigned)
		case p.token == scanner.Ident && p.TokenText() == "hyper":
			return p.simple(xdrUnsignedHyper)
		}
		return &xdrType{kind: xdrUnsigned}, nil
	case "enum":
		return p.enum()
	case "struct":
		return p.structure(depth)
	case "union", "quadruple":
		return nil, fmt.Errorf("%s is not served", p.TokenText())
	}
	return nil, p.unexpected("int, unsigned, hyper, float, double, bool, string, opaque, enum or struct")
}

func (p *xdrParser) simple(k xdrKind) (*xdrType, error) {
	p.next()
	return &xdrType{kind: k, most: math.MaxUint32}, nil
}

// suffix reads what comes after a declaration's name. Only the whole item's
// type may end at the item's end.
func (p *xdrParser) suffix(t *xdrType, outermost bool) (*xdrType, error) {
	array := t
	if t.kind != xdrString && t.kind != xdrOpaque {
		array = &xdrType{kind: xdrArray, of: t}
	}
	switch p.token {
	case '<':
		p.next()
		array.most = math.MaxUint32
		if p.token == scanner.Int {
			n, err := p.number(math.MaxUint32)
			if err != nil {
				return nil, err
			}
			array.most = n
		}
		return array, p.want('>', "a number or >")
	case '[':
		if t.kind == xdrString {
			return nil, p.unexpected("< and > around a string's longest length")
		}
		p.next()
		if p.token == ']' && outermost && array.kind == xdrArray {
			p.next()
			array.toEnd, array.most = true, math.MaxUint32
			return array, nil
		}
		n, err := p.number(maxXDRFixed)
		if err != nil {
			return nil, err
		}
		if n == 0 {
			return nil, fmt.Errorf("an array of 0 holds nothing")
		}
		array.fixed, array.most = true, n
		return array, p.want(']', "]")
	case '*':
		if array.kind != xdrArray {
			return nil, p.unexpected("< or [")
		}
		p.next()
		return &xdrType{kind: xdrOptional, of: t}, nil
	}
	if t.kind == xdrOpaque {
		return nil, p.unexpected("opaque's length in < > or [ ]")
	}
	return t, nil
}

func (p *xdrParser) number(most uint32) (uint32, error) {
	if p.token != scanner.Int {
		return 0, p.unexpected("a number")
	}
	n, err := strconv.ParseUint(p.TokenText(), 0, 32)
	if err != nil || n > uint64(most) {
		return 0, p.unexpected(fmt.Sprintf("a number to %d", most))
	}
	p.next()
	return uint32(n), nil
}

// name reads a name that is not among those taken, and adds it to them.
func (p *xdrParser) name(taken map[string]bool) (string, error) {
	if p.token != scanner.Ident {
		return "", p.unexpected("a name")
	}
	if taken[p.TokenText()] {
		return "", fmt.Errorf("at character %d: the name %s comes twice", p.Position.Offset+1, p.TokenText())
	}
	taken[p.TokenText()] = true
	return p.next(), nil
}

func (p *xdrParser) enum() (*xdrType, error) {
	p.next()
	t, taken := &xdrType{kind: xdrEnum}, map[string]bool{}
	if err := p.want('{', "{"); err != nil {
		return nil, err
	}
	for {
		name, err := p.name(taken)
		if err != nil {
			return nil, err
		}
		if err := p.want('=', "="); err != nil {
			return nil, err
		}
		sign := ""
		if p.token == '-' {
			sign = p.next()
		}
		n, err := strconv.ParseInt(sign+p.TokenText(), 0, 32)
		if p.token != scanner.Int || err != nil {
			return nil, p.unexpected("a number of 32 bits")
		}
		p.next()
		t.constants = append(t.constants, xdrConstant{name, int32(n)})
		if p.token != ',' {
			return t, p.want('}', ", or }")
		}
		p.next()
	}
}

func (p *xdrParser) structure(depth int) (*xdrType, error) {
	p.next()
	t, taken := &xdrType{kind: xdrStruct}, map[string]bool{}
	if err := p.want('{', "{"); err != nil {
		return nil, err
	}
	for {
		of, err := p.specifier(depth + 1)
		if err != nil {
			return nil, err
		}
		// An optional's star stands before the name, an array's length after it.
		optional := p.token == '*'
		if optional {
			if of, err = p.suffix(of, false); err != nil {
				return nil, err
			}
		}
		name, err := p.name(taken)
		if err == nil && !optional {
			of, err = p.suffix(of, false)
		}
		if err == nil {
			err = p.want(';', ";")
		}
		if err != nil {
			return nil, err
		}
		t.members = append(t.members, xdrMember{name, of})
		if p.token == '}' {
			p.next()
			return t, nil
		}
	}
}
