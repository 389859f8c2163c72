package qmp_test

import (
	"context"
	"testing"
	"time"

	"mvm/osvm/qmp"
	"mvm/osvm/qmp/qmptest"
)

// FuzzMonitor has QEMU say anything at all: commands end, with an answer or an
// error, and so does Disconnect.
func FuzzMonitor(f *testing.F) {
	f.Add(qmptest.Greeting, `{"return": {}, "id": 2}`)
	f.Add(`{"QMP": {}}`, `{"event": "STOP", "timestamp": {"seconds": "x"}}`)
	f.Add(`{"QMP": null}`, `{"error": {"class": 1}, "id": 2}`)
	f.Add(qmptest.Greeting, "\n\n{\"id\": -1}")
	f.Fuzz(func(t *testing.T, greeting, line string) {
		if greeting == "" {
			greeting = " "
		}
		s := qmptest.Start(t, greeting, func(s *qmptest.Server, _ qmptest.Call) string { s.Say(line); s.HangUp(); return "" })
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if greeting != qmptest.Greeting { // else a greeting without an end waits for the rest
			ctx, cancel = context.WithTimeout(t.Context(), 20*time.Millisecond)
			defer cancel()
		}
		m, err := qmp.Dial(ctx, s.Path)
		if err != nil {
			return
		}
		var result map[string]any
		_ = m.Execute(ctx, "anything", nil, &result)
		if ctx.Err() != nil && greeting == qmptest.Greeting {
			t.Errorf("after %q a command waits although QEMU hung up", line)
		}
		if err := m.Disconnect(); err != nil {
			t.Error(err)
		}
	})
}
