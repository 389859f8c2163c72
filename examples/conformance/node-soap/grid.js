#!/usr/bin/env node
// A grid in the hands of node-soap, which knows nothing of MVM: all it is told
// is an address, all else is in the WSDLs found there.
//
//     npm ci && node grid.js GRID VERSION FOLDER
//
// GRID is a node's address, http://127.0.0.1:7480; VERSION is that of SOAP, 1.1
// or 1.2. FOLDER holds fft.c and sunspots.csv (../../jobs/sunspots) and any
// file named blob; what comes back is put beside them. The first step that
// fails ends the run.
"use strict";
const assert = require("node:assert/strict");
const { createHash, randomUUID } = require("node:crypto");
const { readFileSync, writeFileSync } = require("node:fs");
const { join } = require("node:path");
const soap = require("soap");

const [grid, version, folder] = process.argv.slice(2);
const ENDED = ["succeeded", "failed", "cancelled"];
const CHUNK = 4 << 20; // bytes that PutBlob takes at once

const ECHO = `
import mvm
answers = mvm.open("answers")
for item in mvm.open("questions"):
    answers.enqueue(item.upper())
`;

const read = (name) => readFileSync(join(folder, name));
const save = (name, data) => writeFileSync(join(folder, name), data);
const sha256 = (data) => "sha256:" + createHash("sha256").update(data).digest("hex");
const bytes = (base64) => Buffer.from(base64 ?? "", "base64");
const list = (items) => [items ?? []].flat(); // one item comes without a list

// bind gives a service's operations, in the chosen version, as functions from
// an object to a promise of the answer.
async function bind(name, wsdl) {
  const client = await soap.createClientAsync(wsdl, { forceSoap12Headers: version === "1.2" });
  const port = client[name][name + (version === "1.2" ? "Port12" : "Port")];
  const operations = {};
  for (const [operation, call] of Object.entries(port)) {
    operations[operation] = (request = {}) =>
      new Promise((resolve, reject) => call(request, (error, answer) => (error ? reject(error) : resolve(answer)), { timeout: 120000 }));
  }
  return operations;
}

async function main() {
  // Every service's WSDL, from where the first one says it is.
  const bootstrap = await bind("Bootstrap", grid + "/services/bootstrap?wsdl");
  const services = {};
  for (const { name, wsdl } of (await bootstrap.ListServices()).service) {
    services[name] = await bind(name === "vm" ? "VM" : name[0].toUpperCase() + name.slice(1), wsdl);
  }
  const nodes = (await services.information.Query()).node;
  console.log(`import: ${Object.keys(services).sort().join(" ")}; ${nodes.length} nodes, ${list((await services.vm.ListVMs())?.vm).length} VMs`);

  const where = await bootstrap.GetBroker();
  const broker = await bind("Broker", where.url + "?wsdl");
  const image = await bind("Image", where.image + "?wsdl");
  console.log("broker:", where.url);

  const submit = async (job) => (await broker.SubmitJob({ token: randomUUID(), job })).id;

  // follow waits for one of some states, and gives the job and the way it went.
  async function follow(id, until) {
    let { job } = await broker.GetJob({ id });
    const way = [job.state];
    while (!until.includes(job.state)) {
      assert(!ENDED.includes(job.state), `job ${id} ${job.state}: ${job.reason}`);
      ({ job } = await broker.WaitJob({ id, revision: job.revision, timeoutMillis: 60000 }));
      if (job.state !== way.at(-1)) way.push(job.state);
    }
    return [job, way];
  }

  // output is an output file of process 0, or its stdout.
  async function output(id, name) {
    const parts = [];
    for (let part = { next: 0, end: false }; !part.end; ) {
      part = await broker.GetOutput({ id, process: 0, name, offset: part.next });
      parts.push(bytes(part.data));
    }
    return Buffer.concat(parts);
  }

  // fault is the typed detail of the fault that a call must end in.
  async function fault(operation, request) {
    try {
      await operation(request);
    } catch (error) {
      const { detail, Detail } = error.root.Envelope.Body.Fault;
      return (Detail ?? detail).GridFault;
    }
    assert.fail("the call was not refused");
  }

  // The sunspots profile, as an object. The same token submits once.
  const sunspots = {
    attributes: { name: "sunspots" },
    parameter: [{ attributes: { name: "processes", default: "8" } }, { attributes: { name: "nodes", default: "4" } }],
    source: {
      attributes: { name: "fft", language: "c" },
      file: { attributes: { name: "fft.c" }, text: read("fft.c").toString() },
      flag: ["-O2", "-lm"],
    },
    task: {
      attributes: { name: "transform", source: "fft", count: "${processes}" },
      argument: "sunspots.csv",
      input: { attributes: { name: "sunspots.csv" }, content: read("sunspots.csv").toString("base64") },
      output: { attributes: { name: "spectrum.csv", process: "0" } },
    },
    topology: { attributes: { kind: "butterfly", over: "transform" } },
    policy: { attributes: { wallTime: "120", nodes: "${nodes}" } },
  };
  const request = { token: randomUUID(), job: sunspots, argument: { attributes: { name: "processes", value: "16" } } };
  const { id } = await broker.SubmitJob(request);
  assert.equal((await broker.SubmitJob(request)).id, id, "one token made two jobs");
  console.log("submit:", id);

  const [job, way] = await follow(id, ENDED);
  assert.equal(job.state, "succeeded", job.reason);
  assert.deepEqual(job.process.map((p) => [p.index, p.exitCode]), Array.from({ length: 16 }, (_, i) => [i, 0]));
  assert(job.submitted <= job.started && job.started <= job.ended);
  console.log("follow:", way.join(", "));

  for (const name of ["stdout", "spectrum.csv"]) save(name, await output(id, name));
  console.log("output:", read("stdout").toString().trim());

  // A blob goes up and comes down in chunks, under the name of its digest.
  const data = read("blob");
  const digest = sha256(data);
  let stored;
  for (let offset = 0; offset < data.length; offset += CHUNK) {
    const chunk = data.subarray(offset, offset + CHUNK).toString("base64");
    stored = (await image.PutBlob({ digest, size: data.length, offset, data: chunk })).blob;
  }
  assert(stored.complete && stored.size === data.length, stored);
  const parts = [];
  for (let offset = 0; offset < stored.size; offset += parts.at(-1).length) {
    parts.push(bytes((await image.GetBlob({ digest, offset })).data));
  }
  const back = Buffer.concat(parts);
  assert.equal(sha256(back), digest, "the blob came back changed");
  save("blob.back", back);
  console.log("blob:", back.length, "bytes,", digest);

  // Queues with an end outside the job, each at the node that holds it.
  const shout = {
    attributes: { name: "shout" },
    source: { attributes: { name: "echo", language: "python" }, file: { attributes: { name: "echo.py" }, text: ECHO } },
    task: { attributes: { name: "echo", source: "echo" } },
    edge: [
      { attributes: { from: "outside:questions", to: "echo:questions" } },
      { attributes: { from: "echo:answers", to: "outside:answers" } },
    ],
  };
  const [running] = await follow(await submit(shout), ["running"]);
  const queue = {};
  for (const { name, url } of running.outside) queue[name] = await bind("Queue", url + "?wsdl");
  const said = ["who", "is", "there", "\0".repeat(256)];
  const { accepted } = await queue.questions.Enqueue({
    job: running.id, queue: "questions", item: said.map((item) => Buffer.from(item).toString("base64")), end: true, timeoutMillis: 30000,
  });
  assert.equal(accepted, said.length);
  const heard = [];
  for (let end = false; !end; ) {
    const some = await queue.answers.Dequeue({ job: running.id, queue: "answers", limit: 10, timeoutMillis: 30000 });
    heard.push(...list(some.item).map((item) => bytes(item).toString()));
    end = some.end;
  }
  assert.deepEqual(heard, said.map((item) => item.toUpperCase()));
  await follow(running.id, ["succeeded"]);
  console.log("queue:", ...heard.slice(0, 3));

  // Faults are typed: what is wrong, with what, what to do.
  const unknown = await fault(broker.GetJob, { id: "no-such-job" });
  assert(unknown.code === "notFound" && unknown.advice && unknown.requestId, unknown);
  const bad = { attributes: { name: "bad" }, task: { attributes: { name: "t", count: "many" } } };
  const wrong = await fault(broker.SubmitJob, { token: randomUUID(), job: bad });
  const problem = list(wrong.problem)[0];
  assert(wrong.code === "invalidProfile" && problem.element.includes("@count"), wrong);
  console.log(`fault: ${unknown.code}: ${unknown.message}; ${wrong.code}: ${problem.message}`);

  const sleeper = {
    attributes: { name: "sleeper" },
    source: { attributes: { name: "sleep", language: "shell" }, file: { attributes: { name: "s.sh" }, text: "exec sleep 600\n" } },
    task: { attributes: { name: "sleep", source: "sleep" } },
  };
  const [asleep] = await follow(await submit(sleeper), ["running"]);
  await broker.CancelJob({ id: asleep.id, reason: "enough slept" });
  const [ended] = await follow(asleep.id, ENDED);
  assert.equal(ended.state, "cancelled");
  console.log("cancel:", ended.reason);
}

main().catch((error) => {
  console.error(error.stack ?? error);
  process.exitCode = 1;
});
