/*
 * Token buckets: how many of the events that a rule matches pass, in all, or of each source, destination or network.
 *
 * filter/buckets.py does the same. A limit is bounded in memory, and lets no key have more than its burst and its rate:
 * only a bucket that has become full again is forgotten, and keys of a set that find none share one.
 */
#ifndef CONNTRACKD_LIMIT_H
#define CONNTRACKD_LIMIT_H

#include <pthread.h>

#include "event.h"

#define LIMIT_SETS 512 /* of buckets, of a rule that counts by key; a key's hash says which it has */
#define LIMIT_WAYS 8 /* buckets of a set, beside the shared one: with 40 bytes each 180 KiB a rule */
#define MAX_LIMITS 64 /* rules with a limit in one filter: 11.25 MiB */
#define MAX_LIMIT 100000 /* so that a full bucket, whose level is in 1 / period of an event, fits into 64 bits */
#define MAX_PERIOD (86400 * 1000000000ULL) /* a day, in nanoseconds */

enum limit_key { LIMIT_ALL, LIMIT_SOURCE, LIMIT_DESTINATION, LIMIT_KEYS };

/* `count` events in `period` nanoseconds, and `burst` at once. No limit: a count of 0. */
struct limit {
	uint64_t period;
	uint32_t count, burst;
	uint32_t key;
	uint16_t ipv4_bits, ipv6_bits; /* of the address that are the key */
};

/* 1 to `period` parts of an event for each that may pass. */
struct bucket {
	uint64_t high, low; /* the key, in the order of the message's bytes */
	uint64_t level, filled_at;
	uint32_t family; /* 0: nobody's */
	uint32_t reserved;
};

/* What a rule's limit has held back; `count`, `since` and `until` since it was taken last. */
struct held {
	uint64_t total, count, since, until;
};

struct limits {
	pthread_mutex_t lock; /* of all below but for `limits`: tables of several readers have the same buckets */
	uint64_t seed; /* nobody outside may choose addresses whose buckets are the same */
	uint32_t rules;
	struct limit *limits; /* this and the next two: of each rule from 0, what no rule matched */
	struct bucket *
		*buckets; /* LIMIT_SETS times the shared one and LIMIT_WAYS others, or one; NULL without a limit */
	struct held *held;
};

/* From an array of struct limit. NULL: it is none that is valid (errno is EINVAL), or there is no memory (ENOMEM). */
struct limits *open_limits(const uint8_t *limits, size_t bytes, uint64_t seed);
void close_limits(struct limits *limits);

/* Whether the event, which the rule keeps, is within its limit at this time, in nanoseconds of a clock that is never
 * set; else it is counted as held back. From any thread. */
bool take_token(struct limits *limits, uint32_t rule, const struct event *event, uint64_t now);

/* What a rule's limit has held back; `is_taken`: and the next call counts anew. */
struct held get_held(struct limits *limits, uint32_t rule, bool is_taken);

#endif
