/* See flows.h. */
#include "flows.h"

#define LOOKED_AT 16 /* flows, of which the oldest is forgotten: it may well be one whose DESTROY was lost */

bool open_flows(struct flows *flows, size_t limit, uint64_t seed)
{
	flows->hand = 0;
	return open_slots(&flows->slots, sizeof(struct beginning), limit, seed);
}

void close_flows(struct flows *flows)
{
	close_slots(&flows->slots);
}

/* One of at least one. */
static void forget_one(struct flows *flows)
{
	size_t mask = flows->slots.capacity - 1, number = 0, seen = 0;
	uint64_t oldest = 0;

	for (; seen < LOOKED_AT; flows->hand = (flows->hand + 1) & mask) {
		const struct beginning *slot = get_slot(&flows->slots, flows->hand);

		if (!slot->flow)
			continue;
		if (!seen++ || slot->time < oldest) {
			oldest = slot->time;
			number = flows->hand;
		}
	}
	remove_slot(&flows->slots, number);
}

static void remember(struct flows *flows, const struct event *event, size_t *forgotten)
{
	uint64_t flow = hash_flow(event, flows->slots.seed);
	struct slots *slots = &flows->slots;
	struct beginning *slot = get_slot(slots, find_slot(slots, flow));

	if (!slot->flow)
		while (!(slot = add_slot(slots, flow))) {
			forget_one(flows);
			++*forgotten;
		}
	slot->time = event->time;
}

void note_event(struct flows *flows, struct event *event, size_t *forgotten)
{
	const struct beginning *slot;
	size_t number;

	if (event->type == TYPE_NEW)
		remember(flows, event, forgotten);
	if (event->type != TYPE_DESTROY)
		return;
	number = find_slot(&flows->slots, hash_flow(event, flows->slots.seed));
	slot = get_slot(&flows->slots, number);
	if (!slot->flow)
		return;
	if (!(event->has & HAS_START))
		set_first_seen(event, slot->time);
	remove_slot(&flows->slots, number);
}
