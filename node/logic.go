package node

import (
	"maps"
	"slices"
	"strings"

	"mvm/node/mvm"
	"mvm/wsdl"
)

// stepOf is one step of a queue's chain as the MVM process knows it.
func stepOf(e *wsdl.Encoder) mvm.Step {
	s := mvm.Step{Codec: string(wsdl.Or(e.Codec, "")), Decode: e.Decode, Type: e.Type}
	if e.Registered != "" {
		s.Program = e.Registered + "@" + string(wsdl.Or(e.Version, ""))
	}
	return s
}

// logicOf are the registered codecs and rules among what was built: no other
// source has a colon in its name.
func logicOf(artifacts map[string]string) (all []mvm.Logic, err error) {
	for _, source := range slices.Sorted(maps.Keys(artifacts)) {
		if !strings.Contains(source, ":") {
			continue
		}
		logic, err := mvm.LogicOf(source, artifacts[source])
		if err != nil {
			return nil, err
		}
		all = append(all, logic)
	}
	return all, nil
}
