#!/usr/bin/env php
<?php
/* A grid in the hands of PHP's SoapClient, which knows nothing of MVM: all it
 * is told is an address, all else is in the WSDLs found there.
 *
 *     grid.php GRID VERSION FOLDER
 *
 * GRID is a node's address, http://127.0.0.1:7480; VERSION is that of SOAP, 1.1
 * or 1.2. FOLDER holds fft.c and sunspots.csv (../../jobs/sunspots) and any
 * file named blob; what comes back is put beside them. The first step that
 * fails ends the run. Needs Debian's php-cli and php-soap.
 */
declare(strict_types=1);
[, $grid, $version, $folder] = $argv;

const ENDED = ['succeeded', 'failed', 'cancelled'];
const CHUNK = 4 << 20; // bytes that PutBlob takes at once
const SHOUT = <<<'PYTHON'
    import mvm
    answers = mvm.open("answers")
    for item in mvm.open("questions"):
        answers.enqueue(item.upper())

    PYTHON;

function check(bool $condition, string $message): void
{
    if (!$condition) {
        throw new Exception($message);
    }
}

/** A service, from the WSDL at an address. */
function bind(string $wsdl): SoapClient
{
    global $version;
    return new SoapClient($wsdl, [
        'soap_version' => $version === '1.2' ? SOAP_1_2 : SOAP_1_1,
        'features' => SOAP_SINGLE_ELEMENT_ARRAYS,
        'cache_wsdl' => WSDL_CACHE_NONE,
    ]);
}

function submit(array $job): string
{
    global $broker;
    return $broker->SubmitJob(['token' => bin2hex(random_bytes(16)), 'job' => $job])->id;
}

/** Waits for one of some states; $way becomes the way the job went. */
function follow(string $id, array $until, ?array &$way = null): object
{
    global $broker;
    $job = $broker->GetJob(['id' => $id])->job;
    $way = [$job->state];
    while (!in_array($job->state, $until)) {
        check(!in_array($job->state, ENDED), "job $id $job->state: " . ($job->reason ?? ''));
        $job = $broker->WaitJob(['id' => $id, 'revision' => $job->revision, 'timeoutMillis' => 30000])->job;
        if ($job->state !== end($way)) {
            $way[] = $job->state;
        }
    }
    return $job;
}

/** An output file of process 0, or its stdout. */
function output(string $id, string $name): string
{
    global $broker;
    $data = '';
    do {
        $part = $broker->GetOutput(['id' => $id, 'process' => 0, 'name' => $name, 'offset' => strlen($data)]);
        $data .= $part->data ?? '';
    } while (!$part->end);
    return $data;
}

/** The typed detail of the fault that a call must end in. */
function fault(SoapClient $service, string $operation, array $request): object
{
    try {
        $service->$operation($request);
    } catch (SoapFault $fault) {
        return $fault->detail->GridFault;
    }
    throw new Exception("$operation was not refused");
}

// Every service's WSDL, from where the first one says it is.
$bootstrap = bind("$grid/services/bootstrap?wsdl");
$services = [];
foreach ($bootstrap->ListServices()->service as $service) {
    $services[$service->name] = bind($service->wsdl);
}
ksort($services);
$nodes = $services['information']->Query()->node;
$vms = $services['vm']->ListVMs()->vm ?? [];
echo 'import: ', implode(' ', array_keys($services)), '; ', count($nodes), ' nodes, ', count($vms), " VMs\n";

$where = $bootstrap->GetBroker();
$broker = bind("$where->url?wsdl");
$image = bind("$where->image?wsdl");
echo "broker: $where->url\n";

// The sunspots profile, as an object. The same token submits once.
$sunspots = [
    'name' => 'sunspots',
    'parameter' => [['name' => 'processes', 'default' => '8'], ['name' => 'nodes', 'default' => '4']],
    'source' => [[
        'name' => 'fft', 'language' => 'c',
        'file' => [['name' => 'fft.c', 'text' => file_get_contents("$folder/fft.c")]],
        'flag' => ['-O2', '-lm'],
    ]],
    'task' => [[
        'name' => 'transform', 'source' => 'fft', 'count' => '${processes}',
        'argument' => ['sunspots.csv'],
        'input' => [['name' => 'sunspots.csv', 'content' => file_get_contents("$folder/sunspots.csv")]],
        'output' => [['name' => 'spectrum.csv', 'process' => '0']],
    ]],
    'topology' => [['kind' => 'butterfly', 'over' => 'transform']],
    'policy' => ['wallTime' => '120', 'nodes' => '${nodes}'],
];
$request = ['token' => bin2hex(random_bytes(16)), 'job' => $sunspots, 'argument' => [['name' => 'processes', 'value' => '16']]];
$id = $broker->SubmitJob($request)->id;
check($broker->SubmitJob($request)->id === $id, 'one token made two jobs');
echo "submit: $id\n";

$job = follow($id, ENDED, $way);
check($job->state === 'succeeded', "$job->state: " . ($job->reason ?? ''));
check(array_map(fn ($p) => [$p->index, $p->exitCode], $job->process) === array_map(fn ($i) => [$i, 0], range(0, 15)), 'wrong processes');
check(strtotime($job->submitted) <= strtotime($job->started) && strtotime($job->started) <= strtotime($job->ended), 'wrong times');
echo 'follow: ', implode(', ', $way), "\n";

foreach (['stdout', 'spectrum.csv'] as $name) {
    file_put_contents("$folder/$name", output($id, $name));
}
echo 'output: ', file_get_contents("$folder/stdout");

// A blob goes up and comes down in chunks, under the name of its digest.
$data = file_get_contents("$folder/blob");
$digest = 'sha256:' . hash('sha256', $data);
for ($offset = 0; $offset < strlen($data); $offset += CHUNK) {
    $chunk = substr($data, $offset, CHUNK);
    $blob = $image->PutBlob(['digest' => $digest, 'size' => strlen($data), 'offset' => $offset, 'data' => $chunk])->blob;
}
check($blob->complete && $blob->size === strlen($data), 'the blob is not complete');
$back = '';
while (strlen($back) < $blob->size) {
    $back .= $image->GetBlob(['digest' => $digest, 'offset' => strlen($back)])->data;
}
check('sha256:' . hash('sha256', $back) === $digest, 'the blob came back changed');
file_put_contents("$folder/blob.back", $back);
echo 'blob: ', strlen($back), " bytes, $digest\n";

// Queues with an end outside the job, each at the node that holds it.
$shout = [
    'name' => 'shout',
    'source' => [['name' => 'echo', 'language' => 'python', 'file' => [['name' => 'echo.py', 'text' => SHOUT]]]],
    'task' => [['name' => 'echo', 'source' => 'echo']],
    'edge' => [['from' => 'outside:questions', 'to' => 'echo:questions'], ['from' => 'echo:answers', 'to' => 'outside:answers']],
];
$job = follow(submit($shout), ['running']);
foreach ($job->outside as $outside) {
    $queue[$outside->name] = bind("$outside->url?wsdl");
}
$said = ['who', 'is', 'there', str_repeat("\0", 256)];
$accepted = $queue['questions']->Enqueue(
    ['job' => $job->id, 'queue' => 'questions', 'item' => $said, 'end' => true, 'timeoutMillis' => 30000])->accepted;
check($accepted === count($said), "$accepted items were taken");
$heard = [];
do {
    $some = $queue['answers']->Dequeue(['job' => $job->id, 'queue' => 'answers', 'limit' => 10, 'timeoutMillis' => 30000]);
    array_push($heard, ...$some->item ?? []);
} while (!$some->end);
check($heard === array_map('strtoupper', $said), 'wrong items came back');
follow($job->id, ['succeeded']);
echo 'queue: ', implode(' ', array_slice($heard, 0, 3)), "\n";

// Faults are typed: what is wrong, with what, what to do.
$unknown = fault($broker, 'GetJob', ['id' => 'no-such-job']);
check($unknown->code === 'notFound' && $unknown->advice && $unknown->requestId, 'wrong fault');
$bad = ['name' => 'bad', 'task' => [['name' => 't', 'count' => 'many']]];
$wrong = fault($broker, 'SubmitJob', ['token' => bin2hex(random_bytes(16)), 'job' => $bad]);
$problem = is_array($wrong->problem) ? $wrong->problem[0] : $wrong->problem; // in a detail, one comes without its array
check($wrong->code === 'invalidProfile' && str_contains($problem->element, '@count'), 'wrong fault');
echo "fault: $unknown->code: $unknown->message; $wrong->code: $problem->message\n";

$sleeper = [
    'name' => 'sleeper',
    'source' => [['name' => 'sleep', 'language' => 'shell', 'file' => [['name' => 's.sh', 'text' => "exec sleep 600\n"]]]],
    'task' => [['name' => 'sleep', 'source' => 'sleep']],
];
$job = follow(submit($sleeper), ['running']);
$broker->CancelJob(['id' => $job->id, 'reason' => 'enough slept']);
$job = follow($job->id, ENDED);
check($job->state === 'cancelled', $job->state);
echo "cancel: $job->reason\n";
