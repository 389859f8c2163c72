/* The collectives' program in C: for each length in its arguments, every pattern
 * once, checked against what one process alone computes. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "mvm.h"

static mvm_collective *c;
static int own, size;

static void check(int ok, const char *what) {
    if (ok) return;
    fprintf(stderr, "%d of %d: not so: %s\n", own, size, what);
    exit(6);
}

static void must(int code, const char *what) {
    if (!code) return;
    fprintf(stderr, "%d of %d: %s: %s\n", own, size, what, mvm_strerror(code));
    exit(3);
}

static void fill(unsigned char *to, size_t n, unsigned seed) {
    for (size_t j = 0; j < n; j++) to[j] = (unsigned char)(seed * 31 + j * 7);
}

static int is(const unsigned char *data, size_t n, unsigned seed) {
    for (size_t j = 0; j < n; j++)
        if (data[j] != (unsigned char)(seed * 31 + j * 7)) return 0;
    return 1;
}

static void add(void *into, const void *from, size_t n) {
    unsigned char *a = into;
    const unsigned char *b = from;
    for (size_t j = 0; j < n; j++) a[j] = (unsigned char)(a[j] + b[j]);
}

/* The sum of fill(seed + k) over all k. */
static int is_sum(const unsigned char *data, size_t n, unsigned seed) {
    for (size_t j = 0; j < n; j++) {
        unsigned sum = 0;
        for (int k = 0; k < size; k++) sum += (seed + (unsigned)k) * 31 + (unsigned)j * 7;
        if (data[j] != (unsigned char)sum) return 0;
    }
    return 1;
}

int main(int argc, char **argv) {
    if (!(c = mvm_collective_open(argv[1]))) return fprintf(stderr, "%s\n", mvm_error()), 4;
    own = mvm_collective_index(c);
    size = mvm_collective_size(c);
    for (int a = 2; a < argc; a++) {
        size_t n = strtoul(argv[a], NULL, 10);
        unsigned seed = (unsigned)a * 1000;
        unsigned char *item = malloc(n + 1), *all = malloc(n * (size_t)size + 1), *other = malloc(n * (size_t)size + 1);
        must(mvm_barrier(c), "barrier");
        fill(item, n, seed + (own ? 77 : 0));
        must(mvm_broadcast(c, item, n), "broadcast");
        check(is(item, n, seed), "the root's data is everywhere");
        fill(item, n, seed + (unsigned)own);
        must(mvm_reduce(c, item, n, add), "reduce");
        check(own || is_sum(item, n, seed), "the sum is at the root");
        fill(item, n, seed + 1 + (unsigned)own);
        must(mvm_allreduce(c, item, n, add), "allreduce");
        check(is_sum(item, n, seed + 1), "the sum is everywhere");
        fill(item, n, seed + 2 + (unsigned)own);
        must(mvm_gather(c, item, n, own ? NULL : all), "gather");
        for (int k = 0; !own && k < size; k++) check(is(all + (size_t)k * n, n, seed + 2 + (unsigned)k), "gathered in order");
        for (int k = 0; k < size; k++) fill(all + (size_t)k * n, n, seed + 3 + (unsigned)k);
        must(mvm_scatter(c, own ? NULL : all, n, item), "scatter");
        check(is(item, n, seed + 3 + (unsigned)own), "scattered");
        for (int k = 0; k < size; k++) fill(all + (size_t)k * n, n, seed + (unsigned)(own * size + k));
        must(mvm_alltoall(c, all, n, other), "alltoall");
        for (int k = 0; k < size; k++) check(is(other + (size_t)k * n, n, seed + (unsigned)(k * size + own)), "what each had for each");
        free(item), free(all), free(other);
    }
    mvm_collective_free(c);
    printf("%d of %d\n", own, size);
    return 0;
}
