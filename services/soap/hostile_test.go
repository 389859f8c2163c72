package soap

import (
	"runtime"
	"strings"
	"testing"
	"time"
)

// Requests of the largest size, made to cost as much as they can: each gets its
// fault, soon, in bounded memory, and others are served.
func TestHostileBodiesAreBounded(t *testing.T) {
	v := start(t, Config{})
	fill := func(open, unit, end string) string {
		const size = 15 << 20
		return open + strings.Repeat(unit, (size-len(open)-len(end))/len(unit)) + end
	}
	submit := `<e:Envelope xmlns:e="` + namespace11 + `"><e:Body><SubmitJob xmlns="urn:mvm:1"><token>t</token><job name="x">`
	end := `</job></SubmitJob></e:Body></e:Envelope>`
	for _, c := range []struct{ name, body, want string }{
		{"many unknown elements", fill(submit, "<anUnknownElementOfLength40_____________/>", end), "invalidProfile"},
		{"many small elements", fill(submit, "<a/>", end), "tooLarge"},
		{"many tasks", fill(submit, `<task name="tttttttttt"/>`, end), "tooLarge"},
		{"as many tasks as pass", fill(submit, `<task name="tttttttttttt"/>`, end), ""},
		{"attributes", fill(submit+"<task", ` a="a"`, "/>"+end), "tooLarge"},
		{"one long attribute", fill(submit+`<task name="`, `a`, `"/>`+end), "tooLarge"},
		{"one long text", fill(submit+`<description>`, `a`, `</description>`+end), "job/task"},
		{"namespaces", fill(submit+"<task", ` xmlns:a="a"`, "/>"+end), "tooLarge"},
		{"depth", fill(submit, "<a>", end), "tooLarge"},
		{"an open tag", fill(submit+"<task ", " ", ""), "tooLarge"},
		{"comments", fill(submit, "<!---->", end), "job/task"},
		{"instructions", fill(submit, "<?a?>", end), "job/task"},
		{"CDATA", fill(submit+`<description>`, "<![CDATA[]]>", `</description>`+end), "job/task"},
		{"character references", fill(submit+`<description>`, "&#x41;", `</description>`+end), "job/task"},
		{"angle brackets", fill(submit, "<", end), "tooLarge"},
		{"an entity bomb", "<!DOCTYPE a [<!ENTITY a 'aaaaaaaaaa'><!ENTITY b '&a;&a;&a;&a;&a;&a;&a;&a;'>]>" + submit + "&b;" + end, "declarations are refused"},
		{"zeros", fill("", "\x00", ""), "invalidRequest"},
	} {
		runtime.GC()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		begin := time.Now()
		got := v.post(t, "broker", "text/xml", c.body)
		took := time.Since(begin)
		runtime.ReadMemStats(&after)
		t.Logf("%-24s %3d in %5d ms, %4d MiB allocated", c.name, got.status, took.Milliseconds(), (after.TotalAlloc-before.TotalAlloc)>>20)
		if !strings.Contains(got.body, c.want) || got.status != 500 && c.want != "" {
			t.Errorf("%s: %d %.500s; want %s", c.name, got.status, got.body, c.want)
		}
		if took > 20*time.Second {
			t.Errorf("%s: took %s", c.name, took)
		}
		if n := (after.TotalAlloc - before.TotalAlloc) >> 20; n > 900 {
			t.Errorf("%s: allocated %d MiB", c.name, n)
		}
		if got := v.post(t, "bootstrap", "text/xml", envelope11(getBroker)); got.status != 200 {
			t.Errorf("after %s: %+v", c.name, got)
		}
	}
}
