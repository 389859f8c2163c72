package profile

import (
	"os"
	"path/filepath"
	"testing"

	"mvm/wsdl"
)

func TestExamples(t *testing.T) {
	files, err := filepath.Glob("../../examples/jobs/*/*.xml")
	if err != nil || len(files) == 0 {
		t.Fatal("no example profiles found", err)
	}
	for _, name := range files {
		if filepath.Base(filepath.Dir(name)) == "testdata" {
			continue // they want arguments
		}
		t.Run(filepath.Base(name), func(t *testing.T) {
			f, err := os.Open(name)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			job, lines, err := Parse(f, name)
			if err != nil {
				t.Fatal(err)
			}
			found, err := Blobs(job, func(path string) ([]byte, error) { return os.ReadFile(filepath.Join(filepath.Dir(name), path)) })
			if err != nil {
				t.Fatal(lines.Locate(err))
			}
			registered := &wsdl.Source{Name: "any", Language: wsdl.Of(wsdl.LanguagePython), File: []*wsdl.SourceFile{{Name: "any.py", Digest: DigestOf(nil)}}}
			found[DigestOf(nil)] = []byte{}
			lookup := func(kind wsdl.ProfileKind, name string, version int32) (*wsdl.Profile, error) {
				return &wsdl.Profile{Version: max(version, 1), Codec: registered, Rule: registered}, nil
			}
			compiled, err := Compile(job, nil, lookup, nil)
			if err != nil {
				t.Fatal(lines.Locate(err))
			}
			for _, s := range compiled.Sources {
				for _, file := range s.Files {
					if found[file.Digest] == nil {
						t.Errorf("the source %s has the file %s without bytes", s.Name, file.Name)
					}
				}
			}
			t.Log(len(compiled.Processes), len(compiled.Channels), compiled.Processes[0].Ports)
		})
	}
}
