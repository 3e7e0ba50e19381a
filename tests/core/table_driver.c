/*
 * For tests with sanitizers: opens programs, and decides over events by those that open.
 *
 * table_driver decide FILE           a line for each event: the rule that decided and whether it is kept
 * table_driver mutate FILE COUNT     COUNT programs made of the first, and how many of them were opened
 * table_driver time FILE ROUNDS      nanoseconds for each event, the best of some rounds
 *
 * A file: u32 bytes of the program, u32 events, the program, and for each event its message.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "decide.h"

static uint8_t *file_bytes;
static const uint8_t *program;
static uint32_t program_bytes, event_count;
static struct event *events;
static uint16_t *kept;

/* 10.0.0.0/8 and 192.0.2.7, 2001:db8::/32; and nothing. */
static const uint8_t ipv4[] = { 10, 0, 0, 0, 8, 192, 0, 2, 7, 32 };
static const uint8_t ipv6[17] = { 0x20, 0x01, 0x0d, 0xb8, [16] = 32 };
static const struct prefixes set = { ipv4, ipv6, 2, 1 }, empty;
static const struct prefixes *const sets[] = { &set, &empty };

/* How many sets the first program asks for, of those that there are. */
static uint32_t count_sets(void)
{
	struct program_header header;

	if (program_bytes < sizeof(header))
		return 0;
	memcpy(&header, program, sizeof(header));
	return header.sets < 2 ? header.sets : 2;
}

static void read_file(const char *name)
{
	FILE *file = fopen(name, "rb");
	const uint8_t *at;
	long bytes;

	if (!file || fseek(file, 0, SEEK_END) || (bytes = ftell(file)) < 8)
		exit(2);
	rewind(file);
	file_bytes = malloc((size_t)bytes);
	if (!file_bytes || fread(file_bytes, (size_t)bytes, 1, file) != 1)
		exit(2);
	(void)fclose(file);
	memcpy(&program_bytes, file_bytes, 4);
	memcpy(&event_count, file_bytes + 4, 4);
	program = file_bytes + 8;
	events = calloc(event_count + 1, sizeof(*events));
	kept = calloc(event_count + 1, sizeof(*kept));
	at = program + program_bytes;
	for (uint32_t i = 0; i < event_count; i++) {
		size_t length = find_message_length(at, (size_t)(file_bytes + bytes - at));

		if (!walk_message(at, length, 0, false, &events[i]))
			exit(2);
		events[i].src_location = i % 5;
		events[i].dst_location = i % 7;
		at += length;
	}
}

static void set_locations(struct table *table, uint8_t fill)
{
	size_t bytes = table->location_words * sizeof(uint64_t);
	uint8_t *bits = malloc(bytes + 1);

	memset(bits, fill, bytes);
	for (uint32_t number = 1; number < 6; number += 2)
		if (!table_set_location(table, number, bits))
			exit(2);
	free(bits);
}

static int print_decisions(void)
{
	struct table *table = open_table(program, program_bytes, sets, count_sets());

	if (!table)
		return 2;
	for (uint32_t i = 0; i < event_count; i++) {
		const uint16_t index = (uint16_t)i;
		size_t found = decide(table, events, &index, 1, kept, i % 2);
		uint32_t rule = 0;

		while (rule <= table->rules && !table->counts[rule])
			rule++;
		printf("%d %d\n", rule > table->rules ? -1 : (int)rule, (int)found);
		memset(table->counts, 0, (table->rules + 1) * sizeof(*table->counts));
	}
	close_table(table);
	return 0;
}

static uint64_t next_random(uint64_t *seed)
{
	*seed ^= *seed << 13;
	*seed ^= *seed >> 7;
	*seed ^= *seed << 17;
	return *seed;
}

/* Numbers of 32 bits near the ends of what they can be, near what was there, or anything. */
static void change(uint8_t *bytes, size_t count, uint64_t *seed)
{
	static const uint32_t edges[] = { 0, 1, 2, 0x7fffffff, 0x80000000, 0xfffffffd, 0xfffffffe, 0xffffffff };
	size_t place = next_random(seed) % (count - 3) & ~(size_t)3;
	uint32_t number;

	memcpy(&number, bytes + place, 4);
	switch (next_random(seed) % 4) {
	case 0:
		number = edges[next_random(seed) % 8];
		break;
	case 1:
		number += (uint32_t)(next_random(seed) % 9) - 4;
		break;
	case 2:
		number ^= 1u << next_random(seed) % 32;
		break;
	default:
		number = (uint32_t)next_random(seed);
	}
	memcpy(bytes + place, &number, 4);
}

/* Each copy has its exact length on the heap, so that a sanitizer sees what is read behind it. */
static bool try_mutation(uint64_t seed)
{
	size_t bytes = program_bytes;
	uint8_t *copy = malloc(bytes);
	struct table *table;

	memcpy(copy, program, bytes);
	for (uint64_t changes = next_random(&seed) % 3 + 1; changes; changes--)
		change(copy, bytes, &seed);
	if (next_random(&seed) % 16 == 0) {
		bytes = next_random(&seed) % (bytes + 1);
		copy = realloc(copy, bytes ? bytes : 1);
	}
	table = open_table(copy, bytes, sets, count_sets());
	free(copy);
	if (!table)
		return false;
	if (table->location_words < 64) /* what is right, and needs gigabytes */
		set_locations(table, (uint8_t)next_random(&seed));
	decide(table, events, NULL, event_count, kept, false);
	if (!reserve_rates(table, event_count))
		exit(2);
	exchange_rates(table, events, kept, decide(table, events, NULL, event_count, kept, true));
	close_table(table);
	return true;
}

static int mutate(uint64_t count)
{
	uint64_t opened = 0;

	for (uint64_t i = 1; i <= count; i++)
		opened += try_mutation(i * 0x9e3779b97f4a7c15u);
	printf("%llu\n", (unsigned long long)opened);
	return 0;
}

static int measure(int rounds)
{
	struct table *table = open_table(program, program_bytes, sets, count_sets());
	double best = 1e9;

	if (!table)
		return 2;
	for (int i = 0; i < rounds; i++) {
		struct timespec from, to;
		double ns;

		clock_gettime(CLOCK_MONOTONIC, &from);
		decide(table, events, NULL, event_count, kept, false);
		clock_gettime(CLOCK_MONOTONIC, &to);
		ns = ((double)(to.tv_sec - from.tv_sec) * 1e9 + (double)(to.tv_nsec - from.tv_nsec)) / event_count;
		best = ns < best ? ns : best;
	}
	printf("%.2f\n", best);
	close_table(table);
	return 0;
}

int main(int count, char **words)
{
	int status;

	if (count < 3)
		return 2;
	read_file(words[2]);
	if (strcmp(words[1], "decide") == 0)
		status = print_decisions();
	else if (strcmp(words[1], "mutate") == 0 && count > 3)
		status = mutate(strtoull(words[3], NULL, 10));
	else
		status = measure(count > 3 ? (int)strtol(words[3], NULL, 10) : 100);
	free(file_bytes);
	free(events);
	free(kept);
	return status;
}
