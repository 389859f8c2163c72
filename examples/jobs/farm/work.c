/* Counts the primes of one order after another, by trial division: the later
 * orders take longer, so that who is free takes the next. */
#include <inttypes.h>
#include <stdio.h>

#include "mvm.h"

static int is_prime(uint64_t n) {
    if (n < 2) return 0;
    for (uint64_t d = 2; d * d <= n; d++)
        if (n % d == 0) return 0;
    return 1;
}

int main(void) {
    mvm_port *orders = mvm_open("orders"), *counts = mvm_open("counts");
    if (!orders || !counts) {
        fprintf(stderr, "%s\n", mvm_error());
        return 1;
    }
    char text[64];
    ssize_t n;
    int done = 0;
    for (; (n = mvm_dequeue(orders, text, sizeof text - 1)) >= 0; done++) {
        uint64_t from, to, found = 0;
        text[n] = 0;
        if (sscanf(text, "%" SCNu64 " %" SCNu64, &from, &to) != 2) return 2;
        for (uint64_t k = from; k < to; k++) found += (uint64_t)is_prime(k);
        int code = mvm_enqueue(counts, text, (size_t)snprintf(text, sizeof text, "%" PRIu64 " %" PRIu64 " %" PRIu64, from, to, found));
        if (code) {
            fprintf(stderr, "%s\n", mvm_strerror(code));
            return 1;
        }
    }
    if (n != MVM_END) {
        fprintf(stderr, "%s\n", mvm_strerror((int)n));
        return 1;
    }
    printf("%d orders\n", done);
    return 0;
}
