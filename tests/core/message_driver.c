/*
 * For tests with sanitizers: datagrams through the whole core, as fuzz/kit.c puts them through it.
 *
 * message_driver KIT COUNT     every truncation of the kit's messages, and COUNT mutations; how many events they hold
 * message_driver KIT 0 FILE... these as they are
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kit.h"

#define MAX_ORIGINALS 512
#define MAX_BYTES 4096

struct original {
	const uint8_t *bytes;
	size_t length;
};

static uint64_t next_random(uint64_t *seed)
{
	*seed ^= *seed << 13;
	*seed ^= *seed >> 7;
	*seed ^= *seed << 17;
	return *seed;
}

static size_t list_originals(const struct kit *kit, struct original *originals)
{
	size_t count = 0;

	for (size_t at = 0; at < kit->message_bytes && count < MAX_ORIGINALS; count++) {
		size_t length = find_message_length(kit->messages + at, kit->message_bytes - at);

		originals[count] = (struct original){ kit->messages + at, length };
		at += (length + 3) & ~(size_t)3;
	}
	return count;
}

/* Bytes, lengths of attributes, a piece from elsewhere, or another length of all. */
static size_t mutate(uint8_t *bytes, size_t length, uint64_t *seed)
{
	size_t at = next_random(seed) % length, from = next_random(seed) % length, some = next_random(seed) % 12;
	uint16_t number = (uint16_t)(next_random(seed) % 48);

	switch (next_random(seed) % 6) {
	case 0:
		bytes[at] ^= (uint8_t)(1u << next_random(seed) % 8);
		break;
	case 1:
		bytes[at] = (uint8_t)next_random(seed);
		break;
	case 2: /* where a header of an attribute may be */
		at &= ~(size_t)3;
		if (at + 2 * sizeof(number) <= length)
			memcpy(bytes + at + next_random(seed) % 2 * 2, &number, sizeof(number));
		break;
	case 3:
		if (at + some <= length && from + some <= length)
			memmove(bytes + at, bytes + from, some);
		break;
	case 4:
		memset(bytes + at, (int)(next_random(seed) % 2 * 0xff), some < length - at ? some : length - at);
		break;
	default:
		return next_random(seed) % 8 ? length : at + 1;
	}
	return length;
}

/* The length in the header is right three times of four: else nothing behind it would be read. */
static void repair(uint8_t *bytes, size_t length, uint64_t *seed)
{
	uint32_t right = (uint32_t)length;

	if (length >= sizeof(right) && next_random(seed) % 4)
		memcpy(bytes, &right, sizeof(right));
}

/* At its exact length on the heap, so that a sanitizer sees what is read behind it. */
static size_t process_exactly(struct kit *kit, const uint8_t *bytes, size_t length)
{
	uint8_t *exact = malloc(length ? length : 1);
	size_t events;

	if (!exact)
		exit(2);
	memcpy(exact, bytes, length);
	events = process(kit, exact, length);
	free(exact);
	return events;
}

static size_t try_mutation(struct kit *kit, const struct original *originals, size_t count, uint64_t seed)
{
	const struct original *original = &originals[next_random(&seed) % count];
	size_t length = original->length;
	uint8_t bytes[MAX_BYTES];

	if (length > sizeof(bytes))
		return 0;
	memcpy(bytes, original->bytes, length);
	for (uint64_t changes = next_random(&seed) % 4 + 1; changes; changes--)
		length = mutate(bytes, length, &seed);
	repair(bytes, length, &seed);
	return process_exactly(kit, bytes, length);
}

/* Those whose header says so are cut between two attributes, or else are no events. */
static size_t try_truncations(struct kit *kit, const struct original *original)
{
	uint8_t bytes[MAX_BYTES];
	size_t events = 0;

	for (uint32_t length = 0; length < original->length && length < sizeof(bytes); length++) {
		memcpy(bytes, original->bytes, length);
		events += process_exactly(kit, bytes, length);
		if (length < sizeof(length))
			continue;
		memcpy(bytes, &length, sizeof(length));
		events += process_exactly(kit, bytes, length);
	}
	return events;
}

static size_t try_file(struct kit *kit, const char *path)
{
	static uint8_t bytes[1 << 20];
	FILE *file = fopen(path, "rb");
	size_t length;

	if (!file)
		exit(2);
	length = fread(bytes, 1, sizeof(bytes), file);
	(void)fclose(file);
	return process_exactly(kit, bytes, length);
}

int main(int count, char **words)
{
	static struct original originals[MAX_ORIGINALS];
	uint64_t mutations, events = 0;
	static struct kit kit;
	size_t found;

	if (count < 3)
		return 2;
	open_kit(&kit, words[1]);
	found = list_originals(&kit, originals);
	if (!found)
		return 2;
	mutations = strtoull(words[2], NULL, 10);
	for (uint64_t number = 1; number <= mutations; number++)
		events += try_mutation(&kit, originals, found, number * 0x9e3779b97f4a7c15u);
	for (size_t original = 0; mutations && original < found; original++)
		events += try_truncations(&kit, &originals[original]);
	for (int word = 3; word < count; word++)
		events += try_file(&kit, words[word]);
	printf("%llu\n", (unsigned long long)events);
	close_kit(&kit);
	return 0;
}
