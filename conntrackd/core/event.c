/* The walk over the attributes of a conntrack message: plain, bounds-checked, with a table for each nest. */
#include "event.h"

#include <endian.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_conntrack.h>
#include <linux/netlink.h>
#include <string.h>
#include <sys/socket.h>

#ifndef NLA_TYPE_MASK
#error "linux/netlink.h is too old"
#endif
#define CTA_TIMESTAMP_EVENT_NUMBER 27 /* Linux 6.14: newer than the headers of Debian 12 and 13 */

enum kind {
	SKIPPED = 0, /* what we do not know, or do not need, is passed over */
	NEST,
	TUPLE, /* a nest, see store_tuple() */
	NUMBER, /* big endian, of exactly `size` bytes */
	ADDRESS, /* `size` bytes, which must be those of the event's family */
	TEXT,
	BITS, /* at most `size` bytes */
};

/* What becomes of one type of attribute. `offset` is the field's in struct event. */
struct target {
	uint8_t kind;
	uint8_t size;
	uint16_t offset;
	uint64_t has;
	const struct nest *nest;
};

struct nest {
	const struct target *targets;
	size_t count;
};

#define BLOCK 64
#define FIELD(name) offsetof(struct event, name)
#define NUMBER_TO(name, bits, bit) { NUMBER, (bits) / 8, FIELD(name), bit, NULL }
#define ADDRESS_TO(name, bytes, bit) { ADDRESS, bytes, FIELD(name), bit, NULL }
#define NEST_AS(kind, table) { kind, 0, 0, 0, &(const struct nest){ table, sizeof(table) / sizeof((table)[0]) } }
#define NEST_OF(table) NEST_AS(NEST, table)

#define IP_TARGETS(src, dst, has_src, has_dst)                                                          \
	{                                                                                               \
		[CTA_IP_V4_SRC] = ADDRESS_TO(src, 4, has_src), [CTA_IP_V4_DST] = ADDRESS_TO(dst, 4, has_dst), \
		[CTA_IP_V6_SRC] = ADDRESS_TO(src, 16, has_src),                                         \
		[CTA_IP_V6_DST] = ADDRESS_TO(dst, 16, has_dst),                                         \
	}

static const struct target orig_ip[] = IP_TARGETS(src, dst, HAS_SRC, HAS_DST);
static const struct target reply_ip[] = IP_TARGETS(reply_src, reply_dst, HAS_REPLY_SRC, HAS_REPLY_DST);
static const struct target master_ip[] = IP_TARGETS(master_src, master_dst, HAS_MASTER_SRC, HAS_MASTER_DST);

static const struct target orig_proto[] = {
	[CTA_PROTO_NUM] = NUMBER_TO(protocol, 8, HAS_PROTOCOL),
	[CTA_PROTO_SRC_PORT] = NUMBER_TO(sport, 16, HAS_SPORT),
	[CTA_PROTO_DST_PORT] = NUMBER_TO(dport, 16, HAS_DPORT),
	[CTA_PROTO_ICMP_ID] = NUMBER_TO(icmp_id, 16, HAS_ICMP_ID),
	[CTA_PROTO_ICMP_TYPE] = NUMBER_TO(icmp_type, 8, HAS_ICMP_TYPE),
	[CTA_PROTO_ICMP_CODE] = NUMBER_TO(icmp_code, 8, HAS_ICMP_CODE),
	[CTA_PROTO_ICMPV6_ID] = NUMBER_TO(icmp_id, 16, HAS_ICMP_ID),
	[CTA_PROTO_ICMPV6_TYPE] = NUMBER_TO(icmp_type, 8, HAS_ICMP_TYPE),
	[CTA_PROTO_ICMPV6_CODE] = NUMBER_TO(icmp_code, 8, HAS_ICMP_CODE),
};
static const struct target reply_proto[] = {
	[CTA_PROTO_SRC_PORT] = NUMBER_TO(reply_sport, 16, HAS_REPLY_SPORT),
	[CTA_PROTO_DST_PORT] = NUMBER_TO(reply_dport, 16, HAS_REPLY_DPORT),
	[CTA_PROTO_ICMP_ID] = NUMBER_TO(reply_icmp_id, 16, HAS_REPLY_ICMP_ID),
	[CTA_PROTO_ICMPV6_ID] = NUMBER_TO(reply_icmp_id, 16, HAS_REPLY_ICMP_ID),
};
static const struct target master_proto[] = {
	[CTA_PROTO_NUM] = NUMBER_TO(master_protocol, 8, HAS_MASTER_PROTOCOL),
	[CTA_PROTO_SRC_PORT] = NUMBER_TO(master_sport, 16, HAS_MASTER_SPORT),
	[CTA_PROTO_DST_PORT] = NUMBER_TO(master_dport, 16, HAS_MASTER_DPORT),
};

static const struct target orig_tuple[] = {
	[CTA_TUPLE_IP] = NEST_OF(orig_ip),
	[CTA_TUPLE_PROTO] = NEST_OF(orig_proto),
	[CTA_TUPLE_ZONE] = NUMBER_TO(zone, 16, 0),
};
static const struct target reply_tuple[] = {
	[CTA_TUPLE_IP] = NEST_OF(reply_ip),
	[CTA_TUPLE_PROTO] = NEST_OF(reply_proto),
	[CTA_TUPLE_ZONE] = NUMBER_TO(reply_zone, 16, 0),
};
static const struct target master_tuple[] = {
	[CTA_TUPLE_IP] = NEST_OF(master_ip),
	[CTA_TUPLE_PROTO] = NEST_OF(master_proto),
};

static const struct target protoinfo_tcp[] = { [CTA_PROTOINFO_TCP_STATE] = NUMBER_TO(state, 8, HAS_STATE) };
static const struct target protoinfo[] = { [CTA_PROTOINFO_TCP] = NEST_OF(protoinfo_tcp) };
static const struct target orig_counters[] = {
	[CTA_COUNTERS_PACKETS] = NUMBER_TO(orig_packets, 64, HAS_ORIG_PACKETS),
	[CTA_COUNTERS_BYTES] = NUMBER_TO(orig_bytes, 64, HAS_ORIG_BYTES),
};
static const struct target reply_counters[] = {
	[CTA_COUNTERS_PACKETS] = NUMBER_TO(reply_packets, 64, HAS_REPLY_PACKETS),
	[CTA_COUNTERS_BYTES] = NUMBER_TO(reply_bytes, 64, HAS_REPLY_BYTES),
};
static const struct target timestamps[] = {
	[CTA_TIMESTAMP_START] = NUMBER_TO(start, 64, 0),
	[CTA_TIMESTAMP_STOP] = NUMBER_TO(stop, 64, 0),
};
static const struct target help[] = { [CTA_HELP_NAME] = { TEXT, 0, FIELD(helper), HAS_HELPER, NULL } };
static const struct target security[] = { [CTA_SECCTX_NAME] = { TEXT, 0, FIELD(secctx), HAS_SECCTX, NULL } };

static const struct target top[] = {
	[CTA_TUPLE_ORIG] = NEST_AS(TUPLE, orig_tuple),
	[CTA_TUPLE_REPLY] = NEST_AS(TUPLE, reply_tuple),
	[CTA_STATUS] = NUMBER_TO(status, 32, 0),
	[CTA_PROTOINFO] = NEST_OF(protoinfo),
	[CTA_HELP] = NEST_OF(help),
	[CTA_TIMEOUT] = NUMBER_TO(timeout, 32, HAS_TIMEOUT),
	[CTA_MARK] = NUMBER_TO(mark, 32, 0),
	[CTA_COUNTERS_ORIG] = NEST_OF(orig_counters),
	[CTA_COUNTERS_REPLY] = NEST_OF(reply_counters),
	[CTA_ID] = NUMBER_TO(id, 32, HAS_ID),
	[CTA_TUPLE_MASTER] = NEST_OF(master_tuple),
	[CTA_ZONE] = NUMBER_TO(zone, 16, 0),
	[CTA_SECCTX] = NEST_OF(security),
	[CTA_TIMESTAMP] = NEST_OF(timestamps),
	[CTA_LABELS] = { BITS, LABEL_BYTES, FIELD(labels), HAS_LABELS, NULL },
	[CTA_TIMESTAMP_EVENT_NUMBER] = NUMBER_TO(time, 64, 0),
};

static void store_half(void *field, const uint8_t *value)
{
	uint16_t half;

	memcpy(&half, value, 2);
	half = be16toh(half);
	memcpy(field, &half, 2);
}

static void store_number(struct event *event, const struct target *target, const uint8_t *value)
{
	uint8_t *field = (uint8_t *)event + target->offset;
	uint64_t wide;
	uint32_t word;

	switch (target->size) {
	case 1:
		*field = *value;
		return;
	case 2:
		store_half(field, value);
		return;
	case 4:
		memcpy(&word, value, 4);
		word = be32toh(word);
		memcpy(field, &word, 4);
		return;
	default:
		memcpy(&wide, value, 8);
		wide = be64toh(wide);
		memcpy(field, &wide, 8);
	}
}

/* A text ends at its NUL, where it has one. */
static void store_text(struct event *event, const struct target *target, const uint8_t *value, size_t size)
{
	const char *text = (const char *)value;

	memcpy((uint8_t *)event + target->offset, &text, sizeof(text));
	if (target->has == HAS_HELPER)
		event->helper_bytes = (uint8_t)strnlen(text, size < UINT8_MAX ? size : UINT8_MAX);
	else
		event->secctx_bytes = (uint16_t)strnlen(text, size < UINT16_MAX ? size : UINT16_MAX);
}

static bool walk_attributes(const uint8_t *at, const uint8_t *end, const struct nest *nest, struct event *event);

static bool has_header(const uint8_t *at, size_t size, unsigned type)
{
	const struct nlattr header = { (uint16_t)(NLA_HDRLEN + size), (uint16_t)type };

	return memcmp(at, &header, sizeof(header)) == 0;
}

/* False, and nothing is stored, where the headers are not those. Inline for each size, which is a constant then. */
static inline __attribute__((always_inline)) bool store_usual(struct event *event, const uint8_t *at, size_t bytes,
							      bool is_reply)
{
	const unsigned src = bytes == 4 ? CTA_IP_V4_SRC : CTA_IP_V6_SRC;
	const uint8_t *dst_at = at + 8 + bytes, *proto_at = dst_at + 4 + bytes;

	if (!has_header(at, 8 + 2 * bytes, NLA_F_NESTED | CTA_TUPLE_IP) || !has_header(at + 4, bytes, src) ||
	    !has_header(dst_at, bytes, src + 1) || !has_header(proto_at, 24, NLA_F_NESTED | CTA_TUPLE_PROTO) ||
	    !has_header(proto_at + 4, 1, CTA_PROTO_NUM) || !has_header(proto_at + 12, 2, CTA_PROTO_SRC_PORT) ||
	    !has_header(proto_at + 20, 2, CTA_PROTO_DST_PORT))
		return false;
	memcpy(is_reply ? event->reply_src : event->src, at + 8, bytes);
	memcpy(is_reply ? event->reply_dst : event->dst, dst_at + 4, bytes);
	store_half(is_reply ? &event->reply_sport : &event->sport, proto_at + 16);
	store_half(is_reply ? &event->reply_dport : &event->dport, proto_at + 24);
	if (!is_reply)
		event->protocol = proto_at[8];
	event->has |= is_reply ? HAS_REPLY_SRC | HAS_REPLY_DST | HAS_REPLY_SPORT | HAS_REPLY_DPORT :
				 HAS_PROTOCOL | HAS_SRC | HAS_DST | HAS_SPORT | HAS_DPORT;
	return true;
}

/* Most tuples have ports, and the kernel writes all of these alike: ctnetlink_dump_tuples() in
 * net/netfilter/nf_conntrack_netlink.c. Where each header is what it is there, nothing has to be walked, which halves
 * what an event's walk takes. */
static bool store_tuple(struct event *event, const struct nest *nest, const uint8_t *value, size_t size)
{
	const bool is_reply = nest->targets == reply_tuple;

	return (size == 48 && event->family == AF_INET && store_usual(event, value, 4, is_reply)) ||
	       (size == 72 && event->family == AF_INET6 && store_usual(event, value, 16, is_reply)) ||
	       walk_attributes(value, value + size, nest, event);
}

/* False: the attribute is not what its type says. */
static bool store(struct event *event, const struct target *target, const uint8_t *value, size_t size)
{
	switch ((enum kind)target->kind) {
	case SKIPPED:
		return true;
	case TUPLE:
		return store_tuple(event, target->nest, value, size);
	case NEST:
		return walk_attributes(value, value + size, target->nest, event);
	case NUMBER:
		if (size != target->size)
			return false;
		store_number(event, target, value);
		break;
	case ADDRESS:
		if (size != target->size || size != (event->family == AF_INET ? 4 : 16))
			return false;
		memcpy((uint8_t *)event + target->offset, value, size);
		break;
	case TEXT:
		store_text(event, target, value, size);
		break;
	case BITS:
		if (size > target->size)
			return false;
		memset((uint8_t *)event + target->offset, 0, target->size); /* of a longer one before */
		memcpy((uint8_t *)event + target->offset, value, size);
		break;
	}
	event->has |= target->has;
	return true;
}

/* What stands behind the last attribute, less than a header, is none: the message is not whole then. */
static bool walk_attributes(const uint8_t *at, const uint8_t *end, const struct nest *nest, struct event *event)
{
	const struct target *targets = nest->targets;
	const size_t count = nest->count;

	while ((size_t)(end - at) >= NLA_HDRLEN) {
		size_t left = (size_t)(end - at), step;
		struct nlattr header;
		unsigned type;

		memcpy(&header, at, sizeof(header));
		if (header.nla_len < NLA_HDRLEN || header.nla_len > left)
			return false;
		type = header.nla_type & NLA_TYPE_MASK;
		if (type < count && !store(event, &targets[type], at + NLA_HDRLEN, header.nla_len - (size_t)NLA_HDRLEN))
			return false;
		step = NLA_ALIGN((size_t)header.nla_len);
		at += step < left ? step : left;
	}
	return at == end;
}

static uint8_t find_type(uint16_t message_type, uint16_t flags)
{
	if (message_type == (NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE))
		return TYPE_DESTROY;
	if (message_type != (NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_NEW))
		return 0;
	/* net/netfilter/nf_conntrack_netlink.c, ctnetlink_conntrack_event(): a new flow has these flags, an update
	 * has none. */
	return (flags & (NLM_F_CREATE | NLM_F_EXCL)) ? TYPE_NEW : TYPE_UPDATE;
}

static bool is_same(const struct event *event, uint16_t one, uint64_t has_one, uint16_t other, uint64_t has_other)
{
	return one == other && !(event->has & has_one) == !(event->has & has_other);
}

/* Where the reply tuple is not the original one turned round, an end was translated. The identifier of ICMP belongs to
 * the source: net/netfilter/nf_conntrack_proto_icmp.c. */
static uint8_t find_nat(const struct event *event)
{
	uint8_t nat = 0;

	if (memcmp(event->reply_dst, event->src, ADDRESS_BYTES) != 0 ||
	    !is_same(event, event->reply_dport, HAS_REPLY_DPORT, event->sport, HAS_SPORT) ||
	    !is_same(event, event->reply_icmp_id, HAS_REPLY_ICMP_ID, event->icmp_id, HAS_ICMP_ID))
		nat |= NAT_SNAT;
	if (memcmp(event->reply_src, event->dst, ADDRESS_BYTES) != 0 ||
	    !is_same(event, event->reply_sport, HAS_REPLY_SPORT, event->dport, HAS_DPORT))
		nat |= NAT_DNAT;
	return nat;
}

static void derive_duration(struct event *event, uint64_t start, uint64_t stop)
{
	event->has |= HAS_DURATION;
	if (stop < start) {
		event->has |= IS_BACKWARD;
		event->duration = start - stop;
		return;
	}
	event->duration = stop - start;
	event->duration_rank = event->duration == UINT64_MAX ? UINT64_MAX : event->duration + 1;
}

/* What follows from the attributes. */
static void derive(struct event *event, bool reports_reason)
{
	static const uint8_t none[LABEL_BYTES];

	event->nat = find_nat(event);
	if (memcmp(event->labels, none, sizeof(none)) == 0)
		event->has &= ~HAS_LABELS;
	if (!event->helper_bytes)
		event->has &= ~HAS_HELPER;
	if (!event->secctx_bytes)
		event->has &= ~HAS_SECCTX;
	if (event->start && event->stop)
		derive_duration(event, event->start, event->stop);
	/* net/netfilter/nf_conntrack_netlink.c, ctnetlink_dump_timeout() */
	if (reports_reason && event->type == TYPE_DESTROY) {
		event->reason = (event->has & HAS_TIMEOUT) ? REASON_CLOSED : REASON_TIMEOUT;
		event->has |= HAS_REASON;
	}
	event->has |= (event->nat ? HAS_NAT : 0) | (event->mark ? HAS_MARK : 0) | (event->zone ? HAS_ZONE : 0) |
		      (event->reply_zone ? HAS_REPLY_ZONE : 0) | (event->start ? HAS_START : 0) |
		      (event->stop ? HAS_STOP : 0) | (event->family == AF_INET ? IS_IPV4 : IS_IPV6);
}

void set_first_seen(struct event *event, uint64_t time)
{
	event->first_seen = time;
	event->has |= HAS_FIRST_SEEN;
	if (!(event->has & HAS_DURATION))
		derive_duration(event, time, event->time);
}

void set_type(struct event *event, uint8_t type)
{
	event->type = type;
	event->has &= ~(IS_WHOLE | HAS_INCOMPLETE);
	if (type == TYPE_FLOW || type == TYPE_ALIVE)
		event->has |= IS_WHOLE;
	event->incomplete = type == TYPE_FLOW && !(event->has & (HAS_START | HAS_FIRST_SEEN));
	if (event->incomplete)
		event->has |= HAS_INCOMPLETE;
}

bool walk_message(const uint8_t *message, size_t length, uint64_t received_ns, bool reports_reason, struct event *event)
{
	const uint64_t required = HAS_PROTOCOL | HAS_ID | HAS_SRC | HAS_DST | HAS_REPLY_SRC | HAS_REPLY_DST;
	const struct nest all = { top, sizeof(top) / sizeof(top[0]) };
	struct nlmsghdr header;

	if (length < NLMSG_HDRLEN + sizeof(struct nfgenmsg))
		return false;
	memcpy(&header, message, sizeof(header));
	/* By blocks: of one memset() of so few bytes compilers make `rep stos`, which takes longer. */
	memset(event, 0, sizeof(*event) % BLOCK);
	for (size_t at = sizeof(*event) % BLOCK; at < sizeof(*event); at += BLOCK)
		memset((uint8_t *)event + at, 0, BLOCK);
	event->time = received_ns;
	event->type = find_type(header.nlmsg_type, header.nlmsg_flags);
	event->family = message[NLMSG_HDRLEN + offsetof(struct nfgenmsg, nfgen_family)];
	if (header.nlmsg_len != length || !event->type || (event->family != AF_INET && event->family != AF_INET6))
		return false;
	if (!walk_attributes(message + NLMSG_HDRLEN + sizeof(struct nfgenmsg), message + length, &all, event))
		return false;
	if ((event->has & required) != required)
		return false;
	derive(event, reports_reason);
	return true;
}

size_t find_message_length(const uint8_t *bytes, size_t length)
{
	struct nlmsghdr header;

	if (length < NLMSG_HDRLEN)
		return length;
	memcpy(&header, bytes, sizeof(header));
	return header.nlmsg_len < NLMSG_HDRLEN || header.nlmsg_len > length ? length : header.nlmsg_len;
}
