/* A Fourier transform over a power of two of processes, by binary exchange.
 *
 * Each process holds one block of the points. In stage s it swaps its block
 * with whoever is at the other end of port "stageS" and keeps the sums or the
 * differences; then each block is transformed alone. The spectrum, which comes
 * out in bit-reversed order, is gathered through the same ports to process 0.
 * Who is where is not known here.
 */
#include <complex.h>
#include <math.h>
#include <mvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { POINTS = 4096, MAX_STAGES = 12 };

static void fail(const char *what, const char *why) {
    fprintf(stderr, "fft: %s: %s\n", what, why);
    exit(1);
}

/* The series from a CSV of "month,value" lines; returns its length. */
static int read_series(const char *path, double *value) {
    FILE *file = fopen(path, "r");
    if (!file) fail(path, "cannot be opened");
    char line[128];
    int n = 0;
    while (fgets(line, sizeof line, file)) {
        char *comma = strchr(line, ',');
        if (comma && n < POINTS && (comma[1] >= '0' && comma[1] <= '9')) value[n++] = atof(comma + 1);
    }
    fclose(file);
    return n;
}

/* One decimation-in-frequency stage within a block. */
static void butterfly(complex double *x, int half) {
    for (int i = 0; i < half; i++) {
        complex double a = x[i], b = x[i + half];
        x[i] = a + b;
        x[i + half] = (a - b) * cexp(-I * M_PI * i / half);
    }
}

static int reverse_bits(int v, int bits) {
    int r = 0;
    for (int i = 0; i < bits; i++) r |= ((v >> i) & 1) << (bits - 1 - i);
    return r;
}

static void receive(mvm_port *port, void *buffer, size_t size) {
    ssize_t n = mvm_dequeue(port, buffer, size);
    if (n < 0) fail("dequeue", mvm_strerror((int)n));
    if ((size_t)n != size) fail("dequeue", "an item of another size than expected");
}

static void send_item(mvm_port *port, const void *item, size_t size) {
    int code = mvm_enqueue(port, item, size);
    if (code < 0) fail("enqueue", mvm_strerror(code));
}

int main(int argc, char **argv) {
    if (argc != 2) fail("usage", "fft SERIES.csv");
    int index = mvm_index(), stages = 0;
    mvm_port *stage[MAX_STAGES];
    for (char name[16]; stages < MAX_STAGES; stages++) {
        snprintf(name, sizeof name, "stage%d", stages);
        if (!(stage[stages] = mvm_open(name))) break;
    }
    int processes = 1 << stages;
    if (processes != mvm_count()) fail("ports", mvm_error());
    int block = POINTS / processes;

    /* The mean is taken out and the ends are faded (Hann), so that neither hides the line. */
    static double series[POINTS];
    int n = read_series(argv[1], series);
    if (n < 2) fail(argv[1], "holds no series");
    double mean = 0;
    for (int i = 0; i < n; i++) mean += series[i] / n;
    complex double *x = malloc(2 * block * sizeof *x), *theirs = x + block;
    if (!x) fail("memory", "none left");
    for (int i = 0; i < block; i++) {
        int at = index * block + i;
        x[i] = at < n ? (series[at] - mean) * 0.5 * (1 - cos(2 * M_PI * at / (n - 1))) : 0;
    }

    for (int s = stages - 1; s >= 0; s--) {
        int distance = 1 << s, upper = index & distance;
        send_item(stage[s], x, block * sizeof *x);
        receive(stage[s], theirs, block * sizeof *x);
        for (int i = 0; i < block; i++) {
            if (!upper) {
                x[i] += theirs[i];
            } else {
                int k = (index & (distance - 1)) * block + i;
                x[i] = (theirs[i] - x[i]) * cexp(-I * M_PI * k / ((double)distance * block));
            }
        }
    }
    for (int half = block / 2; half >= 1; half /= 2)
        for (int at = 0; at < block; at += 2 * half) butterfly(x + at, half);

    /* Gather: in stage s the holder whose bit s is set hands all it has to its partner. */
    double *power = malloc(POINTS * sizeof *power);
    if (!power) fail("memory", "none left");
    int have = block;
    for (int i = 0; i < block; i++) power[i] = creal(x[i] * conj(x[i]));
    for (int s = 0; s < stages; s++, have *= 2) {
        if (index & (1 << s)) {
            send_item(stage[s], power, have * sizeof *power);
            return 0;
        }
        receive(stage[s], power + have, have * sizeof *power);
    }

    FILE *out = fopen("spectrum.csv", "w");
    if (!out) fail("spectrum.csv", "cannot be written");
    fprintf(out, "years,power\n");
    int bits = (int)lround(log2(POINTS)), best = 1;
    for (int k = 1; k < POINTS / 2; k++) {
        double p = power[reverse_bits(k, bits)];
        fprintf(out, "%.6f,%.6e\n", POINTS / 12.0 / k, p);
        if (p > power[reverse_bits(best, bits)]) best = k;
    }
    if (fclose(out)) fail("spectrum.csv", "cannot be written");
    printf("%d months of sunspots, %d processes: the strongest cycle is %.2f years\n", n, processes, POINTS / 12.0 / best);
    return 0;
}
