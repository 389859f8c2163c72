/* The patterns over MVM's ports. */
#include "transport.h"

#include <mvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct way { mvm_port *port; };

static void check(const char *call, long result)
{
    if (result < 0) {
        fprintf(stderr, "%s: %s\n", call, mvm_strerror((int)result));
        exit(1);
    }
}

void start(int *argc, char ***argv, int *number, int *count)
{
    (void)argc, (void)argv;
    *number = mvm_index();
    *count = mvm_count();
}

void finish(void) {}

way *toward(const char *port, int peer)
{
    (void)peer;
    way *w = malloc(sizeof *w);
    w->port = mvm_open(port);
    if (!w->port) {
        fprintf(stderr, "%s: %s\n", port, mvm_error());
        exit(1);
    }
    return w;
}

void put(way *w, const void *item, size_t length) { check("enqueue", mvm_enqueue(w->port, item, length)); }

void get(way *w, void *item, size_t length) { check("dequeue", mvm_dequeue(w->port, item, length)); }

void exchange(way *w, const void *out, void *in, size_t length)
{
    put(w, out, length);
    get(w, in, length);
}

void put_many(way *w, const void *item, size_t length, long count)
{
    while (count-- > 0)
        put(w, item, length);
}

void get_many(way *w, void *item, size_t length, long count)
{
    while (count-- > 0)
        get(w, item, length);
}

int put_in_place(way *w, size_t length, long count, void (*write)(void *, size_t, long))
{
    for (long i = 0; i < count; i++) {
        void *room;
        check("reserve", mvm_reserve(w->port, length, &room));
        write(room, length, i);
        check("commit", mvm_commit(w->port, length));
    }
    return 1;
}

int get_in_place(way *w, size_t length, long count, void (*read)(const void *, size_t, long))
{
    for (long i = 0; i < count; i++) {
        const void *item;
        check("peek", mvm_peek(w->port, &item));
        read(item, length, i);
        check("release", mvm_release(w->port));
    }
    return 1;
}
