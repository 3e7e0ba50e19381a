/* See locate.h. */
#include "locate.h"

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define FIRST_CAPACITY 1024

static size_t find_place(const struct locations *locations, const uint8_t *address, uint32_t family)
{
	uint64_t halves[2], hash;
	size_t place;

	memcpy(halves, address, sizeof(halves));
	hash = (halves[0] ^ locations->seed) * 0x9e3779b97f4a7c15ULL;
	hash = (hash ^ hash >> 32 ^ halves[1] ^ family) * (locations->seed | 1);
	hash ^= hash >> 29;
	for (place = hash & (locations->capacity - 1); locations->entries[place].family;
	     place = (place + 1) & (locations->capacity - 1)) {
		const struct located *entry = &locations->entries[place];

		if (entry->family == family && memcmp(entry->address, address, ADDRESS_BYTES) == 0)
			break;
	}
	return place;
}

const struct located *find_location(const struct locations *locations, const uint8_t *address, uint32_t family)
{
	const struct located *entry = &locations->entries[find_place(locations, address, family)];

	return entry->family ? entry : NULL;
}

bool open_locations(struct locations *locations, size_t limit, uint64_t seed)
{
	*locations = (struct locations){ .limit = limit, .capacity = FIRST_CAPACITY, .seed = seed };
	locations->entries = calloc(FIRST_CAPACITY, sizeof(*locations->entries));
	return locations->entries != NULL;
}

void close_locations(struct locations *locations)
{
	free(locations->entries);
}

void forget_locations(struct locations *locations)
{
	memset(locations->entries, 0, locations->capacity * sizeof(*locations->entries));
	locations->used = 0;
}

static bool grow(struct locations *locations)
{
	struct located *old = locations->entries;
	size_t count = locations->capacity;

	locations->entries = calloc(2 * count, sizeof(*old));
	if (!locations->entries) {
		locations->entries = old;
		return false;
	}
	locations->capacity = 2 * count;
	for (size_t entry = 0; entry < count; entry++)
		if (old[entry].family)
			locations->entries[find_place(locations, old[entry].address, old[entry].family)] = old[entry];
	free(old);
	return true;
}

bool put_location(struct locations *locations, const uint8_t *address, uint32_t family, uint32_t number)
{
	struct located *entry;

	if (2 * (locations->used + 1) > locations->capacity && !grow(locations))
		return false;
	entry = &locations->entries[find_place(locations, address, family)];
	locations->used += entry->family == 0;
	memcpy(entry->address, address, ADDRESS_BYTES);
	entry->family = family;
	entry->number = number;
	return true;
}

bool locate(struct locations *locations, struct event *events, const uint16_t *kept, size_t count, bool is_first,
	    bool (*miss)(void *context, const uint8_t *address, size_t bytes), void *context)
{
	if (is_first && locations->used > locations->limit)
		forget_locations(locations);
	for (size_t index = 0; index < count; index++) {
		struct event *event = &events[kept[index]];

		for (int is_src = 0; is_src < 2; is_src++) {
			const uint8_t *address = is_src ? event->src : event->dst;
			const struct located *entry =
				&locations->entries[find_place(locations, address, event->family)];
			uint32_t number = entry->family ? entry->number : NOT_KNOWN;

			if (!entry->family && (!miss || !put_location(locations, address, event->family, NOT_KNOWN) ||
					       !miss(context, address, event->family == AF_INET ? 4 : ADDRESS_BYTES)))
				return false;
			number = number == NOT_KNOWN ? 0 : number;
			*(is_src ? &event->src_location : &event->dst_location) = number;
			event->has &= ~(is_src ? HAS_SRC_LOCATION : HAS_DST_LOCATION);
			if (number)
				event->has |= is_src ? HAS_SRC_LOCATION : HAS_DST_LOCATION;
		}
	}
	return true;
}
