/* mvm.h - what a program of an MVM job calls.
 *
 * A program opens ports by name and enqueues or dequeues items: any bytes, of
 * any length, also 0. Who is at the other end is decided outside the program.
 *
 *     mvm_port *next = mvm_open("next");
 *     if (!next) { fprintf(stderr, "%s\n", mvm_error()); return 1; }
 *     mvm_enqueue(next, "hello", 5);
 *
 * A port may lead out, in, or both ways. Lengths are bytes, times are
 * milliseconds. Negative returns are the MVM_ codes below. One thread at a time
 * may enqueue to a port and one may dequeue from it; different ports are
 * independent. While the job runs people may lead an edge elsewhere: the port
 * goes on with it, between two items, and mvm_largest may then be another; END and
 * MVM_CLOSED stay until the port is given an edge again. After fork only one of the two processes may use a port.
 * Build with -lmvm -lpthread, or compile mvm.c in.
 */
#ifndef MVM_H
#define MVM_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
    MVM_OK = 0,
    MVM_END = -1,       /* the giver has finished and everything was taken; stays so until the port is given an edge again */
    MVM_CLOSED = -2,    /* the taker is gone: the item will not be taken */
    MVM_LOST = -3,      /* the link to the other end is lost; items may be missing */
    MVM_TOO_BIG = -4,   /* the item does not fit the buffer, or the form of the call */
    MVM_AGAIN = -5,     /* a try form would have to wait */
    MVM_TIMEOUT = -6,   /* the time is over */
    MVM_BROKEN = -7,    /* the channel's shared memory holds garbage */
    MVM_DIRECTION = -8, /* the port does not lead that way */
    MVM_MISUSE = -9,    /* commit without reserve, release without peek, a bad argument */
    MVM_FULL = -11,     /* the queue is full and refuses the item, as its policy is */
    MVM_SYSTEM = -10    /* a system call failed: errno says why */
};

/* A sentence for a code. Never NULL. */
const char *mvm_strerror(int code);

/* Why the last mvm_open or mvm_ports of this thread failed. */
const char *mvm_error(void);

typedef struct mvm_port mvm_port;

/* Opens a port by the name the topology gave it ("next", "dim0"...). The same
 * name gives the same port again. NULL on failure: mvm_error() says why, for
 * example that the program was not run by MVM. */
mvm_port *mvm_open(const char *name);

/* Closes the port for good, both ways: takers get END after what was enqueued,
 * givers get MVM_CLOSED. The end of the program does the same. */
int mvm_close(mvm_port *port);

/* Finishes the way out only: the taker gets END after what was enqueued. */
int mvm_end(mvm_port *port);

/* Whether the port leads out, and in. */
int mvm_can_enqueue(const mvm_port *port);
int mvm_can_dequeue(const mvm_port *port);

/* The largest item, in bytes, that the try, timed, reserve and peek forms take:
 * half the channel's capacity less 8. out is 1 for the way out, 0 for in. */
size_t mvm_largest(const mvm_port *port, int out);

/* Enqueues one item and blocks while there is no room. Items over mvm_largest
 * go in fragments and arrive as one. MVM_OK, MVM_CLOSED, MVM_LOST,
 * MVM_BROKEN, MVM_DIRECTION; where the topology has put a queue between: MVM_FULL
 * from one that refuses items when it is full, MVM_TOO_BIG over its capacity. */
int mvm_enqueue(mvm_port *port, const void *item, size_t length);

/* The priority of the items that are enqueued to the port from now on, 0 to 255;
 * 0 at first. A priority queue hands out the highest first; others ignore it. */
int mvm_set_priority(mvm_port *port, int priority);

/* mvm_enqueue for an instruction instead of data: source for a processor to
 * build and to apply to the items after it (LAYOUT.md, "Instructions"). */
int mvm_instruct(mvm_port *port, const void *item, size_t length);

/* The same without waiting (MVM_AGAIN) or for at most ms milliseconds
 * (MVM_TIMEOUT); over mvm_largest MVM_TOO_BIG. Nothing is enqueued unless
 * MVM_OK is returned. A queue that refuses items when it is full is asked, which
 * may take longer than ms. */
int mvm_try_enqueue(mvm_port *port, const void *item, size_t length);
int mvm_enqueue_timed(mvm_port *port, const void *item, size_t length, long ms);

/* Dequeues one item into buffer, blocking until there is one, and returns its
 * length. MVM_TOO_BIG when it is longer than size: the item stays, and
 * mvm_next_length says how long it is. MVM_END, MVM_LOST, MVM_BROKEN,
 * MVM_DIRECTION. */
ssize_t mvm_dequeue(mvm_port *port, void *buffer, size_t size);

/* The same without waiting (MVM_AGAIN) or for at most ms milliseconds
 * (MVM_TIMEOUT). An item over mvm_largest is MVM_TOO_BIG here. Where several may
 * take from a queue it is asked each time, one trip to the node that keeps it, and
 * once more when the time is over: nothing comes later to a port that gave up. */
ssize_t mvm_try_dequeue(mvm_port *port, void *buffer, size_t size);
ssize_t mvm_dequeue_timed(mvm_port *port, void *buffer, size_t size, long ms);

/* Dequeues an item of any length, blocking, into memory from malloc that the
 * caller frees; *item is never NULL on success, and a 0 byte that does not count
 * follows the item. MVM_SYSTEM without memory. */
ssize_t mvm_dequeue_alloc(mvm_port *port, void **item);

/* The length of the next item, blocking until its first bytes are here. */
ssize_t mvm_next_length(mvm_port *port);

/* 1 when the item that was dequeued, peeked or measured last is an instruction,
 * 0 when it is data. */
int mvm_is_instruction(const mvm_port *port);

/* Zero copy out: reserve gives *room for length bytes within the channel,
 * blocking until it is free; commit enqueues the first length bytes of it (at
 * most what was reserved; 8-byte aligned). Nothing else may be enqueued in
 * between. reserve again instead of commit gives the reservation up. */
int mvm_reserve(mvm_port *port, size_t length, void **room);
int mvm_commit(mvm_port *port, size_t length);

/* Zero copy in: peek gives the next item in place, blocking; it stays valid,
 * and stays the next item, until release takes it off. Over mvm_largest:
 * MVM_TOO_BIG. */
ssize_t mvm_peek(mvm_port *port, const void **item);
int mvm_release(mvm_port *port);

/* Waits until an item, or an end (MVM_END and the like), can be dequeued from
 * one of n ports, at most ms milliseconds (negative: for ever). Returns the
 * index of the first such port, or MVM_TIMEOUT. Kernels before 5.16, and over
 * 128 ports, look every millisecond instead of sleeping. What a wait got from a
 * queue that several take from is this process's: it must dequeue it. */
int mvm_wait(mvm_port *const *ports, int n, long ms);

/* For libraries of other languages, whose blocking calls must look after their
 * own affairs now and then: mvm_wait and mvm_enqueue_timed for at most ms
 * milliseconds, and no longer once a signal was handled, as a slice of a wait
 * without a limit, which the caller takes up again at once. To whoever looks for deadlocks it is such a wait, and what it
 * asked of queues stays asked: who gives up after all calls mvm_wait once more. */
int mvm_wait_slice(mvm_port *const *ports, int n, long ms);
int mvm_enqueue_slice(mvm_port *port, const void *item, size_t length, long ms);

/* The task's name in the profile ("" outside a job), this process's index
 * within the task, and how many processes the task has (both over all nodes;
 * -1 outside a job). */
const char *mvm_task(void);
int mvm_index(void);
int mvm_count(void);

/* The names of this process's ports: an array that ends with NULL, to be given
 * back with one free(). NULL on failure: mvm_error() says why. */
char **mvm_ports(void);

/* Patterns over all processes of a topology: a tree, star, complete graph,
 * hypercube or butterfly (over one task). A process is told neither who the others
 * are nor who is the root: that is the wiring's. All processes open the collective
 * and make the same calls in the same order, else MVM_MISUSE. One thread at a
 * time; nothing else goes over these ports. Where a topology has a complete graph
 * besides a tree, with the same prefix, mvm_alltoall takes it. */
typedef struct mvm_collective mvm_collective;

/* Joins n bytes with n others, which are aligned to 8 bytes. It has to be
 * associative; the order in which items are joined is always the same. */
typedef void mvm_combine(void *into, const void *from, size_t n);

/* prefix is what the topology puts before its ports' names; NULL is "". Waits for
 * all the others. NULL on failure: mvm_error() says why. */
mvm_collective *mvm_collective_open(const char *prefix);
void mvm_collective_free(mvm_collective *c); /* its ports stay open */

/* This process's place among the members of the topology, 0 at the root, and how
 * many there are. */
int mvm_collective_index(const mvm_collective *c);
int mvm_collective_size(const mvm_collective *c);

/* All return MVM_OK or as mvm_enqueue and mvm_dequeue do; n is the same everywhere.
 * After a failure the collective is of no more use. */
int mvm_barrier(mvm_collective *c);                          /* until all have come */
int mvm_broadcast(mvm_collective *c, void *data, size_t n);  /* the root's data to all */
/* Everyone's data, combined, in the root's; in the others' is then only a part. */
int mvm_reduce(mvm_collective *c, void *data, size_t n, mvm_combine *combine);
int mvm_allreduce(mvm_collective *c, void *data, size_t n, mvm_combine *combine); /* in everyone's */
/* Everyone's item of n bytes, by index, in all at the root (size x n bytes; NULL elsewhere). */
int mvm_gather(mvm_collective *c, const void *item, size_t n, void *all);
/* The reverse: each gets its item of the root's all. */
int mvm_scatter(mvm_collective *c, const void *all, size_t n, void *item);
/* The k-th of the items in out to the k-th member, and what the k-th has for this
 * one to the k-th place in in (both size x n bytes, not the same memory). */
int mvm_alltoall(mvm_collective *c, const void *out, size_t n, void *in);

#ifdef __cplusplus
}
#endif
#endif
