/* A program that comes to a stop: stuck VERB [PORT...]. What it does first, and
 * whether it stops for good, is in the verb. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "mvm.h"

static mvm_port *ports[128];
static int count;

static void nap(long ms) {
    struct timespec t = {ms / 1000, ms % 1000 * 1000000};
    nanosleep(&t, NULL);
}

static int fill(mvm_port *p) {
    static char item[1000];
    int code;
    while (!(code = mvm_enqueue(p, item, sizeof item))) {}
    return code;
}

static int take(mvm_port *p) {
    void *item;
    ssize_t n;
    while ((n = mvm_dequeue_alloc(p, &item)) >= 0) free(item);
    return (int)n;
}

static void *take_in_thread(void *p) { take(p); return NULL; }
static void *sleep_in_thread(void *p) { (void)p; nap(1000000); return NULL; }
static void *timed_in_thread(void *p) {
    pthread_mutex_t m = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t c = PTHREAD_COND_INITIALIZER;
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    t.tv_sec += 1000;
    (void)p;
    pthread_mutex_lock(&m);
    pthread_cond_timedwait(&c, &m, &t);
    return NULL;
}
static void end(int signal) { (void)signal; _exit(0); }
static void *spin_in_thread(void *p) { (void)p; for (;;) sched_yield(); return NULL; }

static pthread_t thread(void *(*what)(void *)) {
    pthread_t t;
    pthread_create(&t, NULL, what, ports[0]);
    return t;
}

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static void *relay(void *unused) { /* two of these are never both blocked, and compute nothing */
    (void)unused;
    for (;;) {
        pthread_mutex_lock(&lock);
        nap(0);
        pthread_mutex_unlock(&lock);
    }
    return NULL;
}

int main(int argc, char **argv) {
    const char *verb = argv[1];
    for (int k = 2; k < argc; k++)
        if (!(ports[count++] = mvm_open(argv[k]))) { fprintf(stderr, "%s\n", mvm_error()); return 1; }
    if (!strcmp(verb, "fill")) return -fill(ports[0]);
    if (!strcmp(verb, "take")) return -take(ports[0]);
    if (!strcmp(verb, "any")) return mvm_wait(ports, count, -1) < 0;
    if (!strcmp(verb, "big")) { /* a fragmented item: its taker waits for the rest of it */
        size_t n = 64 << 10;
        return -mvm_enqueue(ports[0], calloc(1, n), n);
    }
    if (!strcmp(verb, "reserve")) {
        void *room;
        while (!mvm_reserve(ports[0], 1000, &room)) mvm_commit(ports[0], 1000);
        return 0;
    }
    if (!strcmp(verb, "join")) return pthread_join(thread(take_in_thread), NULL);
    if (!strcmp(verb, "fork")) {
        if (fork() == 0) _exit(-take(ports[0]));
        return wait(NULL) < 0;
    }
    /* From here on: none is stopped for good. */
    if (!strcmp(verb, "timed")) {
        char item[64];
        for (;;)
            if (mvm_dequeue_timed(ports[0], item, sizeof item, 1000000) == MVM_END) return 0;
    }
    if (!strcmp(verb, "slow")) { /* takes an item now and then */
        for (;;) {
            void *item;
            if (mvm_dequeue_alloc(ports[0], &item) < 0) return 0;
            free(item);
            nap(30);
        }
    }
    if (!strcmp(verb, "sleep")) { nap(1000000); return 0; }
    if (!strcmp(verb, "read")) {
        int fds[2];
        char byte;
        if (pipe(fds)) return 1;
        return read(fds[0], &byte, 1) < 0;
    }
    if (!strcmp(verb, "spin")) for (;;) {}
    if (!strcmp(verb, "take+sleep")) { thread(sleep_in_thread); return -take(ports[0]); }
    if (!strcmp(verb, "take+timed")) { thread(timed_in_thread); return -take(ports[0]); }
    if (!strcmp(verb, "take+spin")) { thread(spin_in_thread); return -take(ports[0]); }
    if (!strcmp(verb, "take+relay")) { thread(relay); thread(relay); return -take(ports[0]); }
    if (!strcmp(verb, "take+child")) {
        if (fork() == 0) { nap(1000000); _exit(0); }
        return -take(ports[0]);
    }
    if (!strcmp(verb, "take+alarm")) {
        signal(SIGALRM, end);
        alarm(1000);
        return -take(ports[0]);
    }
    if (!strcmp(verb, "take+tick")) { /* a timer of its own, with another signal */
        timer_t timer;
        struct sigevent told = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1};
        struct itimerspec when = {.it_value = {.tv_sec = 1000}};
        signal(SIGUSR1, end);
        if (timer_create(CLOCK_MONOTONIC, &told, &timer) || timer_settime(timer, 0, &when, NULL)) return 1;
        return -take(ports[0]);
    }
    fprintf(stderr, "what is %s?\n", verb);
    return 9;
}
