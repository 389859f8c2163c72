/* What patterns.c asks of a message passing system: MPI in mpi.c, MVM's ports in
 * mvm.c. Every call ends the program when it fails. */
#ifndef TRANSPORT_H
#define TRANSPORT_H

#include <stddef.h>

/* The way to a neighbour and back. */
typedef struct way way;

/* This process's number and how many there are. */
void start(int *argc, char ***argv, int *number, int *count);
void finish(void);

/* The way to process `peer`, which the topology calls `port` here. */
way *toward(const char *port, int peer);

void put(way *w, const void *item, size_t length);
void get(way *w, void *item, size_t length);

/* Sends and receives one item of the same length. */
void exchange(way *w, const void *out, void *in, size_t length);

/* `count` items as fast as they go. */
void put_many(way *w, const void *item, size_t length, long count);
void get_many(way *w, void *item, size_t length, long count);

/* The same without copying, where the system has it: the item is made and read
 * where it travels. write and read are told the place. Returns 0 where there is
 * no such thing. */
int put_in_place(way *w, size_t length, long count, void (*write)(void *, size_t, long));
int get_in_place(way *w, size_t length, long count, void (*read)(const void *, size_t, long));

#endif
