/* See deltas.h. */
#include "deltas.h"

#define SWEPT_SLOTS 16384 /* at a time, 0.1 ms */
#define READINGS_MISSED 2 /* a DESTROY that the kernel has made by then is read by then */
#define HAS_COUNTERS (HAS_ORIG_PACKETS | HAS_ORIG_BYTES | HAS_REPLY_PACKETS | HAS_REPLY_BYTES)

static const uint64_t nothing[COUNTERS];

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

bool open_deltas(struct deltas *deltas, size_t limit, uint64_t seed)
{
	*deltas = (struct deltas){ .is_whole = true };
	return open_slots(&deltas->slots, sizeof(struct counted), limit, seed);
}

void close_deltas(struct deltas *deltas)
{
	close_slots(&deltas->slots);
}

/* The slot of the flow, or the free one that it would have. */
static struct counted *find_counted(const struct deltas *deltas, uint64_t flow)
{
	return get_slot(&deltas->slots, find_slot(&deltas->slots, flow));
}

/* NULL where there is no room. None is forgotten for it: its next record would count all of it again. */
static struct counted *add_flow(struct deltas *deltas, uint64_t flow, const struct event *event)
{
	struct counted *slot = add_slot(&deltas->slots, flow);

	if (!slot) {
		deltas->without_room++;
		return NULL;
	}
	slot->seen = deltas->reading;
	read_counters(event, slot->counters);
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
	uint64_t flow = hash_flow(event, deltas->slots.seed);
	struct counted *slot = find_counted(deltas, flow);
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
	uint64_t flow = hash_flow(event, deltas->slots.seed);
	struct counted *slot = find_counted(deltas, flow);

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
	const struct counted *slot;
	size_t number;

	if (!(event->type & TYPE_DESTROY) || !is_counted(event))
		return;
	number = find_slot(&deltas->slots, hash_flow(event, deltas->slots.seed));
	slot = get_slot(&deltas->slots, number);
	if (slot->flow) {
		set_deltas(event, slot->counters);
		remove_slot(&deltas->slots, number);
	} else if (deltas->is_complete) {
		set_deltas(event, nothing);
	}
}

void sweep_flows(struct deltas *deltas)
{
	size_t capacity = deltas->slots.capacity, mask = capacity - 1;

	for (size_t left = SWEPT_SLOTS < capacity ? SWEPT_SLOTS : capacity; left; left--) {
		const struct counted *slot = get_slot(&deltas->slots, deltas->hand);

		if (slot->flow && slot->seen + READINGS_MISSED < deltas->reading)
			remove_slot(&deltas->slots, deltas->hand); /* another one may stand here now */
		else
			deltas->hand = (deltas->hand + 1) & mask;
	}
}
