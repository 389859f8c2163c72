/* The communication patterns that message passing systems are compared by, over
 * transport.h. Process 0 prints what one unit took, in microseconds:
 *
 *     pingpong  COUNT BYTES   one way (2 processes)
 *     stream    COUNT BYTES   a message (2 processes)
 *     inplace   COUNT BYTES   a message, made and read where it travels; the
 *                             first and last word are written and checked
 *     ring      COUNT BYTES   a hop
 *     butterfly COUNT BYTES   an iteration: an exchange in each stage
 *     fft       COUNT POINTS  a transform (binary exchange; the result is checked)
 *
 * A tenth of COUNT runs before the clock starts. */
#include "transport.h"

#include <complex.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static int number, count;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

/* The clock starts: whoever limits the time of all may want to know. */
static double begin(void)
{
    if (number == 0)
        fprintf(stderr, "begun\n");
    return now();
}

static void fail(const char *what)
{
    fprintf(stderr, "process %d: %s\n", number, what);
    exit(1);
}

static void *room(size_t bytes)
{
    void *p = NULL;
    if (posix_memalign(&p, 64, bytes < 64 ? 64 : bytes))
        fail("no memory");
    memset(p, 1, bytes);
    return p;
}

static int stages(void)
{
    int n = 0;
    while (1 << n < count)
        n++;
    if (1 << n != count)
        fail("the number of processes must be a power of two");
    return n;
}

static double pingpong(long times, size_t bytes)
{
    way *w = toward(number == 0 ? "next" : "prev", 1 - number);
    char *item = room(bytes);
    double began = 0;
    for (long i = -times / 10; i < times; i++) {
        if (i == 0)
            began = now();
        if (number == 0) {
            put(w, item, bytes);
            get(w, item, bytes);
        } else {
            get(w, item, bytes);
            put(w, item, bytes);
        }
    }
    return (now() - began) / (double)times / 2;
}

static double stream(long times, size_t bytes)
{
    way *w = toward(number == 0 ? "next" : "prev", 1 - number);
    char *item = room(bytes), token = 0;
    double began = 0;
    for (int round = 0; round < 2; round++) {
        long n = round == 0 ? times / 10 : times;
        began = now();
        if (number == 0) {
            put_many(w, item, bytes, n);
            get(w, &token, 1);
        } else {
            get_many(w, item, bytes, n);
            put(w, &token, 1);
        }
    }
    return (now() - began) / (double)times;
}

static void stamp(void *place, size_t bytes, long i)
{
    *(long *)place = i;
    *(long *)((char *)place + bytes - sizeof(long)) = i;
}

static void stamped(const void *place, size_t bytes, long i)
{
    if (*(const long *)place != i || *(const long *)((const char *)place + bytes - sizeof(long)) != i)
        fail("an item is not what was sent");
}

static double inplace(long times, size_t bytes)
{
    way *w = toward(number == 0 ? "next" : "prev", 1 - number);
    char token = 0;
    double began = 0;
    for (int round = 0; round < 2; round++) {
        long n = round == 0 ? times / 10 : times;
        began = now();
        if (number == 0) {
            if (!put_in_place(w, bytes, n, stamp))
                fail("this system has no such thing");
            get(w, &token, 1);
        } else {
            if (!get_in_place(w, bytes, n, stamped))
                fail("this system has no such thing");
            put(w, &token, 1);
        }
    }
    return (now() - began) / (double)times;
}

static double ring(long times, size_t bytes)
{
    way *next = toward("next", (number + 1) % count), *prev = toward("prev", (number + count - 1) % count);
    char *item = room(bytes);
    double began = 0;
    for (long i = -times / 10; i < times; i++) {
        if (i == 0)
            began = begin();
        if (number == 0) {
            put(next, item, bytes);
            get(prev, item, bytes);
        } else {
            get(prev, item, bytes);
            put(next, item, bytes);
        }
    }
    return (now() - began) / (double)times / count;
}

static double butterfly(long times, size_t bytes)
{
    int n = stages();
    way *partner[32];
    uint64_t *out = room(bytes), *in = room(bytes);
    for (int s = 0; s < n; s++) {
        char port[16];
        snprintf(port, sizeof port, "stage%d", s);
        partner[s] = toward(port, number ^ 1 << s);
    }
    double began = 0;
    for (long i = -times / 10; i < times; i++) {
        if (i == 0)
            began = begin();
        out[0] = (uint64_t)number;
        for (int s = 0; s < n; s++) {
            exchange(partner[s], out, in, bytes);
            out[0] += in[0];
        }
        if (out[0] != (uint64_t)count * (uint64_t)(count - 1) / 2)
            fail("the sum over the butterfly is wrong");
    }
    return (now() - began) / (double)times;
}

/* C's own product of complex numbers checks for infinities in a call. */
static inline double complex times(double complex a, double complex b)
{
    return CMPLX(creal(a) * creal(b) - cimag(a) * cimag(b), creal(a) * cimag(b) + cimag(a) * creal(b));
}

/* A transform of `points` values, points/count in each process, by binary
 * exchange: decimation in frequency, so the first stages cross processes and the
 * result is in bit-reversed order. */
static double fft(long rounds, size_t points)
{
    int n = stages();
    size_t mine = points / (size_t)count, first = mine * (size_t)number, bytes = mine * sizeof(double complex);
    way *partner[32];
    for (int s = 0; s < n; s++) {
        char port[16];
        snprintf(port, sizeof port, "stage%d", s);
        partner[s] = toward(port, number ^ 1 << s);
    }
    double complex *x = room(bytes), *other = room(bytes), *roots = room(points / 2 * sizeof *roots);
    for (size_t k = 0; k < points / 2; k++)
        roots[k] = cexp(-2 * M_PI * I * (double)k / (double)points);
    /* Two tones, so that the spectrum is two peaks, known in advance. */
    double complex *tones = room(bytes);
    for (size_t j = 0; j < mine; j++)
        tones[j] = cexp(-2 * M_PI * I * (double)((first + j) * 3 % points) / (double)points) + 0.5;
    double began = 0;
    for (long i = -(rounds / 10 + 1); i < rounds; i++) {
        if (i == 0)
            began = begin();
        memcpy(x, tones, bytes);
        for (size_t half = points / 2, step = 1; half >= 1; half /= 2, step *= 2) {
            if (half >= mine) { /* the partner has the other half of every pair */
                int s = 0;
                while (((size_t)1 << s) * mine != half)
                    s++;
                exchange(partner[s], x, other, bytes);
                int low = (first & half) == 0;
                for (size_t j = 0; j < mine; j++) {
                    size_t place = (first + j) & (half - 1);
                    x[j] = low ? x[j] + other[j] : times(other[j] - x[j], roots[place * step]);
                }
            } else {
                for (size_t base = 0; base < mine; base += 2 * half)
                    for (size_t j = base; j < base + half; j++) {
                        double complex a = x[j], b = x[j + half];
                        x[j] = a + b;
                        x[j + half] = times(a - b, roots[(j - base) * step]);
                    }
            }
        }
    }
    double took = (now() - began) / (double)rounds;
    int bits = 0;
    while ((size_t)1 << bits < points)
        bits++;
    for (size_t j = 0; j < mine; j++) {
        size_t frequency = 0;
        for (int b = 0; b < bits; b++)
            frequency |= ((first + j) >> b & 1) << (bits - 1 - b);
        double want = frequency == points - 3 ? (double)points : frequency == 0 ? 0.5 * (double)points : 0;
        if (cabs(x[j] - want) > 1e-6 * (double)points)
            fail("the transform is wrong");
    }
    return took;
}

int main(int argc, char **argv)
{
    start(&argc, &argv, &number, &count);
    if (argc != 4)
        fail("usage: patterns PATTERN COUNT BYTES");
    long times = atol(argv[2]);
    size_t size = (size_t)atol(argv[3]);
    const struct { const char *name; double (*run)(long, size_t); } patterns[] = {
        {"pingpong", pingpong}, {"stream", stream}, {"inplace", inplace},
        {"ring", ring}, {"butterfly", butterfly}, {"fft", fft},
    };
    for (size_t i = 0; i < sizeof patterns / sizeof *patterns; i++)
        if (strcmp(argv[1], patterns[i].name) == 0) {
            double took = patterns[i].run(times, size);
            if (number == 0)
                printf("%.6f\n", took);
            finish();
            return 0;
        }
    fail("there is no such pattern");
}
