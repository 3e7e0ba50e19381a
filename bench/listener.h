/*
 * What the C programs of the benchmark have in common: a socket that gets conntrack events, and how they are read.
 *
 * As the daemon does: a listener that has emptied the queue sleeps, so that it is woken for many events at once and
 * not for each. That is three quarters of what an event costs where there is nothing else to do.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/netlink.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>

#define SLOTS 128 /* datagrams a call; with 512 an event costs the same (0.67 and 0.69 us in one run) */
#define SLOT_BYTES 2048 /* an event is 100 to 400 bytes */
#define GATHER_NS 4000000 /* the daemon's GATHER_US; for a file it takes longer, or sooner what is enough */

struct listener {
	int fd;
	bool gathers, emptied;
	struct mmsghdr messages[SLOTS];
	struct iovec vectors[SLOTS];
	char slots[SLOTS][SLOT_BYTES];
};

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static void listen_to(struct listener *listener, unsigned groups, int buffer)
{
	int one = 1;
	/* nl_groups is a mask of groups 1 to 32: NEW, UPDATE and DESTROY are its three lowest bits. */
	struct sockaddr_nl address = { .nl_family = AF_NETLINK, .nl_groups = groups };

	listener->fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_NETFILTER);
	if (listener->fd < 0)
		fail("socket");
	if (setsockopt(listener->fd, SOL_SOCKET, SO_RCVBUFFORCE, &buffer, sizeof(buffer)) < 0)
		fail("SO_RCVBUFFORCE");
	/* Without this one overrun makes the kernel drop everything until the queue is empty. */
	if (setsockopt(listener->fd, SOL_NETLINK, NETLINK_NO_ENOBUFS, &one, sizeof(one)) < 0)
		fail("NETLINK_NO_ENOBUFS");
	if (bind(listener->fd, (struct sockaddr *)&address, sizeof(address)) < 0)
		fail("bind");
	for (int i = 0; i < SLOTS; i++) {
		listener->vectors[i] = (struct iovec){ listener->slots[i], SLOT_BYTES };
		listener->messages[i].msg_hdr = (struct msghdr){ .msg_iov = &listener->vectors[i], .msg_iovlen = 1 };
	}
}

/* Waits for events; returns how many have come. */
static int receive(struct listener *listener)
{
	struct timespec nap = { .tv_nsec = GATHER_NS };
	int received;

	if (listener->gathers && listener->emptied)
		clock_nanosleep(CLOCK_MONOTONIC, 0, &nap, NULL);
	received = recvmmsg(listener->fd, listener->messages, SLOTS, MSG_WAITFORONE, NULL);
	if (received < 0)
		fail("recvmmsg");
	listener->emptied = received < SLOTS;
	return received;
}
