/* Passes items on, adding its index to each, and dies of one that is lost, doubled or
   out of turn. A VM that goes on from a checkpoint is told the time by its host: then
   its clock and its uptime differ by another number of seconds than before.

   Each item goes by the edge and over a TCP connection in the VMs' network, and the last
   one over a new connection, for which the next stage's name is looked up again. */
#include <mvm.h>
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static long booted(void) {
	struct timespec clock, up;
	clock_gettime(CLOCK_REALTIME, &clock);
	clock_gettime(CLOCK_MONOTONIC, &up);
	return clock.tv_sec - up.tv_sec;
}

static void fail(const char *what) {
	perror(what);
	exit(1);
}

static int listening(void) {
	struct sockaddr_in any;
	memset(&any, 0, sizeof any);
	any.sin_family = AF_INET;
	any.sin_port = htons(7000);
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	if (fd < 0 || bind(fd, (struct sockaddr *)&any, sizeof any) < 0 || listen(fd, 2) < 0)
		fail("listen");
	return fd;
}

/* The other stage may not be listening yet. */
static int connected(int stage) {
	char name[32];
	struct addrinfo *found, hints;
	memset(&hints, 0, sizeof hints);
	hints.ai_family = AF_INET;
	hints.ai_socktype = SOCK_STREAM;
	snprintf(name, sizeof name, "stage-%d", stage);
	if (getaddrinfo(name, "7000", &hints, &found) != 0)
		fail(name);
	for (int fd;; usleep(100000), close(fd)) {
		fd = socket(AF_INET, SOCK_STREAM, 0);
		if (fd < 0)
			fail("open a socket");
		if (connect(fd, found->ai_addr, found->ai_addrlen) == 0)
			return fd;
	}
}

static int accepted(int door) {
	int fd = accept(door, NULL, NULL);
	if (fd < 0)
		fail("accept");
	return fd;
}

static void whole(int fd, void *data, size_t size) {
	for (char *p = data; size > 0;) {
		ssize_t n = read(fd, p, size);
		if (n <= 0)
			fail("the stage before is gone");
		p += n, size -= n;
	}
}

int main(int argc, char **argv) {
	long items = argc > 1 ? atol(argv[1]) : 0, began = booted(), more = 100, sum = 0, next, item[2], same[2];
	int first = mvm_index() == 0, last = mvm_index() == mvm_count() - 1;
	mvm_port *in = first ? NULL : mvm_open("prev"), *out = last ? NULL : mvm_open("next");
	int door = first ? -1 : listening();
	int to = last ? -1 : connected(mvm_index() + 1);
	int from = first ? -1 : accepted(door);
	for (next = 1;; next++) {
		if (first) {
			item[0] = (items ? next <= items : more > 0) ? next : 0; /* 0 is the end */
			item[1] = 0;
			usleep(2000);
			if (booted() - began > 1)
				more--;
		} else if (mvm_dequeue(in, item, sizeof item) != sizeof item)
			return 1;
		if (!first) {
			if (item[0] == 0)
				from = accepted(door);
			whole(from, same, sizeof same);
			if (memcmp(same, item, sizeof item) != 0) {
				fprintf(stderr, "item %ld comes over the network where %ld is due\n", same[0], item[0]);
				return 3;
			}
		}
		item[1] += mvm_index();
		if (!last) {
			if (mvm_enqueue(out, item, sizeof item) < 0)
				return 1;
			if (item[0] == 0)
				to = connected(mvm_index() + 1);
			if (write(to, item, sizeof item) != sizeof item)
				fail("send to the next stage");
		}
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
