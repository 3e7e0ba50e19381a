/* See deltas.h. */
#include "deltas.h"

#include "flows.h"

#include <stdlib.h>
#include <string.h>

#define FIRST_CAPACITY 1024
#define SWEPT_SLOTS 16384 /* at a time, 0.1 ms */
#define READINGS_MISSED 2 /* a DESTROY that the kernel has made by then is read by then */
#define HAS_COUNTERS (HAS_ORIG_PACKETS | HAS_ORIG_BYTES | HAS_REPLY_PACKETS | HAS_REPLY_BYTES)

static void read_counters(const struct event *event, uint64_t counters[COUNTERS])
{
	counters[0] = event->orig_packets;
	counters[1] = event->orig_bytes;
	counters[2] = event->reply_packets;
	counters[3] = event->reply_bytes;
}

/* Where one is below what it was, somebody has set all of them to 0 (conntrack -z). */
static void set_deltas(struct event *event, const uint64_t last[COUNTERS])
{
	static const uint64_t nothing[COUNTERS];
	uint64_t now[COUNTERS];

	read_counters(event, now);
	for (size_t counter = 0; counter < COUNTERS; counter++)
		if (now[counter] < last[counter])
			last = nothing;
	event->orig_packets_delta = now[0] - last[0];
	event->orig_bytes_delta = now[1] - last[1];
	event->reply_packets_delta = now[2] - last[2];
	event->reply_bytes_delta = now[3] - last[3];
	event->has |= HAS_DELTAS;
}

static bool is_counted(const struct event *event)
{
	return (event->has & HAS_COUNTERS) == HAS_COUNTERS;
}

static size_t find_slot(const struct deltas *deltas, uint64_t flow)
{
	size_t slot = flow & (deltas->capacity - 1);

	while (deltas->slots[slot].flow && deltas->slots[slot].flow != flow)
		slot = (slot + 1) & (deltas->capacity - 1);
	return slot;
}

bool open_deltas(struct deltas *deltas, size_t limit, uint64_t seed)
{
	*deltas = (struct deltas){
		.capacity = FIRST_CAPACITY, .limit = limit ? limit : 1, .seed = seed, .is_whole = true
	};
	deltas->slots = calloc(FIRST_CAPACITY, sizeof(*deltas->slots));
	return deltas->slots != NULL;
}

void close_deltas(struct deltas *deltas)
{
	free(deltas->slots);
}

static bool grow(struct deltas *deltas)
{
	struct counted *old = deltas->slots;
	size_t count = deltas->capacity;

	deltas->slots = calloc(2 * count, sizeof(*old));
	if (!deltas->slots) {
		deltas->slots = old;
		return false;
	}
	deltas->capacity = 2 * count;
	for (size_t slot = 0; slot < count; slot++)
		if (old[slot].flow)
			deltas->slots[find_slot(deltas, old[slot].flow)] = old[slot];
	free(old);
	return true;
}

/* What follows in the same run moves up, unless that would be before its home: no slot is ever left dead. */
static void remove_slot(struct deltas *deltas, size_t hole)
{
	size_t mask = deltas->capacity - 1;

	for (size_t slot = (hole + 1) & mask; deltas->slots[slot].flow; slot = (slot + 1) & mask) {
		size_t distance = (slot - deltas->slots[slot].flow) & mask;

		if (distance < ((slot - hole) & mask))
			continue;
		deltas->slots[hole] = deltas->slots[slot];
		hole = slot;
	}
	deltas->slots[hole].flow = 0;
	deltas->used--;
}

/* NULL where there is no room. None is forgotten for it: its next record would count all of it again. */
static struct counted *add_flow(struct deltas *deltas, uint64_t flow, const struct event *event)
{
	struct counted *slot;

	if (deltas->used >= deltas->limit || (4 * (deltas->used + 1) > 3 * deltas->capacity && !grow(deltas))) {
		deltas->without_room++;
		return NULL;
	}
	slot = &deltas->slots[find_slot(deltas, flow)];
	*slot = (struct counted){ .flow = flow, .seen = deltas->reading };
	read_counters(event, slot->counters);
	deltas->used++;
	return slot;
}

void begin_reading(struct deltas *deltas)
{
	if (!deltas->is_whole)
		return;
	deltas->reading++;
	deltas->is_whole = false;
	deltas->without_room = 0;
}

void end_reading(struct deltas *deltas)
{
	deltas->is_whole = true;
	deltas->is_complete = deltas->is_complete || !deltas->without_room;
}

bool see_flow(struct deltas *deltas, const struct event *event)
{
	uint64_t flow = hash_flow(event, deltas->seed);
	struct counted *slot = &deltas->slots[find_slot(deltas, flow)];
	bool is_first = slot->seen != deltas->reading;

	if (!is_counted(event))
		return true;
	if (slot->flow) {
		slot->seen = deltas->reading;
		return is_first;
	}
	if (!deltas->is_complete) {
		slot = add_flow(deltas, flow, event);
		if (slot)
			slot->based = deltas->reading;
	}
	return true;
}

bool advance_flow(struct deltas *deltas, struct event *event)
{
	static const uint64_t nothing[COUNTERS];
	uint64_t flow = hash_flow(event, deltas->seed);
	struct counted *slot = &deltas->slots[find_slot(deltas, flow)];

	if (!is_counted(event))
		return true;
	if (slot->flow) {
		if (slot->based != deltas->reading)
			set_deltas(event, slot->counters);
		read_counters(event, slot->counters);
		return true;
	}
	if (!deltas->is_complete || !add_flow(deltas, flow, event))
		return false;
	set_deltas(event, nothing);
	return true;
}

void end_flow(struct deltas *deltas, struct event *event)
{
	static const uint64_t nothing[COUNTERS];
	size_t slot;

	if (!(event->type & TYPE_DESTROY) || !is_counted(event))
		return;
	slot = find_slot(deltas, hash_flow(event, deltas->seed));
	if (deltas->slots[slot].flow) {
		set_deltas(event, deltas->slots[slot].counters);
		remove_slot(deltas, slot);
	} else if (deltas->is_complete) {
		set_deltas(event, nothing);
	}
}

void sweep_flows(struct deltas *deltas)
{
	size_t mask = deltas->capacity - 1;

	for (size_t left = SWEPT_SLOTS < deltas->capacity ? SWEPT_SLOTS : deltas->capacity; left; left--) {
		const struct counted *slot = &deltas->slots[deltas->hand];

		if (slot->flow && slot->seen + READINGS_MISSED < deltas->reading)
			remove_slot(deltas, deltas->hand); /* another one may stand here now */
		else
			deltas->hand = (deltas->hand + 1) & mask;
	}
}
