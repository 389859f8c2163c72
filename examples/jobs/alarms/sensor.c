/* An old instrument: it sends frames of 8 bytes, and knows nothing of JSON. */
#include <stdio.h>
#include <stdlib.h>

#include "mvm.h"

static void check(int failed, const char *what) {
    if (failed < 0) {
        fprintf(stderr, "%s: %s\n", what, mvm_strerror(failed));
        exit(1);
    }
}

int main(int argc, char **argv) {
    int alarms = argc > 1 ? atoi(argv[1]) : 12;
    mvm_port *out = mvm_open("alarms"), *go = mvm_open("all");
    if (!out || !go)
        return 1;
    for (int i = 0; i < alarms; i++) {
        int tenths = 200 + 37 * i % 100, urgency = i * 7 % 5;
        unsigned char frame[8] = {0, 0, i >> 8, i, tenths >> 8, tenths, urgency >> 8, urgency};
        int code = mvm_enqueue(out, frame, sizeof frame);
        if (code != MVM_FULL) /* else nobody wants this one */
            check(code, "alarms");
    }
    check(mvm_close(out), "alarms");
    check(mvm_enqueue(go, "go", 2), "all"); /* every alarm waits in the queue now */
    return 0;
}
