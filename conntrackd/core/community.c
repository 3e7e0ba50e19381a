/*
 * See community.h. What is hashed, numbers big endian: the seed; the lower end's address and the other's; the
 * protocol and a 0; the lower end's port and the other's, where the protocol has ports.
 *
 * ICMP has none: its type stands for the one, and for the other the type of the answer. A type that is never answered
 * has its code there, and its ends are not put in order.
 */
#include "community.h"

#include "sha1.h"

#include <netinet/in.h>
#include <string.h>

/* Types of ICMP and ICMPv6 that are answered, each beside its answer. */
static const uint8_t icmp_pairs[][2] = { { 8, 0 }, { 10, 9 }, { 13, 14 }, { 15, 16 }, { 17, 18 } };
static const uint8_t icmpv6_pairs[][2] = { { 128, 129 }, { 130, 131 }, { 133, 134 },
					   { 135, 136 }, { 139, 140 }, { 144, 145 } };
#define COUNT(pairs) (sizeof(pairs) / sizeof((pairs)[0]))

struct ports {
	uint16_t source, destination;
	bool are_there, are_ordered; /* else the ends stay as they are */
};

static struct ports find_icmp_ports(const struct event *event)
{
	bool is_v6 = event->protocol == IPPROTO_ICMPV6;
	const uint8_t(*pairs)[2] = is_v6 ? icmpv6_pairs : icmp_pairs;
	size_t count = is_v6 ? COUNT(icmpv6_pairs) : COUNT(icmp_pairs);

	for (size_t pair = 0; pair < count; pair++)
		for (int side = 0; side < 2; side++)
			if (pairs[pair][side] == event->icmp_type)
				return (struct ports){ event->icmp_type, pairs[pair][!side], true, true };
	return (struct ports){ event->icmp_type, event->icmp_code, true, false };
}

/* What an event should have and has not is as if the protocol had none. */
static struct ports find_ports(const struct event *event)
{
	const uint64_t icmp = HAS_ICMP_TYPE | HAS_ICMP_CODE, both = HAS_SPORT | HAS_DPORT;

	switch (event->protocol) {
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		if ((event->has & icmp) == icmp)
			return find_icmp_ports(event);
		break;
	case IPPROTO_TCP:
	case IPPROTO_UDP:
	case IPPROTO_SCTP:
		if ((event->has & both) == both)
			return (struct ports){ event->sport, event->dport, true, true };
		break;
	default:
		break;
	}
	return (struct ports){ .are_ordered = true };
}

static uint8_t *put_half(uint8_t *at, uint16_t half)
{
	at[0] = (uint8_t)(half >> 8);
	at[1] = (uint8_t)half;
	return at + 2;
}

static uint8_t *put_address(uint8_t *at, const uint8_t *address, size_t size)
{
	memcpy(at, address, size);
	return at + size;
}

/* RFC 4648, 4: three bytes are four characters; 20 bytes leave two over. */
static char *write_digest(char *at, const uint8_t *digest)
{
	static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
	uint8_t padded[SHA1_BYTES + 1] = { 0 };

	memcpy(padded, digest, SHA1_BYTES);
	for (size_t from = 0; from < sizeof(padded); from += 3) {
		uint32_t bits = (uint32_t)padded[from] << 16 | (uint32_t)padded[from + 1] << 8 | padded[from + 2];

		for (int shift = 18; shift >= 0; shift -= 6)
			*at++ = alphabet[bits >> shift & 0x3f];
	}
	at[-1] = '=';
	return at;
}

char *write_community_id(char *at, const struct event *event, uint16_t seed)
{
	struct ports ports = find_ports(event);
	size_t size = event->has & IS_IPV4 ? 4 : ADDRESS_BYTES;
	int order = memcmp(event->src, event->dst, size);
	bool is_turned = ports.are_ordered && (order > 0 || (order == 0 && ports.source > ports.destination));
	uint8_t text[SHA1_MOST], digest[SHA1_BYTES], *end = put_half(text, seed);

	end = put_address(end, is_turned ? event->dst : event->src, size);
	end = put_address(end, is_turned ? event->src : event->dst, size);
	*end++ = event->protocol;
	*end++ = 0;
	if (ports.are_there) {
		end = put_half(end, is_turned ? ports.destination : ports.source);
		end = put_half(end, is_turned ? ports.source : ports.destination);
	}
	sha1(text, (size_t)(end - text), digest);
	*at++ = '1';
	*at++ = ':';
	return write_digest(at, digest);
}
