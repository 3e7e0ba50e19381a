/* See receive.h. */
#include "receive.h"

#include <errno.h>
#include <linux/sock_diag.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define NANO 1000000000ULL
/* Events to gather. An event takes some 1,300 bytes of the kernel's memory: where many more of them queue up, the first
 * ones are no longer in the processor's cache when they are read.
 */
#define GATHER_EVENTS 256
#define MUCH_SOONER 4 /* times: of 50 ms, from 20,000 events/s on */

uint64_t read_clock(int clock)
{
	struct timespec now;

	clock_gettime((clockid_t)clock, &now);
	return (uint64_t)now.tv_sec * NANO + (uint64_t)now.tv_nsec;
}

bool open_ring(struct ring *ring, size_t slots, size_t slot_bytes)
{
	*ring = (struct ring){ .slots = slots, .slot_bytes = slot_bytes };
	ring->bytes = calloc(slots, slot_bytes); /* which sees whether the product fits */
	ring->messages = calloc(slots, sizeof(*ring->messages));
	ring->vectors = calloc(slots, sizeof(*ring->vectors));
	ring->senders = calloc(slots, sizeof(*ring->senders));
	if (!ring->bytes || !ring->messages || !ring->vectors || !ring->senders)
		return false;
	for (size_t slot = 0; slot < slots; slot++) {
		ring->vectors[slot] = (struct iovec){ ring->bytes + slot * slot_bytes, slot_bytes };
		ring->messages[slot].msg_hdr = (struct msghdr){ .msg_name = &ring->senders[slot],
								.msg_namelen = sizeof(ring->senders[slot]),
								.msg_iov = &ring->vectors[slot],
								.msg_iovlen = 1 };
	}
	return true;
}

void close_ring(struct ring *ring)
{
	free(ring->bytes);
	free(ring->messages);
	free(ring->vectors);
	free(ring->senders);
}

static void sleep_until(uint64_t monotonic_ns)
{
	struct timespec until = { .tv_sec = (time_t)(monotonic_ns / NANO), .tv_nsec = (long)(monotonic_ns % NANO) };

	/* A signal ends it early, which costs a shorter batch. */
	clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
}

/* How long to gather: until there are GATHER_EVENTS, if they come as fast as those of the last interval did. For
 * `most_ns` where that is not much sooner: where events are fewer, to be woken costs more than the caches save.
 */
static uint64_t compute_gather(const struct ring *ring, uint64_t most_ns)
{
	const uint64_t enough_ns =
		ring->gathered ? (ring->read_ns - ring->emptied_ns) / ring->gathered * GATHER_EVENTS : most_ns;

	return enough_ns < most_ns / MUCH_SOONER ? enough_ns : most_ns;
}

/* The number of datagrams, 0 where there is none; -1 with errno. */
static int read_queue(struct ring *ring, int socket)
{
	int count = recvmmsg(socket, ring->messages, (unsigned)ring->slots, MSG_DONTWAIT | MSG_TRUNC, NULL);

	/* ENOBUFS: another socket option than ours was set meanwhile; the loss is in the counter of drops. */
	if (count < 0 && (errno == EAGAIN || errno == EINTR || errno == ENOBUFS))
		count = 0;
	ring->received = count > 0 ? (size_t)count : 0;
	return count;
}

/*
 * What the last batch was says when to read the next. It filled the slots: there are more in the queue, so read on at
 * once. It had several events: more will come soon, so sleep until `next_ns`, and they are one batch. It had one: wait
 * in poll(), so that where events are rare each is read when it comes, by one wake-up; but where that is before
 * `next_ns`, sleep until then.
 */
int ring_receive(struct ring *ring, int socket, int patience_ms, int64_t gather_us)
{
	const uint64_t next_ns = ring->read_ns + compute_gather(ring, (uint64_t)gather_us * 1000);
	struct pollfd ready = { .fd = socket, .events = POLLIN };
	int count = 0;

	if (ring->received < ring->slots) { /* it emptied the queue: a new interval begins */
		ring->emptied_ns = ring->read_ns;
		ring->gathered = 0;
	}
	if (ring->received > 1) {
		if (gather_us && ring->received < ring->slots)
			sleep_until(next_ns);
		count = read_queue(ring, socket);
	}
	if (count == 0) {
		ring->received = 0;
		if (poll(&ready, 1, patience_ms) <= 0)
			return 0;
		if (gather_us && read_clock(CLOCK_MONOTONIC) < next_ns)
			sleep_until(next_ns);
		count = read_queue(ring, socket);
	}
	ring->read_ns = read_clock(CLOCK_MONOTONIC);
	ring->gathered += ring->received;
	return count;
}

const uint8_t *ring_datagram(const struct ring *ring, size_t slot, size_t *length)
{
	*length = ring->messages[slot].msg_len;
	if (*length > ring->slot_bytes) {
		*length = 0;
		return NULL;
	}
	return ring->bytes + slot * ring->slot_bytes;
}

bool ring_is_forged(const struct ring *ring, size_t slot)
{
	return ring->senders[slot].nl_pid != 0;
}

bool measure_fill(int socket, struct fill *fill)
{
	uint32_t words[SK_MEMINFO_VARS] = { 0 };
	socklen_t length = sizeof(words);

	if (getsockopt(socket, SOL_SOCKET, SO_MEMINFO, words, &length) < 0)
		return false;
	*fill = (struct fill){ words[SK_MEMINFO_RMEM_ALLOC], words[SK_MEMINFO_RCVBUF], words[SK_MEMINFO_DROPS] };
	return true;
}
