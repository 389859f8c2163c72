// Command gen turns the hand-written contracts (services.wsdl, grid.xsd,
// profile.xsd) into everything that is derived from them: the published WSDLs,
// gowsdl's Go types and interfaces, and our dispatch tables, client stubs, schema
// tables and codec.
//
// Its output depends on its input alone, so that CI can compare it with what
// is committed. It fails when gowsdl, which accepts anything, made less than
// the contracts ask for.
package main

import (
	"bytes"
	"fmt"
	"go/format"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/beevik/etree"
)

// portType is one service as services.wsdl describes it.
type portType struct {
	Name       string // "broker"
	Type       string // "BrokerPortType"
	Doc        string
	Operations []operation
}

type operation struct{ Name, Doc string }

// Export is the service's name as Go writes it: "Broker".
func (p portType) Export() string { return strings.TrimSuffix(p.Type, "PortType") }

func main() {
	log.SetFlags(0)
	log.SetPrefix("gen: ")
	dir := "."
	if len(os.Args) > 1 {
		dir = os.Args[1]
	}
	if err := generate(dir); err != nil {
		log.Fatal(err)
	}
}

func generate(dir string) error {
	services, err := readServices(filepath.Join(dir, "services.wsdl"))
	if err != nil {
		return err
	}
	for _, s := range services {
		if err := write(dir, s.Name+".wsdl", publishedWSDL(s)); err != nil {
			return err
		}
	}
	tables, err := readSchemas(dir)
	if err != nil {
		return err
	}
	merged, err := mergedWSDL(dir, services)
	if err != nil {
		return err
	}
	types, err := runGowsdl(merged, services)
	if err != nil {
		return err
	}
	if err := write(dir, "grid_gen.go", tables.keepRequired(types)); err != nil {
		return err
	}
	codec, err := tables.codecGo(types)
	if err != nil {
		return fmt.Errorf("codec: %w", err)
	}
	if err := write(dir, "codec_gen.go", codec); err != nil {
		return err
	}
	dispatch, err := format.Source(dispatchGo(services))
	if err != nil {
		return fmt.Errorf("dispatch: %w", err)
	}
	if err := write(dir, "dispatch_gen.go", dispatch); err != nil {
		return err
	}
	code, err := tables.schemaGo()
	if err != nil {
		return fmt.Errorf("schema tables: %w", err)
	}
	return write(dir, "schema_gen.go", code)
}

func write(dir, name string, data []byte) error {
	return os.WriteFile(filepath.Join(dir, name), data, 0o644)
}

func readServices(path string) ([]portType, error) {
	doc := etree.NewDocument()
	if err := doc.ReadFromFile(path); err != nil {
		return nil, err
	}
	var services []portType
	for _, p := range doc.Root().SelectElements("portType") {
		s := portType{Type: p.SelectAttrValue("name", ""), Doc: p.SelectElement("documentation").Text()}
		s.Name = strings.ToLower(s.Export())
		for _, o := range p.SelectElements("operation") {
			s.Operations = append(s.Operations, operation{o.SelectAttrValue("name", ""), o.SelectElement("documentation").Text()})
		}
		if len(s.Operations) == 0 {
			return nil, fmt.Errorf("%s: portType %s has no operations", path, s.Type)
		}
		services = append(services, s)
	}
	if len(services) == 0 {
		return nil, fmt.Errorf("%s: no portTypes", path)
	}
	return services, nil
}

// runGowsdl asks the pinned gowsdl for Go code and checks that it delivered:
// it exits 0 on garbage.
func runGowsdl(merged []byte, services []portType) ([]byte, error) {
	tmp, err := os.MkdirTemp("", "gowsdl")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	in := filepath.Join(tmp, "mvm.wsdl")
	if err := os.WriteFile(in, merged, 0o644); err != nil {
		return nil, err
	}
	cmd := exec.Command("go", "tool", "gowsdl", "-d", tmp, "-p", "wsdl", "-o", "grid_gen.go", in)
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("gowsdl: %w\n%s", err, out)
	}
	code, err := os.ReadFile(filepath.Join(tmp, "wsdl", "grid_gen.go"))
	if err != nil {
		return nil, err
	}
	for _, s := range services {
		for _, o := range s.Operations {
			want := fmt.Sprintf("%sContext(ctx context.Context, request *%s) (*%sResponse, error)", o.Name, o.Name, o.Name)
			if !bytes.Contains(code, []byte(want)) {
				return nil, fmt.Errorf("gowsdl made no %s.%s", s.Type, o.Name)
			}
		}
	}
	return format.Source(code)
}
