/*
 * A receiver that can keep up with the sinks: takes the datagrams of a socket, counts them, throws them away.
 *
 * For each line of standard input it writes how many events have come since the last one, and it ends with the
 * input. A record of a loss is no event; its text says LOST, and no event's does.
 *
 * Usage: drain DESCRIPTOR
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

static char buffers[SLOTS][SIZE];

int main(int argc, char **argv)
{
	struct mmsghdr messages[SLOTS] = { 0 };
	struct iovec vectors[SLOTS];
	struct pollfd waits[] = { { .fd = 0, .events = POLLIN }, { .events = POLLIN } };
	long events = 0;
	char line[16];

	if (argc != 2)
		return 2;
	waits[1].fd = atoi(argv[1]);
	for (int i = 0; i < SLOTS; i++) {
		vectors[i] = (struct iovec){ buffers[i], SIZE };
		messages[i].msg_hdr.msg_iov = &vectors[i];
		messages[i].msg_hdr.msg_iovlen = 1;
	}
	while (poll(waits, 2, -1) > 0) {
		int received = waits[1].revents ? recvmmsg(waits[1].fd, messages, SLOTS, MSG_DONTWAIT, NULL) : 0;

		for (int i = 0; i < received; i++)
			events += memmem(buffers[i], messages[i].msg_len, "LOST", 4) == NULL;
		if (waits[0].revents) {
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
