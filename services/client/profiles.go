package client

import (
	"bytes"
	"cmp"
	"context"
	"encoding/xml"
	"fmt"
	"os"
	pathpkg "path"
	"regexp"
	"strings"

	"mvm/broker/profile"
	"mvm/wsdl"
)

// lookup finds registered profiles for Compile.
func (c *Client) lookup(ctx context.Context) profile.Lookup {
	return func(kind wsdl.ProfileKind, name string, version int32) (*wsdl.Profile, error) {
		return c.Profile(ctx, kind, name, int(version))
	}
}

// Profiles lists registered profiles, every version, without their content.
// kind "" is any; search is a part of the name or description.
func (c *Client) Profiles(ctx context.Context, kind wsdl.ProfileKind, search string) ([]*wsdl.Profile, error) {
	ask := &wsdl.ListProfiles{Search: search}
	if kind != "" {
		ask.Kind = &kind
	}
	answer, err := c.broker.ListProfilesContext(ctx, ask)
	if err != nil {
		return nil, err
	}
	return answer.Profile, nil
}

// Profile is a registered profile with its content; version 0 is the newest.
func (c *Client) Profile(ctx context.Context, kind wsdl.ProfileKind, name string, version int) (*wsdl.Profile, error) {
	answer, err := c.broker.GetProfileContext(ctx, &wsdl.GetProfile{Kind: &kind, Name: name, Version: int32(version)})
	if err != nil {
		return nil, err
	}
	return answer.Profile, nil
}

// Register stores a profile under its name and returns its version: a new one,
// or the one that has the same content already.
func (c *Client) Register(ctx context.Context, p *wsdl.Profile) (int, error) {
	answer, err := c.broker.RegisterProfileContext(ctx, &wsdl.RegisterProfile{Profile: p})
	if err != nil {
		return 0, err
	}
	return int(answer.Version), nil
}

// LoadProfile reads a topology, resources, job, codec or rule for Register: a
// document whose root is that element. name is what it is registered under; a
// job, codec or rule has one of its own, which is taken when name is "".
func LoadProfile(path, name, description string) (*wsdl.Profile, *Document, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, missing(err)
	}
	kind, err := rootOf(data)
	if err != nil {
		return nil, nil, &inFile{path, err}
	}
	switch wsdl.ProfileKind(kind) {
	case wsdl.ProfileKindJob:
		document, err := Load(path)
		if err != nil {
			return nil, nil, err
		}
		if name == "" {
			name = document.Job.Name
		}
		if description == "" {
			description = document.Job.Description
		}
		return &wsdl.Profile{Kind: wsdl.Of(wsdl.ProfileKindJob), Name: name, Description: description, Job: document.Job}, document, nil
	case wsdl.ProfileKindCodec, wsdl.ProfileKindRule:
		p, err := decodePart(path, data, wsdl.ProfileKind(kind), name, description)
		return p, nil, err
	case wsdl.ProfileKindTopology, wsdl.ProfileKindResources:
		if name == "" {
			return nil, nil, usagef("a %s profile has no name of its own: give one with --name", kind)
		}
		p, err := decodePart(path, data, wsdl.ProfileKind(kind), name, description)
		return p, nil, err
	}
	return nil, nil, wsdl.NewFault(wsdl.FaultCodeInvalidProfile,
		fmt.Sprintf("%s: the root element is %q", path, kind), "write a document whose root is job, topology, resources, codec or rule")
}

// decodePart checks any document but a job's against the schema. These
// are no documents of their own there, so it is read where it belongs: inside
// the message that registers it, on the same lines.
func decodePart(path string, data []byte, kind wsdl.ProfileKind, name, description string) (*wsdl.Profile, error) {
	declaration := regexp.MustCompile(`^(\xef\xbb\xbf)?<\?xml[^>]*\?>`)
	data = declaration.ReplaceAllFunc(data, func(found []byte) []byte {
		return bytes.Repeat([]byte("\n"), bytes.Count(found, []byte("\n")))
	})
	var message bytes.Buffer
	fmt.Fprintf(&message, "<RegisterProfile xmlns=%q><profile><kind>%s</kind><name>", wsdl.Namespace, kind)
	xml.EscapeText(&message, []byte(name))
	message.WriteString("</name>")
	if description != "" {
		message.WriteString("<description>")
		xml.EscapeText(&message, []byte(description))
		message.WriteString("</description>")
	}
	message.Write(data)
	message.WriteString("</profile></RegisterProfile>")
	var request wsdl.RegisterProfile
	_, problems := wsdl.Decode(message.Bytes(), "RegisterProfile", &request)
	if len(problems) > 0 {
		fault := wsdl.NewFault(wsdl.FaultCodeInvalidProfile, fmt.Sprintf("the %s profile %s is refused", kind, path), "mend what is listed and register it again")
		for _, p := range problems {
			const around = "RegisterProfile/profile/"
			p.Element = strings.TrimPrefix(p.Element, around)
			p.Message = strings.ReplaceAll(p.Message, around, "")
		}
		fault.Problem = problems
		return nil, &inFile{path, fault}
	}
	p := request.Profile
	// The broker cannot read files that lie here, so they go along.
	d := &Document{Path: path, Job: &wsdl.Job{}}
	for _, source := range []*wsdl.Source{p.Codec, p.Rule} {
		if source == nil {
			continue
		}
		p.Name = cmp.Or(p.Name, source.Name)
		for _, file := range source.File {
			if file.Path == "" {
				continue
			}
			content, err := d.read(file.Path, nil)
			if err != nil {
				return nil, &inFile{path, wsdl.NewFault(wsdl.FaultCodeInvalidProfile, fmt.Sprintf("the %s's file %s cannot be read: %v", kind, file.Path, err), "files lie beside the document or below")}
			}
			file.Name = cmp.Or(file.Name, pathpkg.Base(file.Path))
			file.Path, file.Content = "", wsdl.Of(wsdl.Binary(content))
		}
	}
	if p.Topology != nil && p.Topology.Graph != nil && p.Topology.Graph.Path != "" {
		graph, err := d.read(p.Topology.Graph.Path, nil)
		if err != nil {
			return nil, err
		}
		p.Topology.Graph.Path, p.Topology.Graph.Content = "", wsdl.Of(wsdl.Binary(graph))
	}
	return p, nil
}

// rootOf is the local name of a document's root element.
func rootOf(data []byte) (string, error) {
	d, err := wsdl.NewDocument(data, wsdl.Limits{})
	if err != nil {
		return "", err
	}
	for {
		t, err := d.Token()
		if err != nil {
			return "", err
		}
		if start, ok := t.(xml.StartElement); ok {
			return start.Name.Local, nil
		}
	}
}
