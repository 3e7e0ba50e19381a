/* See prefixes.h. */
#include "prefixes.h"

#include <stdlib.h>
#include <string.h>

/* Whether the leading bits of two addresses are the same. */
static bool is_within(const uint8_t *address, const uint8_t *network, unsigned int bits)
{
	const unsigned int whole = bits / 8, rest = bits % 8;

	if (memcmp(address, network, whole) != 0)
		return false;
	return !rest || (address[whole] ^ network[whole]) >> (8 - rest) == 0;
}

static int compare_ipv4(const void *one, const void *other)
{
	return memcmp(one, other, ENTRY_BYTES(IPV4_BYTES));
}

static int compare_ipv6(const void *one, const void *other)
{
	return memcmp(one, other, ENTRY_BYTES(ADDRESS_BYTES));
}

static void swap_entries(uint8_t *one, uint8_t *other, size_t size)
{
	uint8_t kept[ENTRY_BYTES(ADDRESS_BYTES)];

	memcpy(kept, one, size);
	memmove(one, other, size);
	memcpy(other, kept, size);
}

/* Of two that begin alike the shorter one comes first, which is the larger network. */
size_t sort_prefixes(uint8_t *entries, size_t count, size_t address_bytes)
{
	int (*const compare)(const void *, const void *) = address_bytes == IPV4_BYTES ? compare_ipv4 : compare_ipv6;
	const size_t size = ENTRY_BYTES(address_bytes);
	size_t left = 0;

	if (count)
		qsort(entries, count, size, compare);
	for (size_t i = 0; i < count; i++) {
		const uint8_t *last = left ? entries + (left - 1) * size : NULL;

		if (last && is_within(entries + i * size, last, last[address_bytes]))
			continue;
		swap_entries(entries + left * size, entries + i * size, size);
		left++;
	}
	if (left < count)
		qsort(entries + left * size, count - left, size, compare);
	return left;
}

bool are_prefixes_sorted(const uint8_t *entries, size_t count, size_t address_bytes)
{
	const size_t size = ENTRY_BYTES(address_bytes);

	for (size_t i = 0; i < count; i++) {
		const uint8_t *entry = entries + i * size;

		if (entry[address_bytes] > address_bytes * 8 || (i && memcmp(entry - size, entry, address_bytes) >= 0))
			return false;
	}
	return true;
}

static inline bool has_address(const uint8_t *entries, size_t count, const uint8_t *address, size_t address_bytes)
{
	const size_t size = ENTRY_BYTES(address_bytes);

	if (!count)
		return false;
	while (count > 1) {
		size_t half = count / 2;

		if (memcmp(entries + half * size, address, address_bytes) <= 0)
			entries += half * size;
		count -= half;
	}
	return is_within(address, entries, entries[address_bytes]);
}

bool has_ipv4(const struct prefixes *set, const uint8_t *address)
{
	return has_address(set->ipv4, set->ipv4_count, address, IPV4_BYTES);
}

bool has_ipv6(const struct prefixes *set, const uint8_t *address)
{
	return has_address(set->ipv6, set->ipv6_count, address, ADDRESS_BYTES);
}
