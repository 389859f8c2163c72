/* Computes Jupiter's orbit step by step, and sends where it is and when: items
 * of XDR doubles (RFC 4506: a count, then each double, all big-endian), three
 * to a position: years, and two distances in astronomical units. */
#include <math.h>
#include <mvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { positions = 50, numbers = 3 * positions };

static unsigned char item[4 + 8 * numbers];
static int held;

static void put_double(double value) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    for (int k = 0; k < 8; k++)
        item[4 + 8 * held + k] = (unsigned char)(bits >> (56 - 8 * k));
    held++;
}

static void send_held(mvm_port *port) {
    for (int k = 0; k < 4; k++)
        item[k] = (unsigned char)((uint32_t)held >> (24 - 8 * k));
    int code = mvm_enqueue(port, item, 4 + 8 * (size_t)held);
    if (code < 0) {
        fprintf(stderr, "orbit: enqueue: %s\n", mvm_strerror(code));
        exit(1);
    }
    held = 0;
}

int main(int argc, char **argv) {
    const double axis = 5.2038, eccentricity = 0.0489, step = 0.0005;
    double years = argc == 2 ? atof(argv[1]) : 0;
    mvm_port *port = mvm_open("positions");
    if (!port || years <= 0) {
        fprintf(stderr, "orbit: %s\n", port ? "usage: orbit YEARS" : mvm_error());
        return 1;
    }
    double pull = 4 * acos(-1) * acos(-1); /* of the sun, in these units */
    double x = axis * (1 - eccentricity), y = 0;
    double vx = 0, vy = sqrt(pull / axis * (1 + eccentricity) / (1 - eccentricity));
    long steps = lround(years / step), sent = 0;
    for (long k = 0; k <= steps; k++) {
        if (k % 20 == 0) {
            put_double((double)k * step);
            put_double(x);
            put_double(y);
            sent++;
            if (held == numbers)
                send_held(port);
        }
        double cube = pow(x * x + y * y, 1.5);
        vx -= step / 2 * pull * x / cube;
        vy -= step / 2 * pull * y / cube;
        x += step * vx;
        y += step * vy;
        cube = pow(x * x + y * y, 1.5);
        vx -= step / 2 * pull * x / cube;
        vy -= step / 2 * pull * y / cube;
    }
    if (held)
        send_held(port);
    printf("%ld positions sent\n", sent);
    return 0;
}
