#!/usr/bin/python3
"""A grid in the hands of zeep, a SOAP stack for Python that knows nothing of
MVM: all it is told is an address, all else is in the WSDLs found there.

    grid.py GRID VERSION FOLDER

GRID is a node's address, http://127.0.0.1:7480; VERSION is that of SOAP, 1.1
or 1.2. FOLDER holds fft.c and sunspots.csv (../../jobs/sunspots) and any file
named blob; what comes back is put beside them. The first step that fails ends
the run. Needs Debian's python3-zeep.
"""
import hashlib
import pathlib
import sys
import uuid

import requests
import zeep

ENDED = ("succeeded", "failed", "cancelled")
CHUNK = 4 << 20  # bytes that PutBlob takes at once

ECHO = """
import mvm
answers = mvm.open("answers")
for item in mvm.open("questions"):
    answers.enqueue(item.upper())
"""


def bind(name, wsdl):
    """A service's port of the chosen version. The client keeps its types."""
    clients[name] = zeep.Client(wsdl, transport=transport)
    port = name + ("Port" if version == "1.1" else "Port12")
    return clients[name].bind(name, port)


def submit(job, **arguments):
    arguments = [types.Assignment(name=name, value=value) for name, value in arguments.items()]
    return broker.SubmitJob(token=str(uuid.uuid4()), job=job, argument=arguments)


def follow(ident, until):
    """Waits for one of some states, and gives the job and the way it went."""
    job = broker.GetJob(id=ident)
    way = [job.state]
    while job.state not in until:
        assert job.state not in ENDED, f"job {ident} {job.state}: {job.reason}"
        job = broker.WaitJob(id=ident, revision=job.revision, timeoutMillis=60000)
        if job.state != way[-1]:
            way.append(job.state)
    return job, way


def output(ident, name):
    """An output file of process 0, or its stdout."""
    data, offset, end = b"", 0, False
    while not end:
        part = broker.GetOutput(id=ident, process=0, name=name, offset=offset)
        data += part.data or b""
        offset, end = part.next, part.end
    return data


def fault(operation, **request):
    """The typed detail of the fault that a call must end in."""
    try:
        operation(**request)
    except zeep.exceptions.Fault as error:
        client = clients["Broker"]
        return client.get_element("{urn:mvm:1}GridFault").parse(error.detail[0], client.wsdl.types)
    raise AssertionError("the call was not refused")


grid, version, folder = sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3])
session = requests.Session()
session.trust_env = False  # no proxy between here and the grid
transport = zeep.Transport(session=session, operation_timeout=120)
clients = {}

# Every service's WSDL, from where the first one says it is.
bootstrap = bind("Bootstrap", grid + "/services/bootstrap?wsdl")
names = {"vm": "VM"}
services = {s.name: bind(names.get(s.name, s.name.capitalize()), s.wsdl) for s in bootstrap.ListServices()}
nodes = services["information"].Query()
vms = services["vm"].ListVMs()
print(f"import: {' '.join(sorted(services))}; {len(nodes)} nodes, {len(vms)} VMs")

where = bootstrap.GetBroker()
broker = bind("Broker", where.url + "?wsdl")
image = bind("Image", where.image + "?wsdl")
types = clients["Broker"].type_factory("urn:mvm:1")
print("broker:", where.url)

# The sunspots profile, as objects. The same token submits once.
sunspots = types.Job(
    name="sunspots",
    parameter=[types.Parameter(name="processes", default="8"), types.Parameter(name="nodes", default="4")],
    source=[types.Source(name="fft", language="c", flag=["-O2", "-lm"],
                file=[types.SourceFile(name="fft.c", text=(folder / "fft.c").read_text())])],
    task=[types.Task(name="transform", source="fft", count="${processes}", argument=["sunspots.csv"],
              input=[types.InputFile(name="sunspots.csv", content=(folder / "sunspots.csv").read_bytes())],
              output=[types.OutputFile(name="spectrum.csv", process="0")])],
    topology=[types.Topology(kind="butterfly", over="transform")],
    policy=types.JobPolicy(wallTime="120", nodes="${nodes}"),
)
request = dict(token=str(uuid.uuid4()), job=sunspots, argument=[types.Assignment(name="processes", value="16")])
ident = broker.SubmitJob(**request)
assert broker.SubmitJob(**request) == ident, "one token made two jobs"
print("submit:", ident)

job, way = follow(ident, ENDED)
assert job.state == "succeeded", f"{job.state}: {job.reason}"
assert [(p.index, p.exitCode) for p in job.process] == [(i, 0) for i in range(16)], job.process
assert job.submitted <= job.started <= job.ended
print("follow:", ", ".join(way))

for name in ("stdout", "spectrum.csv"):
    (folder / name).write_bytes(output(ident, name))
print("output:", (folder / "stdout").read_text().strip())

# A blob goes up and comes down in chunks, under the name of its digest.
data = (folder / "blob").read_bytes()
digest = "sha256:" + hashlib.sha256(data).hexdigest()
for offset in range(0, len(data), CHUNK):
    blob = image.PutBlob(digest=digest, size=len(data), offset=offset, data=data[offset:offset + CHUNK])
assert blob.complete and blob.size == len(data), blob
back = b""
while len(back) < blob.size:
    back += image.GetBlob(digest=digest, offset=len(back)).data
assert "sha256:" + hashlib.sha256(back).hexdigest() == digest, "the blob came back changed"
(folder / "blob.back").write_bytes(back)
print("blob:", len(back), "bytes,", digest)

# Queues with an end outside the job, each at the node that holds it.
shout = types.Job(
    name="shout",
    source=[types.Source(name="echo", language="python", file=[types.SourceFile(name="echo.py", text=ECHO)])],
    task=[types.Task(name="echo", source="echo")],
    edge=[types.Edge(**{"from": "outside:questions", "to": "echo:questions"}),
          types.Edge(**{"from": "echo:answers", "to": "outside:answers"})],
)
job, _ = follow(submit(shout), ["running"])
queue = {o.name: bind("Queue", o.url + "?wsdl") for o in job.outside}
said = [b"who", b"is", b"there", bytes(256)]
accepted = queue["questions"].Enqueue(job=job.id, queue="questions", item=said, end=True, timeoutMillis=30000)
assert accepted == len(said), accepted
heard, end = [], False
while not end:
    some = queue["answers"].Dequeue(job=job.id, queue="answers", limit=10, timeoutMillis=30000)
    heard += some.item
    end = some.end
assert heard == [item.upper() for item in said], heard
follow(job.id, ["succeeded"])
print("queue:", *(item.decode() for item in heard[:3]))

# Faults are typed: what is wrong, with what, what to do.
unknown = fault(broker.GetJob, id="no-such-job")
assert unknown.code == "notFound" and unknown.advice and unknown.requestId, unknown
bad = types.Job(name="bad", task=[types.Task(name="t", count="many")])
wrong = fault(broker.SubmitJob, token=str(uuid.uuid4()), job=bad)
assert wrong.code == "invalidProfile" and "@count" in wrong.problem[0].element, wrong
print(f"fault: {unknown.code}: {unknown.message}; {wrong.code}: {wrong.problem[0].message}")

sleeper = types.Job(
    name="sleeper",
    source=[types.Source(name="sleep", language="shell", file=[types.SourceFile(name="s.sh", text="exec sleep 600\n")])],
    task=[types.Task(name="sleep", source="sleep")],
)
job, _ = follow(submit(sleeper), ["running"])
broker.CancelJob(id=job.id, reason="enough slept")
job, _ = follow(job.id, ENDED)
assert job.state == "cancelled", job.state
print("cancel:", job.reason)
