package node

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"mvm/node/build"
	"mvm/node/mvm"
	"mvm/wsdl"
)

// instruct has an instruction of a processor built, as any source is, and
// answers with the command that runs its program.
func (r *runner) instruct(i *mvm.Instruction) {
	command, err := r.buildInstruction(i)
	built := mvm.Built{ID: i.ID, Command: command}
	if err != nil {
		built.Failure = err.Error()
		var refused *mvm.Error
		var fault *wsdl.Fault
		if errors.As(err, &refused) {
			built.Output = refused.Output
		} else if errors.As(err, &fault) {
			built.Output = fault.Output
		}
	}
	if _, err := r.process.Call(r.ctx, mvm.Request{Built: &built}); err != nil && r.ctx.Err() == nil {
		r.log.WithError(err).Warn("the MVM process was not told what came of an instruction")
	}
}

func (r *runner) buildInstruction(i *mvm.Instruction) ([]string, error) {
	sum := sha256.Sum256(i.Source)
	name := "main." + map[string]string{build.C: "c", build.CPP: "cpp", build.Go: "go", build.Python: "py", build.Shell: "sh"}[i.Language]
	request := build.Request{
		Source: "of the instruction", Language: i.Language, Flags: i.Flags,
		Files: []build.File{{Name: name, Digest: "sha256:" + hex.EncodeToString(sum[:])}},
	}
	// The cache believes what it is told of a source: this file is written here,
	// from what was digested.
	made, err := r.artifact(r.ctx, fmt.Sprintf("instruction-%d", i.ID), request, func(dir string) error {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, name), i.Source, 0o600)
	})
	if err != nil {
		return nil, err
	}
	return build.Command(made.dir, nil)
}
