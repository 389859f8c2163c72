package broker

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
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

func noProfile(kind wsdl.ProfileKind, name string, version int32) error {
	what := fmt.Sprintf("no %s profile %q is registered", kind, name)
	if version > 0 {
		what = fmt.Sprintf("no version %d of the %s profile %q is registered", version, kind, name)
	}
	return wsdl.NewFault(wsdl.FaultCodeNotFound, what, "look at what ListProfiles answers, or register it")
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
	p.profile = new(wsdl.Profile)
	if err := json.Unmarshal(p.Content, p.profile); err != nil {
		return fmt.Errorf("broker: profile %s %q: %w", kind, name, err)
	}
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
	content := &wsdl.Profile{Kind: p.Kind, Name: name, Description: p.Description, Topology: p.Topology, Resources: p.Resources, Job: p.Job}
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
		err = b.journal.Commit(ctx, store.IfAbsent(where), store.Put(where, value))
		if errors.Is(err, store.ErrConflict) {
			// A former try whose answer was lost, or another broker.
			var there registered
			if err := b.load(ctx, where, &there); err != nil {
				return nil, err
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
			return nil, wsdl.NewFault(wsdl.FaultCodeUnavailable, "the profile could not be journalled: "+err.Error(), "register it again")
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
	for _, there := range []bool{p.Topology != nil, p.Resources != nil, p.Job != nil} {
		if there {
			given++
		}
	}
	fits := map[wsdl.ProfileKind]bool{
		wsdl.ProfileKindTopology:  p.Topology != nil,
		wsdl.ProfileKindResources: p.Resources != nil,
		wsdl.ProfileKindJob:       p.Job != nil,
	}
	if given != 1 || !fits[*p.Kind] {
		return wsdl.NewFault(wsdl.FaultCodeInvalidRequest, fmt.Sprintf("the profile %q of kind %s has not exactly one element %s", p.Name, *p.Kind, *p.Kind),
			"give the element that the kind names, and no other")
	}
	if p.Job == nil || slices.ContainsFunc(p.Job.Parameter, func(q *wsdl.Parameter) bool { return q == nil || q.Default == "" }) {
		return nil // what it lacks is known only where it is used
	}
	_, err := profile.Compile(p.Job, nil, b.profiles.find, b.reader(blobs))
	return err
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
	if j := p.Job; j != nil {
		for _, s := range j.Source {
			for _, f := range s.File {
				add(f.Digest)
			}
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
		return nil, wsdl.Faultf(wsdl.FaultCodeInvalidRequest, "no kind is given, expected topology, resources or job")
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
