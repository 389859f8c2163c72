/* Reads a text and passes its lines on. */
#include <mvm.h>
#include <stdio.h>
#include <string.h>

int main(int argc, char **argv) {
    FILE *text = argc == 2 ? fopen(argv[1], "r") : NULL;
    if (!text) {
        fprintf(stderr, "read: usage: read TEXT, a file that can be opened\n");
        return 1;
    }
    mvm_port *next = mvm_open("next");
    if (!next) {
        fprintf(stderr, "read: %s\n", mvm_error());
        return 1;
    }
    char line[4096];
    long lines = 0;
    for (; fgets(line, sizeof line, text); lines++) {
        int code = mvm_enqueue(next, line, strlen(line));
        if (code < 0) {
            fprintf(stderr, "read: enqueue: %s\n", mvm_strerror(code));
            return 1;
        }
    }
    printf("%ld lines read\n", lines);
    return 0;
}
