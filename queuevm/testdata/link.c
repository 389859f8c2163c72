/* What a link does to items, as the two programs at its ends see it.
 *
 *     pace  PORT COUNT MICROS BYTES   enqueues the time, every MICROS; prints how
 *                                     late the machine woke it, the median in microseconds
 *     flood PORT COUNT BYTES          enqueues the time as fast as it can
 *     sink  PORT                      dequeues until END and prints: items, disorder,
 *                                     lag in microseconds (least, median, most),
 *                                     and bits a second: between the arrivals of the
 *                                     first and the last, and since the first was enqueued */
#include <mvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static long long now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (long long)t.tv_sec * 1000000000 + t.tv_nsec;
}

static int check(const char *call, long result) {
    if (result >= 0) return 1;
    if (result == MVM_END) return 0;
    fprintf(stderr, "%s: %s\n", call, mvm_strerror((int)result));
    exit(1);
}

static int by_size(const void *a, const void *b) {
    long long x = *(const long long *)a, y = *(const long long *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv) {
    if (argc < 3) return 2;
    mvm_port *port = mvm_open(argv[2]);
    if (!port) {
        fprintf(stderr, "%s\n", mvm_error());
        return 1;
    }
    if (strcmp(argv[1], "sink") != 0) {
        long count = atol(argv[3]), micros = strcmp(argv[1], "pace") == 0 ? atol(argv[4]) : 0;
        size_t size = (size_t)atol(argv[argc - 1]);
        char *item = calloc(1, size < 16 ? 16 : size);
        long long next = now(), *late = malloc((size_t)count * sizeof *late);
        for (long k = 0; k < count; k++) {
            if (micros) {
                next += micros * 1000;
                struct timespec t = {next / 1000000000, next % 1000000000};
                clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
            }
            long long stamp[2] = {now(), k};
            late[k] = stamp[0] - next;
            memcpy(item, stamp, sizeof stamp);
            check("enqueue", mvm_enqueue(port, item, size < 16 ? 16 : size));
        }
        qsort(late, (size_t)count, sizeof *late, by_size);
        printf("%.1f\n", (double)late[count / 2] / 1e3);
        return 0;
    }
    long count = 0, room = 1 << 20, disorder = 0;
    long long *lags = malloc((size_t)room * sizeof *lags), first = 0, last = 0, before = -1, bits = 0, begun = 0, head = 0;
    char *item = malloc(16 << 20);
    for (long n; check("dequeue", n = mvm_dequeue(port, item, 16 << 20)); count++) {
        long long stamp[2];
        memcpy(stamp, item, sizeof stamp);
        last = now();
        if (count == 0) first = last, begun = stamp[0], head = 8 * n;
        else bits += 8 * n;
        if (stamp[1] <= before) disorder++;
        before = stamp[1];
        if (count < room) lags[count] = last - stamp[0];
    }
    long n = count < room ? count : room;
    qsort(lags, (size_t)n, sizeof *lags, by_size);
    printf("%ld %ld %.1f %.1f %.1f %.0f %.0f\n", count, disorder, n ? (double)lags[0] / 1e3 : 0, n ? (double)lags[n / 2] / 1e3 : 0,
           n ? (double)lags[n - 1] / 1e3 : 0, last > first ? (double)bits * 1e9 / (double)(last - first) : 0,
           count ? (double)(bits + head) * 1e9 / (double)(last - begun) : 0);
    return 0;
}
