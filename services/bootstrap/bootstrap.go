// Package bootstrap is the bootstrap service: the first thing that a client or
// a joining node asks, by SOAP or with nothing but curl.
//
// What always holds: it answers from what its node knows, and changes nothing.
// It must never keep state, or take an address from a request's Host header. Watcher
// is the other side: what a node that joins has been told.
package bootstrap

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"text/tabwriter"

	"mvm/wsdl"
)

// Config says what the node knows. Functions are called for each request, from
// any goroutine, and answer at once.
type Config struct {
	Node        string                           // this node's id
	Base        func() string                    // its base address, http://host:port
	Broker      func() string                    // the broker service's address; "": not known yet
	BrokerNode  func() string                    // the id of the node that it is on; "" or nil: not known
	Image       func() string                    // the image service of a backend node
	Information func() string                    // the information service
	Services    func() []*wsdl.Service           // what this node publishes
	Remote      func(ctx context.Context) string // the caller's host, as the transport saw it; nil or "": not known
	// Reach tries whether a node answers at a base address, from here; nil: Join
	// believes the joiner.
	Reach func(ctx context.Context, base string) error
}

// Service is the bootstrap service.
type Service struct {
	wsdl.BootstrapWithoutContext
	c Config
}

var _ wsdl.BootstrapPortType = (*Service)(nil)

// New checks the configuration.
func New(c Config) (*Service, error) {
	if c.Base == nil || c.Broker == nil || c.Image == nil || c.Information == nil || c.Services == nil {
		return nil, errors.New("bootstrap service: it needs the functions that give the node's, the broker's, the image and the information service's address, and its services")
	}
	if c.BrokerNode == nil {
		c.BrokerNode = func() string { return "" }
	}
	if c.Remote == nil {
		c.Remote = func(context.Context) string { return "" }
	}
	s := &Service{c: c}
	s.Server = s
	return s, nil
}

// GetBrokerContext says where the broker, the image and the information service
// are; unavailable while the node does not know.
func (s *Service) GetBrokerContext(context.Context, *wsdl.GetBroker) (*wsdl.GetBrokerResponse, error) {
	broker := s.c.Broker()
	if broker == "" {
		return nil, s.noBroker()
	}
	return &wsdl.GetBrokerResponse{Url: broker, Node: s.c.BrokerNode(), Image: s.c.Image(), Information: s.c.Information()}, nil
}

func (s *Service) noBroker() error {
	return wsdl.NewFault(wsdl.FaultCodeUnavailable, "node "+s.c.Node+" does not know a broker yet", "try again in a moment")
}

// JoinContext tells a node where to register, and at which address it was found
// from here: its own, or, when that one is no address for others (0.0.0.0) or
// does not answer, the one that its call came from.
func (s *Service) JoinContext(ctx context.Context, request *wsdl.Join) (*wsdl.JoinResponse, error) {
	if request.Node == nil {
		return nil, wsdl.NewFault(wsdl.FaultCodeInvalidRequest, "Join: node is missing", "")
	}
	own, err := url.Parse(request.Node.Url)
	if err != nil || own.Scheme != "http" && own.Scheme != "https" || own.Host == "" {
		return nil, wsdl.NewFault(wsdl.FaultCodeInvalidRequest, fmt.Sprintf("Join: the node's url is %q", request.Node.Url),
			"give its base address, such as http://host:port")
	}
	information := s.c.Information()
	if information == "" {
		return nil, s.noBroker()
	}
	found, err := s.find(ctx, own)
	if err != nil {
		return nil, err
	}
	return &wsdl.JoinResponse{Broker: s.c.Broker(), Information: information, Image: s.c.Image(), Url: found}, nil
}

// find returns the base address of a joiner, as seen from here.
func (s *Service) find(ctx context.Context, own *url.URL) (string, error) {
	var bases []string
	if ip, err := netip.ParseAddr(own.Hostname()); own.Hostname() != "" && (err != nil || !ip.IsUnspecified()) {
		bases = append(bases, own.Scheme+"://"+own.Host)
	}
	if remote := host(s.c.Remote(ctx)); remote != "" && own.Port() != "" {
		if base := own.Scheme + "://" + net.JoinHostPort(remote, own.Port()); len(bases) == 0 || base != bases[0] {
			bases = append(bases, base)
		}
	}
	if len(bases) == 0 {
		return "", wsdl.NewFault(wsdl.FaultCodeInvalidRequest, own.String()+" is no address at which others reach the joining node",
			"let it listen at an address that the grid reaches")
	}
	if s.c.Reach == nil {
		return bases[0], nil
	}
	var failed []*wsdl.Problem
	for _, base := range bases {
		err := s.c.Reach(ctx, base)
		if err == nil {
			return base, nil
		}
		failed = append(failed, &wsdl.Problem{Message: base + ": " + err.Error()})
	}
	f := wsdl.NewFault(wsdl.FaultCodeUnavailable, "the joining node cannot be reached from node "+s.c.Node,
		"let it listen at an address that the grid reaches, and check firewalls: a job's nodes call each other")
	f.Problem = failed
	return "", f
}

// host takes the port off an address, if there is one.
func host(address string) string {
	if h, _, err := net.SplitHostPort(address); err == nil {
		return h
	}
	return strings.Trim(address, "[]")
}

// ListServicesContext lists what this node publishes.
func (s *Service) ListServicesContext(context.Context, *wsdl.ListServices) (*wsdl.ListServicesResponse, error) {
	return &wsdl.ListServicesResponse{Service: s.c.Services()}, nil
}

// Text answers GET /bootstrap for people and scripts without a SOAP stack. Its
// first line is "broker: URL"; lines of that form go on up to the first empty
// one, and then comes prose.
func (s *Service) Text() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Cache-Control", "no-store")
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			h.Set("Allow", "GET, HEAD")
			http.Error(w, "the bootstrap text is read with GET; SOAP goes to "+s.c.Base()+"/services/bootstrap", http.StatusMethodNotAllowed)
			return
		}
		h.Set("Content-Type", "text/plain; charset=utf-8")
		if s.c.Broker() == "" {
			h.Set("Retry-After", "1")
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		// An error here is a reader who has left.
		_, _ = w.Write([]byte(s.text()))
	})
}

func (s *Service) text() string {
	var b strings.Builder
	base := s.c.Base()
	for _, line := range [][2]string{
		{"broker", s.c.Broker()}, {"image", s.c.Image()}, {"information", s.c.Information()}, {"node", s.c.Node},
	} {
		fmt.Fprintf(&b, "%s: %s\n", line[0], cmp.Or(line[1], "not known yet; ask again in a moment"))
	}
	b.WriteString("\nThis is an MVM grid. The broker above takes jobs; this node publishes:\n\n")
	table := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, service := range s.c.Services() {
		fmt.Fprintf(table, "  %s\t%s\n", service.Url, service.Description)
	}
	// A strings.Builder takes everything.
	_ = table.Flush()
	fmt.Fprintf(&b, `
The contract of each, for any SOAP stack, is at its address with ?wsdl:

  curl '%[1]s/services/broker?wsdl'

A call with nothing but curl:

  curl -H 'Content-Type: text/xml; charset=utf-8' -d '
    <Envelope xmlns="http://schemas.xmlsoap.org/soap/envelope/"><Body>
      <GetBroker xmlns="urn:mvm:1"/>
    </Body></Envelope>' %[1]s/services/bootstrap

With the mvm program:

  mvm submit --grid %[1]s --wait PROFILE.xml
`, base)
	return b.String()
}
