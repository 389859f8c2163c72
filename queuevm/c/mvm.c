/* mvm.c - the C client: rings in shared memory, as LAYOUT.md specifies them.
 *
 * What always holds: an item is published only by moving tail after its bytes
 * are written; a word that the other end writes is read once and checked before
 * it is used; nothing here takes a lock that another process could hold. */
#define _GNU_SOURCE
#include "mvm.h"

#include <errno.h>
#include <linux/futex.h>
#include <linux/sockios.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "rings are little-endian");

enum {
    HEADER_SIZE = 4096,
    MAGIC = 0x524D564D,
    VERSION = 3,
    AWAKE = 0,
    WAITS_FUTEX = 1,
    WAITS_DAEMON = 2,
    WAITS_ONLY = 3, /* as WAITS_FUTEX, and nothing but the other end ends the wait: no time limit does */
    STATE_CLOSED = 1,
    STATE_LOST = 2,
    STATE_BROKEN = 4,
    STATE_SWITCHED = 8,    /* ended by SWITCH: the port goes on with another ring */
    CONTROL_SWITCH = 256,  /* in consumer_state: end this ring before the next item, and go on with the next */
    CONTROL_CHANGED = 512, /* the queue behind it has changed: read served and most again */
    CONTROLS = CONTROL_SWITCH | CONTROL_CHANGED,
    NEXT_IN = 1, /* the port goes on with another ring after this one */
    NEXT_OUT = 2,
    HEED = -64, /* never leaves this file: the port must heed a word of the daemon, or go on, and try again */
    SERVED_DEMAND = 1,  /* the consumer asks for each item */
    SERVED_VERDICT = 2, /* the producer awaits what became of each item */
    SERVED_DIRECT = 4,  /* items go over a socket, and the ring tells of ends only */
    IMPATIENT = 1,
    CONTROL_NOTHING = 1,
    META_AWAITS = 1 << 12, /* the producer awaits what becomes of the item */
    KIND_MASK = 0xF, /* of a record's meta */
    KIND_INSTRUCTION = 1,
    RECORD_HEADER = 8,
    TOTAL_HEADER = 8,
    CHUNK = 64 << 10, /* published at once within a record, so that both ends copy at the same time */
    YIELDS = 32,
    LOOKS = 4, /* at a socket between two yields, which take as long as a look */
    JOINED = 256, /* bytes of an item and its header that are copied to go as one part */
    CONTROL_MESSAGE = 64 << 10,
    AHEAD = 16 << 10, /* read at once of what comes after an item: what is more is copied once, not twice */
};
#define FLAG_MORE 0x80000000u
#define FLAG_CONT 0x40000000u
#define FLAG_CONTROL 0x20000000u
#define LENGTH_MASK 0x1FFFFFFFu
#define SLOW_YIELD_NS 1500000     /* a yield that took longer met a hog */
#define YIELD_PENALTY_NS 100000000 /* so none for this long */

struct header {
    uint32_t magic, version;
    uint64_t capacity;
    uint32_t channel, epoch;
    _Atomic uint32_t served;
    uint32_t pad;
    _Atomic uint64_t most;
    _Atomic uint32_t next;
    char pad0[84];
    _Atomic uint64_t tail, items_in;
    char pad1[112];
    _Atomic uint64_t head, items_out;
    _Atomic uint32_t demand, verdict;
    _Atomic uint64_t begun; /* how far the record reaches that is being copied out in pieces */
    char pad2[96];
    _Atomic uint32_t producer_waits, producer_state;
    char pad3[120];
    _Atomic uint32_t consumer_waits, consumer_state;
    char pad4[120];
};
_Static_assert(offsetof(struct header, magic) == 0, "layout");
_Static_assert(offsetof(struct header, version) == 4, "layout");
_Static_assert(offsetof(struct header, capacity) == 8, "layout");
_Static_assert(offsetof(struct header, channel) == 16, "layout");
_Static_assert(offsetof(struct header, epoch) == 20, "layout");
_Static_assert(offsetof(struct header, served) == 24, "layout");
_Static_assert(offsetof(struct header, most) == 32, "layout");
_Static_assert(offsetof(struct header, next) == 40, "layout");
_Static_assert(offsetof(struct header, tail) == 128, "layout");
_Static_assert(offsetof(struct header, items_in) == 136, "layout");
_Static_assert(offsetof(struct header, head) == 256, "layout");
_Static_assert(offsetof(struct header, items_out) == 264, "layout");
_Static_assert(offsetof(struct header, demand) == 272, "layout");
_Static_assert(offsetof(struct header, verdict) == 276, "layout");
_Static_assert(offsetof(struct header, begun) == 280, "layout");
_Static_assert(offsetof(struct header, producer_waits) == 384, "layout");
_Static_assert(offsetof(struct header, producer_state) == 388, "layout");
_Static_assert(offsetof(struct header, consumer_waits) == 512, "layout");
_Static_assert(offsetof(struct header, consumer_state) == 516, "layout");
_Static_assert(sizeof(struct header) == 640, "layout");

/* An end of a direct channel: a socket, and bytes between it and the program. */
struct direct {
    int fd, out;
    int both;               /* the other way leads over it too */
    int ended, torn;        /* consumer: the socket has no more; and not because it was closed */
    unsigned char *buffer;  /* consumer: start to end was read and not taken. Producer: what reserve gave */
    size_t size, start, end;
    unsigned char *to;      /* consumer: where the rest of an item goes, past the buffer */
    size_t left;            /* of it */
    struct iovec parts[2];  /* producer: what is still to be sent */
};

/* One end of a ring. mine is private and true; the shared word is only its
 * publication. theirs is the other end's word as last read and believed. */
struct end {
    struct header *header; /* NULL when the port does not lead this way */
    unsigned char *data;   /* the data area, mapped twice back to back */
    uint64_t capacity, mine, theirs, items;
    uint64_t quiet;        /* consumer: bytes released since the producer was last looked after */
    atomic_int owes;       /* consumer: a sleeping producer may not have been woken yet */
    uint64_t held;         /* reserved or peeked: record bytes */
    int holding, broken, finished;
    int deaf;              /* producer: an item is begun, so the daemon's words must wait */
    int switched;          /* producer: this ring is ended by SWITCH */
    uint32_t channel;
    uint32_t served;       /* SERVED_ bits; 0 on a plain channel */
    uint32_t meta;         /* producer: of the items to come; consumer: of the last one */
    uint64_t most;         /* producer: the largest item that the queue can hold */
    int asked;             /* consumer: the queue owes an answer, or it lies unread */
    struct direct *direct; /* the socket of a direct channel, else NULL */
};

struct mvm_port {
    struct mvm_port *next;
    struct end out, in;
    char name[];
};

/* Some port's consumer end owes a look at its producer. */
static atomic_int owing;

/* Guards everything in `process`; taken to open, close, and before a sleep. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct {
    mvm_port *ports;
    int bell;    /* the daemon's eventfd */
    int control; /* the socket to it */
    int spin, known;
} process = {.bell = -1, .control = -1};

/* What each thread has of its own. */
struct per_thread {
    char error_text[512];
    int64_t no_yield_until;
    unsigned hops; /* rings that ports of this thread went on to */
    int sliced;    /* the limit of the call under way is only a slice of a wait without one */
};
#ifndef MVM_NO_TLS
static _Thread_local struct per_thread per_thread;
#else /* for linkers that know no thread-local storage, such as tcc's */
static pthread_key_t thread_key;
static pthread_once_t thread_once = PTHREAD_ONCE_INIT;
static struct per_thread shared_instead; /* where there is no memory: better shared than none */
static void make_thread_key(void) { pthread_key_create(&thread_key, free); }
static struct per_thread *find_per_thread(void) {
    pthread_once(&thread_once, make_thread_key);
    struct per_thread *mine = pthread_getspecific(thread_key);
    if (mine == NULL) {
        mine = calloc(1, sizeof *mine);
        if (mine == NULL || pthread_setspecific(thread_key, mine) != 0) {
            free(mine);
            mine = &shared_instead;
        }
    }
    return mine;
}
#define per_thread (*find_per_thread())
#endif

static void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(per_thread.error_text, sizeof per_thread.error_text, format, arguments);
    va_end(arguments);
}

const char *mvm_error(void) { return per_thread.error_text; }

const char *mvm_strerror(int code) {
    switch (code) {
    case MVM_END: return "end: the giver has finished and everything was taken";
    case MVM_CLOSED: return "closed: the taker is gone, the item will not be taken";
    case MVM_LOST: return "lost: the link to the other end is gone, items may be missing";
    case MVM_TOO_BIG: return "too big: the item does not fit the buffer or this form of the call";
    case MVM_AGAIN: return "again: this would have to wait";
    case MVM_TIMEOUT: return "timeout: nothing happened in time";
    case MVM_BROKEN: return "broken: the channel's shared memory holds garbage";
    case MVM_DIRECTION: return "direction: the port does not lead that way";
    case MVM_MISUSE: return "misuse: commit without reserve, release without peek, or a bad argument";
    case MVM_FULL: return "full: the queue is full and refuses the item";
    case MVM_SYSTEM: return "system: a system call failed, errno says why";
    }
    return code >= 0 ? "no error" : "unknown code";
}

static inline uint64_t record_size(uint64_t n) { return (n + RECORD_HEADER + 7) & ~(uint64_t)7; }
static inline uint64_t largest(const struct end *e) { return e->capacity / 2 - RECORD_HEADER; }
static inline unsigned char *at(const struct end *e, uint64_t offset) { return e->data + (offset & (e->capacity - 1)); }

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* A deadline on the monotonic clock; -1 is never, 0 is at once. */
static int64_t deadline_of(long ms) { return ms < 0 ? -1 : ms == 0 ? 0 : now() + (int64_t)ms * 1000000; }

/* ---- waking and waiting ---- */

/* Rings the daemon's bell, and says for which channel. */
static void ring_bell(const struct header *h) {
    uint64_t word = 1 + (((uint64_t)h->channel + 1) << 24);
    if (write(process.bell, &word, sizeof word) < 0) { /* full: it rings already */ }
}

static void wake(struct header *h, _Atomic uint32_t *word) {
    uint32_t value = atomic_load_explicit(word, memory_order_relaxed);
    if (value == AWAKE || !atomic_compare_exchange_strong(word, &value, AWAKE)) return;
    if (value != WAITS_DAEMON) {
        syscall(SYS_futex, word, FUTEX_WAKE, 1 << 30, NULL, NULL, 0);
    } else {
        ring_bell(h);
    }
}

static int state_code(uint32_t state, int plain) {
    return state & STATE_BROKEN ? MVM_BROKEN : state & STATE_LOST ? MVM_LOST : plain;
}

/* After tail moved: wakes a sleeping consumer. The fence orders our tail before
 * our look at the word; the consumer's fence orders its word before its look at
 * tail. One of the two sees the other. */
static inline void tell_consumer(struct end *o) {
    atomic_thread_fence(memory_order_seq_cst);
    if (unlikely(atomic_load_explicit(&o->header->consumer_waits, memory_order_relaxed) != AWAKE)) wake(o->header, &o->header->consumer_waits);
}

/* What a consumer_state that is not 0 means for the producer. */
static int consumer_says(const struct end *o, uint32_t state) {
    if (state & CONTROLS && !o->deaf) return HEED;
    state &= ~(uint32_t)CONTROLS;
    return state ? state_code(state, MVM_CLOSED) : MVM_OK;
}

/* Before tail moves, and only then: a consumer that takes the last item and
 * ends has taken it, and whoever enqueued it must not hear of an error. */
static inline int consumer_gone(struct end *o) {
    uint32_t state = atomic_load_explicit(&o->header->consumer_state, memory_order_relaxed);
    return unlikely(state) ? consumer_says(o, state) : MVM_OK;
}

static void tell_producer(struct end *i) {
    i->quiet = 0;
    atomic_store_explicit(&i->owes, 0, memory_order_relaxed);
    atomic_thread_fence(memory_order_seq_cst);
    if (atomic_load_explicit(&i->header->producer_waits, memory_order_relaxed)) wake(i->header, &i->header->producer_waits);
}

/* Before any sleep: producers that sleep on room we made must not wait for us
 * while we wait for them. */
static void settle(void) {
    if (!atomic_exchange(&owing, 0)) return;
    pthread_mutex_lock(&lock);
    for (mvm_port *p = process.ports; p; p = p->next)
        if (p->in.header && atomic_exchange(&p->in.owes, 0)) {
            atomic_thread_fence(memory_order_seq_cst);
            if (atomic_load_explicit(&p->in.header->producer_waits, memory_order_relaxed)) wake(p->in.header, &p->in.header->producer_waits);
        }
    pthread_mutex_unlock(&lock);
}

static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb");
#endif
}

/* Bytes published and not taken; marks the end broken when the word is impossible. */
static inline uint64_t available(struct end *i) {
    uint64_t tail = atomic_load_explicit(&i->header->tail, memory_order_acquire);
    if (tail - i->mine > i->capacity || tail & 7) { i->broken = 1; return 0; }
    i->theirs = tail;
    return tail - i->mine;
}

static inline uint64_t room(struct end *o) {
    uint64_t head = atomic_load_explicit(&o->header->head, memory_order_acquire);
    if (o->mine - head > o->capacity || head & 7) { o->broken = 1; return 0; }
    o->theirs = head;
    return o->capacity - (o->mine - head);
}

/* enough says whether waiting is over: 1 yes, 0 no, negative an MVM_ code. */
static int enough_bytes(struct end *i, uint64_t need) {
    uint32_t state = atomic_load_explicit(&i->header->producer_state, memory_order_acquire);
    uint64_t n = available(i); /* after the state: what came before END is seen */
    if (i->broken) return MVM_BROKEN;
    if (n >= need) return 1;
    if (!state) return 0;
    int code = state_code(state, MVM_END);
    return code == MVM_END && atomic_load_explicit(&i->header->next, memory_order_acquire) & NEXT_IN ? HEED : code;
}

/* Whether the queue has decided about the n-th item. */
static int enough_verdict(struct end *o, uint64_t n) {
    if (atomic_load_explicit(&o->header->verdict, memory_order_acquire) >> 1 == (n & 0x7FFFFFFF)) return 1;
    uint32_t state = atomic_load_explicit(&o->header->consumer_state, memory_order_acquire) & ~(uint32_t)CONTROLS;
    return state ? state_code(state, MVM_CLOSED) : 0;
}

static int enough_room(struct end *o, uint64_t need) {
    uint32_t state = atomic_load_explicit(&o->header->consumer_state, memory_order_acquire);
    int code = state ? consumer_says(o, state) : MVM_OK;
    if (code) return code;
    uint64_t n = room(o);
    if (o->broken) return MVM_BROKEN;
    return n >= need;
}

/* Waits until enough() is not 0: a short spin if cores are free, some yields
 * while they are quick, then sleep on word. */
static int await(struct end *e, uint64_t need, int (*enough)(struct end *, uint64_t), _Atomic uint32_t *word, int64_t deadline) {
    int got = enough(e, need);
    if (got || deadline == 0) return got > 0 ? MVM_OK : got ? got : MVM_AGAIN;
    settle();
    for (int n = process.spin; n > 0; n--) {
        relax();
        if ((got = enough(e, need))) return got > 0 ? MVM_OK : got;
    }
    int64_t before = now();
    if (before >= per_thread.no_yield_until)
        for (int n = 0; n < YIELDS; n++) {
            sched_yield();
            if ((got = enough(e, need))) return got > 0 ? MVM_OK : got;
            int64_t after = now();
            if (after - before > SLOW_YIELD_NS) { per_thread.no_yield_until = after + YIELD_PENALTY_NS; break; }
            before = after;
        }
    uint32_t waits = deadline < 0 || per_thread.sliced ? WAITS_ONLY : WAITS_FUTEX;
    for (;;) {
        atomic_store_explicit(word, waits, memory_order_seq_cst);
        atomic_thread_fence(memory_order_seq_cst);
        if ((got = enough(e, need))) break;
        struct timespec left, *limit = NULL;
        if (deadline > 0) {
            int64_t ns = deadline - now();
            if (ns <= 0) { got = MVM_TIMEOUT; break; }
            left.tv_sec = ns / 1000000000;
            left.tv_nsec = ns % 1000000000;
            limit = &left;
        }
        long slept = syscall(SYS_futex, word, FUTEX_WAIT, waits, limit, NULL, 0);
        if (slept < 0 && errno == EINTR && limit && per_thread.sliced) { got = MVM_TIMEOUT; break; }
    }
    atomic_store_explicit(word, AWAKE, memory_order_relaxed);
    return got > 0 ? MVM_OK : got;
}

static inline int await_bytes(struct end *i, uint64_t need, int64_t deadline) {
    if (likely(i->theirs - i->mine >= need)) return MVM_OK;
    return await(i, need, enough_bytes, &i->header->consumer_waits, deadline);
}

static inline int await_room(struct end *o, uint64_t need, int64_t deadline) {
    if (likely(o->capacity - (o->mine - o->theirs) >= need)) return MVM_OK;
    return await(o, need, enough_room, &o->header->producer_waits, deadline);
}

/* ---- direct channels (LAYOUT.md, section 7) ---- */

static inline void note_items(struct end *e, _Atomic uint64_t *word) {
    e->items++;
    atomic_store_explicit(word, e->items, memory_order_relaxed);
}

static int enough_told(struct end *i, uint64_t need);

/* Waits until enough() is not 0, as await does, but for a socket. */
static int direct_await(struct end *e, uint64_t need, int (*enough)(struct end *, uint64_t), int64_t deadline) {
    struct direct *d = e->direct;
    int got = enough(e, need);
    if (got || deadline == 0) return got > 0 ? MVM_OK : got ? got : MVM_AGAIN;
    settle();
    for (int n = process.spin / 10; n > 0; n--) /* a look is a system call */
        if ((got = enough(e, need))) return got > 0 ? MVM_OK : got;
    int64_t before = now();
    if (before >= per_thread.no_yield_until)
        for (int n = 0; n < YIELDS / 2; n++) {
            sched_yield();
            for (int look = 0; look < LOOKS; look++)
                if ((got = enough(e, need))) return got > 0 ? MVM_OK : got;
            int64_t after = now();
            if (after - before > SLOW_YIELD_NS) { per_thread.no_yield_until = after + YIELD_PENALTY_NS; break; }
            before = after;
        }
    for (;;) {
        if (d->ended) /* why it ended is told through the ring */
            return await(e, 0, enough_told, &e->header->consumer_waits, deadline);
        struct timespec left, *limit = NULL;
        if (deadline > 0) {
            int64_t ns = deadline - now();
            if (ns <= 0) return MVM_TIMEOUT;
            left = (struct timespec){ns / 1000000000, ns % 1000000000};
            limit = &left;
        }
        struct pollfd p = {d->fd, d->out ? POLLOUT : POLLIN, 0};
        int interrupted = ppoll(&p, 1, limit, NULL) < 0 && errno == EINTR;
        if ((got = enough(e, need))) return got > 0 ? MVM_OK : got;
        if (interrupted && limit && per_thread.sliced) return MVM_TIMEOUT;
    }
}

/* Reads once, what is there: to where the rest of an item goes, and past it, up to
 * want bytes or a little more, into the buffer, which is empty then. 1 when something came. */
static int direct_read(struct direct *d, size_t want) {
    if (d->ended) return 0;
    if (d->start == d->end) d->start = d->end = 0;
    size_t room = d->size - d->end;
    if (want < AHEAD) want = AHEAD;
    struct iovec parts[2] = {{d->to, d->left}, {d->buffer + d->end, room < want ? room : want}};
    ssize_t n;
    do n = d->left ? readv(d->fd, parts, 2) : recv(d->fd, parts[1].iov_base, parts[1].iov_len, 0);
    while (n < 0 && errno == EINTR);
    if (n <= 0) {
        if (n == 0 || errno != EAGAIN) d->ended = 1, d->torn = n < 0;
        return 0;
    }
    size_t part = (size_t)n < d->left ? (size_t)n : d->left;
    d->to += part;
    d->left -= part;
    d->end += (size_t)n - part;
    return 1;
}

/* Why a socket that has ended did; 0 while that is not known. */
static int direct_end(struct end *i) {
    uint32_t state = atomic_load_explicit(&i->header->producer_state, memory_order_acquire);
    if (!state) return 0;
    int code = i->direct->torn ? MVM_LOST : state_code(state, MVM_END);
    return code == MVM_END && atomic_load_explicit(&i->header->next, memory_order_acquire) & NEXT_IN ? HEED : code;
}

static int enough_told(struct end *i, uint64_t need) {
    (void)need;
    return direct_end(i);
}

static int enough_buffered(struct end *i, uint64_t need) {
    struct direct *d = i->direct;
    if (need > d->size - d->start) {
        memmove(d->buffer, d->buffer + d->start, d->end - d->start);
        d->end -= d->start;
        d->start = 0;
    }
    while (d->end - d->start < need)
        if (!direct_read(d, need - (d->end - d->start))) return d->ended ? direct_end(i) : 0;
    return 1;
}

static int enough_filled(struct end *i, uint64_t need) {
    (void)need;
    while (i->direct->left > 0)
        if (!direct_read(i->direct, 0)) return i->direct->ended ? direct_end(i) : 0;
    return 1;
}

static int enough_sent(struct end *o, uint64_t need) {
    struct direct *d = o->direct;
    (void)need;
    while (d->parts[0].iov_len + d->parts[1].iov_len > 0) {
        struct msghdr message = {.msg_iov = d->parts, .msg_iovlen = 2};
        ssize_t n = d->parts[0].iov_len ? sendmsg(d->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT)
                                        : send(d->fd, d->parts[1].iov_base, d->parts[1].iov_len, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno == EAGAIN) return 0;
        if (n < 0) { /* why is told through the ring, which never has so much room */
            o->deaf = 1;
            int code = await(o, o->capacity + 8, enough_room, &o->header->producer_waits, -1);
            return code ? code : MVM_LOST;
        }
        for (int k = 0; k < 2; k++) {
            size_t part = (size_t)n < d->parts[k].iov_len ? (size_t)n : d->parts[k].iov_len;
            d->parts[k].iov_base = (char *)d->parts[k].iov_base + part;
            d->parts[k].iov_len -= part;
            n -= (ssize_t)part;
        }
    }
    return 1;
}

/* Whether an item would leave at once: a form with a limit begins nothing that
 * it might have to finish after it. */
static int enough_vacant(struct end *o, uint64_t need) {
    int size = 0, used = 0;
    socklen_t length = sizeof size;
    int code = consumer_gone(o);
    if (code) return code;
    if (getsockopt(o->direct->fd, SOL_SOCKET, SO_SNDBUF, &size, &length) || ioctl(o->direct->fd, SIOCOUTQ, &used)) return 1;
    return used == 0 || (uint64_t)used + need <= (uint64_t)size / 2;
}

static int direct_vacant(struct end *o, uint64_t need, int64_t deadline) {
    struct timespec nap = {0, 20000};
    for (int n = 0;; n++) {
        int got = enough_vacant(o, need);
        if (got) return got > 0 ? MVM_OK : got;
        if (deadline == 0) return MVM_AGAIN;
        if (now() >= deadline) return MVM_TIMEOUT;
        if (n == 0) settle();
        if (n < YIELDS) sched_yield();
        else if (nanosleep(&nap, NULL) < 0 && per_thread.sliced) return MVM_TIMEOUT;
        else if (nap.tv_nsec < 1000000) nap.tv_nsec *= 2;
    }
}

/* Sends an item whose header is in front of it, or apart. */
static int direct_send(struct end *o, void *header, size_t before, const void *item, size_t length) {
    int code = consumer_gone(o);
    if (code) return code;
    unsigned char joined[JOINED]; /* the kernel takes one part quicker than two */
    o->direct->parts[0] = (struct iovec){header, before};
    o->direct->parts[1] = (struct iovec){(void *)item, length};
    if (length <= sizeof joined - sizeof(uint64_t) && before == sizeof(uint64_t)) {
        memcpy(joined, header, before);
        if (length) memcpy(joined + before, item, length);
        o->direct->parts[0].iov_len = 0;
        o->direct->parts[1] = (struct iovec){joined, before + length};
    }
    if ((code = direct_await(o, 0, enough_sent, -1))) return code;
    note_items(o, &o->header->items_in);
    return MVM_OK;
}

static inline uint64_t direct_header(const struct end *o, size_t length) { return (uint64_t)length | (uint64_t)o->meta << 48; }

static int direct_enqueue(struct end *o, const void *item, size_t length, int64_t deadline) {
    if (o->finished) return MVM_CLOSED;
    if (o->holding) return MVM_MISUSE;
    if (length >> 48 || (deadline >= 0 && length > largest(o))) return MVM_TOO_BIG;
    uint64_t header = direct_header(o, length);
    int code = deadline >= 0 ? direct_vacant(o, length + sizeof header, deadline) : MVM_OK;
    return code ? code : direct_send(o, &header, sizeof header, item, length);
}

static int direct_reserve(struct end *o, size_t length, void **to) {
    struct direct *d = o->direct;
    int code = consumer_gone(o);
    if (code) return code;
    if (d->size < length + 8) {
        unsigned char *grown = realloc(d->buffer, length + 8);
        if (!grown) return MVM_SYSTEM;
        d->buffer = grown;
        d->size = length + 8;
    }
    o->holding = 1;
    o->held = length;
    *to = d->buffer + 8;
    return MVM_OK;
}

static int direct_commit(struct end *o, size_t length) {
    uint64_t header = direct_header(o, length);
    memcpy(o->direct->buffer, &header, 8);
    o->deaf = 1; /* the item is this channel's */
    int code = direct_send(o, o->direct->buffer, 8 + length, NULL, 0);
    o->deaf = 0;
    return code;
}

/* Reads the header of the next item, waiting for it. */
static int direct_first(struct end *i, uint64_t *length, int64_t deadline) {
    if (i->broken) return MVM_BROKEN;
    int code = direct_await(i, 8, enough_buffered, deadline);
    if (code) return code;
    uint64_t header;
    memcpy(&header, i->direct->buffer + i->direct->start, 8);
    if (header >> 60) {
        i->broken = 1;
        return MVM_BROKEN;
    }
    *length = header & (((uint64_t)1 << 48) - 1);
    i->meta = (uint32_t)(header >> 48);
    return MVM_OK;
}

/* Has the whole of a next item of at most mvm_largest in the buffer. */
static int direct_whole(struct end *i, uint64_t *length, int64_t deadline) {
    int code = direct_first(i, length, deadline);
    if (code) return code;
    if (*length > largest(i)) return MVM_TOO_BIG;
    return direct_await(i, 8 + *length, enough_buffered, deadline);
}

static ssize_t direct_dequeue(struct end *i, unsigned char *to, size_t size, int64_t deadline) {
    struct direct *d = i->direct;
    uint64_t length;
    if (i->holding) return MVM_MISUSE;
    int code = deadline >= 0 ? direct_whole(i, &length, deadline) : direct_first(i, &length, -1);
    if (code) return code;
    if (length > size) return MVM_TOO_BIG;
    uint64_t have = d->end - d->start - 8 < length ? d->end - d->start - 8 : length;
    if (have) memcpy(to, d->buffer + d->start + 8, have);
    d->start += 8 + have;
    d->to = to + have;
    d->left = length - have;
    code = direct_await(i, 0, enough_filled, -1);
    d->left = 0;
    if (code) return code;
    note_items(i, &i->header->items_out);
    return (ssize_t)length;
}

/* ---- enqueue ---- */

static inline void publish(struct end *o) {
    atomic_store_explicit(&o->header->items_in, o->items, memory_order_relaxed);
    atomic_store_explicit(&o->header->tail, o->mine, memory_order_release);
    tell_consumer(o);
}

static inline void put_header(unsigned char *to, uint32_t length, uint32_t meta) {
    uint64_t word = (uint64_t)meta << 32 | length;
    memcpy(to, &word, 8);
}

/* Writes a record that fits and publishes it. */
static inline int put_whole(struct end *o, const void *item, size_t length) {
    int code = consumer_gone(o);
    if (unlikely(code)) return code;
    unsigned char *to = at(o, o->mine);
    put_header(to, (uint32_t)length, o->meta);
    if (length) memcpy(to + RECORD_HEADER, item, length); /* item may be NULL */
    o->mine += record_size(length);
    o->items++;
    publish(o);
    return MVM_OK;
}

/* Writes a record piece by piece, publishing each, as room comes free. total
 * is put before the payload when it is not NULL. */
static int put_stream(struct end *o, uint32_t flags, const uint64_t *total, const unsigned char *item, size_t length) {
    uint64_t before = RECORD_HEADER + (total ? TOTAL_HEADER : 0);
    int code = await_room(o, before, -1);
    if (code) return code;
    o->deaf = 1;
    unsigned char *to = at(o, o->mine);
    put_header(to, (uint32_t)(length + before - RECORD_HEADER) | flags, o->meta);
    if (total) memcpy(to + RECORD_HEADER, total, TOTAL_HEADER);
    o->mine += before;
    while (length > 0) {
        uint64_t part = o->capacity / 4 < CHUNK ? o->capacity / 4 : CHUNK;
        if (part > length) part = length;
        if ((code = await_room(o, (part + 7) & ~(uint64_t)7, -1)) || (code = consumer_gone(o))) return code;
        memcpy(at(o, o->mine), item, part);
        o->mine += (part + 7) & ~(uint64_t)7;
        item += part;
        length -= part;
        if (length == 0 && !(flags & FLAG_MORE)) o->items++;
        publish(o);
    }
    return MVM_OK;
}

/* What became of the item just published, where the queue may refuse it. */
static int verdict(struct end *o) {
    if (!(o->meta & META_AWAITS)) return MVM_OK;
    int code = await(o, o->items, enough_verdict, &o->header->producer_waits, -1);
    if (code) return code;
    return atomic_load_explicit(&o->header->verdict, memory_order_acquire) & 1 ? MVM_FULL : MVM_OK;
}

static int enqueue_any(struct end *o, const void *item, size_t length, int64_t deadline) {
    if (o->finished) return MVM_CLOSED;
    if (o->holding) return MVM_MISUSE;
    if (consumer_gone(o) == HEED) return HEED; /* first of all: it may change what fits */
    if (length > o->most) return MVM_TOO_BIG;
    if (length <= largest(o) && (deadline >= 0 || length <= CHUNK)) {
        int code = await_room(o, record_size(length), deadline);
        return code ? code : put_whole(o, item, length);
    }
    if (deadline >= 0) return MVM_TOO_BIG;
    if (length <= largest(o)) return put_stream(o, 0, NULL, item, length);
    uint64_t total = length, step = o->capacity / 8 - RECORD_HEADER - TOTAL_HEADER;
    const unsigned char *from = item;
    for (uint32_t cont = 0; length > 0; cont = FLAG_CONT) {
        uint64_t part = length < step ? length : step;
        length -= part;
        int code = put_stream(o, cont | (length ? FLAG_MORE : 0), cont ? NULL : &total, from, part);
        if (code) return code;
        from += part;
    }
    return MVM_OK;
}

static int heed(mvm_port *port);
static int leads(mvm_port *port, const struct end *e);

static int enqueue_slow(mvm_port *port, const void *item, size_t length, int64_t deadline) {
    struct end *o = &port->out;
    if (!leads(port, o)) return MVM_DIRECTION;
    for (;;) {
        int code = o->direct ? direct_enqueue(o, item, length, deadline) : enqueue_any(o, item, length, deadline);
        o->deaf = 0;
        if (!code) return verdict(o);
        if (code != HEED || (code = heed(port))) return code;
    }
}

int mvm_enqueue(mvm_port *port, const void *item, size_t length) {
    struct end *o = &port->out;
    if (likely(o->header && !o->served && length <= o->most && length <= CHUNK && length <= largest(o) && !o->holding && !o->finished &&
               o->capacity - (o->mine - o->theirs) >= record_size(length))) {
        int code = put_whole(o, item, length);
        if (likely(code != HEED)) return code;
    }
    return enqueue_slow(port, item, length, -1);
}

int mvm_instruct(mvm_port *port, const void *item, size_t length) {
    port->out.meta |= KIND_INSTRUCTION;
    int code = enqueue_slow(port, item, length, -1);
    port->out.meta &= ~(uint32_t)KIND_MASK;
    return code;
}

int mvm_enqueue_timed(mvm_port *port, const void *item, size_t length, long ms) {
    return enqueue_slow(port, item, length, deadline_of(ms < 0 ? 0 : ms));
}

int mvm_try_enqueue(mvm_port *port, const void *item, size_t length) { return mvm_enqueue_timed(port, item, length, 0); }

int mvm_reserve(mvm_port *port, size_t length, void **to) {
    struct end *o = &port->out;
    if (!leads(port, o)) return MVM_DIRECTION;
    if (o->finished) return MVM_CLOSED;
    o->holding = 0;
    for (;;) {
        int code = consumer_gone(o);
        if (code != HEED) {
            if (length > largest(o) || length > o->most) return MVM_TOO_BIG;
            code = o->direct ? MVM_OK : await_room(o, record_size(length), -1);
        }
        if (!code) break;
        if (code != HEED || (code = heed(port))) return code;
    }
    if (o->direct) return direct_reserve(o, length, to);
    o->holding = 1;
    o->held = length;
    *to = at(o, o->mine) + RECORD_HEADER;
    return MVM_OK;
}

int mvm_commit(mvm_port *port, size_t length) {
    struct end *o = &port->out;
    if (!o->header) return MVM_DIRECTION;
    if (!o->holding || length > o->held) return MVM_MISUSE;
    o->holding = 0;
    if (o->direct) return direct_commit(o, length);
    o->deaf = 1; /* the room is in this ring */
    int code = consumer_gone(o);
    o->deaf = 0;
    if (code) return code;
    put_header(at(o, o->mine), (uint32_t)length, o->meta);
    o->mine += record_size(length);
    o->items++;
    publish(o);
    return verdict(o);
}

int mvm_set_priority(mvm_port *port, int priority) {
    if (!leads(port, &port->out)) return MVM_DIRECTION;
    if (priority < 0 || priority > 255) return MVM_MISUSE;
    port->out.meta = (port->out.meta & META_AWAITS) | (uint32_t)priority << 4;
    return MVM_OK;
}

/* ---- dequeue ---- */

struct first {
    uint64_t length; /* payload of this record */
    uint64_t total;  /* of the whole item */
    uint32_t flags;
};

static inline void give_back(struct end *i, uint64_t n);

/* Has a served queue owe an answer: an item when there is one, or, impatiently,
 * at once whether there is. */
static void demand_item(struct end *i, int now) {
    uint32_t old = atomic_load_explicit(&i->header->demand, memory_order_relaxed), demand = old;
    if (!i->asked) demand = ((demand >> 1) + 1) << 1;
    if (now) demand |= IMPATIENT;
    i->asked = 1;
    if (demand == old) return;
    atomic_store_explicit(&i->header->demand, demand, memory_order_release);
    tell_producer(i);
}

/* Whether the bytes at mine are the answer that there is nothing; it is taken off. */
static int nothing(struct end *i) {
    uint32_t word[2];
    memcpy(word, at(i, i->mine), sizeof word);
    if (word[0] != FLAG_CONTROL || word[1] != CONTROL_NOTHING) return 0;
    i->asked = 0;
    give_back(i, RECORD_HEADER);
    return 1;
}

/* Asks a served queue, if that was not done, and waits for the beginning of an
 * item. When the time is over the queue is told so, and answers: with the item
 * after all, if that had left it. */
static int await_answer(struct end *i, int64_t deadline) {
    for (int late = deadline == 0;;) {
        if (!i->asked || (late && enough_bytes(i, RECORD_HEADER) == 0)) demand_item(i, late);
        int code = await_bytes(i, RECORD_HEADER, late ? -1 : deadline);
        if (code == MVM_TIMEOUT) late = 1;
        else if (code) return code;
        else if (!nothing(i)) return MVM_OK;
        else if (late) return deadline == 0 ? MVM_AGAIN : MVM_TIMEOUT;
    }
}

/* Reads the header of the record at mine, waiting for it. Forms with a deadline
 * take no fragments, so they must not wait for the second word either. */
static int first_of(struct end *i, struct first *f, int64_t deadline) {
    if (i->broken) return MVM_BROKEN;
    int code = i->served & SERVED_DEMAND ? await_answer(i, deadline) : await_bytes(i, RECORD_HEADER, deadline);
    if (code) return code;
    uint32_t word, meta;
    memcpy(&word, at(i, i->mine), 4);
    memcpy(&meta, at(i, i->mine) + 4, 4);
    f->length = f->total = word & LENGTH_MASK;
    f->flags = word & ~LENGTH_MASK;
    i->meta = meta;
    if (f->length > largest(i) || f->flags & FLAG_CONTROL) goto garbage;
    if (f->flags == FLAG_MORE) {
        if (f->length < TOTAL_HEADER) goto garbage;
        if (deadline >= 0) return MVM_TOO_BIG;
        if ((code = await_bytes(i, RECORD_HEADER + TOTAL_HEADER, deadline))) return code;
        memcpy(&f->total, at(i, i->mine) + RECORD_HEADER, TOTAL_HEADER);
        if (f->total > (uint64_t)1 << 62 || f->total <= f->length - TOTAL_HEADER) goto garbage;
    }
    return MVM_OK;
garbage:
    i->broken = 1;
    return MVM_BROKEN;
}

/* Gives n ring bytes back. */
static inline void give_back(struct end *i, uint64_t n) {
    i->mine += n;
    atomic_store_explicit(&i->header->items_out, i->items, memory_order_relaxed);
    atomic_store_explicit(&i->header->head, i->mine, memory_order_release);
    i->quiet += n;
    if (i->quiet >= i->capacity / 8) tell_producer(i);
    else {
        /* Release: a thread that settles for us must make our head seen first. */
        atomic_store_explicit(&i->owes, 1, memory_order_release);
        atomic_store_explicit(&owing, 1, memory_order_release);
    }
}

/* Copies one record's payload out as it arrives; skip is what precedes it. */
static int take_stream(struct end *i, uint64_t skip, unsigned char *to, uint64_t length, int last) {
    int code = await_bytes(i, skip, -1);
    if (code) return code;
    atomic_store_explicit(&i->header->begun, i->mine + skip + ((length + 7) & ~(uint64_t)7), memory_order_release);
    give_back(i, skip);
    while (length > 0) {
        uint64_t have = i->theirs - i->mine, part = length;
        if (have < ((length + 7) & ~(uint64_t)7)) {
            if (have == 0) {
                if ((code = await_bytes(i, 8, -1))) return code;
                continue;
            }
            part = have;
        }
        if (part > CHUNK) part = CHUNK;
        memcpy(to, at(i, i->mine), part);
        to += part;
        length -= part;
        if (length == 0 && last) i->items++, i->asked = 0;
        give_back(i, (part + 7) & ~(uint64_t)7);
    }
    return MVM_OK;
}

/* Takes the item whose first record is f into a buffer that holds it. */
static int take(struct end *i, const struct first *f, unsigned char *to) {
    if (i->holding) return MVM_MISUSE;
    uint64_t size = record_size(f->length);
    if (f->flags == 0) {
        if (i->theirs - i->mine < size) return take_stream(i, RECORD_HEADER, to, f->length, 1);
        if (f->length > CHUNK) return take_stream(i, RECORD_HEADER, to, f->length, 1);
        if (f->length) memcpy(to, at(i, i->mine) + RECORD_HEADER, f->length);
        i->items++;
        i->asked = 0;
        give_back(i, size);
        return MVM_OK;
    }
    if (f->flags != FLAG_MORE) { i->broken = 1; return MVM_BROKEN; }
    uint64_t part = f->length - TOTAL_HEADER, left = f->total;
    int code = take_stream(i, RECORD_HEADER + TOTAL_HEADER, to, part, 0);
    for (;;) {
        if (code) return code;
        to += part;
        left -= part;
        struct first next;
        if ((code = first_of(i, &next, -1))) return code;
        part = next.length;
        if (!(next.flags & FLAG_CONT) || part > left || (!(next.flags & FLAG_MORE) && part != left)) {
            i->broken = 1;
            return MVM_BROKEN;
        }
        int last = !(next.flags & FLAG_MORE);
        code = take_stream(i, RECORD_HEADER, to, part, last);
        if (last) return code;
    }
}

static int go_on(mvm_port *port, struct end *e, const char *way);

/* The next item's first record, of whichever ring has it. */
static int first_item(mvm_port *port, struct first *f, int64_t deadline) {
    struct end *i = &port->in;
    if (!leads(port, i)) return MVM_DIRECTION;
    if (i->finished) return MVM_END;
    for (;;) {
        int code = first_of(i, f, deadline);
        if (code != HEED || (code = go_on(port, i, "in"))) return code;
    }
}

static ssize_t dequeue(mvm_port *port, void *buffer, size_t size, int64_t deadline) {
    struct end *i = &port->in;
    for (;;) {
        if (port->in.direct && !port->in.finished) {
            ssize_t n = direct_dequeue(i, buffer, size, deadline);
            if (n != HEED || (n = go_on(port, i, "in"))) return n;
            continue;
        }
        struct first f;
        int code = first_item(port, &f, deadline);
        if (code) return code;
        /* An answer is on its way whole: it is not left behind for being late. */
        if (deadline >= 0) code = await_bytes(i, record_size(f.length), i->served & SERVED_DEMAND ? -1 : deadline);
        if (!code) {
            if (f.total > size) return MVM_TOO_BIG;
            code = take(i, &f, buffer);
        }
        if (!code) return (ssize_t)f.total;
        if (code != HEED) return code; /* else the item's producer ended within it, and another follows */
    }
}

ssize_t mvm_dequeue(mvm_port *port, void *buffer, size_t size) { return dequeue(port, buffer, size, -1); }
ssize_t mvm_try_dequeue(mvm_port *port, void *buffer, size_t size) { return dequeue(port, buffer, size, 0); }
ssize_t mvm_dequeue_timed(mvm_port *port, void *buffer, size_t size, long ms) {
    return dequeue(port, buffer, size, deadline_of(ms < 0 ? 0 : ms));
}

ssize_t mvm_next_length(mvm_port *port) {
    struct first f;
    uint64_t length;
    int code = HEED;
    while (code == HEED && port->in.direct && !port->in.finished)
        if ((code = direct_first(&port->in, &length, -1)) == MVM_OK) return (ssize_t)length;
        else if (code == HEED && (code = go_on(port, &port->in, "in")) == MVM_OK) code = HEED;
    if (code != HEED) return code;
    code = first_item(port, &f, -1);
    return code ? code : (ssize_t)f.total;
}

int mvm_is_instruction(const mvm_port *port) { return (port->in.meta & KIND_MASK) == KIND_INSTRUCTION; }

ssize_t mvm_dequeue_alloc(mvm_port *port, void **item) {
    for (;;) {
        ssize_t length = mvm_next_length(port);
        if (length < 0) return length;
        unsigned char *memory = malloc((size_t)length + 1);
        if (!memory) return MVM_SYSTEM;
        length = dequeue(port, memory, (size_t)length, -1);
        if (length >= 0) {
            memory[length] = 0;
            *item = memory;
            return length;
        }
        free(memory);
        if (length != MVM_TOO_BIG) return length; /* else it became another item */
    }
}

ssize_t mvm_peek(mvm_port *port, const void **item) {
    struct end *i = &port->in;
    struct first f;
    int code = HEED;
    while (code == HEED && i->direct && !i->finished) {
        if ((code = direct_whole(i, &i->held, -1)) == MVM_OK) {
            i->holding = 1;
            *item = i->direct->buffer + i->direct->start + 8;
            return (ssize_t)i->held;
        }
        if (code == HEED && (code = go_on(port, i, "in")) == MVM_OK) code = HEED;
    }
    if (code != HEED) return code;
    do {
        if ((code = first_item(port, &f, -1))) return code;
        if (f.flags) return MVM_TOO_BIG;
        code = await_bytes(i, record_size(f.length), -1);
    } while (code == HEED);
    if (code) return code;
    i->holding = 1;
    i->held = record_size(f.length);
    *item = at(i, i->mine) + RECORD_HEADER;
    return (ssize_t)f.length;
}

int mvm_release(mvm_port *port) {
    struct end *i = &port->in;
    if (!i->header) return MVM_DIRECTION;
    if (!i->holding) return MVM_MISUSE;
    i->holding = 0;
    if (i->direct) {
        i->direct->start += 8 + i->held;
        note_items(i, &i->header->items_out);
        return MVM_OK;
    }
    i->items++;
    i->asked = 0;
    give_back(i, i->held);
    return MVM_OK;
}

/* ---- several ports ---- */

/* Whether a dequeue would not have to wait for long: a whole record, the start
 * of a fragmented one, or an end. */
static int ready(mvm_port *port) {
    struct end *i = &port->in;
    int got;
    do {
        if (!leads(port, i) || i->finished || i->broken) return 1;
        if (i->direct) {
            uint64_t length;
            got = direct_whole(i, &length, 0);
            if (got != HEED) return got != MVM_AGAIN;
            continue;
        }
        got = enough_bytes(i, RECORD_HEADER);
    } while (got == HEED && go_on(port, i, "in") == MVM_OK);
    if (got <= 0) return got < 0;
    if (i->served & SERVED_DEMAND && nothing(i)) return 0;
    uint32_t word;
    memcpy(&word, at(i, i->mine), 4);
    if (word & ~LENGTH_MASK || (word & LENGTH_MASK) > largest(i)) return 1;
    got = enough_bytes(i, record_size(word & LENGTH_MASK));
    return got == HEED ? go_on(port, i, "in") == MVM_OK ? ready(port) : 1 : got != 0;
}

#ifndef SYS_futex_waitv
#define SYS_futex_waitv 449
#endif
struct waiter { /* struct futex_waitv, which older headers lack */
    uint64_t value, address;
    uint32_t flags, reserved;
};

static int sleep_on(mvm_port *const *ports, int n, uint32_t waits, int64_t deadline, long *nap) {
    struct timespec t;
    if (n <= 128) {
        struct waiter waiters[128];
        for (int k = 0; k < n; k++)
            waiters[k] = (struct waiter){waits, (uintptr_t)&ports[k]->in.header->consumer_waits, 2 /* 32-bit, shared */, 0};
        if (deadline > 0) t = (struct timespec){deadline / 1000000000, deadline % 1000000000};
        if (syscall(SYS_futex_waitv, waiters, n, 0, deadline > 0 ? &t : NULL, CLOCK_MONOTONIC) >= 0) return 0;
        if (errno != ENOSYS) return errno == EINTR;
    }
    t = (struct timespec){0, *nap};
    if (*nap < 1000000) *nap *= 2;
    return nanosleep(&t, NULL) < 0 && errno == EINTR;
}

/* Asks the served queues among the ports that do not owe an answer. */
static void demand_all(mvm_port *const *ports, int n, int now) {
    for (int k = 0; k < n; k++)
        if (ports[k]->in.served & SERVED_DEMAND && !ready(ports[k])) demand_item(&ports[k]->in, now);
}

/* Settles what served queues still owe, and gives found, or the first port that
 * an answer came to if nothing was found. */
static int withdraw(mvm_port *const *ports, int n, int found) {
    for (int k = 0; k < n; k++)
        if (ports[k]->in.asked && !ready(ports[k])) demand_item(&ports[k]->in, 1);
    for (int k = 0; k < n; k++) {
        struct end *i = &ports[k]->in;
        while (i->asked && !ready(ports[k]) && i->asked) /* the rest of a record, after its first bytes */
            if (await_bytes(i, i->theirs - i->mine + 8, -1)) break;
        if (found < 0 && i->served & SERVED_DEMAND && ready(ports[k])) found = k;
    }
    return found;
}

/* Sleeps until a direct port among the ports may have something. Among rings too
 * there is nothing to sleep on for both: then it only naps. */
static int sleep_on_sockets(mvm_port *const *ports, int n, int64_t deadline, long *nap) {
    struct pollfd few[64], *all = n <= 64 ? few : malloc((size_t)n * sizeof *all);
    int sockets = 0;
    for (int k = 0; all && k < n; k++)
        if (ports[k]->in.direct && !ports[k]->in.direct->ended) all[sockets++] = (struct pollfd){ports[k]->in.direct->fd, POLLIN, 0};
    int64_t ns = deadline > 0 ? deadline - now() : INT64_MAX;
    if (sockets < n && ns > *nap) {
        ns = *nap;
        if (*nap < 1000000) *nap *= 2;
    }
    struct timespec left = {ns / 1000000000, ns % 1000000000};
    int interrupted = ppoll(all, (nfds_t)sockets, ns == INT64_MAX ? NULL : &left, NULL) < 0 && errno == EINTR;
    if (all != few) free(all);
    return interrupted;
}

static int wait_on(mvm_port *const *ports, int n, int64_t deadline) {
    long nap = 50000;
    int sockets = 0;
    for (int k = 0; k < n; k++) sockets += ports[k]->in.direct != NULL;
    for (int k = 0; k < n; k++)
        if (ready(ports[k])) return k;
    if (deadline == 0) return MVM_TIMEOUT;
    demand_all(ports, n, 0);
    settle();
    int64_t before = now();
    if (before >= per_thread.no_yield_until)
        for (int y = 0; y < YIELDS; y++) {
            sched_yield();
            for (int k = 0; k < n; k++)
                if (ready(ports[k])) return k;
            int64_t after = now();
            if (after - before > SLOW_YIELD_NS) { per_thread.no_yield_until = after + YIELD_PENALTY_NS; break; }
            before = after;
        }
    int found = -1;
    uint32_t waits = deadline < 0 || per_thread.sliced ? WAITS_ONLY : WAITS_FUTEX;
    while (found == -1 && sockets) {
        for (int k = 0; k < n && found == -1; k++)
            if (ready(ports[k])) found = k;
        if (found != -1) return found;
        if (deadline > 0 && now() >= deadline) return MVM_TIMEOUT;
        if (sleep_on_sockets(ports, n, deadline, &nap) && deadline > 0 && per_thread.sliced) return MVM_TIMEOUT;
    }
    while (found == -1) {
        unsigned before_look = per_thread.hops;
        for (int k = 0; k < n; k++) atomic_store_explicit(&ports[k]->in.header->consumer_waits, waits, memory_order_seq_cst);
        atomic_thread_fence(memory_order_seq_cst);
        for (int k = 0; k < n && found == -1; k++)
            if (ready(ports[k])) found = k;
        if (found != -1) break;
        if (per_thread.hops != before_look) { /* the rings that ports went on to were told nothing yet */
            demand_all(ports, n, 0);
            continue;
        }
        if (deadline > 0 && now() >= deadline) { found = MVM_TIMEOUT; break; }
        if (sleep_on(ports, n, waits, deadline, &nap) && deadline > 0 && per_thread.sliced) { found = MVM_TIMEOUT; break; }
    }
    for (int k = 0; k < n; k++) atomic_store_explicit(&ports[k]->in.header->consumer_waits, AWAKE, memory_order_relaxed);
    return found;
}

int mvm_wait(mvm_port *const *ports, int n, long ms) {
    if (n <= 0) return MVM_MISUSE;
    int found = wait_on(ports, n, deadline_of(ms));
    if (found == MVM_TIMEOUT) demand_all(ports, n, 1);
    return withdraw(ports, n, found);
}

int mvm_wait_slice(mvm_port *const *ports, int n, long ms) {
    if (n <= 0) return MVM_MISUSE;
    per_thread.sliced = 1;
    int found = wait_on(ports, n, deadline_of(ms));
    per_thread.sliced = 0;
    return found == MVM_TIMEOUT ? found : withdraw(ports, n, found);
}

int mvm_enqueue_slice(mvm_port *port, const void *item, size_t length, long ms) {
    per_thread.sliced = 1;
    int code = mvm_enqueue_timed(port, item, length, ms);
    per_thread.sliced = 0;
    return code;
}

/* ---- opening ---- */

/* Learns of the daemon from the environment; the caller holds lock. */
static int meet(void) {
    if (process.known) return 0;
    const char *control = getenv("MVM_CONTROL");
    if (!control || !*control) {
        fail("not run by MVM: the program was started by hand, so it has no ports; run it with `mvm lab PROFILE`");
        return -1;
    }
    process.control = atoi(control);
    const char *spin = getenv("MVM_SPIN");
    process.spin = spin ? atoi(spin) : 0;
    process.known = 1;
    return 0;
}

/* One question to the daemon and its answer, with up to three descriptors;
 * the caller holds lock. Returns the answer's length or -1. */
static ssize_t ask(const char *question, char *answer, size_t size, int fds[3]) {
    fds[0] = fds[1] = fds[2] = -1;
    ssize_t n;
    do n = send(process.control, question, strlen(question), MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    if (n < 0) {
        fail("descriptor %d does not lead to MVM (%s): a program must not close what it inherits", process.control, strerror(errno));
        return -1;
    }
    union {
        char bytes[CMSG_SPACE(3 * sizeof(int))];
        struct cmsghdr align;
    } space;
    struct iovec part = {answer, size - 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &space, .msg_controllen = sizeof space};
    do n = recvmsg(process.control, &message, MSG_CMSG_CLOEXEC);
    while (n < 0 && errno == EINTR);
    if (n <= 0) {
        fail("MVM has gone away: the job is being ended");
        return -1;
    }
    answer[n] = 0;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c))
        if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS)
            memcpy(fds, CMSG_DATA(c), c->cmsg_len - CMSG_LEN(0) < sizeof(int[3]) ? c->cmsg_len - CMSG_LEN(0) : sizeof(int[3]));
    if (strncmp(answer, "ok", 2) != 0) {
        fail("%s", strncmp(answer, "error ", 6) == 0 ? answer + 6 : answer);
        for (int k = 0; k < 3; k++)
            if (fds[k] >= 0) close(fds[k]);
        return -1;
    }
    return n;
}

/* Reads what the daemon says about the queue behind a producer's ring. */
static void reread(struct end *o) {
    uint64_t most = atomic_load_explicit(&o->header->most, memory_order_acquire);
    o->most = most ? most : UINT64_MAX;
    o->served = atomic_load_explicit(&o->header->served, memory_order_acquire);
    o->meta = o->served & SERVED_VERDICT ? o->meta | META_AWAITS : o->meta & ~(uint32_t)META_AWAITS;
}

/* Maps a ring: header and data, and the data once more behind it. */
static int map_ring(struct end *e, int fd, uint64_t capacity) {
    size_t first = HEADER_SIZE + capacity;
#ifdef MVM_TEST_ONE_MAPPING
    /* A thread sanitizer watches addresses: it must see one memory where a
     * program holds both ends of a ring. */
    static struct { ino_t inode; struct end end; } mapped[64];
    static int rings;
    struct stat stat;
    if (fstat(fd, &stat)) return -1;
    for (int k = 0; k < rings; k++)
        if (mapped[k].inode == stat.st_ino) {
            *e = mapped[k].end;
            return 0;
        }
#endif
    unsigned char *base = mmap(NULL, first + capacity, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) return -1;
    if (mmap(base, first, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED ||
        mmap(base + first, capacity, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, HEADER_SIZE) == MAP_FAILED) {
        munmap(base, first + capacity);
        return -1;
    }
    struct header *h = (struct header *)base;
    if (h->magic != MAGIC || h->version != VERSION || h->capacity != capacity) {
        munmap(base, first + capacity);
        errno = EPROTO;
        return -1;
    }
    e->header = h;
    e->data = base + HEADER_SIZE;
    e->capacity = capacity;
    e->channel = h->channel;
    reread(e);
#ifdef MVM_TEST_ONE_MAPPING
    if (rings < 64) {
        mapped[rings].inode = stat.st_ino;
        mapped[rings++].end = *e;
    }
#endif
    return 0;
}

static void unmap_ring(struct end *e) {
    if (e->direct) {
        close(e->direct->fd);
        free(e->direct->buffer);
        free(e->direct);
    }
#ifndef MVM_TEST_ONE_MAPPING /* there the other end has it too */
    if (e->header) munmap(e->header, HEADER_SIZE + 2 * e->capacity);
#endif
    e->header = NULL;
}

/* Where an end stands is in its ring: a port is opened again after exec. */
static void resume_out(struct end *o) {
    o->mine = atomic_load(&o->header->tail);
    o->theirs = atomic_load(&o->header->head);
    o->items = atomic_load(&o->header->items_in);
    o->switched = (atomic_load(&o->header->producer_state) & STATE_SWITCHED) != 0;
}

static void resume_in(struct end *i) {
    i->mine = i->theirs = atomic_load(&i->header->head);
    i->items = atomic_load(&i->header->items_out);
    i->asked = i->served & SERVED_DEMAND && atomic_load(&i->header->tail) != i->mine;
}

/* Goes on with the ring that follows an end's. */
static int go_on(mvm_port *port, struct end *e, const char *way) {
    char question[300], answer[512];
    int fds[3], out = e == &port->out, code = out ? MVM_CLOSED : MVM_END;
    unsigned long long capacity = 0;
    struct end next = {.meta = out ? e->meta : 0};
    pthread_mutex_lock(&lock);
    snprintf(question, sizeof question, "next %s %u %s", way, (unsigned)e->channel, port->name);
    if (ask(question, answer, sizeof answer, fds) < 0) code = MVM_LOST;
    else if (sscanf(answer, "ok %llu", &capacity) != 1) code = MVM_SYSTEM;
    else if (capacity && fds[0] >= 0) {
        code = map_ring(&next, fds[0], capacity) ? MVM_SYSTEM : MVM_OK;
        if (!code) {
            struct end old = *e;
            if (out) resume_out(&next);
            else resume_in(&next);
            *e = next;
            unmap_ring(&old);
            per_thread.hops++;
        }
    }
    for (int k = 0; k < 3; k++)
        if (fds[k] >= 0) close(fds[k]);
    pthread_mutex_unlock(&lock);
    return code;
}

/* Does what the daemon asks of a producer, between two items. */
static int heed(mvm_port *port) {
    struct end *o = &port->out;
    uint32_t state = atomic_load(&o->header->consumer_state);
    if (state & CONTROL_CHANGED) {
        atomic_fetch_and(&o->header->consumer_state, ~(uint32_t)CONTROL_CHANGED); /* before it is read */
        reread(o);
    }
    if (!(state & CONTROL_SWITCH)) return MVM_OK;
    if (!o->switched) {
        o->switched = 1;
        atomic_fetch_or(&o->header->producer_state, STATE_CLOSED | STATE_SWITCHED);
        atomic_thread_fence(memory_order_seq_cst);
        wake(o->header, &o->header->consumer_waits);
        ring_bell(o->header);
        if (o->direct) shutdown(o->direct->fd, SHUT_WR);
    }
    if (!(atomic_load(&o->header->next) & NEXT_OUT)) return MVM_CLOSED;
    return go_on(port, o, "out");
}

/* Takes over the socket of a direct channel; the buffer holds what peek gives. */
static int take_socket(struct end *e, int fd, int out) {
    struct direct *d = calloc(1, sizeof *d);
    if (!d) return 0;
    d->fd = fd;
    d->out = out;
    if (!out) {
        d->size = (e->capacity / 2 < CHUNK ? CHUNK : e->capacity / 2) + CHUNK;
        if (!(d->buffer = malloc(d->size))) {
            free(d);
            return 0;
        }
    }
    e->direct = d;
    return 1;
}

/* Asks for the sockets of a port's direct channels. */
static int open_sockets(mvm_port *p) {
    char question[300], answer[512];
    int fds[3], out = 0, in = 0, both = 0, used = 0;
    snprintf(question, sizeof question, "direct %s", p->name);
    if (ask(question, answer, sizeof answer, fds) < 0) return 0;
    int ok = sscanf(answer, "ok %d %d %d", &out, &in, &both) >= 2;
    if (ok && out && (ok = fds[used] >= 0 && take_socket(&p->out, fds[used], 1))) used++;
    if (ok && in && (ok = fds[used] >= 0 && take_socket(&p->in, fds[used], 0))) used++, p->in.direct->both = both;
    for (; used < 3; used++)
        if (fds[used] >= 0) close(fds[used]);
    if (!ok) fail("the sockets of port \"%s\" could not be opened: %s", p->name, strerror(errno));
    return ok;
}

static mvm_port *open_port(const char *name) {
    char question[300], answer[512];
    int fds[3];
    for (mvm_port *p = process.ports; p; p = p->next)
        if (strcmp(p->name, name) == 0) return p;
    if (meet()) return NULL;
    if (strlen(name) > 255) {
        fail("a port's name has at most 255 bytes");
        return NULL;
    }
    snprintf(question, sizeof question, "open %s", name);
    if (ask(question, answer, sizeof answer, fds) < 0) return NULL;
    unsigned long long out = 0, in = 0;
    mvm_port *p = calloc(1, sizeof *p + strlen(name) + 1);
    int ok = p && sscanf(answer, "ok %llu %llu", &out, &in) == 2 && fds[0] >= 0;
    int used = 1;
    if (ok) {
        strcpy(p->name, name);
        if (out && (ok = map_ring(&p->out, fds[used++], out) == 0)) resume_out(&p->out);
        if (ok && in && (ok = map_ring(&p->in, fds[used++], in) == 0)) resume_in(&p->in);
    }
    if (ok && process.bell < 0) {
        process.bell = fds[0];
        fds[0] = -1;
    }
    int mapped = ok;
    if (ok && (p->out.served | p->in.served) & SERVED_DIRECT) ok = open_sockets(p);
    if (!mapped) fail("the channels of port \"%s\" could not be mapped: %s", name, strerror(errno));
    for (int k = 0; k < 3; k++)
        if (fds[k] >= 0) close(fds[k]);
    if (!ok) {
        if (p) unmap_ring(&p->out), unmap_ring(&p->in);
        free(p);
        return NULL;
    }
    p->next = process.ports;
    process.ports = p;
    return p;
}

/* Whether a port leads one way, which an edge may have given it since it was opened. */
static int leads(mvm_port *port, const struct end *e) {
    if (likely(e->header != NULL)) return 1;
    pthread_mutex_lock(&lock);
    char question[300], answer[512];
    int fds[3], used = 1;
    unsigned long long out = 0, in = 0;
    snprintf(question, sizeof question, "open %s", port->name);
    if (ask(question, answer, sizeof answer, fds) >= 0 && sscanf(answer, "ok %llu %llu", &out, &in) == 2) {
        int at_out = out ? used++ : 0, at_in = in ? used++ : 0;
        struct end *mine = e == &port->out ? &port->out : &port->in, fresh = {.meta = 0};
        int at = mine == &port->out ? at_out : at_in;
        if (at && !map_ring(&fresh, fds[at], mine == &port->out ? out : in)) {
            if (mine == &port->out) resume_out(&fresh);
            else resume_in(&fresh);
            *mine = fresh;
            if (fresh.served & SERVED_DIRECT && !open_sockets(port)) unmap_ring(mine);
        }
    }
    for (int k = 0; k < 3; k++)
        if (fds[k] >= 0) close(fds[k]);
    pthread_mutex_unlock(&lock);
    return e->header != NULL;
}

mvm_port *mvm_open(const char *name) {
    pthread_mutex_lock(&lock);
    mvm_port *p = open_port(name);
    pthread_mutex_unlock(&lock);
    return p;
}

/* Sets an end's state and rouses the other end, whoever it is. */
static void finish(struct end *e, _Atomic uint32_t *state, _Atomic uint32_t *other) {
    if (!e->header || e->finished) return;
    e->finished = 1;
    atomic_fetch_or(state, STATE_CLOSED);
    atomic_thread_fence(memory_order_seq_cst);
    wake(e->header, other);
    ring_bell(e->header); /* the daemon may hold the other end without sleeping on it */
    if (e->direct && e->direct->out) shutdown(e->direct->fd, SHUT_WR);
    else if (e->direct && !e->direct->both) shutdown(e->direct->fd, SHUT_RDWR);
}

int mvm_end(mvm_port *port) {
    struct end *o = &port->out;
    if (!o->header) return MVM_DIRECTION;
    finish(o, &o->header->producer_state, &o->header->consumer_waits);
    return MVM_OK;
}

int mvm_close(mvm_port *port) {
    struct end *o = &port->out, *i = &port->in;
    if (o->header) finish(o, &o->header->producer_state, &o->header->consumer_waits);
    if (i->header) finish(i, &i->header->consumer_state, &i->header->producer_waits);
    return MVM_OK;
}

int mvm_can_enqueue(const mvm_port *port) { return port->out.header != NULL; }
int mvm_can_dequeue(const mvm_port *port) { return port->in.header != NULL; }

size_t mvm_largest(const mvm_port *port, int out) {
    const struct end *e = out ? &port->out : &port->in;
    return e->header ? largest(e) : 0;
}

/* ---- who am I ---- */

static int number(const char *name) {
    const char *value = getenv(name);
    return value && *value ? atoi(value) : -1;
}

const char *mvm_task(void) {
    const char *task = getenv("MVM_TASK");
    return task ? task : "";
}
int mvm_index(void) { return number("MVM_INDEX"); }
int mvm_count(void) { return number("MVM_COUNT"); }

char **mvm_ports(void) {
    char *answer = malloc(CONTROL_MESSAGE), *names = NULL;
    size_t used = 0;
    unsigned long count = 0, total = 1;
    int fds[3];
    pthread_mutex_lock(&lock);
    int ok = answer && meet() == 0;
    while (ok && count < total) {
        char question[64];
        int skip = 0;
        snprintf(question, sizeof question, "ports %lu", count);
        ssize_t n = ask(question, answer, CONTROL_MESSAGE, fds);
        ok = n > 0 && sscanf(answer, "ok %lu%n", &total, &skip) == 1;
        if (!ok) break;
        char *grown = realloc(names, used + (size_t)n);
        if (!(ok = grown != NULL)) break;
        names = grown;
        unsigned long before = count;
        for (char *save = NULL, *word = strtok_r(answer + skip, " ", &save); word; word = strtok_r(NULL, " ", &save), count++) {
            size_t length = strlen(word) + 1;
            memcpy(names + used, word, length);
            used += length;
        }
        if (count == before) break;
    }
    pthread_mutex_unlock(&lock);
    char **list = ok ? malloc((count + 1) * sizeof *list + used) : NULL;
    if (list) {
        char *text = (char *)(list + count + 1);
        if (used) memcpy(text, names, used);
        for (unsigned long k = 0; k < count; k++, text += strlen(text) + 1) list[k] = text;
        list[count] = NULL;
    }
    free(names);
    free(answer);
    return list;
}

#include "collective.c"
