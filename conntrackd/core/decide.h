/*
 * Rules as a table of tests of one kind: a field, a mask, a sorted set of intervals, where to go on yes, where on no.
 *
 * filter/table.py writes the programs that tables are opened from. A jump leads forward only, so that every event comes
 * to an end; first match wins because a rule's tests come before those of the next.
 */
#ifndef CONNTRACKD_DECIDE_H
#define CONNTRACKD_DECIDE_H

#include "event.h"
#include "limit.h"
#include "prefixes.h"

#define PROGRAM_FORMAT 0x63740003u /* changes with anything below that programs are made of */
#define MAX_LOCATIONS (1u << 24) /* more than geoip.cache can hold, so that what grows has an end */

/* What a test asks about, in the order of CORE_FIELDS in filter/table.py. Addresses of another family, and what the
 * event does not carry, answer no. */
enum field {
	FIELD_TYPE,
	FIELD_FAMILY,
	FIELD_PROTOCOL,
	FIELD_STATE,
	FIELD_STATUS,
	FIELD_MARK,
	FIELD_ZONE,
	FIELD_NAT,
	FIELD_SPORT,
	FIELD_DPORT,
	FIELD_REPLY_SPORT,
	FIELD_REPLY_DPORT,
	FIELD_ICMP_ID,
	FIELD_REPLY_ICMP_ID,
	FIELD_ORIG_PACKETS,
	FIELD_ORIG_BYTES,
	FIELD_REPLY_PACKETS,
	FIELD_REPLY_BYTES,
	FIELD_DURATION, /* event->duration_rank */
	FIELD_FOUND, /* the lowest rule that intervals have found so far, 0 for none */
	FIELD_SRC_LOCATION, /* this and the next: the word of the Location's bits that the test names */
	FIELD_DST_LOCATION,
	FIELD_SRC_IPV4,
	FIELD_DST_IPV4,
	FIELD_REPLY_SRC_IPV4,
	FIELD_REPLY_DST_IPV4,
	FIELD_SRC_IPV6, /* from here on pairs of numbers, all others are one number */
	FIELD_DST_IPV6,
	FIELD_REPLY_SRC_IPV6,
	FIELD_REPLY_DST_IPV6,
	FIELDS,
};

/*
 * A program is this header and, one behind the other: tests; the numbers' lower and upper bounds; the addresses'
 * lower and upper bounds; the rule of each number's and then of each address's interval (0: none, it is only a set);
 * for each rule from 0 (what no rule matched) the N of its sample 1/N, 0 for all flows, and then whether it keeps
 * events, a byte each. All in the machine's byte order.
 *
 * A target below the count of tests is a test. Those from there on are ends: rule 0, rule 1, ...; behind the last rule
 * "the rule that was found", and then "left out", which is dropped and counted nowhere.
 */
struct program_header {
	uint32_t format;
	uint32_t tests, rules, numbers, addresses;
	uint32_t start; /* the first target */
	uint32_t location_words; /* of 64 bits, for each Location */
	uint32_t sets; /* of networks, which the table is given beside the program */
};

/* Yes: the value under the mask (of one number; an address has none) lies in one of `count` intervals from `first` on,
 * and the interval's rule is found, unless a lower one is already. Where the field is an address and `word` is not 0,
 * there are no intervals: the address is in set number word - 1. */
struct test {
	uint64_t mask;
	uint32_t yes, no;
	uint32_t first, count;
	uint16_t field;
	uint16_t word;
	uint32_t reserved; /* 0 */
};

struct address {
	uint64_t high, low;
};

static inline bool is_above(struct address one, struct address other)
{
	return (one.high > other.high) | ((one.high == other.high) & (one.low > other.low));
}

static inline struct address subtract(struct address from, struct address other)
{
	return (struct address){ from.high - other.high - (from.low < other.low), from.low - other.low };
}

/* By less than 128 bits. */
static inline struct address shift_right(struct address value, unsigned int bits)
{
	if (bits >= 64)
		return (struct address){ 0, value.high >> (bits - 64) };
	return (struct address){ value.high >> bits, value.low >> bits | (value.high << 1) << (63 - bits) };
}

/* Of a test with many intervals: where to search for a value, by how far it is above the first lower bound. */
struct index {
	size_t entries; /* of table->index_entries; buckets + 1 of them */
	uint32_t buckets; /* 0: the test has none */
	uint32_t shift; /* from that distance to the bucket */
};

struct table {
	uint64_t *counts; /* of events that each rule decided; index 0: no rule matched */
	uint32_t rules, test_count, start;
	const struct test *tests; /* this and the next: parts of `program` */
	const uint64_t *number_lows, *number_highs;
	const struct address *address_lows, *address_highs;
	const uint32_t *number_rules, *address_rules;
	const uint32_t *rates; /* this and the next: of each rule */
	const uint8_t *keeps;
	uint8_t *program;
	struct index *indexes; /* of each test */
	uint32_t *index_entries;
	uint64_t *locations; /* location_words for each number below location_slots; all 0 is unknown */
	uint32_t location_words, location_slots;
	uint32_t last_location; /* the highest number that was set */
	const struct prefixes **sets; /* which last longer than the table */
	uint32_t set_count;
	uint32_t *part_rates; /* of events by their index, as the last decision about a part has left them */
	size_t part_slots;
	struct limits *limits; /* for so many rules, which last longer than the table; NULL: no rule has one */
	uint64_t now; /* when the next decisions are made, of take_token()'s clock */
};

/* NULL: the program is not one, or not one for so many sets, or there is no memory for it (errno is ENOMEM then, else
 * EINVAL). The list of sets is copied. */
struct table *open_table(const uint8_t *program, size_t bytes, const struct prefixes *const *sets, uint32_t set_count);
void close_table(struct table *table);

/* Bits of a Location, location_words * 8 bytes. False: the number is 0 or too high, or there is no memory. Neither this
 * nor decide() may run while another thread is in one of them with the same table. */
bool table_set_location(struct table *table, uint32_t number, const uint8_t *bits);

/* Of `count` events, those at the indexes `among` (NULL: the first ones), writes the indexes of those that are kept, in
 * their order, and returns how many they are. `kept` has room for all, and may be `among`. Sets the sample_rate of
 * events; `is_part`: they are what another table has kept, which keeps its rates, and those of this table go where
 * reserve_rates() has made room. */
size_t decide(struct table *table, struct event *events, const uint16_t *among, size_t count, uint16_t *kept,
	      bool is_part);

/* Room for the rates of so many events. False for want of memory. */
bool reserve_rates(struct table *table, size_t count);

/* Exchanges the rates of these events with what they are by this table too: of a sample of a sample the smaller one.
 * Called again it gives them back. Events without room had no decision by the table. */
void exchange_rates(struct table *table, struct event *events, const uint16_t *indexes, size_t count);

/* filter/sample.py, mix(). Of two samples of one id the smaller is a part of the larger. */
static inline uint32_t mix_id(uint32_t id)
{
	id ^= id >> 16;
	id *= 0x7feb352du;
	id ^= id >> 15;
	id *= 0x846ca68bu;
	return id ^ id >> 16;
}

#endif
