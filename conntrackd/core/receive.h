/* Datagrams of a netlink socket, many with one system call, into slots that are used again and again. */
#ifndef CONNTRACKD_RECEIVE_H
#define CONNTRACKD_RECEIVE_H

#include <linux/netlink.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

struct ring {
	size_t slots;
	size_t slot_bytes;
	uint8_t *bytes;
	struct mmsghdr *messages;
	struct iovec *vectors;
	struct sockaddr_nl *senders;
	size_t received; /* datagrams of the last receive, forged ones included */
	uint64_t read_ns; /* when it last read any, by the monotonic clock */
	uint64_t emptied_ns; /* when a read before that one had last emptied the queue */
	size_t gathered; /* datagrams read since then */
};

/* What the kernel says of a socket's queue: bytes in it, bytes it may have, events it had no room for. */
struct fill {
	uint32_t used, size, drops;
};

bool open_ring(struct ring *ring, size_t slots, size_t slot_bytes);
void close_ring(struct ring *ring);

/* Waits at most `patience_ms`, and `gather_us`, for the first datagram and returns with all that have come, as many as
 * there are slots; 0 for none, -1 with errno. Where events come one after the other it reads every `gather_us`, and
 * sooner only where very many come: being woken for each event is three quarters of what an event costs.
 */
int ring_receive(struct ring *ring, int socket, int patience_ms, int64_t gather_us);

/* A datagram of the last receive, or NULL with a length of 0 where it did not fit into its slot. */
const uint8_t *ring_datagram(const struct ring *ring, size_t slot, size_t *length);

/* Whether a process sent it: events come from port id 0, the kernel. */
bool ring_is_forged(const struct ring *ring, size_t slot);

bool measure_fill(int socket, struct fill *fill);

uint64_t read_clock(int clock);

#endif
