package soap

import (
	"bytes"
	"fmt"
	"io/fs"
	"net/http"
	"regexp"
	"sort"
	"strconv"
	"strings"

	"mvm/wsdl"
)

// describe answers GET on a service: its WSDL, a schema, or a text for people.
func (s *Server) describe(w http.ResponseWriter, r *http.Request, v *service) {
	base, err := baseOf(r)
	if err != nil {
		refuse(w, http.StatusBadRequest, "%s", err)
		return
	}
	self := base + "/services/" + v.contract.Name
	if r.URL.RawQuery == "" {
		text(w, r, v.text(self))
		return
	}
	query := r.URL.Query()
	for key := range query {
		switch strings.ToLower(key) {
		case "wsdl":
			document(w, r, locate(v.document, self))
			return
		case "xsd":
			name := query.Get(key)
			data, err := fs.ReadFile(wsdl.Documents, name)
			if err != nil || !strings.HasSuffix(name, ".xsd") {
				refuse(w, http.StatusNotFound, "there is no such schema; the WSDL names those there are")
				return
			}
			document(w, r, locate(data, self))
			return
		}
	}
	refuse(w, http.StatusNotFound, "ask for ?wsdl or ?xsd=NAME")
}

var host = regexp.MustCompile(`\A([A-Za-z0-9]([A-Za-z0-9._-]{0,252}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]{2,45}\])(:[0-9]{1,5})?\z`)

// baseOf returns the address under which the caller reached this node. Headers
// of proxies are not believed.
func baseOf(r *http.Request) (string, error) {
	if !host.MatchString(r.Host) {
		return "", fmt.Errorf("the Host header is not a host and port")
	}
	scheme := "http"
	if r.TLS != nil {
		scheme = "https"
	}
	return scheme + "://" + r.Host, nil
}

// locate makes a document's locations absolute: stacks differ in what they
// make of relative ones.
func locate(document []byte, self string) []byte {
	document = bytes.ReplaceAll(document, []byte(`address location=""`), []byte(`address location="`+self+`"`))
	return bytes.ReplaceAll(document, []byte(`schemaLocation="`), []byte(`schemaLocation="`+self+`?xsd=`))
}

func (v *service) text(self string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n\n%s\n\nAddress      %s\nDescription  %s?wsdl\n\n", v.contract.Name, v.contract.Description, self, self)
	for _, o := range v.contract.Operations {
		fmt.Fprintf(&b, "%-16s %s\n", o.Name, o.Doc)
	}
	return b.String()
}

// list answers GET /services.
func (s *Server) list(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		refuse(w, http.StatusMethodNotAllowed, "method %s is not served here", r.Method)
		return
	}
	base, err := baseOf(r)
	if err != nil {
		refuse(w, http.StatusBadRequest, "%s", err)
		return
	}
	names := make([]string, 0, len(s.services))
	for name := range s.services {
		names = append(names, name)
	}
	sort.Strings(names)
	var b strings.Builder
	for _, name := range names {
		fmt.Fprintf(&b, "%s/services/%s\n    %s\n", base, name, s.services[name].contract.Description)
	}
	text(w, r, b.String())
}

func document(w http.ResponseWriter, r *http.Request, data []byte) {
	respond(w, r, "text/xml; charset=utf-8", data)
}

func text(w http.ResponseWriter, r *http.Request, s string) {
	respond(w, r, "text/plain; charset=utf-8", []byte(s))
}

func respond(w http.ResponseWriter, r *http.Request, media string, data []byte) {
	w.Header().Set("Content-Type", media)
	w.Header().Set("Content-Length", strconv.Itoa(len(data)))
	w.WriteHeader(http.StatusOK)
	if r.Method != http.MethodHead {
		_, _ = w.Write(data) // a caller that went away is no error of ours
	}
}
