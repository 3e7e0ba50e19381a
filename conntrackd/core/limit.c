/* See limit.h. */
#include "limit.h"

#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define SET_BUCKETS (1 + LIMIT_WAYS) /* the shared one is the first */

struct key {
	uint64_t high, low;
	uint32_t family;
};

static uint64_t mix(uint64_t hash, uint64_t value)
{
	hash = (hash ^ value) * 0x9e3779b97f4a7c15ULL;
	return hash ^ hash >> 32;
}

static uint64_t hash_key(const struct limits *limits, const struct key *key)
{
	return mix(mix(mix(limits->seed, key->high), key->low), key->family);
}

static bool is_valid(const struct limit *limit)
{
	if (!limit->count)
		return true;
	return limit->count <= MAX_LIMIT && limit->burst && limit->burst <= MAX_LIMIT && limit->period &&
	       limit->period <= MAX_PERIOD && limit->key < LIMIT_KEYS && limit->ipv4_bits <= 32 &&
	       limit->ipv6_bits <= 128;
}

static uint64_t find_capacity(const struct limit *limit)
{
	return limit->burst * limit->period;
}

static bool make_buckets(struct limits *limits)
{
	uint32_t limited = 0;

	for (uint32_t rule = 0; rule < limits->rules; rule++) {
		const struct limit *limit = &limits->limits[rule];
		size_t sets;

		errno = EINVAL;
		if (!is_valid(limit) || (limit->count && ++limited > MAX_LIMITS))
			return false;
		if (!limit->count)
			continue;
		sets = limit->key == LIMIT_ALL ? 1 : LIMIT_SETS;
		limits->buckets[rule] = calloc(sets * SET_BUCKETS, sizeof(struct bucket));
		if (!limits->buckets[rule])
			return false;
		for (size_t set = 0; set < sets; set++)
			limits->buckets[rule][set * SET_BUCKETS].level = find_capacity(limit);
	}
	return true;
}

struct limits *open_limits(const uint8_t *given, size_t bytes, uint64_t seed)
{
	const size_t rules = bytes / sizeof(struct limit);
	struct limits *limits = calloc(1, sizeof(*limits));

	if (!limits)
		return NULL;
	pthread_mutex_init(&limits->lock, NULL);
	limits->seed = seed;
	limits->rules = (uint32_t)rules;
	limits->limits = calloc(rules + 1, sizeof(*limits->limits));
	limits->buckets = calloc(rules + 1, sizeof(struct bucket *));
	limits->held = calloc(rules + 1, sizeof(*limits->held));
	if (!limits->limits || !limits->buckets || !limits->held)
		goto failed;
	errno = EINVAL;
	if (bytes % sizeof(struct limit) || rules > UINT32_MAX)
		goto failed;
	memcpy(limits->limits, given, bytes);
	if (make_buckets(limits))
		return limits;
failed:
	close_limits(limits);
	return NULL;
}

void close_limits(struct limits *limits)
{
	int error = errno;

	if (!limits)
		return;
	for (uint32_t rule = 0; limits->buckets && rule < limits->rules; rule++)
		free(limits->buckets[rule]);
	free(limits->limits);
	free(limits->buckets);
	free(limits->held);
	pthread_mutex_destroy(&limits->lock);
	free(limits);
	errno = error;
}

/* The leading bits of 64, of which `skipped` stand before them. */
static uint64_t cut(uint64_t value, unsigned int bits, unsigned int skipped)
{
	if (bits <= skipped)
		return 0;
	return bits - skipped >= 64 ? value : value & ~(UINT64_MAX >> (bits - skipped));
}

static struct key find_key(const struct limit *limit, const struct event *event)
{
	const unsigned int bits = event->has & IS_IPV4 ? limit->ipv4_bits : limit->ipv6_bits;
	uint64_t halves[2];

	memcpy(halves, limit->key == LIMIT_SOURCE ? event->src : event->dst, sizeof(halves));
	return (struct key){ cut(be64toh(halves[0]), bits, 0), cut(be64toh(halves[1]), bits, 64), event->family };
}

static void refill(const struct limit *limit, struct bucket *bucket, uint64_t now)
{
	const uint64_t capacity = find_capacity(limit);
	uint64_t elapsed;

	if (now <= bucket->filled_at) /* another reader's clock was read a moment later */
		return;
	elapsed = now - bucket->filled_at;
	bucket->filled_at = now;
	if (elapsed > capacity / limit->count || elapsed * limit->count > capacity - bucket->level)
		bucket->level = capacity;
	else
		bucket->level += elapsed * limit->count;
}

/*
 * The key's own bucket; if it has none, one that is nobody's or full again, as that of a key that was never seen. The
 * key may have used the shared one, so it begins with what is left in that, and not with a burst again.
 */
static struct bucket *find_bucket(struct limits *limits, uint32_t rule, const struct event *event, uint64_t now)
{
	const struct limit *limit = &limits->limits[rule];
	struct bucket *shared = limits->buckets[rule], *first, *free_one = NULL;
	struct key key;

	if (limit->key == LIMIT_ALL)
		return shared;
	key = find_key(limit, event);
	shared += hash_key(limits, &key) % LIMIT_SETS * SET_BUCKETS;
	first = shared + 1;
	for (struct bucket *bucket = first; bucket < first + LIMIT_WAYS; bucket++)
		if (bucket->family == key.family && bucket->high == key.high && bucket->low == key.low)
			return bucket;
	for (struct bucket *bucket = first; !free_one && bucket < first + LIMIT_WAYS; bucket++) {
		refill(limit, bucket, now);
		if (!bucket->family || bucket->level == find_capacity(limit))
			free_one = bucket;
	}
	if (!free_one)
		return shared;
	refill(limit, shared, now);
	*free_one = (struct bucket){ key.high, key.low, shared->level, now, key.family, 0 };
	return free_one;
}

static void hold_back(struct held *held, uint64_t time)
{
	held->total++;
	if (!held->count++)
		held->since = held->until = time;
	if (time < held->since)
		held->since = time;
	if (time > held->until)
		held->until = time;
}

bool take_token(struct limits *limits, uint32_t rule, const struct event *event, uint64_t now)
{
	const struct limit *limit = &limits->limits[rule];
	struct bucket *bucket;
	bool is_within;

	if (!limit->count)
		return true;
	pthread_mutex_lock(&limits->lock);
	bucket = find_bucket(limits, rule, event, now);
	refill(limit, bucket, now);
	is_within = bucket->level >= limit->period;
	if (is_within)
		bucket->level -= limit->period;
	else
		hold_back(&limits->held[rule], event->time);
	pthread_mutex_unlock(&limits->lock);
	return is_within;
}

struct held get_held(struct limits *limits, uint32_t rule, bool is_taken)
{
	struct held held;

	pthread_mutex_lock(&limits->lock);
	held = limits->held[rule];
	if (is_taken)
		limits->held[rule] = (struct held){ .total = held.total };
	pthread_mutex_unlock(&limits->lock);
	return held;
}
