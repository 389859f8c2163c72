/* Kills a program at any instruction of a call: step N VERB PORT runs VERB in a
 * child, lets it go N instructions into the calls between its two marks, and
 * kills it there. It prints how far it came: "killed", or "through STEPS" when
 * the calls were over before. x86-64 only. */
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include "mvm.h"

static void mark(void) { __asm__ volatile("int3"); }

static void fill(unsigned char *to, size_t n, unsigned long k) { /* as the suite's programs do */
    for (size_t j = 0; j < n; j++) to[j] = (unsigned char)(k * 31 + j * 7);
}

static int child(const char *verb, mvm_port *p) {
    static unsigned char item[1 << 16];
    void *got;
    /* What is resolved at the first call is not of interest. */
    if (!strcmp(verb, "enqueue")) {
        fill(item, 0, 0);
        mvm_enqueue(p, item, 0);
        mark();
        for (unsigned long k = 1; k < 3; k++) {
            size_t n = (k * 2654435761u) % 201;
            fill(item, n, k);
            if (mvm_enqueue(p, item, n)) return 1;
        }
        mark();
    } else if (!strcmp(verb, "big")) { /* one that is streamed, one in fragments */
        mvm_enqueue(p, item, 0);
        mark();
        for (unsigned long k = 1; k < 3; k++) {
            size_t n = (k * 2654435761u) % 20001;
            fill(item, n, k);
            if (mvm_enqueue(p, item, n)) return 1;
        }
        mark();
    } else if (!strcmp(verb, "switch")) { /* the producer was told to go on with another ring */
        mark();
        for (unsigned long k = 0; k < 3; k++) {
            size_t n = (k * 2654435761u) % 201;
            fill(item, n, k);
            if (mvm_enqueue(p, item, n)) return 1;
        }
        mark();
    } else if (!strcmp(verb, "follow")) { /* the consumer's ring is ended by SWITCH */
        mark();
        for (int k = 0; k < 3; k++)
            if (mvm_dequeue(p, item, sizeof item) < 0) return 1;
        mark();
    } else if (!strcmp(verb, "dequeue")) {
        if (mvm_dequeue_alloc(p, &got) < 0) return 1;
        mark();
        for (int k = 1; k < 4; k++)
            if (mvm_dequeue(p, item, sizeof item) < 0) return 1;
        mark();
    }
    return 0;
}

int main(int argc, char **argv) {
    if (argc != 4) return 9;
    long n = atol(argv[1]), steps = 0;
    pid_t pid = fork();
    if (pid == 0) {
        mvm_port *p = mvm_open(argv[3]);
        ptrace(PTRACE_TRACEME, 0, 0, 0);
        raise(SIGSTOP);
        _exit(p ? child(argv[2], p) : 8);
    }
    int status, inside = 0;
    waitpid(pid, &status, 0);
    ptrace(PTRACE_SETOPTIONS, pid, 0, PTRACE_O_EXITKILL);
    for (int signal = 0;;) {
        if (inside && steps == n) {
            kill(pid, SIGKILL);
            waitpid(pid, &status, 0);
            puts("killed");
            return 0;
        }
        if (ptrace(inside ? PTRACE_SINGLESTEP : PTRACE_CONT, pid, 0, signal)) return 7;
        if (waitpid(pid, &status, 0) < 0) return 6;
        if (!WIFSTOPPED(status)) {
            printf("through %ld %d\n", steps, WIFEXITED(status) ? WEXITSTATUS(status) : -1);
            return 0;
        }
        signal = 0;
        siginfo_t info;
        ptrace(PTRACE_GETSIGINFO, pid, 0, &info);
        if (WSTOPSIG(status) != SIGTRAP) signal = WSTOPSIG(status);
        else if (info.si_code == SI_KERNEL) inside = !inside; /* a mark */
        else steps++;
    }
}
