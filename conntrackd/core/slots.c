/* See slots.h. */
#include "slots.h"

#include <stdlib.h>
#include <string.h>

#define FIRST_CAPACITY 1024

static uint64_t mix(uint64_t hash, uint64_t value)
{
	hash = (hash ^ value) * 0x9e3779b97f4a7c15ULL;
	return hash ^ hash >> 32;
}

uint64_t hash_flow(const struct event *event, uint64_t seed)
{
	uint64_t halves[4], hash = seed;

	memcpy(halves, event->src, ADDRESS_BYTES);
	memcpy(halves + 2, event->dst, ADDRESS_BYTES);
	hash = mix(hash, (uint64_t)event->id << 32 | (uint64_t)event->zone << 16 | event->icmp_id);
	hash = mix(hash, (uint64_t)event->sport << 48 | (uint64_t)event->dport << 32 |
				 (uint64_t)event->icmp_type << 24 | (uint64_t)event->icmp_code << 16 |
				 (uint64_t)event->protocol << 8 | event->family);
	for (int half = 0; half < 4; half++)
		hash = mix(hash, halves[half]);
	return hash ? hash : 1;
}

uint64_t hash_words(const void *words, size_t count, uint64_t seed)
{
	uint64_t hash = seed, word;

	for (size_t number = 0; number < count; number++) {
		memcpy(&word, (const uint8_t *)words + number * sizeof(word), sizeof(word));
		hash = mix(hash, word);
	}
	return hash ? hash : 1;
}

bool open_slots(struct slots *slots, size_t size, size_t limit, uint64_t seed)
{
	*slots = (struct slots){ .size = size, .capacity = FIRST_CAPACITY, .limit = limit ? limit : 1, .seed = seed };
	slots->bytes = calloc(FIRST_CAPACITY, size);
	return slots->bytes != NULL;
}

void close_slots(struct slots *slots)
{
	free(slots->bytes);
}

void *get_slot(const struct slots *slots, size_t number)
{
	return slots->bytes + number * slots->size;
}

uint64_t get_flow(const struct slots *slots, size_t number)
{
	uint64_t flow;

	memcpy(&flow, get_slot(slots, number), sizeof(flow));
	return flow;
}

size_t find_slot(const struct slots *slots, uint64_t flow)
{
	size_t number = flow & (slots->capacity - 1);
	uint64_t found;

	while ((found = get_flow(slots, number)) && found != flow)
		number = (number + 1) & (slots->capacity - 1);
	return number;
}

static bool grow(struct slots *slots)
{
	struct slots grown = *slots;

	grown.capacity = 2 * slots->capacity;
	grown.bytes = calloc(grown.capacity, grown.size);
	if (!grown.bytes)
		return false;
	for (size_t number = 0; number < slots->capacity; number++) {
		uint64_t flow = get_flow(slots, number);

		if (flow)
			memcpy(get_slot(&grown, find_slot(&grown, flow)), get_slot(slots, number), slots->size);
	}
	free(slots->bytes);
	*slots = grown;
	return true;
}

void *add_slot(struct slots *slots, uint64_t flow)
{
	void *slot;

	if (slots->used >= slots->limit || (4 * (slots->used + 1) > 3 * slots->capacity && !grow(slots)))
		return NULL;
	slot = get_slot(slots, find_slot(slots, flow));
	memcpy(slot, &flow, sizeof(flow));
	slots->used++;
	return slot;
}

/* What follows in the same run moves up, unless that would be before its home: no slot is ever left dead. */
void remove_slot(struct slots *slots, size_t hole)
{
	size_t mask = slots->capacity - 1;
	uint64_t flow;

	for (size_t number = (hole + 1) & mask; (flow = get_flow(slots, number)); number = (number + 1) & mask) {
		size_t distance = (number - flow) & mask;

		if (distance < ((number - hole) & mask))
			continue;
		memcpy(get_slot(slots, hole), get_slot(slots, number), slots->size);
		hole = number;
	}
	memset(get_slot(slots, hole), 0, slots->size);
	slots->used--;
}
