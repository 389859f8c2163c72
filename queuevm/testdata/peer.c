/* The conformance suite's program in C: peer VERB [arguments]. */
#define _GNU_SOURCE
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "mvm.h"

static void die(const char *what, long code) {
    fprintf(stderr, "%s: %s %s\n", what, mvm_strerror((int)code), code == 0 ? mvm_error() : "");
    exit(3);
}

static mvm_port *must(const char *name) {
    mvm_port *p = mvm_open(name);
    if (!p) die("open", 0);
    return p;
}

/* The items of the suite: length and bytes follow from the number alone. */
static size_t length_of(uint64_t k, size_t most) { return most ? (k * 2654435761u) % (most + 1) : 8; }

static void fill(unsigned char *to, size_t n, uint64_t k) {
    for (size_t j = 0; j < n; j++) to[j] = (unsigned char)(k * 31 + j * 7);
}

/* send PORT COUNT MOST: items 0..COUNT-1 with lengths up to MOST. */
static int do_send(char **a) {
    mvm_port *p = must(a[0]);
    uint64_t count = strtoull(a[1], NULL, 10);
    size_t most = strtoull(a[2], NULL, 10);
    unsigned char *item = malloc(most + 8);
    for (uint64_t k = 0; k < count; k++) {
        size_t n = length_of(k, most);
        fill(item, n, k);
        int code = mvm_enqueue(p, item, n);
        if (code) die("enqueue", code);
    }
    free(item);
    return 0;
}

/* receive PORT MOST: prints how many items came until END, all checked. */
/* Takes one item and ends at once. */
static int do_take(char **args) {
    mvm_port *p = must(args[0]);
    char item[64];
    return mvm_dequeue(p, item, sizeof item) < 0;
}

static int do_receive(char **a) {
    mvm_port *p = must(a[0]);
    size_t most = strtoull(a[1], NULL, 10);
    unsigned char *expected = malloc(most + 8);
    uint64_t k = 0;
    for (;; k++) {
        void *item;
        ssize_t n = mvm_dequeue_alloc(p, &item);
        if (n == MVM_END) break;
        if (n < 0) {
            printf("%" PRIu64 " then %s\n", k, mvm_strerror((int)n));
            free(expected);
            return 4;
        }
        size_t want = length_of(k, most);
        fill(expected, want, k);
        if ((size_t)n != want || memcmp(item, expected, want)) {
            fprintf(stderr, "item %" PRIu64 " is wrong: %zd bytes, expected %zu\n", k, n, want);
            return 5;
        }
        free(item);
    }
    char byte;
    if (mvm_dequeue(p, &byte, 1) != MVM_END) die("END did not stay", 0);
    free(expected);
    printf("%" PRIu64 "\n", k);
    return 0;
}

/* again PORT FILE: until END, of which the file tells, and until the END of what
 * follows; prints how many items came before each. */
static int do_again(char **a) {
    mvm_port *p = must(a[0]);
    int counts[2] = {0, 0}, which = 0;
    for (;;) {
        char item[200];
        ssize_t n = mvm_dequeue(p, item, sizeof item);
        if (n >= 0) counts[which]++;
        else if (n != MVM_END) die("dequeue", (int)n);
        else if (counts[1]) break;
        else if (which) usleep(1000);
        else which = 1, fclose(fopen(a[1], "w"));
    }
    printf("%d %d\n", counts[0], counts[1]);
    return 0;
}

/* echo IN OUT: until END. */
static int do_echo(char **a) {
    mvm_port *in = must(a[0]), *out = must(a[1]);
    for (;;) {
        void *item;
        ssize_t n = mvm_dequeue_alloc(in, &item);
        if (n == MVM_END) return 0;
        if (n < 0) die("dequeue", n);
        int code = (mvm_is_instruction(in) ? mvm_instruct : mvm_enqueue)(out, item, (size_t)n);
        if (code) die("enqueue", code);
        free(item);
    }
}

/* lead IN OUT COUNT: sends a few items round a ring, as often as is said, and
 * sleeps now and then. */
static int do_lead(char **a) {
    mvm_port *in = must(a[0]), *out = must(a[1]);
    uint64_t count = strtoull(a[2], NULL, 10), item[16] = {0};
    for (uint64_t k = 0; k < 4; k++) mvm_enqueue(out, item, sizeof item);
    for (uint64_t k = 0; k < count; k++) {
        ssize_t n = mvm_dequeue(in, item, sizeof item);
        if (n < 0) die("dequeue", n);
        if (k % 500 == 499) usleep(20000);
        int code = mvm_enqueue(out, item, sizeof item);
        if (code) die("enqueue", code);
    }
    return 0;
}

/* both OUT IN COUNT MOST: floods out while it takes in, from two processes' view at once. */
#include <pthread.h>
static char **both_args;
static void *flood(void *unused) {
    (void)unused;
    char *send_args[] = {both_args[0], both_args[2], both_args[3]};
    do_send(send_args);
    mvm_end(must(both_args[0]));
    return NULL;
}
static int do_both(char **a) {
    pthread_t thread;
    both_args = a;
    pthread_create(&thread, NULL, flood, NULL);
    char *receive_args[] = {a[1], a[3]};
    int code = do_receive(receive_args);
    pthread_join(thread, NULL);
    return code;
}

/* Every other form of the calls, over a way out that comes back. */
static void forms(mvm_port *out, mvm_port *in) {
    char buffer[64];
    void *room;
    const void *seen;
#define CHECK(x)                                                              \
    do {                                                                      \
        if (!(x)) {                                                           \
            fprintf(stderr, "line %d: not so: %s\n", __LINE__, #x);           \
            exit(6);                                                          \
        }                                                                     \
    } while (0)
    CHECK(mvm_try_dequeue(in, buffer, sizeof buffer) == MVM_AGAIN);
    CHECK(mvm_dequeue_timed(in, buffer, sizeof buffer, 20) == MVM_TIMEOUT);
    CHECK(mvm_wait(&in, 1, 20) == MVM_TIMEOUT);
    CHECK(mvm_try_enqueue(out, "abc", 3) == MVM_OK);
    CHECK(mvm_wait(&in, 1, 1000) == 0);
    CHECK(mvm_next_length(in) == 3);
    CHECK(mvm_dequeue(in, buffer, 2) == MVM_TOO_BIG);
    CHECK(mvm_try_dequeue(in, buffer, sizeof buffer) == 3 && memcmp(buffer, "abc", 3) == 0);
    CHECK(mvm_enqueue(out, NULL, 0) == MVM_OK);
    CHECK(mvm_dequeue(in, buffer, 0) == 0);
    CHECK(mvm_set_priority(out, 9) == MVM_OK && mvm_instruct(out, "source", 6) == MVM_OK && mvm_enqueue(out, "x", 1) == MVM_OK);
    CHECK(mvm_dequeue(in, buffer, sizeof buffer) == 6 && mvm_is_instruction(in));
    CHECK(mvm_dequeue(in, buffer, sizeof buffer) == 1 && !mvm_is_instruction(in));
    size_t most = mvm_largest(out, 1);
    CHECK(most == mvm_largest(in, 0) && most > 0);
    CHECK(mvm_reserve(out, most + 1, &room) == MVM_TOO_BIG);
    CHECK(mvm_commit(out, 1) == MVM_MISUSE);
    CHECK(mvm_release(in) == MVM_MISUSE);
    for (int round = 0; round < 50; round++) {
        CHECK(mvm_reserve(out, most, &room) == MVM_OK);
        CHECK((uintptr_t)room % 8 == 0);
        CHECK(mvm_enqueue(out, "x", 1) == MVM_MISUSE);
        fill(room, most, (uint64_t)round);
        size_t used = most - (size_t)round * 8;
        CHECK(mvm_commit(out, used) == MVM_OK);
        CHECK(mvm_peek(in, &seen) == (ssize_t)used);
        unsigned char *expected = malloc(used);
        fill(expected, used, (uint64_t)round);
        CHECK(memcmp(seen, expected, used) == 0);
        free(expected);
        CHECK(mvm_release(in) == MVM_OK);
    }
}

static void after_end(mvm_port *in) {
    char buffer[64];
    const void *seen;
    void *item;
    CHECK(mvm_dequeue_alloc(in, &item) == MVM_END);
    CHECK(mvm_try_dequeue(in, buffer, sizeof buffer) == MVM_END);
    CHECK(mvm_dequeue_timed(in, buffer, sizeof buffer, 10) == MVM_END);
    CHECK(mvm_peek(in, &seen) == MVM_END);
    CHECK(mvm_wait(&in, 1, -1) == 0);
}

/* forms: over one port that leads to itself and back through "out" and "in". */
static int do_forms(void) {
    mvm_port *out = must("out"), *in = must("in");
    forms(out, in);
    size_t most = mvm_largest(out, 1);
    char *big = calloc(1, most);
    int filled = 0;
    while (mvm_try_enqueue(out, big, most) == MVM_OK) filled++;
    CHECK(filled == 2);
    CHECK(mvm_enqueue_timed(out, big, most, 20) == MVM_TIMEOUT);
    CHECK(mvm_try_enqueue(out, big, most + 1) == MVM_TOO_BIG);
    free(big);
    CHECK(mvm_end(out) == MVM_OK);
    CHECK(mvm_enqueue(out, "x", 1) == MVM_CLOSED);
    void *item;
    for (; filled > 0; filled--) {
        CHECK(mvm_dequeue_alloc(in, &item) == (ssize_t)most);
        free(item);
    }
    after_end(in);
    CHECK(!mvm_can_enqueue(in) && mvm_can_dequeue(in) && mvm_enqueue(in, "x", 1) == MVM_DIRECTION);
    CHECK(mvm_open("nowhere") == NULL && strstr(mvm_error(), "no port \"nowhere\""));
    CHECK(mvm_index() == 2 && mvm_count() == 5 && strcmp(mvm_task(), "alone") == 0);
    char **names = mvm_ports();
    int n = 0;
    while (names[n]) n++;
    CHECK(n == 2 && strcmp(names[0], "out") == 0 && strcmp(names[1], "in") == 0);
    free(names);
    puts("ok");
    return 0;
}

/* far PORT: the forms over a port whose other end gives back what it gets. */
static int do_far(char **a) {
    mvm_port *port = must(a[0]);
    forms(port, port);
    CHECK(mvm_end(port) == MVM_OK);
    CHECK(mvm_enqueue(port, "x", 1) == MVM_CLOSED);
    after_end(port);
    puts("ok");
    return 0;
}

/* fill PORT: the largest items until there is no room, then a timed one. Prints
 * how many went. */
static int do_fill(char **a) {
    mvm_port *port = must(a[0]);
    size_t most = mvm_largest(port, 1);
    char *big = calloc(1, most + 1);
    int filled = 0, code;
    CHECK(mvm_try_enqueue(port, big, most + 1) == MVM_TOO_BIG);
    while ((code = mvm_try_enqueue(port, big, most)) == MVM_OK) filled++;
    CHECK(code == MVM_AGAIN && filled > 0);
    CHECK(mvm_enqueue_timed(port, big, most, 20) == MVM_TIMEOUT);
    printf("%d\n", filled);
    return 0;
}

/* wait COUNT MOST PORT...: takes from whichever has something, prints totals. */
static int do_wait(int n, char **a) {
    mvm_port *ports[300];
    uint64_t got[300] = {0}, ended = 0, all = 0;
    for (int k = 0; k < n; k++) ports[k] = must(a[k]);
    while (ended < (uint64_t)n) {
        int live = 0, of[300];
        mvm_port *open[300];
        for (int k = 0; k < n; k++)
            if (got[k] != UINT64_MAX) open[live] = ports[k], of[live++] = k;
        int w = mvm_wait(open, live, 10000);
        if (w < 0) die("wait", w);
        char buffer[4096];
        ssize_t r = mvm_try_dequeue(open[w], buffer, sizeof buffer);
        if (r == MVM_END) got[of[w]] = UINT64_MAX, ended++;
        else if (r < 0) die("try_dequeue after wait", r);
        else got[of[w]]++, all++;
    }
    printf("%" PRIu64 "\n", all);
    return 0;
}

/* give PORT WHO COUNT MOST PRIORITIES: items that say whose and which they are,
 * of up to MOST bytes, with priorities in turn. Prints how many were refused. */
static int do_give(char **a) {
    mvm_port *p = must(a[0]);
    uint64_t count = strtoull(a[2], NULL, 10), refused = 0;
    size_t most = strtoull(a[3], NULL, 10);
    int priorities = atoi(a[4]);
    unsigned char *item = malloc(most + 64);
    for (uint64_t k = 0; k < count; k++) {
        char head[64];
        size_t h = (size_t)snprintf(head, sizeof head, "%s %" PRIu64 "\n", a[1], k), n = length_of(k, most);
        if (n < h) n = h;
        fill(item, n, k);
        memcpy(item, head, h);
        mvm_set_priority(p, priorities ? (int)(k % (uint64_t)priorities) : 0);
        int code = mvm_enqueue(p, item, n);
        if (code == MVM_FULL) refused++;
        else if (code) die("enqueue", code);
    }
    free(item);
    printf("%" PRIu64 "\n", refused);
    return 0;
}

/* insist PORT COUNT [MOST]: as give, and again while the port leads nowhere. */
static int do_insist(char **a) {
    mvm_port *p = must(a[0]);
    uint64_t count = strtoull(a[1], NULL, 10);
    for (uint64_t k = 0; k < count; k++) {
        static char item[1 << 20];
        size_t n = (size_t)snprintf(item, sizeof item, "p0 %" PRIu64 "\n", k);
        if (a[2])
            for (size_t size = n + (size_t)(k * 7919 % strtoull(a[2], NULL, 10)); n < size; n++) item[n] = (char)(k * 31 + n * 7);
        int code;
        while ((code = mvm_enqueue(p, item, n)) == MVM_CLOSED) usleep(500);
        if (code) die("enqueue", code);
    }
    return 0;
}

/* gather PORT FORM [COUNT]: prints whose and which each item is, until END or as
   many as COUNT. */
static int do_gather(char **a) {
    mvm_port *p = must(a[0]);
    for (uint64_t left = a[2] ? strtoull(a[2], NULL, 10) : UINT64_MAX; left;) {
        void *item = NULL;
        ssize_t n = MVM_AGAIN;
        char small[64];
        if (!strcmp(a[1], "timed")) n = mvm_dequeue_timed(p, small, sizeof small, 3);
        else if (!strcmp(a[1], "try")) n = mvm_try_dequeue(p, small, sizeof small);
        else if (!strcmp(a[1], "wait")) while (mvm_wait(&p, 1, 5) == MVM_TIMEOUT) {}
        if (n == MVM_TIMEOUT || (n == MVM_AGAIN && !strcmp(a[1], "try"))) {
            usleep(200);
            continue;
        }
        if (n >= 0) item = memcpy(malloc((size_t)n + 1), small, (size_t)n);
        else if (n == MVM_AGAIN || n == MVM_TOO_BIG) n = mvm_dequeue_alloc(p, &item);
        if (n == MVM_END) return 0;
        if (n < 0) die("dequeue", n);
        char who[32];
        uint64_t k;
        int head = 0;
        ((char *)item)[n] = 0;
        if (sscanf(item, "%31s %" SCNu64 "%n", who, &k, &head) != 2) die("an item that nobody sent", 0);
        for (ssize_t j = head + 1; j < n; j++)
            if (((unsigned char *)item)[j] != (unsigned char)(k * 31 + (uint64_t)j * 7)) die("a garbled item", 0);
        printf("%s %" PRIu64 "\n", who, k);
        fflush(stdout);
        free(item);
        left--;
    }
    return 0;
}

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* ping OUT IN ROUNDS: prints nanoseconds one way. */
static int do_ping(char **a) {
    mvm_port *out = must(a[0]), *in = must(a[1]);
    long rounds = atol(a[2]);
    char b[8] = {0};
    double start = 0;
    for (long k = -1000; k < rounds; k++) {
        if (k == 0) start = seconds();
        if (mvm_enqueue(out, b, 8) || mvm_dequeue(in, b, 8) != 8) die("ping", 0);
    }
    printf("%.0f\n", (seconds() - start) / (double)rounds / 2 * 1e9);
    return 0;
}

/* pong IN OUT: gives back what it gets until END. */
static int do_pong(char **a) {
    mvm_port *in = must(a[0]), *out = must(a[1]);
    char b[8];
    while (mvm_dequeue(in, b, 8) == 8)
        if (mvm_enqueue(out, b, 8)) break;
    return 0;
}

/* pump PORT COUNT SIZE: equal items, not looked at. */
static int do_pump(char **a) {
    mvm_port *p = must(a[0]);
    uint64_t count = strtoull(a[1], NULL, 10);
    size_t n = strtoull(a[2], NULL, 10);
    char *item = memset(malloc(n + 1), 1, n); /* not the zero page, which is always cached */
    for (uint64_t k = 0; k < count; k++) {
        int code = mvm_enqueue(p, item, n);
        if (code) die("enqueue", code);
    }
    return 0;
}

/* drain PORT SIZE: prints items, and seconds from the first to END. */
static int do_drain(char **a) {
    mvm_port *p = must(a[0]);
    size_t n = strtoull(a[1], NULL, 10);
    char *item = malloc(n);
    uint64_t k = 0;
    double start = 0;
    while (mvm_dequeue(p, item, n) >= 0)
        if (k++ == 0) start = seconds();
    printf("%" PRIu64 " %.6f\n", k, seconds() - start);
    return 0;
}

/* hold PORT: opens, says so, and waits to be killed. */
/* Enqueues, not too fast, until nobody takes any more, and only then takes what came. */
static int do_shed(char **a) {
    mvm_port *p = must(a[0]);
    char item[100] = {0};
    int code;
    while (!(code = mvm_enqueue(p, item, sizeof item))) usleep(5000);
    if (code != MVM_CLOSED) die("enqueue", code);
    return do_receive((char *[]){a[0], a[1]});
}

static int do_say(char **a) {
    do_send(a);
    pause();
    return 0;
}

static int do_hold(char **a) {
    must(a[0]);
    puts("open");
    fflush(stdout);
    pause();
    return 0;
}

int main(int argc, char **argv) {
    if (argc < 2) return 2;
    char *verb = argv[1], **rest = argv + 2;
    if (!strcmp(verb, "send")) return do_send(rest);
    if (!strcmp(verb, "receive")) return do_receive(rest);
    if (!strcmp(verb, "take")) return do_take(rest);
    if (!strcmp(verb, "again")) return do_again(rest);
    if (!strcmp(verb, "echo")) return do_echo(rest);
    if (!strcmp(verb, "lead")) return do_lead(rest);
    if (!strcmp(verb, "both")) return do_both(rest);
    if (!strcmp(verb, "say")) return do_say(rest);
    if (!strcmp(verb, "shed")) return do_shed(rest);
    if (!strcmp(verb, "forms")) return do_forms();
    if (!strcmp(verb, "far")) return do_far(rest);
    if (!strcmp(verb, "fill")) return do_fill(rest);
    if (!strcmp(verb, "wait")) return do_wait(argc - 2, rest);
    if (!strcmp(verb, "give")) return do_give(rest);
    if (!strcmp(verb, "insist")) return do_insist(rest);
    if (!strcmp(verb, "gather")) return do_gather(rest);
    if (!strcmp(verb, "ping")) return do_ping(rest);
    if (!strcmp(verb, "pong")) return do_pong(rest);
    if (!strcmp(verb, "pump")) return do_pump(rest);
    if (!strcmp(verb, "drain")) return do_drain(rest);
    if (!strcmp(verb, "hold")) return do_hold(rest);
    return 2;
}
