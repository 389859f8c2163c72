/* What both ends of the links know. Their clocks are one: the nodes of a lab are
 * on one machine. */
#include <mvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { PROBES = 60, ITEMS = 20000, BLOCK = 16384 };

struct probe { int64_t sent; char rest[BLOCK - 8]; };

static int64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static mvm_port *port(const char *name)
{
    mvm_port *p = mvm_open(name);
    if (!p) {
        fprintf(stderr, "%s\n", mvm_error());
        exit(1);
    }
    return p;
}
