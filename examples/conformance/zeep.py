#!/usr/bin/python3
"""A grid in the hands of zeep, a SOAP stack that knows nothing of MVM.

    zeep.py GRID

GRID is a node's address (http://127.0.0.1:7480) or that of its bootstrap
service. Everything else comes from the WSDLs that the grid publishes: the
broker's address, the types of a job profile, the fault. Each step is done in
SOAP 1.1 and in SOAP 1.2; the first that fails ends the run with status 1.

Needs Debian's python3-zeep.
"""
import hashlib
import sys
import time
import uuid

del sys.path[0]  # this folder, where "zeep" is this file
import requests
import zeep
from zeep.transports import Transport

PROGRAM = """#!/bin/sh
# prints: zeep asked for 42
echo "zeep asked for $((6 * $1))"
"""
EXPECTED = b"zeep asked for 42\n"


class Grid:
    """The grid's services, bound in one version of SOAP."""

    def __init__(self, address, version):
        self.version = version
        self.port = {"1.1": "Port", "1.2": "Port12"}[version]
        self.session = requests.Session()
        self.session.trust_env = False
        self.clients = {}
        bootstrap = self.bind("Bootstrap", address + "/services/bootstrap?wsdl")
        self.bootstrap = bootstrap
        services = bootstrap.ListServices()
        for service in services:
            self.bind(service.name.capitalize(), service.wsdl)
        where = bootstrap.GetBroker()
        self.broker = self.bind("Broker", where.url + "?wsdl")
        self.image = self.bind("Image", where.image + "?wsdl")
        print(f"SOAP {version}: imported {', '.join(sorted(self.clients))}")

    def bind(self, name, wsdl):
        transport = Transport(session=self.session, timeout=60, operation_timeout=120)
        client = zeep.Client(wsdl, transport=transport)
        self.clients[name] = client
        return client.bind(name, name + self.port)

    def type(self, name):
        return self.clients["Broker"].get_type("{urn:mvm:1}" + name)

    def fault(self, error):
        """The typed detail of a fault."""
        detail = error.detail
        element = detail.find(".//{urn:mvm:1}GridFault")
        check(element is not None, f"the fault has no detail: {error}")
        return self.clients["Broker"].get_element("{urn:mvm:1}GridFault").parse(element, self.clients["Broker"].wsdl.types)


def check(condition, message):
    if not condition:
        sys.exit("zeep.py: " + message)


def submit(grid):
    job = grid.type("Job")(
        name="zeep",
        description="One shell process that multiplies.",
        parameter=[grid.type("Parameter")(name="factor", default="3")],
        source=[grid.type("Source")(
            name="multiply", language="shell",
            file=[grid.type("SourceFile")(name="multiply.sh", text=PROGRAM)])],
        task=[grid.type("Task")(name="multiply", source="multiply", count="1", argument=["${factor}"])],
        policy=grid.type("JobPolicy")(wallTime="60"),
    )
    token = str(uuid.uuid4())
    factor = grid.type("Assignment")(name="factor", value="7")
    ident = grid.broker.SubmitJob(token=token, job=job, argument=[factor])
    again = grid.broker.SubmitJob(token=token, job=job, argument=[factor])
    check(ident == again, f"one token, two jobs: {ident}, {again}")
    return ident


def wait(grid, ident):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        job = grid.broker.WaitJob(id=ident, timeoutMillis=10000)
        if job.state in ("succeeded", "failed", "cancelled"):
            return job
    check(False, f"job {ident} did not end: {job.state}, {job.reason}")


def output(grid, ident):
    data, offset, end = b"", 0, False
    while not end:
        part = grid.broker.GetOutput(id=ident, process=0, name="stdout", offset=offset)
        data += part.data or b""
        offset, end = part.next, part.end
    return data


def refused(grid, what, call):
    try:
        call()
    except zeep.exceptions.Fault as error:
        return grid.fault(error)
    check(False, f"{what} was not refused")


def run(address, version):
    grid = Grid(address, version)
    ident = submit(grid)
    job = wait(grid, ident)
    check(job.state == "succeeded", f"job {ident} {job.state}: {job.reason}")
    check(job.process[0].exitCode == 0 and job.process[0].index == 0, f"process: {job.process[0]}")
    got = output(grid, ident)
    check(got == EXPECTED, f"output {got!r}, expected {EXPECTED!r}")
    print(f"SOAP {version}: job {ident} printed {got!r}")
    check(grid.broker.CancelJob(id=ident) == "succeeded", "cancelling an ended job changed it")
    grid.broker.ListJobs(limit=10)

    blob = bytes(range(256)) * 1000
    digest = "sha256:" + hashlib.sha256(blob).hexdigest()
    stored = grid.image.PutBlob(digest=digest, size=len(blob), offset=0, data=blob)
    check(stored.complete is True and stored.size == len(blob), f"stored: {stored}")
    back = grid.image.GetBlob(digest=digest)
    check(back.data == blob, "the blob came back changed")
    print(f"SOAP {version}: a blob of {len(blob)} bytes went there and back")

    fault = refused(grid, "an unknown job", lambda: grid.broker.GetJob(id="no-such-job"))
    check(fault.code == "notFound" and fault.advice and fault.requestId, f"fault: {fault}")
    bad = grid.type("Job")(name="bad", task=[grid.type("Task")(name="t", count="many")])
    fault = refused(grid, "a bad profile", lambda: grid.broker.SubmitJob(token=str(uuid.uuid4()), job=bad))
    check(fault.code == "invalidProfile" and any("count" in p.element for p in fault.problem), f"fault: {fault}")
    print(f"SOAP {version}: faults arrive typed: {fault.problem[0].message}")


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    address = sys.argv[1].split("?")[0].rstrip("/")
    for suffix in ("/services/bootstrap", "/bootstrap"):
        address = address.removesuffix(suffix)
    for version in ("1.1", "1.2"):
        run(address, version)


main()
