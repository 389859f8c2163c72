/* An instruction: in how many ways a number is the sum of two squares of integers, order and
 * sign counted. */
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
        long n = atol(text), found = 0;
        for (long a = 0; a * a <= n; a++)
            for (long b = 0; a * a + b * b <= n; b++)
                if (a * a + b * b == n) found += (a ? 2 : 1) * (b ? 2 : 1);
        int code = mvm_enqueue(out, text, (size_t)snprintf(text, sizeof text, "squares %ld %ld", n, found));
        if (code) return fprintf(stderr, "%s\n", mvm_strerror(code)), 1;
    }
    return length == MVM_END ? 0 : 1;
}
