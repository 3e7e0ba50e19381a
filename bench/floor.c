/*
 * The floor: receive conntrack events with recvmmsg and throw them away.
 *
 * No listener can spend less per event than this, so every other program is measured as a multiple of it.
 * Usage: floor [GROUPS [BUFFER]]. GROUPS is a sum of 1 NEW, 2 UPDATE, 4 DESTROY; BUFFER is in bytes.
 * SIGTERM and SIGINT end it; then one line of JSON on standard output says what it has seen.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_compat.h>
#include <linux/netfilter/nfnetlink_conntrack.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/socket.h>

#define SLOTS 128 /* datagrams a call; the daemon's own number */
#define SLOT_BYTES 2048 /* an event is 100 to 400 bytes */

static volatile sig_atomic_t ending;

static void end(int signal)
{
	(void)signal;
	ending = 1;
}

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static int open_listener(unsigned groups, int buffer)
{
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_NETFILTER);
	int one = 1;
	struct sockaddr_nl address = { .nl_family = AF_NETLINK, .nl_groups = groups };

	if (fd < 0)
		fail("floor: socket");
	if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &buffer, sizeof(buffer)) < 0)
		fail("floor: SO_RCVBUFFORCE");
	/* Without this one overrun makes the kernel drop everything until the queue is empty. */
	if (setsockopt(fd, SOL_NETLINK, NETLINK_NO_ENOBUFS, &one, sizeof(one)) < 0)
		fail("floor: NETLINK_NO_ENOBUFS");
	/* nl_groups is a mask of groups 1 to 32: NEW, UPDATE and DESTROY are its three lowest bits. */
	if (bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
		fail("floor: bind");
	return fd;
}

static unsigned read_drops(int fd)
{
	unsigned words[SK_MEMINFO_VARS] = { 0 };
	socklen_t length = sizeof(words);

	if (getsockopt(fd, SOL_SOCKET, SO_MEMINFO, words, &length) < 0)
		fail("floor: SO_MEMINFO");
	return words[SK_MEMINFO_DROPS];
}

enum kind { NEW, UPDATE, DESTROY, KINDS };

static enum kind find_kind(const struct nlmsghdr *header)
{
	if ((header->nlmsg_type & 0xff) == IPCTNL_MSG_CT_DELETE)
		return DESTROY;
	return header->nlmsg_flags & NLM_F_CREATE ? NEW : UPDATE;
}

static void report(const unsigned long long *count, unsigned lost)
{
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);
	printf("{\"events\":%llu,\"new\":%llu,\"update\":%llu,\"destroy\":%llu,\"lost\":%u,\"cpu_us\":%lld,"
	       "\"peak_kib\":%ld}\n",
	       count[NEW] + count[UPDATE] + count[DESTROY], count[NEW], count[UPDATE], count[DESTROY], lost,
	       (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000000LL + usage.ru_utime.tv_usec +
		       usage.ru_stime.tv_usec,
	       usage.ru_maxrss);
}

int main(int argc, char **argv)
{
	static char slots[SLOTS][SLOT_BYTES] __attribute__((aligned(8)));
	static struct mmsghdr messages[SLOTS];
	static struct iovec places[SLOTS];
	unsigned long long count[KINDS] = { 0 };
	struct sigaction action = { .sa_handler = end }; /* no SA_RESTART: the call must return */
	int fd = open_listener(argc > 1 ? (unsigned)atoi(argv[1]) : 7, argc > 2 ? atoi(argv[2]) : 64 << 20);

	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGINT, &action, NULL);
	for (int i = 0; i < SLOTS; i++) {
		places[i] = (struct iovec){ slots[i], SLOT_BYTES };
		messages[i].msg_hdr = (struct msghdr){ .msg_iov = &places[i], .msg_iovlen = 1 };
	}
	while (!ending) {
		int received = recvmmsg(fd, messages, SLOTS, MSG_WAITFORONE, NULL);

		if (received < 0 && errno != EINTR)
			fail("floor: recvmmsg");
		for (int i = 0; i < received; i++)
			count[find_kind((struct nlmsghdr *)slots[i])]++;
	}
	report(count, read_drops(fd));
	return 0;
}
