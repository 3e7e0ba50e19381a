/*
 * One conntrack event as numbers, and the walk over a netlink message that finds them.
 *
 * Nothing here is allocated: texts of an event (a helper's name) point into the message it was read from.
 */
#ifndef CONNTRACKD_EVENT_H
#define CONNTRACKD_EVENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ADDRESS_BYTES 16 /* an IPv4 address has the first 4 of them, the rest is 0 */
#define LABEL_BYTES 16 /* include/net/netfilter/nf_conntrack_labels.h: 128 bits */

/* Types of events, as flow.py's EventType. SNAPSHOT: found in the connection table. FLOW: a DESTROY that stands for the
 * whole flow, and has its bit for whoever asks. ALIVE: found in the table at an interval. */
enum {
	TYPE_NEW = 1,
	TYPE_UPDATE = 2,
	TYPE_DESTROY = 4,
	TYPE_SNAPSHOT = 8,
	TYPE_FLOW = 16 | TYPE_DESTROY,
	TYPE_ALIVE = 32,
};
enum { REASON_TIMEOUT = 0, REASON_CLOSED = 1 };
enum { NAT_SNAT = 1, NAT_DNAT = 2 };

/* What an event carries: bits of `has`. Those from HAS_NAT on follow from the others. */
#define HAS_SPORT (1ULL << 0)
#define HAS_DPORT (1ULL << 1)
#define HAS_REPLY_SPORT (1ULL << 2)
#define HAS_REPLY_DPORT (1ULL << 3)
#define HAS_STATE (1ULL << 4)
#define HAS_ICMP_TYPE (1ULL << 5)
#define HAS_ICMP_CODE (1ULL << 6)
#define HAS_ICMP_ID (1ULL << 7)
#define HAS_REPLY_ICMP_ID (1ULL << 8)
#define HAS_ORIG_PACKETS (1ULL << 9)
#define HAS_ORIG_BYTES (1ULL << 10)
#define HAS_REPLY_PACKETS (1ULL << 11)
#define HAS_REPLY_BYTES (1ULL << 12)
#define HAS_LABELS (1ULL << 13)
#define HAS_HELPER (1ULL << 14)
#define HAS_SECCTX (1ULL << 15)
#define HAS_MASTER_SPORT (1ULL << 16)
#define HAS_MASTER_DPORT (1ULL << 17)
#define HAS_PROTOCOL (1ULL << 18)
#define HAS_ID (1ULL << 19)
#define HAS_SRC (1ULL << 20)
#define HAS_DST (1ULL << 21)
#define HAS_REPLY_SRC (1ULL << 22)
#define HAS_REPLY_DST (1ULL << 23)
#define HAS_MASTER_SRC (1ULL << 24)
#define HAS_MASTER_DST (1ULL << 25)
#define HAS_MASTER_PROTOCOL (1ULL << 26)
#define HAS_TIMEOUT (1ULL << 27)
#define HAS_NAT (1ULL << 32)
#define HAS_REASON (1ULL << 33)
#define HAS_MARK (1ULL << 34) /* this and the next four: it is not 0 */
#define HAS_ZONE (1ULL << 35)
#define HAS_REPLY_ZONE (1ULL << 36)
#define HAS_START (1ULL << 37)
#define HAS_STOP (1ULL << 38)
#define HAS_DURATION (1ULL << 39) /* both of them, or first_seen */
#define HAS_FIRST_SEEN (1ULL << 45)
#define IS_WHOLE (1ULL << 46) /* of type FLOW or ALIVE: what the flow comes to so far */
#define IS_BACKWARD (1ULL << 44)
#define IS_IPV4 (1ULL << 40)
#define IS_IPV6 (1ULL << 41)
#define HAS_SRC_LOCATION (1ULL << 42)
#define HAS_DST_LOCATION (1ULL << 43)
#define HAS_SAMPLE_RATE (1ULL << 47)
#define HAS_INCOMPLETE (1ULL << 51)
#define HAS_DELTAS (1ULL << 50) /* all four: see deltas.h */

struct event {
	uint64_t has;
	uint64_t time; /* this and the next four: nanoseconds since the epoch */
	uint64_t moment; /* the time, or the nanosecond after the last event's moment where both have one time */
	uint64_t start;
	uint64_t stop;
	uint64_t first_seen; /* time of the flow's NEW, where the kernel does not say when it began: see flows.h */
	uint64_t duration; /* nanoseconds between start and stop; IS_BACKWARD: the clock was set back between them */
	uint64_t duration_rank; /* what durations are compared by: 0 where it is negative, else one more than it is */
	uint64_t orig_packets, orig_bytes, reply_packets, reply_bytes;
	uint64_t orig_packets_delta, orig_bytes_delta, reply_packets_delta, reply_bytes_delta;
	uint32_t id, status, mark, timeout;
	uint32_t src_location, dst_location; /* numbers of Locations, 0 for none */
	uint32_t sample_rate; /* one of so many flows, 0 where it is not a sample: see decide() and exchange_rates() */
	uint16_t sport, dport, reply_sport, reply_dport, master_sport, master_dport;
	uint16_t icmp_id, reply_icmp_id, zone, reply_zone;
	uint8_t type, family, protocol, state, icmp_type, icmp_code, reason, nat, master_protocol;
	uint8_t incomplete; /* 1 of a FLOW of which nobody knows when it began: see set_type() */
	uint8_t helper_bytes;
	uint16_t secctx_bytes;
	const char *helper, *secctx; /* without an end of their own */
	uint8_t src[ADDRESS_BYTES], dst[ADDRESS_BYTES], reply_src[ADDRESS_BYTES], reply_dst[ADDRESS_BYTES];
	uint8_t master_src[ADDRESS_BYTES], master_dst[ADDRESS_BYTES];
	uint8_t labels[LABEL_BYTES]; /* bit n is bit n % 8 of byte n / 8 */
};

/* Reads the message, which is from nlmsghdr to its end. False: it is not one conntrack event.
 * `reports_reason`: the kernel gives DESTROY the time that was left, and nothing when none was (Linux 5.10).
 */
bool walk_message(const uint8_t *message, size_t length, uint64_t received_ns, bool reports_reason,
		  struct event *event);

/* When a flow began whose start the kernel does not report; then the duration is from there to the event. */
void set_first_seen(struct event *event, uint64_t time);
void set_type(struct event *event, uint8_t type);

/* The length of the first message in these bytes, padding not included: all of them where it is unknown,
 * which is then for walk_message() to refuse.
 */
size_t find_message_length(const uint8_t *bytes, size_t length);

#endif
