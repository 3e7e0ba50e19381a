/* The evaluation of rules over events. Tables are opened by table.c, which checks what is trusted here. */
#include "decide.h"

#include <endian.h>
#include <stdlib.h>
#include <string.h>

enum form { BYTE, HALF, WORD, WIDE, IPV4, IPV6, LOCATION, FOUND };

/* How a field is read from an event. `need`: the bit of `has` without which the answer is no. */
struct source {
	uint64_t need;
	uint16_t offset;
	uint8_t form;
};

#define FROM(name) offsetof(struct event, name)

static const struct source sources[FIELDS] = {
	[FIELD_TYPE] = { 0, FROM(type), BYTE },
	[FIELD_FAMILY] = { 0, FROM(family), BYTE },
	[FIELD_PROTOCOL] = { 0, FROM(protocol), BYTE },
	[FIELD_STATE] = { HAS_STATE, FROM(state), BYTE },
	[FIELD_STATUS] = { 0, FROM(status), WORD },
	[FIELD_MARK] = { 0, FROM(mark), WORD },
	[FIELD_ZONE] = { 0, FROM(zone), HALF },
	[FIELD_NAT] = { 0, FROM(nat), BYTE },
	[FIELD_SPORT] = { HAS_SPORT, FROM(sport), HALF },
	[FIELD_DPORT] = { HAS_DPORT, FROM(dport), HALF },
	[FIELD_REPLY_SPORT] = { HAS_REPLY_SPORT, FROM(reply_sport), HALF },
	[FIELD_REPLY_DPORT] = { HAS_REPLY_DPORT, FROM(reply_dport), HALF },
	[FIELD_ICMP_ID] = { HAS_ICMP_ID, FROM(icmp_id), HALF },
	[FIELD_REPLY_ICMP_ID] = { HAS_REPLY_ICMP_ID, FROM(reply_icmp_id), HALF },
	[FIELD_ORIG_PACKETS] = { HAS_ORIG_PACKETS, FROM(orig_packets), WIDE },
	[FIELD_ORIG_BYTES] = { HAS_ORIG_BYTES, FROM(orig_bytes), WIDE },
	[FIELD_REPLY_PACKETS] = { HAS_REPLY_PACKETS, FROM(reply_packets), WIDE },
	[FIELD_REPLY_BYTES] = { HAS_REPLY_BYTES, FROM(reply_bytes), WIDE },
	[FIELD_DURATION] = { HAS_DURATION, FROM(duration_rank), WIDE },
	[FIELD_FOUND] = { 0, 0, FOUND },
	[FIELD_SRC_LOCATION] = { 0, FROM(src_location), LOCATION },
	[FIELD_DST_LOCATION] = { 0, FROM(dst_location), LOCATION },
	[FIELD_SRC_IPV4] = { IS_IPV4, FROM(src), IPV4 },
	[FIELD_DST_IPV4] = { IS_IPV4, FROM(dst), IPV4 },
	[FIELD_REPLY_SRC_IPV4] = { IS_IPV4, FROM(reply_src), IPV4 },
	[FIELD_REPLY_DST_IPV4] = { IS_IPV4, FROM(reply_dst), IPV4 },
	[FIELD_SRC_IPV6] = { IS_IPV6, FROM(src), IPV6 },
	[FIELD_DST_IPV6] = { IS_IPV6, FROM(dst), IPV6 },
	[FIELD_REPLY_SRC_IPV6] = { IS_IPV6, FROM(reply_src), IPV6 },
	[FIELD_REPLY_DST_IPV6] = { IS_IPV6, FROM(reply_dst), IPV6 },
};

/* The intervals that the value of a bucket can lie in. */
static inline void narrow(const struct table *table, const struct index *index, uint32_t bucket, uint32_t *first,
			  uint32_t *count)
{
	const uint32_t *at = table->index_entries + index->entries + bucket;

	*first += at[0];
	*count = at[1] - at[0] + 1;
}

/* The last interval that does not begin above the value, or the first. No step is a branch: which way it goes cannot be
 * predicted. */
static inline uint32_t search_numbers(const struct table *table, const struct test *test, const struct index *index,
				      uint64_t value)
{
	const uint64_t *lows = table->number_lows;
	uint32_t first = test->first, count = test->count;

	if (index->buckets && value >= lows[first]) {
		uint64_t key = (value - lows[first]) >> index->shift;

		narrow(table, index, key < index->buckets ? (uint32_t)key : index->buckets - 1, &first, &count);
	}
	while (count > 1) {
		uint32_t half = count / 2;

		first += half & -(uint32_t)(lows[first + half] <= value);
		count -= half;
	}
	return first;
}

static inline uint32_t search_addresses(const struct table *table, const struct test *test, const struct index *index,
					struct address value)
{
	const struct address *lows = table->address_lows;
	uint32_t first = test->first, count = test->count;

	if (index->buckets && !is_above(lows[first], value)) {
		struct address key = shift_right(subtract(value, lows[first]), index->shift);
		bool is_last = key.high || key.low >= index->buckets;

		narrow(table, index, is_last ? index->buckets - 1 : (uint32_t)key.low, &first, &count);
	}
	while (count > 1) {
		uint32_t half = count / 2;

		first += half & -(uint32_t)!is_above(lows[first + half], value);
		count -= half;
	}
	return first;
}

static uint64_t read_location(const struct table *table, uint32_t number, uint16_t word)
{
	return number < table->location_slots ? table->locations[(size_t)number * table->location_words + word] : 0;
}

static uint64_t read_number(const struct table *table, const struct test *test, const uint8_t *at, enum form form,
			    uint32_t found)
{
	uint64_t wide;
	uint32_t word;
	uint16_t half;

	switch (form) {
	case BYTE:
		return *at;
	case HALF:
		memcpy(&half, at, sizeof(half));
		return half;
	case WORD:
		memcpy(&word, at, sizeof(word));
		return word;
	case WIDE:
		memcpy(&wide, at, sizeof(wide));
		return wide;
	case IPV4:
		memcpy(&word, at, sizeof(word));
		return be32toh(word);
	case LOCATION:
		memcpy(&word, at, sizeof(word));
		return read_location(table, word, test->word);
	case FOUND:
	default:
		return found;
	}
}

static struct address read_address(const uint8_t *at)
{
	struct address address;

	memcpy(&address, at, sizeof(address));
	return (struct address){ be64toh(address.high), be64toh(address.low) };
}

/* The lower of two rules, where 0 is none. */
static inline uint32_t choose_rule(uint32_t found, uint32_t rule)
{
	return rule - 1 < found - 1 ? rule : found; /* 0 - 1 is above all others */
}

/* The answer of a test is a branch on purpose: most rules answer alike most of the time, so that the processor is at
 * the next test before it knows (ten mixed rules took twice as long with a computed target). */
static inline bool answer(const struct table *table, uint32_t at_test, const struct event *event, uint32_t *found)
{
	const struct test *test = &table->tests[at_test];
	const struct index *index = &table->indexes[at_test];
	const struct source *source = &sources[test->field];
	const uint8_t *at = (const uint8_t *)event + source->offset;
	uint32_t place;

	if ((event->has & source->need) != source->need)
		return false;
	if (test->word && source->form == IPV4)
		return has_ipv4(table->sets[test->word - 1], at);
	if (test->word && source->form == IPV6)
		return has_ipv6(table->sets[test->word - 1], at);
	if (source->form == IPV6) {
		struct address address = read_address(at);

		place = search_addresses(table, test, index, address);
		if (is_above(table->address_lows[place], address) || is_above(address, table->address_highs[place]))
			return false;
		*found = choose_rule(*found, table->address_rules[place]);
	} else {
		uint64_t number = read_number(table, test, at, source->form, *found) & test->mask;

		place = search_numbers(table, test, index, number);
		if (number < table->number_lows[place] || number > table->number_highs[place])
			return false;
		*found = choose_rule(*found, table->number_rules[place]);
	}
	return true;
}

static inline void set_rate(struct event *event, uint32_t rate)
{
	event->sample_rate = rate;
	event->has = rate ? event->has | HAS_SAMPLE_RATE : event->has & ~HAS_SAMPLE_RATE;
}

static inline bool is_kept(const struct table *table, uint32_t rule, const struct event *event)
{
	const uint32_t rate = table->rates[rule];

	return table->keeps[rule] && (!rate || mix_id(event->id) <= UINT32_MAX / rate);
}

/* Of an event that is kept: what is beyond the limit of the rule that keeps it is counted there, and dropped. */
static inline bool is_within_limit(const struct table *table, uint32_t rule, const struct event *event)
{
	return !table->limits || take_token(table->limits, rule, event, table->now);
}

/* Samples are nested: the smaller one is the sample of both. */
static inline uint32_t choose_rate(uint32_t one, uint32_t other)
{
	return one > other ? one : other;
}

bool reserve_rates(struct table *table, size_t count)
{
	uint32_t *grown;

	if (count <= table->part_slots)
		return true;
	grown = realloc(table->part_rates, count * sizeof(*grown));
	if (!grown)
		return false;
	memset(grown + table->part_slots, 0, (count - table->part_slots) * sizeof(*grown));
	table->part_rates = grown;
	table->part_slots = count;
	return true;
}

void exchange_rates(struct table *table, struct event *events, const uint16_t *indexes, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		struct event *event = &events[indexes[i]];
		uint32_t rate = event->sample_rate;

		if (indexes[i] >= table->part_slots)
			continue;
		set_rate(event, table->part_rates[indexes[i]]);
		table->part_rates[indexes[i]] = rate;
	}
}

size_t decide(struct table *table, struct event *events, const uint16_t *among, size_t count, uint16_t *kept,
	      bool is_part)
{
	const uint32_t tests = table->test_count;
	size_t kept_count = 0;

	for (size_t i = 0; i < count; i++) {
		uint16_t index = among ? among[i] : (uint16_t)i;
		uint32_t found = 0, at = table->start, rule;

		while (at < tests)
			at = answer(table, at, &events[index], &found) ? table->tests[at].yes : table->tests[at].no;
		rule = at - tests;
		if (rule > table->rules + 1) /* left out */
			continue;
		if (rule > table->rules)
			rule = found;
		/* Others may read them meanwhile, and nobody else writes. */
		__atomic_store_n(&table->counts[rule], table->counts[rule] + 1, __ATOMIC_RELAXED);
		kept[kept_count] = index;
		if (!is_part)
			set_rate(&events[index], table->rates[rule]);
		else if (index < table->part_slots)
			table->part_rates[index] = choose_rate(table->rates[rule], events[index].sample_rate);
		kept_count += is_kept(table, rule, &events[index]) && is_within_limit(table, rule, &events[index]);
	}
	return kept_count;
}
