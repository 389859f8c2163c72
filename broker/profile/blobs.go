package profile

import (
	"path"
	"strings"

	"mvm/wsdl"
)

// Blobs takes the bytes out of a job: each file and graph given by text,
// content or path is given by its digest afterwards, and the bytes are
// returned under their digests. read reads a file by its path as the profile
// writes it, parameters included (see Text); it is nil where paths cannot be
// read, as at a broker. The job is changed in place, also where the error, a
// *wsdl.Fault that lists all problems, is not nil.
func Blobs(job *wsdl.Job, read func(path string) ([]byte, error)) (map[string][]byte, error) {
	b := &blobs{read: read, found: map[string][]byte{}}
	b.job(job)
	return b.found, b.fault("the job profile")
}

// ProfileBlobs does for a profile to register what Blobs does for a job.
func ProfileBlobs(profile *wsdl.Profile, read func(path string) ([]byte, error)) (map[string][]byte, error) {
	b := &blobs{read: read, found: map[string][]byte{}}
	if profile.Job != nil {
		b.job(profile.Job)
	}
	for kind, source := range map[string]*wsdl.Source{"codec": profile.Codec, "rule": profile.Rule} {
		if source != nil {
			b.source(place{path: kind}, source)
		}
	}
	if profile.Topology != nil {
		b.graph(place{path: "topology"}, profile.Topology.Graph)
	}
	return b.found, b.fault("the profile")
}

type blobs struct {
	problems
	read  func(path string) ([]byte, error)
	found map[string][]byte
}

func (b *blobs) job(job *wsdl.Job) {
	at := place{path: "job"}
	for i, source := range job.Source {
		if source != nil {
			b.source(at.nth("source", i), source)
		}
	}
	for i, input := range job.Input {
		if input != nil {
			b.file(at.nth("input", i), input)
		}
	}
	for i, task := range job.Task {
		if task == nil {
			continue
		}
		for j, input := range task.Input {
			if input != nil {
				b.file(at.nth("task", i).nth("input", j), input)
			}
		}
	}
	for i, topology := range job.Topology {
		if topology != nil {
			b.graph(at.nth("topology", i).child("graph"), topology.Graph)
		}
	}
}

func (b *blobs) source(at place, source *wsdl.Source) {
	for i, file := range source.File {
		if file != nil {
			b.file(at.nth("file", i), (*wsdl.InputFile)(file))
		}
	}
}

func (b *blobs) file(at place, file *wsdl.InputFile) {
	if file.Path != "" && file.Name == "" {
		if strings.Contains(file.Path, "${") {
			b.add(at, file.Path, "a name beside it", "the path %s depends on a parameter, so the file needs a name attribute", quote(file.Path))
			return
		}
		file.Name = path.Base(file.Path)
	}
	b.take(at, &file.Text, &file.Content, &file.Path, &file.Digest)
}

func (b *blobs) graph(at place, graph *wsdl.Graph) {
	if graph != nil {
		b.take(at, &graph.Text, &graph.Content, &graph.Path, &graph.Digest)
	}
}

// take moves the bytes of what is given in exactly one way; other files are
// left as they are, for Compile to refuse.
func (b *blobs) take(at place, text *string, content **wsdl.Binary, from, digest *string) {
	given, inline := 0, contained(*content, *text, *from, *digest)
	for _, form := range []bool{*text != "", inline, *from != "", *digest != ""} {
		if form {
			given++
		}
	}
	if given != 1 || *digest != "" {
		return
	}
	var data []byte
	switch {
	case *text != "":
		data = []byte(*text)
	case inline:
		data = **content
	default:
		// The profile may be a stranger's: it must not fetch what lies elsewhere.
		if fault := unfit(*from); fault != "" {
			b.add(at.attribute("path"), *from, "a path beside the profile, without '..'", "the path %s %s; files must lie in the profile's folder or below it", quote(*from), fault)
			return
		}
		if b.read == nil {
			b.add(at.attribute("path"), *from, "text, content or digest", "the file %s is given by its path, which only the submitting client can read; give text, content or a digest", quote(*from))
			return
		}
		var err error
		if data, err = b.read(*from); err != nil {
			b.add(at.attribute("path"), *from, "a file that can be read", "the file %s cannot be read: %v", quote(*from), err)
			return
		}
	}
	*digest = DigestOf(data)
	b.found[*digest] = data
	*text, *content, *from = "", nil, ""
}

// contained reports whether a file is given by its content. An empty content
// is an empty file when it stands alone; beside another form it says nothing:
// gSOAP's C programs always send the element.
func contained(content *wsdl.Binary, text, from, digest string) bool {
	return content != nil && (len(*content) > 0 || text == "" && from == "" && digest == "")
}
