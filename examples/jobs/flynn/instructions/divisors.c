/* An instruction: how many divisors a number has. */
#include <mvm.h>
#include <stdio.h>
#include <stdlib.h>

int main(void) {
    mvm_port *in = mvm_open("in"), *out = mvm_open("out");
    char text[64];
    ssize_t length;
    if (!in || !out) return fprintf(stderr, "%s\n", mvm_error()), 1;
    while ((length = mvm_dequeue(in, text, sizeof text - 1)) >= 0) {
        text[length] = 0;
        unsigned long n = strtoul(text, NULL, 10), found = 0;
        for (unsigned long d = 1; d <= n; d++) found += n % d == 0;
        int code = mvm_enqueue(out, text, (size_t)snprintf(text, sizeof text, "divisors %lu %lu", n, found));
        if (code) return fprintf(stderr, "%s\n", mvm_strerror(code)), 1;
    }
    return length == MVM_END ? 0 : 1;
}
