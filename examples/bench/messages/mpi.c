/* The patterns over MPI, as its users write them: blocking calls where one
 * message is on its way, windows of non-blocking ones where many are. */
#include "transport.h"

#include <mpi.h>
#include <stdlib.h>

enum { WINDOW = 64 };

struct way { int peer; };

void start(int *argc, char ***argv, int *number, int *count)
{
    MPI_Init(argc, argv);
    MPI_Comm_rank(MPI_COMM_WORLD, number);
    MPI_Comm_size(MPI_COMM_WORLD, count);
}

void finish(void) { MPI_Finalize(); }

way *toward(const char *port, int peer)
{
    (void)port;
    way *w = malloc(sizeof *w);
    w->peer = peer;
    return w;
}

void put(way *w, const void *item, size_t length)
{
    MPI_Send(item, (int)length, MPI_BYTE, w->peer, 0, MPI_COMM_WORLD);
}

void get(way *w, void *item, size_t length)
{
    MPI_Recv(item, (int)length, MPI_BYTE, w->peer, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
}

void exchange(way *w, const void *out, void *in, size_t length)
{
    MPI_Sendrecv(out, (int)length, MPI_BYTE, w->peer, 0, in, (int)length, MPI_BYTE, w->peer, 0,
                 MPI_COMM_WORLD, MPI_STATUS_IGNORE);
}

void put_many(way *w, const void *item, size_t length, long count)
{
    MPI_Request requests[WINDOW];
    MPI_Status statuses[WINDOW];
    while (count > 0) {
        int n = count < WINDOW ? (int)count : WINDOW;
        for (int i = 0; i < n; i++)
            MPI_Isend(item, (int)length, MPI_BYTE, w->peer, 0, MPI_COMM_WORLD, &requests[i]);
        MPI_Waitall(n, requests, statuses);
        count -= n;
    }
}

void get_many(way *w, void *item, size_t length, long count)
{
    MPI_Request requests[WINDOW];
    MPI_Status statuses[WINDOW];
    while (count > 0) {
        int n = count < WINDOW ? (int)count : WINDOW;
        for (int i = 0; i < n; i++)
            MPI_Irecv(item, (int)length, MPI_BYTE, w->peer, 0, MPI_COMM_WORLD, &requests[i]);
        MPI_Waitall(n, requests, statuses);
        count -= n;
    }
}

int put_in_place(way *w, size_t length, long count, void (*write)(void *, size_t, long))
{
    (void)w, (void)length, (void)count, (void)write;
    return 0;
}

int get_in_place(way *w, size_t length, long count, void (*read)(const void *, size_t, long))
{
    (void)w, (void)length, (void)count, (void)read;
    return 0;
}
