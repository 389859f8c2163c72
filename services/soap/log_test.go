package soap

import (
	"bytes"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
)

// The line of a call is what logrus would write, whatever is in it.
func TestLogLineIsWhatLogrusWrites(t *testing.T) {
	odd := "\"<&>\\\x01\u00e9\u2028 \xff"
	var fast, slow bytes.Buffer
	for _, message := range []string{"", "a fault", odd} {
		for _, operation := range []string{"GetJob", "GET /services/{service}", "unknown", odd} {
			for _, status := range []int{0, 200, 500} {
				fast.Reset()
				slow.Reset()
				log := logrus.New()
				x := &exchange{
					server: &Server{config: Config{Log: log}}, remote: "192.0.2.1:1234", id: "0123abcd", service: "broker",
					operation: operation, code: "ok", message: message, started: time.Unix(1_800_000_000, 123_456_000), took: 1234 * time.Microsecond,
				}
				x.in.n, x.out.n, x.out.status = 1024, 77, status
				log.SetOutput(&fast)
				log.SetFormatter(NewLogFormatter())
				x.log(logrus.InfoLevel)
				log.SetOutput(&slow)
				log.SetFormatter(&logrus.JSONFormatter{TimestampFormat: time.RFC3339Nano})
				x.log(logrus.InfoLevel)
				if fast.Len() == 0 || fast.String() != slow.String() {
					t.Errorf("%q %q %d:\n%slogrus:\n%s", operation, message, status, fast.String(), slow.String())
				}
			}
		}
	}
	log := logrus.New()
	log.SetOutput(&fast)
	log.SetFormatter(NewLogFormatter())
	fast.Reset()
	log.WithField("node", "n").Warn("something else")
	if !bytes.Contains(fast.Bytes(), []byte(`"level":"warning","msg":"something else","node":"n","time":"`)) {
		t.Errorf("another line: %s", fast.String())
	}
}
