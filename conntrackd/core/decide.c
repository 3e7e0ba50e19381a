/* The evaluation of rules over events. A program is checked as a whole when it is opened, and trusted from then on. */
#include "decide.h"

#include <endian.h>
#include <errno.h>
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

/* ---- one event ---- */

static inline bool is_above(struct address one, struct address other)
{
	return (one.high > other.high) | ((one.high == other.high) & (one.low > other.low));
}

/* The last interval that does not begin above the value, or the first. No step is a branch: which way it goes cannot be
 * predicted, and ten wrong guesses cost more than the whole search. */
static inline uint32_t search_numbers(const uint64_t *lows, uint32_t first, uint32_t count, uint64_t value)
{
	while (count > 1) {
		uint32_t half = count / 2;

		first += half & -(uint32_t)(lows[first + half] <= value);
		count -= half;
	}
	return first;
}

static inline uint32_t search_addresses(const struct address *lows, uint32_t first, uint32_t count,
					struct address value)
{
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
static inline bool answer(const struct table *table, const struct test *test, const struct event *event,
			  uint32_t *found)
{
	const struct source *source = &sources[test->field];
	const uint8_t *at = (const uint8_t *)event + source->offset;
	uint32_t place;

	if ((event->has & source->need) != source->need)
		return false;
	if (source->form == IPV6) {
		struct address address = read_address(at);

		place = search_addresses(table->address_lows, test->first, test->count, address);
		if (is_above(table->address_lows[place], address) || is_above(address, table->address_highs[place]))
			return false;
		*found = choose_rule(*found, table->address_rules[place]);
	} else {
		uint64_t number = read_number(table, test, at, source->form, *found) & test->mask;

		place = search_numbers(table->number_lows, test->first, test->count, number);
		if (number < table->number_lows[place] || number > table->number_highs[place])
			return false;
		*found = choose_rule(*found, table->number_rules[place]);
	}
	return true;
}

size_t decide(struct table *table, const struct event *events, const uint16_t *among, size_t count, uint16_t *kept)
{
	const uint32_t tests = table->test_count;
	size_t kept_count = 0;

	for (size_t i = 0; i < count; i++) {
		uint16_t index = among ? among[i] : (uint16_t)i;
		uint32_t found = 0, at = table->start, rule;

		while (at < tests)
			at = answer(table, &table->tests[at], &events[index], &found) ? table->tests[at].yes :
											table->tests[at].no;
		rule = at - tests;
		if (rule > table->rules + 1) /* left out */
			continue;
		if (rule > table->rules)
			rule = found;
		table->counts[rule]++;
		kept[kept_count] = index;
		kept_count += table->keeps[rule];
	}
	return kept_count;
}

/* ---- programs ---- */

/* Where each part of the program begins; false when they do not add up to its length. No sum can overflow: it is of
 * seven products of 32 bits and a small number. */
static bool find_parts(struct table *table, const struct program_header *header, size_t bytes)
{
	const uint64_t numbers = header->numbers, addresses = header->addresses;
	const uint64_t sizes[] = {
		sizeof(*header), header->tests * (uint64_t)sizeof(struct test),
		numbers * sizeof(uint64_t), numbers * sizeof(uint64_t),
		addresses * sizeof(struct address), addresses * sizeof(struct address),
		numbers * sizeof(uint32_t), addresses * sizeof(uint32_t),
		header->rules + (uint64_t)1,
	};
	const uint8_t *parts[sizeof(sizes) / sizeof(sizes[0])];
	uint64_t at = 0;

	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		if (sizes[i] > bytes - at)
			return false;
		parts[i] = table->program + at;
		at += sizes[i];
	}
	table->tests = (const void *)parts[1];
	table->number_lows = (const void *)parts[2];
	table->number_highs = (const void *)parts[3];
	table->address_lows = (const void *)parts[4];
	table->address_highs = (const void *)parts[5];
	table->number_rules = (const void *)parts[6];
	table->address_rules = (const void *)parts[7];
	table->keeps = parts[8];
	return at == bytes;
}

/* Each interval holds something and ends before the next begins, and its rule exists. */
static bool are_numbers_sorted(const struct table *table, uint32_t first, uint32_t end)
{
	for (uint32_t i = first; i < end; i++) {
		if (table->number_lows[i] > table->number_highs[i] || table->number_rules[i] > table->rules)
			return false;
		if (i > first && table->number_lows[i] <= table->number_highs[i - 1])
			return false;
	}
	return true;
}

static bool are_addresses_sorted(const struct table *table, uint32_t first, uint32_t end)
{
	for (uint32_t i = first; i < end; i++) {
		if (is_above(table->address_lows[i], table->address_highs[i]) || table->address_rules[i] > table->rules)
			return false;
		if (i > first && !is_above(table->address_lows[i], table->address_highs[i - 1]))
			return false;
	}
	return true;
}

static bool is_location(uint16_t field)
{
	return field == FIELD_SRC_LOCATION || field == FIELD_DST_LOCATION;
}

/* The intervals of a test follow those of the test before it, so that the check of all is one pass. `numbers` and
 * `addresses` are how many have been used so far. */
static bool is_test_valid(const struct table *table, const struct program_header *header, uint32_t place,
			  uint32_t *numbers, uint32_t *addresses)
{
	const struct test *test = &table->tests[place];
	const uint64_t targets = (uint64_t)header->tests + header->rules + 3;
	const bool is_address = test->field >= FIELD_SRC_IPV6;
	uint32_t *used = is_address ? addresses : numbers;

	if (test->field >= FIELDS || test->reserved)
		return false;
	if (test->yes <= place || test->no <= place || test->yes >= targets || test->no >= targets)
		return false;
	if (is_location(test->field) ? test->word >= header->location_words : test->word != 0)
		return false;
	if (is_address && test->mask != UINT64_MAX)
		return false;
	if (test->first != *used || !test->count ||
	    test->count > (is_address ? header->addresses : header->numbers) - *used)
		return false;
	*used += test->count;
	return is_address ? are_addresses_sorted(table, test->first, *used) :
			    are_numbers_sorted(table, test->first, *used);
}

static bool check_program(struct table *table, const struct program_header *header)
{
	uint32_t numbers = 0, addresses = 0;

	if (header->format != PROGRAM_FORMAT || header->reserved || header->location_words > UINT16_MAX)
		return false;
	if ((uint64_t)header->tests + header->rules + 3 > UINT32_MAX ||
	    header->start >= header->tests + header->rules + 3)
		return false;
	for (uint32_t i = 0; i < header->tests; i++)
		if (!is_test_valid(table, header, i, &numbers, &addresses))
			return false;
	for (uint32_t i = 0; i <= header->rules; i++)
		if (table->keeps[i] > 1)
			return false;
	return numbers == header->numbers && addresses == header->addresses;
}

static bool load_program(struct table *table, const uint8_t *program, size_t bytes)
{
	struct program_header header;

	errno = EINVAL;
	if (bytes < sizeof(header))
		return false;
	memcpy(&header, program, sizeof(header));
	table->program = malloc(bytes); /* aligned for all that is in it */
	if (!table->program)
		return false;
	memcpy(table->program, program, bytes);
	table->rules = header.rules;
	table->test_count = header.tests;
	table->start = header.start;
	table->location_words = header.location_words;
	if (!find_parts(table, &header, bytes) || !check_program(table, &header))
		return false;
	table->counts = calloc((size_t)header.rules + 1, sizeof(*table->counts));
	return table->counts != NULL;
}

struct table *open_table(const uint8_t *program, size_t bytes)
{
	struct table *table = calloc(1, sizeof(*table));

	if (table && !load_program(table, program, bytes)) {
		int error = errno;

		close_table(table);
		errno = error;
		return NULL;
	}
	return table;
}

void close_table(struct table *table)
{
	if (!table)
		return;
	free(table->program);
	free(table->counts);
	free(table->locations);
	free(table);
}

/* Room for the number, and for as many again, so that setting one after the other does not copy all each time. */
static bool grow_locations(struct table *table, uint32_t number)
{
	const size_t slots = number < MAX_LOCATIONS / 2 ? ((size_t)number + 1) * 2 : MAX_LOCATIONS;
	const size_t slot_bytes = table->location_words * sizeof(uint64_t);
	uint64_t *grown = slots > SIZE_MAX / slot_bytes ? NULL : realloc(table->locations, slots * slot_bytes);

	if (!grown)
		return false;
	memset((uint8_t *)grown + table->location_slots * slot_bytes, 0, (slots - table->location_slots) * slot_bytes);
	table->locations = grown;
	table->location_slots = (uint32_t)slots;
	return true;
}

bool table_set_location(struct table *table, uint32_t number, const uint8_t *bits)
{
	const size_t bytes = table->location_words * sizeof(uint64_t);

	if (!number || number >= MAX_LOCATIONS)
		return false;
	if (bytes) {
		if (number >= table->location_slots && !grow_locations(table, number))
			return false;
		memcpy(table->locations + (size_t)number * table->location_words, bits, bytes);
	}
	if (number > table->last_location)
		table->last_location = number;
	return true;
}
