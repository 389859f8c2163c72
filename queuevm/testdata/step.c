/* Kills a program at any instruction of a call: step EFFECT OFFSET VERB PORT runs VERB
 * in a child, single-steps it through the calls between its two marks, and kills it
 * OFFSET instructions after its EFFECT-th effect, or at the next one. An effect is an
 * instruction after which others may see something else: a word of a ring's header is
 * new, or a system call was made. Between two effects it makes no difference to anybody
 * where it is killed; all that it wrote then is bytes that are not published, which is
 * looked after too. So who kills it after every effect has killed it everywhere. It
 * prints how far it came: "killed", or "through EFFECTS STEPS" when the calls were over
 * before. x86-64 only. */
#define _GNU_SOURCE
#include "mvm.c"

#include <signal.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>

static void mark(void) { __asm__ volatile("int3"); }

static void fill(unsigned char *to, size_t n, unsigned long k) { /* as the suite's programs do */
    for (size_t j = 0; j < n; j++) to[j] = (unsigned char)(k * 31 + j * 7);
}

static int child(const char *verb, mvm_port *p) {
    static unsigned char item[1 << 16], items[3][1 << 15];
    void *got;
    unsigned long most = strcmp(verb, "big") ? 201 : 40001;
    for (unsigned long k = 0; k < 3; k++) fill(items[k], (k * 2654435761u) % most, k);
    /* What is resolved at the first call is not of interest. */
    if (!strcmp(verb, "enqueue") || !strcmp(verb, "big")) { /* big: in fragments */
        mvm_enqueue(p, item, 0);
        mark();
        for (unsigned long k = 1; k < 3; k++)
            if (mvm_enqueue(p, items[k], (k * 2654435761u) % most)) return 1;
        mark();
    } else if (!strcmp(verb, "switch")) { /* the producer was told to go on with another ring */
        mark();
        for (unsigned long k = 0; k < 3; k++)
            if (mvm_enqueue(p, items[k], (k * 2654435761u) % most)) return 1;
        mark();
    } else if (!strcmp(verb, "follow")) { /* the consumer's ring is ended by SWITCH */
        mark();
        for (int k = 0; k < 3; k++)
            if (mvm_dequeue(p, item, sizeof item) < 0) return 1;
        mark();
    } else if (!strcmp(verb, "dequeue") || !strcmp(verb, "bigger")) { /* bigger: fragments */
        if (mvm_dequeue_alloc(p, &got) < 0) return 1;
        mark();
        for (int k = 1; k < 4; k++)
            if (mvm_dequeue(p, item, sizeof item) < 0) return 1;
        mark();
    }
    return 0;
}

/* What others see of the child, and where it is. */
struct view {
    struct mvm_port port;
    struct header header; /* of the ring that it uses */
    unsigned char next[2];
    unsigned long long at, call;
};

static int look(pid_t pid, mvm_port *p, int out, struct view *v) {
    struct user_regs_struct r;
    if (ptrace(PTRACE_GETREGS, pid, 0, &r)) return -1;
    v->at = r.rip;
    v->call = r.rax;
    struct iovec mine[3] = {{v->next, 2}, {&v->port, sizeof v->port}, {&v->header, sizeof v->header}};
    struct header *header = out ? v->port.out.header : v->port.in.header; /* as it was last */
    struct iovec theirs[3] = {{(void *)r.rip, 2}, {p, sizeof v->port}, {header, sizeof v->header}};
    int used = header ? 3 : 2;
    ssize_t n = process_vm_readv(pid, mine, used, theirs, used, 0);
    struct header *now = out ? v->port.out.header : v->port.in.header;
    if (n < (ssize_t)(2 + sizeof v->port)) return -1;
    if (now == header) return 0;
    struct iovec to = {&v->header, sizeof v->header}, from = {now, sizeof v->header};
    return now && process_vm_readv(pid, &to, 1, &from, 1, 0) != (ssize_t)sizeof v->header ? -1 : 0;
}

/* Whether others see something new of what the child writes. The line of the other
 * end's index is that one's. */
static int differs(const struct view *a, const struct view *b, int out) {
    const unsigned char *x = (const void *)&a->header, *y = (const void *)&b->header;
    size_t theirs = out ? offsetof(struct header, head) : offsetof(struct header, tail);
    return memcmp(x, y, theirs) || memcmp(x + theirs + 128, y + theirs + 128, sizeof a->header - theirs - 128) ||
           (out ? a->port.out.header != b->port.out.header : a->port.in.header != b->port.in.header);
}

/* Whether bytes that were published before are what they were; then notes those that
 * are published now. */
static int kept(pid_t pid, const struct view *v) {
    static unsigned char was[1 << 16], is[1 << 16];
    static struct header *of;
    static uint64_t until;
    const struct end *o = &v->port.out;
    struct iovec to = {is, o->capacity}, from = {o->data, o->capacity};
    if (o->capacity > sizeof is || process_vm_readv(pid, &to, 1, &from, 1, 0) != (ssize_t)o->capacity) return 0;
    uint64_t first = v->header.head;
    for (uint64_t k = first; of == o->header && k < until; k++)
        if (was[k & (o->capacity - 1)] != is[k & (o->capacity - 1)]) return 0;
    memcpy(was, is, o->capacity);
    of = o->header;
    until = v->header.tail;
    return 1;
}

int main(int argc, char **argv) {
    if (argc != 5) return 9;
    long effect = atol(argv[1]), offset = atol(argv[2]), effects = 0, since = 0, steps = 0;
    const char *verb = argv[3];
    int out = strcmp(verb, "dequeue") && strcmp(verb, "bigger") && strcmp(verb, "follow");
    mvm_port *p = mvm_open(argv[4]); /* the child has it at the same place */
    pid_t pid = fork();
    if (pid == 0) {
        ptrace(PTRACE_TRACEME, 0, 0, 0);
        raise(SIGSTOP);
        _exit(p ? child(verb, p) : 8);
    }
    int status, inside = 0;
    static struct view before, now;
    waitpid(pid, &status, 0);
    ptrace(PTRACE_SETOPTIONS, pid, 0, PTRACE_O_EXITKILL);
    for (int signal = 0;;) {
        if (inside && (effects > effect || (effects == effect && since >= offset))) {
            kill(pid, SIGKILL);
            waitpid(pid, &status, 0);
            puts("killed");
            return 0;
        }
        if (ptrace(inside ? PTRACE_SINGLESTEP : PTRACE_CONT, pid, 0, signal)) return 7;
        if (waitpid(pid, &status, 0) < 0) return 6;
        if (!WIFSTOPPED(status)) {
            printf("through %ld %ld %d\n", effects, steps, WIFEXITED(status) ? WEXITSTATUS(status) : -1);
            return 0;
        }
        signal = WSTOPSIG(status) == SIGTRAP ? 0 : WSTOPSIG(status);
        if (signal) continue;
        if (!inside || before.next[0] == 0xCC) { /* a mark */
            inside = !inside;
            if (inside && look(pid, p, out, &before)) return 5;
            continue;
        }
        now.port = before.port; /* where the header was */
        if (look(pid, p, out, &now)) return 5;
        steps++;
        since++;
        int called = before.next[0] == 0x0F && before.next[1] == 0x05 && before.call != SYS_sched_yield && before.call != SYS_clock_gettime;
        if (called || differs(&before, &now, out)) {
            if (out && now.port.out.header && !kept(pid, &now)) {
                puts("wrote into what was published");
                return 4;
            }
            effects++;
            since = 0;
        }
        before = now;
    }
}
