/* See flows.h. */
#include "flows.h"

#include <stdlib.h>
#include <string.h>

#define FIRST_CAPACITY 1024
#define LOOKED_AT 16 /* flows, of which the oldest is forgotten: it may well be one whose DESTROY was lost */

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

static size_t find_slot(const struct flows *flows, uint64_t flow)
{
	size_t slot = flow & (flows->capacity - 1);

	while (flows->slots[slot].flow && flows->slots[slot].flow != flow)
		slot = (slot + 1) & (flows->capacity - 1);
	return slot;
}

bool open_flows(struct flows *flows, size_t limit, uint64_t seed)
{
	*flows = (struct flows){ .capacity = FIRST_CAPACITY, .limit = limit ? limit : 1, .seed = seed };
	flows->slots = calloc(FIRST_CAPACITY, sizeof(*flows->slots));
	return flows->slots != NULL;
}

void close_flows(struct flows *flows)
{
	free(flows->slots);
}

static bool grow(struct flows *flows)
{
	struct beginning *old = flows->slots;
	size_t count = flows->capacity;

	flows->slots = calloc(2 * count, sizeof(*old));
	if (!flows->slots) {
		flows->slots = old;
		return false;
	}
	flows->capacity = 2 * count;
	for (size_t slot = 0; slot < count; slot++)
		if (old[slot].flow)
			flows->slots[find_slot(flows, old[slot].flow)] = old[slot];
	free(old);
	return true;
}

/* What follows in the same run moves up, unless that would be before its home: no slot is ever left dead. */
static void remove_slot(struct flows *flows, size_t hole)
{
	size_t mask = flows->capacity - 1;

	for (size_t slot = (hole + 1) & mask; flows->slots[slot].flow; slot = (slot + 1) & mask) {
		size_t distance = (slot - flows->slots[slot].flow) & mask;

		if (distance < ((slot - hole) & mask))
			continue;
		flows->slots[hole] = flows->slots[slot];
		hole = slot;
	}
	flows->slots[hole].flow = 0;
	flows->used--;
}

/* One of at least one. */
static void forget_one(struct flows *flows)
{
	size_t mask = flows->capacity - 1, oldest = 0, seen = 0;

	for (; seen < LOOKED_AT; flows->hand = (flows->hand + 1) & mask) {
		const struct beginning *slot = &flows->slots[flows->hand];

		if (!slot->flow)
			continue;
		if (!seen++ || slot->time < flows->slots[oldest].time)
			oldest = flows->hand;
	}
	remove_slot(flows, oldest);
}

static bool remember(struct flows *flows, const struct event *event, size_t *forgotten)
{
	uint64_t flow = hash_flow(event, flows->seed);
	size_t slot = find_slot(flows, flow);

	if (!flows->slots[slot].flow) {
		if (flows->used >= flows->limit) {
			forget_one(flows);
			++*forgotten;
		} else if (4 * (flows->used + 1) > 3 * flows->capacity && !grow(flows)) {
			return false;
		}
		slot = find_slot(flows, flow);
		flows->used++;
	}
	flows->slots[slot] = (struct beginning){ flow, event->time };
	return true;
}

bool note_event(struct flows *flows, struct event *event, size_t *forgotten)
{
	size_t slot;

	if (event->type == TYPE_NEW)
		return remember(flows, event, forgotten);
	if (event->type != TYPE_DESTROY)
		return true;
	slot = find_slot(flows, hash_flow(event, flows->seed));
	if (!flows->slots[slot].flow)
		return true;
	if (!(event->has & HAS_START))
		set_first_seen(event, flows->slots[slot].time);
	remove_slot(flows, slot);
	return true;
}
