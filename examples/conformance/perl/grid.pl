#!/usr/bin/perl
# A grid in the hands of SOAP::Lite, which knows nothing of MVM: all it is told
# is an address, all else is in the WSDLs found there.
#
#     grid.pl GRID VERSION FOLDER
#
# GRID is a node's address, http://127.0.0.1:7480; VERSION is that of SOAP, 1.1
# or 1.2. FOLDER holds fft.c and sunspots.csv (../../jobs/sunspots) and any file
# named blob; what comes back is put beside them. The first step that fails ends
# the run. Needs Debian's libsoap-lite-perl.
use strict;
use warnings;
use Digest::SHA qw(sha256_hex);
use List::Util qw(any min);
use MIME::Base64 qw(encode_base64 decode_base64);
use SOAP::Lite;

use constant CHUNK => 4 << 20;    # bytes that PutBlob takes at once
my @ENDED = qw(succeeded failed cancelled);

my ($grid, $version, $folder) = @ARGV;
SOAP::Lite->soapversion($version);
$| = 1;

# A service from the WSDL at an address: what SOAP::Lite finds in it, where each
# operation is and which action it has.
sub bind_service {
    my ($wsdl) = @_;
    my ($service) = values %{ SOAP::Schema->new(schema_url => $wsdl)->parse->services };
    return $service;
}

# Calls an operation and gives the answer. A fault is given too, not thrown.
sub try_call {
    my ($service, $operation, @elements) = @_;
    my $found = $service->{$operation} or die "there is no operation $operation\n";
    return SOAP::Lite->proxy($found->{endpoint}->value, timeout => 120)
        ->default_ns($found->{namespace})                              # all elements are in it
        ->on_action(sub { '"' . $found->{soapaction}->value . '"' })
        ->autotype(0)                                                  # the WSDL has the types
        ->on_fault(sub { ref $_[1] ? $_[1] : die $_[0]->transport->status, ": $_[1]\n" })
        ->call($operation, @elements);
}

sub call {
    my $answer = try_call(@_);
    die $answer->valueof('//GridFault/message') // $answer->faultstring, "\n" if $answer->fault;
    return $answer;
}

# An element: its name, its attributes if any, and its text or its children.
sub e {
    my ($name, @content) = @_;
    my $attributes = ref $content[0] eq 'HASH' ? shift @content : {};
    my $value = !@content ? '' : ref $content[0] ? \SOAP::Data->value(@content) : SOAP::Utils::encode_data($content[0]);
    return SOAP::Data->name($name)->attr($attributes)->value($value);
}

my $tokens = 0;
sub token { return join '-', 'perl', $$, time, $tokens++ }

sub slurp {
    my ($name) = @_;
    open my $file, '<:raw', "$folder/$name" or die "$folder/$name: $!\n";
    local $/;
    return scalar <$file>;
}

sub save {
    my ($name, $data) = @_;
    open my $file, '>:raw', "$folder/$name" or die "$folder/$name: $!\n";
    print $file $data;
    close $file or die "$folder/$name: $!\n";
}

# Every service's WSDL, from where the first one says it is.
my $bootstrap = bind_service("$grid/services/bootstrap?wsdl");
my %services  = map { $_->{name} => bind_service($_->{wsdl}) } call($bootstrap, 'ListServices')->valueof('//service');
my @nodes     = call($services{information}, 'Query')->valueof('//node');
my @vms       = call($services{vm}, 'ListVMs')->valueof('//vm');
print 'import: ', join(' ', sort keys %services), '; ', scalar @nodes, ' nodes, ', scalar @vms, " VMs\n";

my $where  = call($bootstrap, 'GetBroker')->valueof('//GetBrokerResponse');
my $broker = bind_service("$where->{url}?wsdl");
my $image  = bind_service("$where->{image}?wsdl");
print "broker: $where->{url}\n";

sub submit { return call($broker, 'SubmitJob', e(token => token()), e(job => @_))->valueof('//id') }

# Waits for one of some states; gives the answer with the job, and the way it went.
sub follow {
    my ($id, @until) = @_;
    my $answer = call($broker, 'GetJob', e(id => $id));
    my @way = my $state = $answer->valueof('//job/state');
    until (any { $_ eq $state } @until) {
        die "job $id $state: ", $answer->valueof('//job/reason'), "\n" if any { $_ eq $state } @ENDED;
        my $revision = e(revision => $answer->valueof('//job/revision'));
        $answer = call($broker, 'WaitJob', e(id => $id), $revision, e(timeoutMillis => 60000));
        $state = $answer->valueof('//job/state');
        push @way, $state if $state ne $way[-1];
    }
    return ($answer, @way);
}

# An output file of process 0, or its stdout.
sub output {
    my ($id, $name) = @_;
    my ($data, $part) = ('', { next => 0, end => 'false' });
    while ($part->{end} eq 'false') {
        $part = call($broker, 'GetOutput', e(id => $id), e(process => 0), e(name => $name), e(offset => $part->{next}))
            ->valueof('//GetOutputResponse');
        $data .= decode_base64($part->{data} // '');
    }
    return $data;
}

# The sunspots profile. The same token submits once.
my @sunspots = (
    { name => 'sunspots' },
    e(parameter => { name => 'processes', default => '8' }),
    e(parameter => { name => 'nodes', default => '4' }),
    e(source => { name => 'fft', language => 'c' },
        e(file => { name => 'fft.c' }, e(text => slurp('fft.c'))),
        e(flag => '-O2'), e(flag => '-lm')),
    e(task => { name => 'transform', source => 'fft', count => '${processes}' },
        e(argument => 'sunspots.csv'),
        e(input => { name => 'sunspots.csv' }, e(content => encode_base64(slurp('sunspots.csv')))),
        e(output => { name => 'spectrum.csv', process => '0' })),
    e(topology => { kind => 'butterfly', over => 'transform' }),
    e(policy => { wallTime => '120', nodes => '${nodes}' }),
);
my @request = (e(token => token()), e(job => @sunspots), e(argument => { name => 'processes', value => '16' }));
my $id = call($broker, 'SubmitJob', @request)->valueof('//id');
die "one token made two jobs\n" if call($broker, 'SubmitJob', @request)->valueof('//id') ne $id;
print "submit: $id\n";

my ($job, @way) = follow($id, @ENDED);
die $job->valueof('//job/state'), ': ', $job->valueof('//job/reason'), "\n" if $way[-1] ne 'succeeded';
my $processes = join ' ', map { "$_->{index}:$_->{exitCode}" } $job->valueof('//job/process');
die "processes $processes\n" if $processes ne join ' ', map { "$_:0" } 0 .. 15;
print 'follow: ', join(', ', @way), "\n";

save($_, output($id, $_)) for qw(stdout spectrum.csv);
print 'output: ', slurp('stdout');

# A blob goes up and comes down in chunks, under the name of its digest.
my $data   = slurp('blob');
my $size   = length $data;
my $digest = 'sha256:' . sha256_hex($data);
my $blob;
for (my $offset = 0; $offset < $size; $offset += CHUNK) {
    my $chunk = encode_base64(substr($data, $offset, CHUNK), '');
    $blob = call($image, 'PutBlob', e(digest => $digest), e(size => $size), e(offset => $offset), e(data => $chunk))->valueof('//blob');
}
die "the blob is not complete\n" if $blob->{complete} ne 'true' || $blob->{size} != $size;
my $back = '';
while (length $back < $size) {
    $back .= decode_base64(call($image, 'GetBlob', e(digest => $digest), e(offset => length $back))->valueof('//data'));
}
die "the blob came back changed\n" if 'sha256:' . sha256_hex($back) ne $digest;
save('blob.back', $back);
print 'blob: ', length $back, " bytes, $digest\n";

# Queues with an end outside the job, each at the node that holds it.
my $echo = <<'PYTHON';
import mvm
answers = mvm.open("answers")
for item in mvm.open("questions"):
    answers.enqueue(item.upper())
PYTHON
($job) = follow(submit(
    { name => 'shout' },
    e(source => { name => 'echo', language => 'python' }, e(file => { name => 'echo.py' }, e(text => $echo))),
    e(task => { name => 'echo', source => 'echo' }),
    e(edge => { from => 'outside:questions', to => 'echo:questions' }),
    e(edge => { from => 'echo:answers', to => 'outside:answers' }),
), 'running');
$id = $job->valueof('//job/id');
my %queue = map { $_->{name} => bind_service("$_->{url}?wsdl") } $job->valueof('//job/outside');
my @said  = ('who', 'is', 'there', "\0" x 256);
my $accepted = call($queue{questions}, 'Enqueue', e(job => $id), e(queue => 'questions'),
    (map { e(item => encode_base64($_, '')) } @said), e(end => 'true'), e(timeoutMillis => 30000))->valueof('//accepted');
die "$accepted items were taken\n" if $accepted != @said;
my @heard;
for (my $end = 'false'; $end eq 'false';) {
    my $some = call($queue{answers}, 'Dequeue', e(job => $id), e(queue => 'answers'), e(limit => 10), e(timeoutMillis => 30000));
    push @heard, map { decode_base64($_) } $some->valueof('//item');
    $end = $some->valueof('//end');
}
die "wrong items came back: @heard\n" if "@heard" ne join ' ', map { uc } @said;
follow($id, 'succeeded');
print "queue: @heard[0 .. 2]\n";

# Faults are typed: what is wrong, with what, what to do.
my $unknown = try_call($broker, 'GetJob', e(id => 'no-such-job'))->valueof('//GridFault');
die "wrong fault\n" if $unknown->{code} ne 'notFound' || !$unknown->{advice} || !$unknown->{requestId};
my $answer = try_call($broker, 'SubmitJob', e(token => token()), e(job => { name => 'bad' }, e(task => { name => 't', count => 'many' })));
my ($wrong, $problem) = ($answer->valueof('//GridFault'), $answer->valueof('//problem'));
die "wrong fault\n" if $wrong->{code} ne 'invalidProfile' || $problem->{element} !~ /\@count/;
print "fault: $unknown->{code}: $unknown->{message}; $wrong->{code}: $problem->{message}\n";

($job) = follow(submit(
    { name => 'sleeper' },
    e(source => { name => 'sleep', language => 'shell' }, e(file => { name => 's.sh' }, e(text => "exec sleep 600\n"))),
    e(task => { name => 'sleep', source => 'sleep' }),
), 'running');
$id = $job->valueof('//job/id');
call($broker, 'CancelJob', e(id => $id), e(reason => 'enough slept'));
($job, @way) = follow($id, @ENDED);
die "the job $way[-1]\n" if $way[-1] ne 'cancelled';
print 'cancel: ', $job->valueof('//job/reason'), "\n";
