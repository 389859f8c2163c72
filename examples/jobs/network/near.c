/* near BANDWIDTH: sends what is measured at the far ends, one link after the other. */
#include "probe.h"

static void send(mvm_port *p, size_t length)
{
    static struct probe probe;
    probe.sent = now();
    int code = mvm_enqueue(p, &probe, length);
    if (code) {
        fprintf(stderr, "enqueue: %s\n", mvm_strerror(code));
        exit(1);
    }
}

int main(int argc, char **argv)
{
    mvm_port *far = port("far"), *narrow = port("narrow"), *lossy = port("lossy");
    double megabits = argc > 1 ? atof(argv[1]) : 1;
    for (int k = 0; k < PROBES; k++) {
        struct timespec pause = {0, 4000000};
        nanosleep(&pause, NULL);
        send(far, 64);
    }
    mvm_end(far);
    long blocks = (long)(megabits * 1e6 * 0.4 / 8 / BLOCK) + 2; /* 0.4 seconds of them */
    while (blocks-- > 0)
        send(narrow, BLOCK);
    mvm_end(narrow);
    for (int k = 0; k < ITEMS; k++)
        send(lossy, 16);
    return 0;
}
