package codec

import (
	"bytes"
	"encoding/base64"
	"encoding/xml"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"
)

// How values stand in XML. A record is an element with a child for each field,
// a list one with a child <value> for each element. What is no text says its
// type in xsi:type (xs:boolean, xs:long, xs:unsignedLong, xs:double,
// xs:base64Binary), and nothing is xsi:nil. An empty list or record says so in
// a kind attribute, since an empty element is the empty text.
//
// Other people's XML is read alike: attributes are fields "@name", text beside
// them is the field "#text", a child that comes again makes its field a list.
// Names lose their namespaces.
const (
	xsiNamespace = "http://www.w3.org/2001/XMLSchema-instance"
	xsNamespace  = "http://www.w3.org/2001/XMLSchema"

	defaultRoot = "item"
	listElement = "value"
	textField   = "#text"
	kindName    = "kind"
)

func decodeXML(typ string, l Limits) (conversion, error) {
	if typ != "" {
		return nil, fmt.Errorf("reading XML takes no type: any root element is read")
	}
	return func(v Value) (Value, error) {
		r := xmlReader{Decoder: xml.NewDecoder(bytes.NewReader(v.([]byte))), budget: budget{limits: l}}
		value, err := r.document()
		if err == io.EOF {
			err = fmt.Errorf("the document is not complete")
		}
		if err != nil {
			return nil, fmt.Errorf("at byte %d: %w", r.InputOffset(), err)
		}
		return value, nil
	}, nil
}

type xmlReader struct {
	*xml.Decoder
	budget
}

// markup gives the next token that is not a comment or an instruction.
func (r *xmlReader) markup() (xml.Token, error) {
	for {
		token, err := r.Token()
		if err != nil {
			return nil, err
		}
		switch token.(type) {
		case xml.Directive:
			return nil, fmt.Errorf("document types are refused")
		case xml.Comment, xml.ProcInst:
			continue
		}
		return token, nil
	}
}

func (r *xmlReader) document() (Value, error) {
	for {
		token, err := r.markup()
		if err != nil {
			return nil, err
		}
		switch t := token.(type) {
		case xml.CharData:
			if len(bytes.TrimSpace(t)) > 0 {
				return nil, fmt.Errorf("text outside of the root element")
			}
		case xml.StartElement:
			value, err := r.element(t)
			if err != nil {
				return nil, err
			}
			for {
				token, err := r.markup()
				if err == io.EOF {
					return value, nil
				}
				if err != nil {
					return nil, err
				}
				if t, ok := token.(xml.CharData); !ok || len(bytes.TrimSpace(t)) > 0 {
					return nil, fmt.Errorf("something follows the root element")
				}
			}
		}
	}
}

func (r *xmlReader) element(start xml.StartElement) (Value, error) {
	if err := r.spend(); err != nil {
		return nil, err
	}
	if err := r.enter(); err != nil {
		return nil, err
	}
	defer func() { r.depth-- }()
	var typ, kind string
	var isNil bool
	record := Record{}
	for _, a := range start.Attr {
		switch {
		case a.Name.Space == xsiNamespace && a.Name.Local == "type":
			typ = a.Value[strings.IndexByte(a.Value, ':')+1:]
		case a.Name.Space == xsiNamespace && a.Name.Local == "nil":
			isNil = a.Value == "true" || a.Value == "1"
		case a.Name.Space == "" && a.Name.Local == kindName && (a.Value == "list" || a.Value == "record"):
			kind = a.Value
		case a.Name.Space == "xmlns" || a.Name.Local == "xmlns" || a.Name.Space == xsiNamespace:
		default:
			name := "@" + a.Name.Local
			if _, twice := record.get(name); twice {
				return nil, fmt.Errorf("the attribute %s comes twice", a.Name.Local)
			}
			record = append(record, Field{name, a.Value})
			if err := r.spend(); err != nil {
				return nil, err
			}
		}
	}
	content, text, err := r.content()
	if err != nil {
		return nil, err
	}
	switch {
	case isNil:
		if len(record)+len(content) > 0 || strings.TrimSpace(text) != "" {
			return nil, fmt.Errorf("<%s> is nil and not empty", start.Name.Local)
		}
		return nil, nil
	case len(content) > 0 && strings.TrimSpace(text) != "":
		return nil, fmt.Errorf("<%s> mixes text and elements", start.Name.Local)
	case len(content) == 0 && kind != "":
		if len(record) > 0 || strings.TrimSpace(text) != "" {
			return nil, fmt.Errorf("<%s> is an empty %s and not empty", start.Name.Local, kind)
		}
		if kind == "list" {
			return List{}, nil
		}
		return Record{}, nil
	case len(content) == 0:
		value, err := xmlScalar(typ, text)
		if err != nil {
			return nil, fmt.Errorf("<%s>: %w", start.Name.Local, err)
		}
		if len(record) == 0 {
			return value, nil
		}
		if value == "" {
			return record, nil
		}
		return append(record, Field{textField, value}), nil
	}
	if values, only := content[listElement]; only && len(content) == 1 && len(record) == 0 && kind != "record" {
		return values.list, nil
	}
	fields := make(Record, len(content))
	for name, values := range content {
		var value Value = values.list
		if len(values.list) == 1 {
			value = values.list[0]
		}
		fields[values.place] = Field{name, value}
	}
	return append(record, fields...), nil
}

// children are an element's children of one name; place is the name's among
// the names.
type children struct {
	place int
	list  List
}

// content reads up to the element's end: its children by name, and its text.
func (r *xmlReader) content() (map[string]*children, string, error) {
	content := map[string]*children{}
	var text strings.Builder
	for {
		token, err := r.markup()
		if err != nil {
			return nil, "", err
		}
		switch t := token.(type) {
		case xml.CharData:
			text.Write(t)
		case xml.EndElement:
			return content, text.String(), nil
		case xml.StartElement:
			value, err := r.element(t)
			if err != nil {
				return nil, "", err
			}
			same := content[t.Name.Local]
			if same == nil {
				same = &children{place: len(content)}
				content[t.Name.Local] = same
			}
			same.list = append(same.list, value)
		}
	}
}

func xmlScalar(typ, text string) (Value, error) {
	trimmed := strings.TrimSpace(text)
	switch typ {
	case "":
		return text, nil
	case "string", "normalizedString", "token", "anyURI", "dateTime", "date", "time":
		return text, nil
	case "boolean":
		switch trimmed {
		case "true", "1":
			return true, nil
		case "false", "0":
			return false, nil
		}
		return nil, fmt.Errorf("%.40q is no boolean", trimmed)
	case "byte", "short", "int", "long", "integer", "unsignedByte", "unsignedShort", "unsignedInt", "unsignedLong", "nonNegativeInteger", "positiveInteger":
		value, err := number(strings.TrimPrefix(trimmed, "+"))
		if _, isFloat := value.(float64); err == nil && isFloat {
			return nil, fmt.Errorf("%.40q is no whole number of 64 bits", trimmed)
		}
		return value, err
	case "float", "double", "decimal":
		switch trimmed {
		case "INF", "+INF":
			return math.Inf(1), nil
		case "-INF":
			return math.Inf(-1), nil
		case "NaN":
			return math.NaN(), nil
		}
		value, err := number(trimmed)
		if err != nil {
			return nil, err
		}
		return float(value)
	case "base64Binary":
		b, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(text), ""))
		if err != nil {
			return nil, fmt.Errorf("not base64: %w", err)
		}
		return b, nil
	}
	return nil, fmt.Errorf("the type %.40q is not known", typ)
}

func encodeXML(root string, l Limits) (conversion, error) {
	if root == "" {
		root = defaultRoot
	}
	if !isXMLName(root) {
		return nil, fmt.Errorf("%.40q is no name of an element", root)
	}
	var out bytes.Buffer
	return func(v Value) (Value, error) {
		out.Reset()
		if err := writeXML(&out, root, ` xmlns:xs="`+xsNamespace+`" xmlns:xsi="`+xsiNamespace+`"`, v); err != nil {
			return nil, err
		}
		return out.Bytes(), nil
	}, nil
}

// writeXML writes one element. declarations are the root's namespaces.
func writeXML(out *bytes.Buffer, name, declarations string, v Value) error {
	scalar := func(typ, text string) error {
		out.WriteString("<" + name + declarations)
		if typ != "" {
			out.WriteString(` xsi:type="xs:` + typ + `"`)
		}
		out.WriteByte('>')
		if err := writeXMLText(out, text); err != nil {
			return fmt.Errorf("<%s>: %w", name, err)
		}
		out.WriteString("</" + name + ">")
		return nil
	}
	switch t := v.(type) {
	case nil:
		out.WriteString("<" + name + declarations + ` xsi:nil="true"/>`)
		return nil
	case string:
		return scalar("", t)
	case bool:
		return scalar("boolean", strconv.FormatBool(t))
	case int64:
		return scalar("long", strconv.FormatInt(t, 10))
	case uint64:
		return scalar("unsignedLong", strconv.FormatUint(t, 10))
	case float64:
		switch {
		case math.IsInf(t, 1):
			return scalar("double", "INF")
		case math.IsInf(t, -1):
			return scalar("double", "-INF")
		}
		return scalar("double", strconv.FormatFloat(t, 'g', -1, 64))
	case []byte:
		return scalar("base64Binary", base64.StdEncoding.EncodeToString(t))
	case List:
		if len(t) == 0 {
			out.WriteString("<" + name + declarations + ` kind="list"/>`)
			return nil
		}
		out.WriteString("<" + name + declarations + ">")
		for _, element := range t {
			if err := writeXML(out, listElement, "", element); err != nil {
				return fmt.Errorf("<%s>: %w", name, err)
			}
		}
		out.WriteString("</" + name + ">")
		return nil
	case Record:
		return writeXMLRecord(out, name, declarations, t)
	}
	return fmt.Errorf("XML has no form for %s", kind(v))
}

func writeXMLRecord(out *bytes.Buffer, name, declarations string, record Record) error {
	out.WriteString("<" + name + declarations)
	var fields Record
	var content Value
	for _, f := range record {
		attribute, isAttribute := strings.CutPrefix(f.Name, "@")
		switch {
		case f.Name == textField:
			content = f.Value
		case isAttribute:
			value, err := text(f.Value)
			if err == nil && (!isXMLName(attribute) || attribute == "xmlns" || attribute == kindName) {
				err = fmt.Errorf("%.40q is no name of an attribute", attribute)
			}
			if err != nil {
				return fmt.Errorf("<%s> %s: %w", name, f.Name, err)
			}
			out.WriteString(" " + attribute + `="`)
			if err := writeXMLText(out, value); err != nil {
				return fmt.Errorf("<%s> %s: %w", name, f.Name, err)
			}
			out.WriteByte('"')
		default:
			fields = append(fields, f)
		}
	}
	switch {
	case content != nil && len(fields) > 0:
		return fmt.Errorf("<%s> would mix text and elements", name)
	case content != nil:
		s, err := text(content)
		if err != nil {
			return fmt.Errorf("<%s>: %w", name, err)
		}
		out.WriteByte('>')
		if err := writeXMLText(out, s); err != nil {
			return fmt.Errorf("<%s>: %w", name, err)
		}
	case len(record) == 0:
		out.WriteString(` kind="record"/>`)
		return nil
	case len(record) == 1 && len(fields) == 1 && fields[0].Name == listElement:
		out.WriteString(` kind="record">`) // else it would be read as a list
	default:
		out.WriteByte('>')
	}
	for _, f := range fields {
		if !isXMLName(f.Name) {
			return fmt.Errorf("<%s>: %.40q is no name of an element", name, f.Name)
		}
		if err := writeXML(out, f.Name, "", f.Value); err != nil {
			return fmt.Errorf("<%s>: %w", name, err)
		}
	}
	out.WriteString("</" + name + ">")
	return nil
}

// writeXMLText writes text so that reading gives it back, and refuses the
// characters that no XML document may hold, where xml.EscapeText would put
// others in their place.
func writeXMLText(out *bytes.Buffer, text string) error {
	for i, r := range text {
		if r == utf8.RuneError && !strings.HasPrefix(text[i:], string(utf8.RuneError)) {
			return fmt.Errorf("the text is not UTF-8")
		}
		if r < ' ' && r != '\t' && r != '\n' && r != '\r' || r == 0xFFFE || r == 0xFFFF {
			return fmt.Errorf("XML cannot hold the character %U", r)
		}
	}
	return xml.EscapeText(out, []byte(text))
}

// isXMLName is stricter than XML: no colons, since names lose their
// namespaces, and nothing beyond letters, digits, '_', '.' and '-'.
func isXMLName(name string) bool {
	for i, r := range name {
		switch {
		case r == '_', 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', r >= 0xC0 && r != 0xD7 && r != 0xF7 && r < 0x2000:
		case i > 0 && (r == '-' || r == '.' || '0' <= r && r <= '9'):
		default:
			return false
		}
	}
	return name != ""
}
