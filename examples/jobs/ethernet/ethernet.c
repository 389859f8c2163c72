/* The client sends numbers to the server over TCP, which adds them up; both call a
 * word out to all over UDP meanwhile, and count who calls theirs and who another. */
#include <mvm.h>
#include <arpa/inet.h>
#include <netdb.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { TCP_PORT = 7000, UDP_PORT = 7001, PERIOD = 20 /* ms between two calls */ };

static int calls; /* UDP socket */
static const char *word;
static int heard, foreign;

static void fail(const char *what) {
	perror(what);
	exit(1);
}

static struct sockaddr_in at(in_addr_t address, int port) {
	struct sockaddr_in a;
	memset(&a, 0, sizeof a);
	a.sin_family = AF_INET;
	a.sin_port = htons(port);
	a.sin_addr.s_addr = address;
	return a;
}

static double now(void) {
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static void open_calls(void) {
	int yes = 1;
	struct sockaddr_in any = at(htonl(INADDR_ANY), UDP_PORT);
	calls = socket(AF_INET, SOCK_DGRAM, 0);
	if (calls < 0 || setsockopt(calls, SOL_SOCKET, SO_BROADCAST, &yes, sizeof yes) < 0 || bind(calls, (struct sockaddr *)&any, sizeof any) < 0)
		fail("open a UDP socket");
}

/* Calls out once, and hears who does until the next time. A call has the caller's
 * task in it, because everybody hears his own calls, too. */
static void call(void) {
	char mine[200], text[200];
	struct sockaddr_in all = at(inet_addr("10.86.255.255"), UDP_PORT);
	int n = snprintf(mine, sizeof mine, "%s %s", word, mvm_task());
	if (sendto(calls, mine, n, 0, (struct sockaddr *)&all, sizeof all) < 0)
		fail("call out");
	struct pollfd p = {calls, POLLIN, 0};
	for (double end = now() + PERIOD / 1e3; now() < end;) {
		if (poll(&p, 1, PERIOD) <= 0)
			continue;
		ssize_t got = recv(calls, text, sizeof text - 1, 0);
		if (got < 0)
			fail("listen");
		text[got] = 0;
		if (strncmp(text, word, strlen(word)) != 0 || text[strlen(word)] != ' ')
			foreign++;
		else if (strcmp(text, mine) != 0 && heard++ == 0)
			printf("heard %s\n", text), fflush(stdout);
	}
}

static void whole(int fd, void *data, size_t size) {
	for (char *p = data; size > 0;) {
		ssize_t n = read(fd, p, size);
		if (n <= 0)
			fail("the other one is gone");
		p += n, size -= n;
	}
}

static long long serve(mvm_port *ready, int count) {
	struct sockaddr_in any = at(htonl(INADDR_ANY), TCP_PORT);
	int listening = socket(AF_INET, SOCK_STREAM, 0);
	if (listening < 0 || bind(listening, (struct sockaddr *)&any, sizeof any) < 0 || listen(listening, 1) < 0)
		fail("listen for TCP");
	if (mvm_enqueue(ready, "", 1) < 0)
		exit(1);
	int fd = accept(listening, NULL, NULL);
	if (fd < 0)
		fail("accept");
	long long sum = 0;
	for (int i; count-- > 0; sum += i)
		whole(fd, &i, sizeof i);
	if (write(fd, &sum, sizeof sum) != sizeof sum)
		fail("answer");
	return sum;
}

static long long ask(mvm_port *ready, int count) {
	char c;
	if (mvm_dequeue(ready, &c, 1) != 1)
		exit(1);
	struct addrinfo *found, hints = {0};
	hints.ai_family = AF_INET;
	hints.ai_socktype = SOCK_STREAM;
	if (getaddrinfo("server", "7000", &hints, &found) != 0)
		fail("look server up");
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	if (fd < 0 || connect(fd, found->ai_addr, found->ai_addrlen) < 0)
		fail("connect to server");
	for (int i = 1; i <= count; i++)
		if (write(fd, &i, sizeof i) != sizeof i)
			fail("send");
	long long sum;
	whole(fd, &sum, sizeof sum);
	return sum;
}

int main(int argc, char **argv) {
	word = argc > 1 ? argv[1] : "hello";
	double seconds = argc > 2 ? atof(argv[2]) : 3;
	int count = argc > 3 ? atoi(argv[3]) : 20000;
	open_calls();
	mvm_port *ready = mvm_open("ready");
	int server = strcmp(mvm_task(), "server") == 0;
	long long sum = server ? serve(ready, count) : ask(ready, count);
	for (double end = now() + seconds; now() < end || heard == 0;)
		call();
	printf("sum %lld, calls of our own %s, foreign calls %d\n", sum, heard > 0 ? "heard" : "not heard", foreign);
	if (server) {
		FILE *f = fopen("sum.txt", "w");
		fprintf(f, "%lld\n", sum);
		return fclose(f);
	}
	return 0;
}
