/* far: measures the links that lead here. */
#include "probe.h"

static struct probe probe;

static ssize_t receive(mvm_port *p)
{
    ssize_t n = mvm_dequeue(p, &probe, sizeof probe);
    if (n < 0 && n != MVM_END) {
        fprintf(stderr, "dequeue: %s\n", mvm_strerror((int)n));
        exit(1);
    }
    return n;
}

static int by_size(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

int main(void)
{
    mvm_port *far = port("far"), *narrow = port("narrow"), *lossy = port("lossy");
    int64_t took[PROBES], first = 0, last = 0;
    int probes = 0;
    while (receive(far) >= 0 && probes < PROBES)
        took[probes++] = now() - probe.sent;
    qsort(took, (size_t)probes, sizeof *took, by_size);
    double latency = probes ? (double)took[probes / 2] / 1e6 : 0;

    double bits = 0;
    for (ssize_t n; (n = receive(narrow)) >= 0; last = now()) {
        if (first == 0)
            first = now();
        else
            bits += 8 * (double)n;
    }
    double bandwidth = bits / ((double)(last - first) / 1e9) / 1e6;

    int items = 0;
    while (receive(lossy) >= 0)
        items++;
    double loss = 1 - (double)items / ITEMS;

    printf("latency %.3f ms, bandwidth %.3f Mbit/s, loss %.4f\n", latency, bandwidth, loss);
    FILE *csv = fopen("network.csv", "w");
    if (!csv || fprintf(csv, "latency,bandwidth,loss\n%.3f,%.3f,%.4f\n", latency, bandwidth, loss) < 0 || fclose(csv)) {
        perror("network.csv");
        return 1;
    }
    return 0;
}
