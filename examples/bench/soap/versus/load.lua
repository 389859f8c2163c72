-- What wrk sends, and the one line that it prints in the end: calls, seconds,
-- the median and the 99th percentile of latency in microseconds, failures.
wrk.method = "POST"
wrk.headers["Content-Type"] = "text/xml; charset=utf-8"
wrk.headers["SOAPAction"] = '"urn:mvm:1#Heartbeat"'
wrk.body = io.open("request.xml"):read("*a")

function done(summary, latency)
    local e = summary.errors
    print(string.format("\nmeasured %d %f %d %d %d", summary.requests, summary.duration / 1e6,
        latency:percentile(50), latency:percentile(99), e.connect + e.read + e.write + e.status + e.timeout))
end
