package soap

import (
	"bytes"
	"net/http"
	"strconv"
	"time"

	"github.com/sirupsen/logrus"
)

// NewLogFormatter returns a formatter that writes what logrus's JSON formatter
// writes with times as in RFC 3339, to the byte. The line of a call it writes
// without a map, reflection and sorting, which cost more than the call's codec.
func NewLogFormatter() logrus.Formatter {
	return &logFormatter{logrus.JSONFormatter{TimestampFormat: time.RFC3339Nano}}
}

type logFormatter struct{ rest logrus.JSONFormatter }

func (f *logFormatter) Format(e *logrus.Entry) ([]byte, error) {
	x, ok := e.Context.(*exchange)
	if !ok {
		return f.rest.Format(e)
	}
	b := e.Buffer
	if b == nil || len(e.Data) > 0 || e.Caller != nil || x.message != "" || !verbatim(x.code) || !verbatim(x.operation) || !verbatim(x.remote) || !verbatim(x.id) || !verbatim(x.service) {
		return f.rest.Format(&logrus.Entry{
			Logger: e.Logger, Time: e.Time, Level: e.Level, Message: e.Message, Caller: e.Caller, Buffer: b, Data: x.fields(),
		})
	}
	line := append(b.AvailableBuffer(), `{"code":"`...)
	line = append(line, x.code...)
	line = append(line, `","in":`...)
	line = strconv.AppendInt(line, x.in.n, 10)
	line = append(line, `,"level":"`...)
	line = append(line, e.Level.String()...)
	line = append(line, `","micros":`...)
	line = strconv.AppendInt(line, x.took.Microseconds(), 10)
	line = append(line, `,"msg":"`...)
	line = append(line, e.Message...)
	line = append(line, `","operation":"`...)
	line = append(line, x.operation...)
	line = append(line, `","out":`...)
	line = strconv.AppendInt(line, x.out.n, 10)
	line = append(line, `,"remote":"`...)
	line = append(line, x.remote...)
	line = append(line, `","request":"`...)
	line = append(line, x.id...)
	line = append(line, `","service":"`...)
	line = append(line, x.service...)
	line = append(line, `","status":`...)
	line = strconv.AppendInt(line, int64(x.status()), 10)
	line = append(line, `,"time":"`...)
	line = e.Time.AppendFormat(line, time.RFC3339Nano)
	line = append(line, "\"}\n"...)
	b.Write(line)
	return b.Bytes(), nil
}

// verbatim says whether JSON writes a text as it is.
func verbatim(s string) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case c < ' ' || c >= 0x7f, c == '"', c == '\\', c == '<', c == '>', c == '&':
			return false
		}
	}
	return true
}

// fields are what the line of a call says.
func (x *exchange) fields() logrus.Fields {
	fields := logrus.Fields{
		"request": x.id, "remote": x.remote, "service": x.service, "operation": x.operation,
		"status": x.status(), "code": x.code, "in": x.in.n, "out": x.out.n, "micros": x.took.Microseconds(),
	}
	if x.message != "" {
		fields["fault"] = x.message
	}
	return fields
}

// status is that of HTTP.
func (x *exchange) status() int {
	if x.out.status == 0 {
		return http.StatusOK
	}
	return x.out.status
}

// log writes the line of a call.
func (x *exchange) log(level logrus.Level) {
	log := x.server.config.Log
	if !log.IsLevelEnabled(level) {
		return
	}
	line := logrus.Entry{Logger: log, Time: x.started.Add(x.took)}
	if _, ok := log.Formatter.(*logFormatter); ok {
		line.Context = x
	} else {
		line.Data = x.fields()
	}
	line.Log(level, "request")
}

// logWriter brings what net/http has to say into the log.
type logWriter struct{ log *logrus.Logger }

func (w logWriter) Write(p []byte) (int, error) {
	w.log.Debug(string(bytes.TrimRight(p, "\n")))
	return len(p), nil
}
