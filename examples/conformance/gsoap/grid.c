/* A grid in the hands of gSOAP: build.sh makes the C types and calls from the
 * WSDLs of a running grid, in strict mode, and this program uses them.
 *
 *     grid GRID VERSION FOLDER
 *
 * GRID is a node's address, http://127.0.0.1:7480; VERSION is that of SOAP, 1.1
 * or 1.2. FOLDER holds fft.c and sunspots.csv (../../jobs/sunspots) and any
 * file named blob; what comes back is put beside them. The first step that
 * fails ends the run.
 */
#include "BootstrapBinding.nsmap"
#include "soapH.h"
#include <ctype.h>
#include <openssl/evp.h>

#define CHUNK (4 << 20) /* bytes that PutBlob takes at once */
#define LENGTH(list) ((int)(sizeof(list) / sizeof *(list)))

typedef struct xsd__base64Binary binary;
typedef struct mvm__JobStatus status;

static struct soap *soap;
static char *broker, *folder;
static enum xsd__boolean yes = xsd__boolean__true_;
static int patience = 60000; /* milliseconds */

/* call(URL, OPERATION, &ANSWER, .field = value...): ANSWER lives until the end. */
#define call(url, operation, answer, ...)                                                               \
    do {                                                                                                \
        if (soap_call___mvm__##operation(soap, url, NULL, &(struct _mvm__##operation){__VA_ARGS__}, answer)) { \
            fprintf(stderr, #operation ": ");                                                           \
            soap_print_fault(soap, stderr);                                                             \
            exit(1);                                                                                    \
        }                                                                                               \
    } while (0)

#define check(condition, ...)             \
    do {                                  \
        if (!(condition)) {               \
            fprintf(stderr, __VA_ARGS__); \
            fprintf(stderr, "\n");        \
            exit(1);                      \
        }                                 \
    } while (0)

static char *print(const char *format, ...) {
    va_list args;
    va_start(args, format);
    char text[1000];
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    return soap_strdup(soap, text);
}

static binary load(const char *name) {
    FILE *f = fopen(print("%s/%s", folder, name), "rb");
    check(f, "%s/%s cannot be read", folder, name);
    fseek(f, 0, SEEK_END);
    binary data = {.__size = ftell(f)};
    rewind(f);
    data.__ptr = soap_malloc(soap, data.__size + 1);
    check(fread(data.__ptr, 1, data.__size, f) == (size_t)data.__size, "%s is cut short", name);
    data.__ptr[data.__size] = 0; /* also a string */
    fclose(f);
    return data;
}

static FILE *create(const char *name) {
    FILE *f = fopen(print("%s/%s", folder, name), "wb");
    check(f, "%s/%s cannot be written", folder, name);
    return f;
}

/* A token of the caller's own choice: with it, a repeated call submits once. */
static char *token(void) {
    static int count;
    return print("gsoap-%d-%ld-%d", getpid(), (long)time(NULL), count++);
}

static char *submit(struct mvm__Job *job) {
    struct _mvm__SubmitJobResponse answer;
    call(broker, SubmitJob, &answer, .token = token(), .job = job);
    return answer.id;
}

static const char *named(enum mvm__JobState state) { return soap_mvm__JobState2s(soap, state); }

/* Waits until a job is in a state, and writes the way it went to `way`. */
static status follow(char *id, enum mvm__JobState until, char *way) {
    struct _mvm__GetJobResponse first;
    call(broker, GetJob, &first, .id = id);
    status job = *first.job;
    way += sprintf(way, "%s", named(job.state));
    while (job.state != until) {
        check(job.state < mvm__JobState__succeeded, "job %s %s: %s", id, named(job.state), job.reason);
        struct _mvm__WaitJobResponse next;
        call(broker, WaitJob, &next, .id = id, .revision = &job.revision, .timeoutMillis = &patience);
        if (next.job->state != job.state) way += sprintf(way, ", %s", named(next.job->state));
        job = *next.job;
    }
    return job;
}

/* Saves an output file of process 0, or its stdout. */
static void save(char *id, char *name) {
    FILE *f = create(name);
    struct _mvm__GetOutputResponse part;
    LONG64 offset = 0;
    do {
        call(broker, GetOutput, &part, .id = id, .process = &(int){0}, .name = name, .offset = &offset);
        fwrite(part.data.__ptr, 1, part.data.__size, f);
        offset = *part.next;
    } while (*part.end != yes);
    fclose(f);
}

/* The typed detail of the fault that the last call ended in. */
static struct _mvm__GridFault *fault(void) {
    check(soap->fault, "the call was not refused by a fault");
    struct SOAP_ENV__Detail *detail = soap->version == 2 ? soap->fault->SOAP_ENV__Detail : soap->fault->detail;
    check(detail && detail->mvm__GridFault, "the fault has no typed detail");
    return detail->mvm__GridFault;
}

static char *sha256(binary data) {
    unsigned char sum[32];
    EVP_Q_digest(NULL, "SHA256", NULL, data.__ptr, data.__size, sum, NULL);
    char text[80] = "sha256:";
    for (int i = 0; i < 32; i++) sprintf(text + 7 + 2 * i, "%02x", sum[i]);
    return soap_strdup(soap, text);
}

/* The sunspots profile, as objects, submitted twice with one token. */
static char *sunspots(void) {
    enum mvm__TopologyKind butterfly = mvm__TopologyKind__butterfly;
    struct mvm__Job job = {
        .name = "sunspots",
        .__sizeparameter = 2,
        .parameter = (struct mvm__Parameter[]){{.name = "processes", .default_ = "8"}, {.name = "nodes", .default_ = "4"}},
        .__sizesource = 1,
        .source = &(struct mvm__Source){
            .name = "fft", .language = mvm__Language__c,
            .__sizefile = 1, .file = &(struct mvm__SourceFile){.name = "fft.c", .text = (char *)load("fft.c").__ptr},
            .__sizeflag = 2, .flag = (char *[]){"-O2", "-lm"}},
        .__sizetask = 1,
        .task = &(struct mvm__Task){
            .name = "transform", .source = "fft", .count = "${processes}",
            .__sizeargument = 1, .argument = (char *[]){"sunspots.csv"},
            .__sizeinput = 1, .input = &(struct mvm__InputFile){.name = "sunspots.csv", .content = load("sunspots.csv")},
            .__sizeoutput = 1, .output = &(struct mvm__OutputFile){.name = "spectrum.csv", .process = "0"}},
        .__sizetopology = 1,
        .topology = &(struct mvm__Topology){.kind = &butterfly, .over = "transform"},
        .policy = &(struct mvm__JobPolicy){.wallTime = "120", .nodes = "${nodes}"},
    };
    struct mvm__Assignment processes = {.name = "processes", .value = "16"};
    struct _mvm__SubmitJobResponse first, again;
    char *once = token();
    call(broker, SubmitJob, &first, .token = once, .job = &job, .__sizeargument = 1, .argument = &processes);
    call(broker, SubmitJob, &again, .token = once, .job = &job, .__sizeargument = 1, .argument = &processes);
    check(!strcmp(first.id, again.id), "one token made two jobs: %s, %s", first.id, again.id);
    return first.id;
}

/* A blob goes up and comes down in chunks, under the name of its digest. */
static void blob(char *image) {
    binary data = load("blob");
    char *digest = sha256(data);
    LONG64 size = data.__size, offset;
    struct _mvm__PutBlobResponse put = {0};
    for (offset = 0; offset < size; offset += CHUNK) {
        binary chunk = {.__ptr = data.__ptr + offset, .__size = size - offset < CHUNK ? size - offset : CHUNK};
        call(image, PutBlob, &put, .digest = digest, .size = &size, .offset = &offset, .data = chunk);
    }
    check(*put.blob->complete == yes && *put.blob->size == size, "the blob is not complete");
    binary back = {.__ptr = soap_malloc(soap, size), .__size = size};
    struct _mvm__GetBlobResponse got;
    for (offset = 0; offset < size; offset += got.data.__size) {
        call(image, GetBlob, &got, .digest = digest, .offset = &offset);
        check(got.data.__size > 0 && got.data.__size <= size - offset, "the blob has another size");
        memcpy(back.__ptr + offset, got.data.__ptr, got.data.__size);
    }
    check(!strcmp(sha256(back), digest), "the blob came back changed");
    FILE *f = create("blob.back");
    fwrite(back.__ptr, 1, back.__size, f);
    fclose(f);
    printf("blob: %d bytes, %s\n", back.__size, digest);
}

/* Queues with an end outside the job, each at the node that holds it. */
static void queue(void) {
    struct mvm__Job shout = {
        .name = "shout",
        .__sizesource = 1,
        .source = &(struct mvm__Source){
            .name = "echo", .language = mvm__Language__python,
            .__sizefile = 1, .file = &(struct mvm__SourceFile){.name = "echo.py", .text =
                "import mvm\n"
                "answers = mvm.open('answers')\n"
                "for item in mvm.open('questions'):\n"
                "    answers.enqueue(item.upper())\n"}},
        .__sizetask = 1,
        .task = &(struct mvm__Task){.name = "echo", .source = "echo"},
        .__sizeedge = 2,
        .edge = (struct mvm__Edge[]){{.from = "outside:questions", .to = "echo:questions"},
                                     {.from = "echo:answers", .to = "outside:answers"}},
    };
    char way[200], *questions = NULL, *answers = NULL;
    status job = follow(submit(&shout), mvm__JobState__running, way);
    for (int i = 0; i < job.__sizeoutside; i++)
        *(strcmp(job.outside[i].name, "questions") ? &answers : &questions) = job.outside[i].url;
    check(questions && answers, "the job names no outside queues");

    unsigned char zeros[256] = {0};
    binary said[] = {{.__ptr = (unsigned char *)"who", .__size = 3}, {.__ptr = (unsigned char *)"is", .__size = 2},
                     {.__ptr = (unsigned char *)"there", .__size = 5}, {.__ptr = zeros, .__size = sizeof zeros}};
    struct _mvm__EnqueueResponse enqueued;
    call(questions, Enqueue, &enqueued, .job = job.id, .queue = "questions", .__sizeitem = LENGTH(said), .item = said,
         .end = &yes, .timeoutMillis = &patience);
    check(*enqueued.accepted == LENGTH(said), "%d items were taken", *enqueued.accepted);

    printf("queue:");
    int heard = 0;
    struct _mvm__DequeueResponse some;
    do {
        call(answers, Dequeue, &some, .job = job.id, .queue = "answers", .limit = &(int){10}, .timeoutMillis = &patience);
        for (int i = 0; i < some.__sizeitem; i++, heard++) {
            binary want = said[heard], item = some.item[i];
            check(heard < LENGTH(said) && item.__size == want.__size, "item %d has %d bytes", heard, item.__size);
            for (int c = 0; c < want.__size; c++) check(item.__ptr[c] == toupper(want.__ptr[c]), "item %d is wrong", heard);
            if (want.__ptr != zeros) printf(" %.*s", item.__size, (char *)item.__ptr);
        }
    } while (*some.end != yes);
    check(heard == LENGTH(said), "%d items came back", heard);
    follow(job.id, mvm__JobState__succeeded, way);
    printf("\n");
}

/* Faults are typed: what is wrong, with what, what to do. */
static void faults(void) {
    struct _mvm__GetJobResponse job;
    soap_call___mvm__GetJob(soap, broker, NULL, &(struct _mvm__GetJob){.id = "no-such-job"}, &job);
    struct _mvm__GridFault *unknown = fault();
    check(unknown->code == mvm__FaultCode__notFound && unknown->advice && unknown->requestId, "wrong fault: %s", unknown->message);

    struct mvm__Job bad = {.name = "bad", .__sizetask = 1, .task = &(struct mvm__Task){.name = "t", .count = "many"}};
    struct _mvm__SubmitJobResponse id;
    soap_call___mvm__SubmitJob(soap, broker, NULL, &(struct _mvm__SubmitJob){.token = token(), .job = &bad}, &id);
    struct _mvm__GridFault *wrong = fault();
    check(wrong->code == mvm__FaultCode__invalidProfile && wrong->__sizeproblem > 0 && strstr(wrong->problem[0].element, "@count"),
          "wrong fault: %s", wrong->message);
    printf("fault: %s: %s; %s: %s\n", soap_mvm__FaultCode2s(soap, unknown->code), unknown->message,
           soap_mvm__FaultCode2s(soap, wrong->code), wrong->problem[0].message);
}

static void cancel(void) {
    struct mvm__Job sleeper = {
        .name = "sleeper",
        .__sizesource = 1,
        .source = &(struct mvm__Source){.name = "sleep", .language = mvm__Language__shell, .__sizefile = 1,
                                        .file = &(struct mvm__SourceFile){.name = "s.sh", .text = "exec sleep 600\n"}},
        .__sizetask = 1,
        .task = &(struct mvm__Task){.name = "sleep", .source = "sleep"},
    };
    char way[200];
    status job = follow(submit(&sleeper), mvm__JobState__running, way);
    struct _mvm__CancelJobResponse answer;
    call(broker, CancelJob, &answer, .id = job.id, .reason = "enough slept");
    job = follow(job.id, mvm__JobState__cancelled, way);
    printf("cancel: %s\n", job.reason);
}

int main(int argc, char **argv) {
    check(argc == 4, "usage: grid GRID VERSION FOLDER");
    for (int i = 0; i < 2 && !strcmp(argv[2], "1.1"); i++) {
        /* Of SOAP's own namespaces, the first is what is spoken: 1.2's. */
        const char *first = namespaces[i].ns;
        namespaces[i].ns = namespaces[i].in;
        namespaces[i].in = first;
    }
    soap = soap_new1(SOAP_XML_STRICT | SOAP_C_UTFSTRING);
    soap->recv_timeout = 120;
    folder = argv[3];
    setvbuf(stdout, NULL, _IOLBF, 0);

    /* Every service is where the first one says it is. */
    char *bootstrap = print("%s/services/bootstrap", argv[1]), *information = NULL, *vm = NULL;
    struct _mvm__ListServicesResponse services;
    call(bootstrap, ListServices, &services);
    for (int i = 0; i < services.__sizeservice; i++)
        if (!strcmp(services.service[i].name, "information")) information = services.service[i].url;
    for (int i = 0; i < services.__sizeservice; i++)
        if (!strcmp(services.service[i].name, "vm")) vm = services.service[i].url;
    struct _mvm__QueryResponse nodes;
    call(information, Query, &nodes);
    struct _mvm__ListVMsResponse vms;
    call(vm, ListVMs, &vms);
    printf("import: %d services; %d nodes, %d VMs\n", services.__sizeservice, nodes.__sizenode, vms.__sizevm);

    struct _mvm__GetBrokerResponse where;
    call(bootstrap, GetBroker, &where);
    broker = where.url;
    printf("broker: %s\n", broker);

    char *id = sunspots(), way[200];
    printf("submit: %s\n", id);

    status job = follow(id, mvm__JobState__succeeded, way);
    check(job.__sizeprocess == 16, "%d processes", job.__sizeprocess);
    for (int i = 0; i < 16; i++)
        check(*job.process[i].index == i && *job.process[i].exitCode == 0, "process %d is wrong", i);
    check(job.submitted <= *job.started && *job.started <= *job.ended, "the times are wrong");
    printf("follow: %s\n", way);

    save(id, "stdout");
    save(id, "spectrum.csv");
    printf("output: %s", load("stdout").__ptr);

    blob(where.image);
    queue();
    faults();
    cancel();

    soap_destroy(soap);
    soap_end(soap);
    soap_free(soap);
}
