/* Passes items on, adding its index to each, and dies of one that is lost, doubled or
   out of turn. A VM that goes on from a checkpoint is told the time by its host: then
   its clock and its uptime differ by another number of seconds than before. */
#include <mvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static long booted(void) {
	struct timespec clock, up;
	clock_gettime(CLOCK_REALTIME, &clock);
	clock_gettime(CLOCK_MONOTONIC, &up);
	return clock.tv_sec - up.tv_sec;
}

int main(int argc, char **argv) {
	long items = argc > 1 ? atol(argv[1]) : 0, began = booted(), more = 100, sum = 0, next, item[2];
	int first = mvm_index() == 0, last = mvm_index() == mvm_count() - 1;
	mvm_port *in = first ? NULL : mvm_open("prev"), *out = last ? NULL : mvm_open("next");
	for (next = 1;; next++) {
		if (first) {
			item[0] = (items ? next <= items : more > 0) ? next : 0; /* 0 is the end */
			item[1] = 0;
			usleep(2000);
			if (booted() - began > 1)
				more--;
		} else if (mvm_dequeue(in, item, sizeof item) != sizeof item)
			return 1;
		item[1] += mvm_index();
		if (out && mvm_enqueue(out, item, sizeof item) < 0)
			return 1;
		if (item[0] == 0)
			break;
		if (item[0] != next) {
			fprintf(stderr, "item %ld where %ld is due\n", item[0], next);
			return 2;
		}
		sum += item[0] * item[1];
	}
	printf("%ld items, sum %ld\n", next - 1, sum);
	return 0;
}
