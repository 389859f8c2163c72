package client

import (
	"go/ast"
	"go/parser"
	"go/token"
	"strconv"
	"strings"
	"testing"
	"unsafe"
)

// The daemon's layout.go is read as text, since this package must stand alone:
// the same words at the same distances, whatever they are called.
func TestLayoutIsTheDaemons(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "../layout.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	offsets := map[string]uintptr{}
	var at uintptr
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.TypeSpec)
		if !ok || spec.Name.Name != "ringHeader" {
			return true
		}
		for _, f := range spec.Type.(*ast.StructType).Fields.List {
			size := uintptr(0)
			switch typ := f.Type.(type) {
			case *ast.Ident:
				size = map[string]uintptr{"uint32": 4, "uint64": 8}[typ.Name]
			case *ast.ArrayType:
				n, err := strconv.Atoi(typ.Len.(*ast.BasicLit).Value)
				if err != nil {
					t.Fatal(err)
				}
				size = uintptr(n)
			}
			for _, name := range f.Names {
				if name.Name != "_" {
					offsets[strings.ToLower(name.Name)] = at
				}
				at += size
			}
		}
		return false
	})
	var h header
	mine := map[string]uintptr{
		"magic": unsafe.Offsetof(h.magic), "version": unsafe.Offsetof(h.version), "capacity": unsafe.Offsetof(h.capacity),
		"channel": unsafe.Offsetof(h.channel), "epoch": unsafe.Offsetof(h.epoch),
		"served": unsafe.Offsetof(h.served), "most": unsafe.Offsetof(h.most), "next": unsafe.Offsetof(h.next), "begun": unsafe.Offsetof(h.begun), "demand": unsafe.Offsetof(h.demand), "verdict": unsafe.Offsetof(h.verdict),
		"tail": unsafe.Offsetof(h.tail), "itemsin": unsafe.Offsetof(h.itemsIn),
		"head": unsafe.Offsetof(h.head), "itemsout": unsafe.Offsetof(h.itemsOut),
		"producerwaits": unsafe.Offsetof(h.producerWaits), "producerstate": unsafe.Offsetof(h.producerState),
		"consumerwaits": unsafe.Offsetof(h.consumerWaits), "consumerstate": unsafe.Offsetof(h.consumerState),
	}
	for name, offset := range mine {
		if got, ok := offsets[name]; !ok || got != offset {
			t.Errorf("%s is at %d here and at %d in the daemon (known: %t)", name, offset, got, ok)
		}
	}
	if len(offsets) != len(mine) || at != unsafe.Sizeof(h) {
		t.Errorf("%d words in %d bytes here, %d in %d in the daemon", len(mine), unsafe.Sizeof(h), len(offsets), at)
	}
}

func TestOutsideAJobOpenSaysSo(t *testing.T) {
	t.Setenv("MVM_CONTROL", "")
	if _, err := Open("next"); err == nil || !strings.Contains(err.Error(), "not run by MVM") {
		t.Errorf("got %v", err)
	}
	if Index() != -1 || Count() != -1 || Task() != "" {
		t.Error("there is no task outside a job")
	}
}
