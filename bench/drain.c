/*
 * A receiver that can keep up with the sinks: takes what comes over a socket, counts the events in it, throws it
 * away. The socket takes datagrams, or listens for one connection.
 *
 * For each line of standard input it writes how many events have come since the last one, and it ends with the
 * input. An event is where the mark is, which no record of a loss has. It looks once in a millisecond: one that
 * slept until something comes would have to be awakened by the sender for each datagram, at the sender's cost,
 * which a server on another machine never has.
 *
 * Usage: drain DESCRIPTOR MARK
 */
#define _GNU_SOURCE
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define SLOTS 128
#define SIZE 2048 /* an event has less than 1 KiB */
#define NAP_MS 1

static char buffers[SLOTS][SIZE];
static const char *mark;
static long events;

/* Counts the marks; gives the number of bytes at the end that may be the beginning of one. */
static size_t count(const char *text, size_t length)
{
	const char *end = text + length, *found;
	size_t rest = strlen(mark) - 1;

	for (; (found = memmem(text, end - text, mark, rest + 1)); text = found + rest + 1)
		events++;
	return (size_t)(end - text) < rest ? (size_t)(end - text) : rest;
}

static void take_datagrams(int receiver)
{
	static struct mmsghdr messages[SLOTS];
	static struct iovec vectors[SLOTS];
	int received;

	for (int i = 0; i < SLOTS; i++) {
		vectors[i] = (struct iovec){ buffers[i], SIZE };
		messages[i].msg_hdr.msg_iov = &vectors[i];
		messages[i].msg_hdr.msg_iovlen = 1;
	}
	while ((received = recvmmsg(receiver, messages, SLOTS, MSG_DONTWAIT, NULL)) > 0)
		for (int i = 0; i < received; i++)
			count(buffers[i], messages[i].msg_len);
}

static void take_stream(int listener)
{
	static int peer = -1;
	static size_t kept;
	char *buffer = buffers[0];
	ssize_t received;

	if (peer < 0)
		peer = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
	while (peer >= 0 && (received = read(peer, buffer + kept, sizeof buffers - kept)) >= 0) {
		size_t rest = count(buffer, kept + received);

		memmove(buffer, buffer + kept + received - rest, rest);
		kept = rest;
		if (received == 0) {
			close(peer);
			peer = -1;
			kept = 0;
		}
	}
}

int main(int argc, char **argv)
{
	struct pollfd input = { .fd = 0, .events = POLLIN };
	int ready, kind = 0;
	socklen_t size = sizeof kind;
	char line[16];

	if (argc != 3 || getsockopt(atoi(argv[1]), SOL_SOCKET, SO_TYPE, &kind, &size) < 0)
		return 2;
	mark = argv[2];
	while ((ready = poll(&input, 1, NAP_MS)) >= 0) {
		(kind == SOCK_STREAM ? take_stream : take_datagrams)(atoi(argv[1]));
		if (ready) {
			if (read(0, line, sizeof line) <= 0)
				return 0;
			printf("%ld\n", events);
			fflush(stdout);
			events = 0;
		}
	}
	perror("drain: poll");
	return 1;
}
