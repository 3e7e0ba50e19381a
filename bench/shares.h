/* Events by several threads, each with a share of the flows, which the kernel cuts by their ids as for the daemon. */
#include "listener.h"

#include <linux/filter.h>
#include <linux/netfilter/nfnetlink_conntrack.h>
#include <pthread.h>
#include <stdint.h>

/* Only what is of share `number` of `total`; conntrackd/netlink/socket.py has the same. */
static void attach_share(int fd, unsigned number, unsigned total)
{
	struct sock_filter program[] = {
		BPF_STMT(BPF_LD | BPF_IMM, NLMSG_HDRLEN + sizeof(struct nfgenmsg)),
		BPF_STMT(BPF_LDX | BPF_IMM, CTA_ID),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (uint32_t)(SKF_AD_OFF + SKF_AD_NLATTR)),
		BPF_STMT(BPF_MISC | BPF_TAX, 0),
		BPF_STMT(BPF_LD | BPF_W | BPF_IND, NLA_HDRLEN),
		BPF_STMT(BPF_ALU | BPF_MOD | BPF_K, total),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, UINT32_MAX),
		BPF_STMT(BPF_RET | BPF_K, 0),
	};
	struct sock_fprog attached = { sizeof(program) / sizeof(*program), program };

	if (setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &attached, sizeof(attached)) < 0)
		fail("SO_ATTACH_FILTER");
}

/* Shares as a number in digits, NULL for one; each has a socket, with which `work` is called and never returns. */
static void share_events(const char *shares, bool gathers, unsigned groups, int buffer, void *(*work)(void *listener))
{
	const unsigned total = shares ? (unsigned)atoi(shares) : 1;

	for (unsigned number = 0; number < total; number++) {
		struct listener *listener = calloc(1, sizeof(*listener));
		pthread_t thread;

		if (!listener)
			fail("calloc");
		listener->gathers = gathers;
		listen_to(listener, groups, buffer);
		if (total > 1)
			attach_share(listener->fd, number, total);
		if (number == total - 1)
			work(listener);
		errno = pthread_create(&thread, NULL, work, listener);
		if (errno)
			fail("pthread_create");
	}
}
