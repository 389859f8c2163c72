package broker

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"mvm/broker/profile"
	"mvm/services/store"
	"mvm/wsdl"
)

// registry holds the registered profiles: the paper's platform-independent
// models. A version never changes and is never removed, so that a job can be
// compiled again after a restart.
type registry struct {
	broker *Service

	registering sync.Mutex // one registration at a time: versions have no holes

	mu     sync.Mutex // guards all below
	newest map[registryKey]int32
	known  map[registryKey]map[int32]*registered
}

type registryKey struct {
	kind wsdl.ProfileKind
	name string
}

// registered is one version of a profile, as the journal has it.
type registered struct {
	Content    []byte // JSON of a wsdl.Profile without version and time: what is compared
	Registered time.Time

	profile *wsdl.Profile // the content, with its version and time; read-only
}

func (r *registered) decode() (*wsdl.Profile, error) {
	content := new(wsdl.Profile)
	return content, json.Unmarshal(r.Content, content)
}

func noProfile(kind wsdl.ProfileKind, name string, version int32) error {
	what := fmt.Sprintf("no %s profile %q is registered", kind, name)
	if version > 0 {
		what = fmt.Sprintf("no version %d of the %s profile %q is registered", version, kind, name)
	}
	return wsdl.NewFault(wsdl.FaultCodeNotFound, what, "look at what ListProfiles answers (`mvm profiles list`), or register it")
}

// find returns a version of a profile, the newest for 0. Treat it as read-only.
func (r *registry) find(kind wsdl.ProfileKind, name string, version int32) (*wsdl.Profile, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	key := registryKey{kind, name}
	wanted := version
	if wanted == 0 {
		wanted = r.newest[key]
	}
	p := r.known[key][wanted]
	if p == nil {
		return nil, noProfile(kind, name, version)
	}
	return p.profile, nil
}

func (r *registry) put(kind wsdl.ProfileKind, name string, version int32, p *registered) error {
	content, err := p.decode()
	if err != nil {
		return fmt.Errorf("broker: profile %s %q: %w", kind, name, err)
	}
	p.profile = content
	p.profile.Version, p.profile.Registered = version, wsdl.Date(p.Registered)
	r.mu.Lock()
	defer r.mu.Unlock()
	key := registryKey{kind, name}
	if r.known[key] == nil {
		r.known[key] = map[int32]*registered{}
	}
	r.known[key][version] = p
	r.newest[key] = max(r.newest[key], version)
	return nil
}

// RegisterProfileContext stores a profile as a new version of its name.
func (b *Service) RegisterProfileContext(ctx context.Context, request *wsdl.RegisterProfile) (*wsdl.RegisterProfileResponse, error) {
	if err := b.up(ctx); err != nil {
		return nil, err
	}
	p := request.Profile
	if p == nil || p.Kind == nil {
		return nil, wsdl.Faultf(wsdl.FaultCodeInvalidRequest, "no profile with a kind is given")
	}
	kind, name := *p.Kind, p.Name
	content := &wsdl.Profile{Kind: p.Kind, Name: name, Description: p.Description, Topology: p.Topology, Resources: p.Resources, Job: p.Job, Codec: p.Codec, Rule: p.Rule}
	blobs, err := profile.ProfileBlobs(content, nil)
	if err != nil {
		return nil, err
	}
	if err := b.checkProfile(content, blobs); err != nil {
		return nil, err
	}
	data, err := json.Marshal(content)
	if err != nil {
		return nil, wsdl.Faultf(wsdl.FaultCodeInvalidRequest, "the profile %q cannot be kept: %v", name, err)
	}

	r := b.profiles
	r.registering.Lock()
	defer r.registering.Unlock()
	key := registryKey{kind, name}
	r.mu.Lock()
	newest := r.newest[key]
	same := newest > 0 && bytes.Equal(r.known[key][newest].Content, data)
	r.mu.Unlock()
	if same {
		return &wsdl.RegisterProfileResponse{Name: name, Version: newest}, nil
	}
	for {
		newest++
		for digest, data := range blobs {
			if err := b.put(ctx, b.kept, digest, data); err != nil {
				return nil, err
			}
		}
		if err := b.kept.add(digestsIn(content)...); err != nil {
			return nil, err
		}
		p := &registered{Content: data, Registered: b.clock.Now()}
		value, err := b.pack(ctx, b.kept, p)
		if err != nil {
			return nil, err
		}
		where := profileKey(kind, name, int(newest))
		err = b.commit(ctx, store.IfAbsent(where), store.Put(where, value))
		if errors.Is(err, store.ErrConflict) {
			if err := b.reign(ctx); err != nil {
				return nil, err
			}
			// A former try whose answer was lost.
			var there registered
			if err := b.load(ctx, where, &there); err != nil {
				return nil, b.unwritten("the profile could not be journalled: "+err.Error(), "register it again")
			}
			if err := r.put(kind, name, newest, &there); err != nil {
				return nil, err
			}
			if bytes.Equal(there.Content, data) {
				return &wsdl.RegisterProfileResponse{Name: name, Version: newest}, nil
			}
			continue
		}
		if err != nil {
			return nil, b.unwritten("the profile could not be journalled: "+err.Error(), "register it again")
		}
		if err := r.put(kind, name, newest, p); err != nil {
			return nil, err
		}
		return &wsdl.RegisterProfileResponse{Name: name, Version: newest}, nil
	}
}

// checkProfile refuses what no job could use.
func (b *Service) checkProfile(p *wsdl.Profile, blobs map[string][]byte) error {
	given := 0
	for _, there := range []bool{p.Topology != nil, p.Resources != nil, p.Job != nil, p.Codec != nil, p.Rule != nil} {
		if there {
			given++
		}
	}
	fits := map[wsdl.ProfileKind]bool{
		wsdl.ProfileKindTopology:  p.Topology != nil,
		wsdl.ProfileKindResources: p.Resources != nil,
		wsdl.ProfileKindJob:       p.Job != nil,
		wsdl.ProfileKindCodec:     p.Codec != nil,
		wsdl.ProfileKindRule:      p.Rule != nil,
	}
	if given != 1 || !fits[*p.Kind] {
		return wsdl.NewFault(wsdl.FaultCodeInvalidRequest, fmt.Sprintf("the profile %q of kind %s has not exactly one element %s", p.Name, *p.Kind, *p.Kind),
			"give the element that the kind names, and no other")
	}
	if !wsdl.ValidName(p.Name) {
		return wsdl.NewFault(wsdl.FaultCodeInvalidProfile, fmt.Sprintf("a profile cannot be named %q", clip(p.Name, 80)),
			"write a letter, then up to 62 letters, digits, '_', '.' or '-'")
	}
	return b.tryProfile(p, blobs)
}

// tryProfile refuses a profile that is wrong whatever job uses it. One with a
// parameter that has no default is judged only where it is used.
func (b *Service) tryProfile(p *wsdl.Profile, blobs map[string][]byte) error {
	open := func(parameters []*wsdl.Parameter) bool {
		return slices.ContainsFunc(parameters, func(q *wsdl.Parameter) bool { return q == nil || q.Default == "" })
	}
	try := func(j *wsdl.Job) error {
		_, err := profile.Compile(j, nil, b.profiles.find, b.reader(blobs))
		return err
	}
	bare := func(count int) *wsdl.Job {
		return &wsdl.Job{Name: "trial",
			Source: []*wsdl.Source{{Name: "s", Language: wsdl.Of(wsdl.LanguageShell), File: []*wsdl.SourceFile{{Name: "s", Text: "true\n"}}}},
			Task:   []*wsdl.Task{{Name: "first", Source: "s"}, {Name: "others", Source: "s", Count: wsdl.Of(wsdl.Number(strconv.Itoa(count - 1)))}}}
	}
	switch {
	case p.Job != nil && !open(p.Job.Parameter):
		return try(p.Job)
	case p.Codec != nil:
		return profile.CheckLogic(*p.Kind, p.Codec)
	case p.Rule != nil:
		return profile.CheckLogic(*p.Kind, p.Rule)
	case p.Resources != nil && !open(p.Resources.Parameter):
		j, r := bare(2), *p.Resources
		j.Parameter, r.Parameter = r.Parameter, nil
		j.Task[0].Resources = &r
		return relocate(try(j), "job/task[1]/resources", "resources")
	case p.Topology != nil && !open(p.Topology.Parameter):
		// How many processes it will be laid over is not known: what is wrong
		// with every number of them is wrong with the topology.
		t := *p.Topology
		t.Over = ""
		parameters := t.Parameter
		t.Parameter = nil
		var always error
		for i, count := range []int{8, 2, 3, 4, 5, 6, 7, 9, 12, 16, 20, 27, 64} {
			j := bare(count)
			j.Parameter, j.Topology = parameters, []*wsdl.Topology{&t}
			err := try(j)
			if f := faultOf(err); f == nil {
				return err
			} else if i == 0 {
				always = f
			} else if f = common(faultOf(always), f); f == nil {
				return nil
			} else {
				always = f
			}
		}
		return relocate(always, "job/topology[1]", "topology")
	}
	return nil
}

// common is f with those of its problems that g has too, nil for none.
func common(f, g *wsdl.Fault) *wsdl.Fault {
	both := *f
	both.Problem = nil
	for _, p := range f.Problem {
		if slices.ContainsFunc(g.Problem, func(q *wsdl.Problem) bool { return q.Element == p.Element && q.Message == p.Message }) {
			both.Problem = append(both.Problem, p)
		}
	}
	if both.Problem == nil {
		return nil
	}
	return &both
}

// relocate names the elements of a fault's problems as the profile has them.
func relocate(err error, from, to string) error {
	f := faultOf(err)
	if f == nil {
		return err
	}
	for _, p := range f.Problem {
		if rest, ok := strings.CutPrefix(p.Element, from); ok {
			p.Element = to + rest
		}
	}
	return f
}

// digestsIn are the blobs that a profile refers to by digest.
func digestsIn(p *wsdl.Profile) []string {
	var digests []string
	add := func(digest string) {
		if digest != "" && !strings.Contains(digest, "$") {
			digests = append(digests, digest)
		}
	}
	graph := func(t *wsdl.Topology) {
		if t != nil && t.Graph != nil {
			add(t.Graph.Digest)
		}
	}
	graph(p.Topology)
	source := func(s *wsdl.Source) {
		if s != nil {
			for _, f := range s.File {
				add(f.Digest)
			}
		}
	}
	source(p.Codec)
	source(p.Rule)
	if j := p.Job; j != nil {
		for _, s := range j.Source {
			source(s)
		}
		for _, f := range j.Input {
			add(f.Digest)
		}
		for _, t := range j.Task {
			for _, f := range t.Input {
				add(f.Digest)
			}
		}
		for _, t := range j.Topology {
			graph(t)
		}
	}
	return digests
}

// GetProfileContext answers a registered profile with its content.
func (b *Service) GetProfileContext(ctx context.Context, request *wsdl.GetProfile) (*wsdl.GetProfileResponse, error) {
	if err := b.up(ctx); err != nil {
		return nil, err
	}
	if request.Kind == nil {
		return nil, wsdl.Faultf(wsdl.FaultCodeInvalidRequest, "no kind is given, expected topology, resources, job, codec or rule")
	}
	p, err := b.profiles.find(*request.Kind, request.Name, request.Version)
	if err != nil {
		return nil, err
	}
	return &wsdl.GetProfileResponse{Profile: p}, nil
}

// ListProfilesContext searches the registered profiles, by kind, name and version.
func (b *Service) ListProfilesContext(ctx context.Context, request *wsdl.ListProfiles) (*wsdl.ListProfilesResponse, error) {
	if err := b.up(ctx); err != nil {
		return nil, err
	}
	search := strings.ToLower(request.Search)
	response := &wsdl.ListProfilesResponse{}
	r := b.profiles
	r.mu.Lock()
	defer r.mu.Unlock()
	for key, versions := range r.known {
		if request.Kind != nil && *request.Kind != key.kind {
			continue
		}
		for version, p := range versions {
			if strings.Contains(strings.ToLower(key.name), search) || strings.Contains(strings.ToLower(p.profile.Description), search) {
				response.Profile = append(response.Profile, &wsdl.Profile{Kind: wsdl.Of(key.kind), Name: key.name, Version: version,
					Description: p.profile.Description, Registered: p.profile.Registered})
			}
		}
	}
	slices.SortFunc(response.Profile, func(a, b *wsdl.Profile) int {
		return cmp.Or(cmp.Compare(*a.Kind, *b.Kind), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Version, b.Version))
	})
	return response, nil
}
