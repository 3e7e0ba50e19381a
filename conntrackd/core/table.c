/* Tables of tests from programs. A program is checked as a whole when it is opened, and trusted from then on. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "decide.h"

#define LONG_LIST 16 /* intervals; fewer are found as quickly without an index */
#define MAX_KEY_BITS 14 /* of one index: 64 KiB, so that it stays within the processor's cache */
#define MAX_INDEX_ENTRIES (1u << 18) /* of all: tests that come after 1 MiB of them are bisected without an index */

/* Where each part of the program begins; false when they do not add up to its length. No sum can overflow: it is of
 * eight products of 32 bits and a small number. */
static bool find_parts(struct table *table, const struct program_header *header, size_t bytes)
{
	const uint64_t numbers = header->numbers, addresses = header->addresses;
	const uint64_t sizes[] = {
		sizeof(*header),
		header->tests * (uint64_t)sizeof(struct test),
		numbers * sizeof(uint64_t),
		numbers * sizeof(uint64_t),
		addresses * sizeof(struct address),
		addresses * sizeof(struct address),
		numbers * sizeof(uint32_t),
		addresses * sizeof(uint32_t),
		(header->rules + (uint64_t)1) * sizeof(uint32_t),
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
	table->rates = (const void *)parts[8];
	table->keeps = parts[9];
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
	if (test->word && test->field >= FIELD_SRC_IPV4)
		return test->word <= header->sets && test->mask == UINT64_MAX && !test->first && !test->count;
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

	if (header->format != PROGRAM_FORMAT || header->sets != table->set_count || header->location_words > UINT16_MAX)
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

/* Some eight buckets for each interval: most have none or one then, and the search ends where it begins. */
static unsigned int count_key_bits(const struct test *test)
{
	unsigned int bits = 3;

	while (bits < MAX_KEY_BITS && test->count >> (bits - 3))
		bits++;
	return bits;
}

static struct address find_low(const struct table *table, const struct test *test, uint32_t place)
{
	return test->field >= FIELD_SRC_IPV6 ? table->address_lows[test->first + place] :
					       (struct address){ 0, table->number_lows[test->first + place] };
}

/* Each bucket has the last interval whose key is lower, or the first; one entry more is the end of the last bucket. The
 * keys are those of the intervals' lower bounds, and cannot be above the last bucket. */
static void fill_index(const struct table *table, const struct test *test, struct index *index)
{
	const struct address base = find_low(table, test, 0);
	struct address span = subtract(find_low(table, test, test->count - 1), base);
	uint32_t *entries = table->index_entries + index->entries;
	uint32_t place = 0;

	while (shift_right(span, index->shift).high || shift_right(span, index->shift).low >= index->buckets)
		index->shift++;
	for (uint32_t bucket = 0; bucket <= index->buckets; bucket++) {
		while (place + 1 < test->count &&
		       shift_right(subtract(find_low(table, test, place + 1), base), index->shift).low < bucket)
			place++;
		entries[bucket] = place;
	}
}

/* Long lists are searched from a bucket, which the leading bits of the value choose: ten steps become one. */
static bool make_indexes(struct table *table)
{
	size_t entries = 0;

	table->indexes = calloc((size_t)table->test_count + 1, sizeof(*table->indexes));
	if (!table->indexes)
		return false;
	for (uint32_t i = 0; i < table->test_count; i++) {
		if (table->tests[i].count < LONG_LIST || entries > MAX_INDEX_ENTRIES)
			continue;
		table->indexes[i].buckets = 1u << count_key_bits(&table->tests[i]);
		table->indexes[i].entries = entries;
		entries += table->indexes[i].buckets + (size_t)1;
	}
	table->index_entries = calloc(entries + 1, sizeof(*table->index_entries));
	for (uint32_t i = 0; table->index_entries && i < table->test_count; i++)
		if (table->indexes[i].buckets)
			fill_index(table, &table->tests[i], &table->indexes[i]);
	return table->index_entries != NULL;
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
	return table->counts && make_indexes(table);
}

static bool copy_sets(struct table *table, const struct prefixes *const *sets, uint32_t set_count)
{
	table->sets = calloc((size_t)set_count + 1, sizeof(*table->sets));
	table->set_count = set_count;
	for (uint32_t i = 0; table->sets && i < set_count; i++)
		table->sets[i] = sets[i];
	return table->sets != NULL;
}

struct table *open_table(const uint8_t *program, size_t bytes, const struct prefixes *const *sets, uint32_t set_count)
{
	struct table *table = calloc(1, sizeof(*table));

	if (table && (!copy_sets(table, sets, set_count) || !load_program(table, program, bytes))) {
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
	free(table->indexes);
	free(table->index_entries);
	free(table->locations);
	free(table->sets);
	free(table->part_rates);
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
