/* When flows began, for those whose start the kernel does not report at their end. */
#ifndef CONNTRACKD_FLOWS_H
#define CONNTRACKD_FLOWS_H

#include "slots.h"

struct beginning {
	uint64_t flow; /* see slots.h */
	uint64_t time; /* of its NEW */
};

struct flows {
	struct slots slots; /* of beginnings */
	size_t hand; /* where it is looked next for a flow to forget */
};

bool open_flows(struct flows *flows, size_t limit, uint64_t seed);
void close_flows(struct flows *flows);

/* A NEW is remembered, and a DESTROY is given what was remembered of its flow, which is forgotten then. Where there is
 * no room, or no memory, an old one is forgotten before its end, and counted.
 */
void note_event(struct flows *flows, struct event *event, size_t *forgotten);

#endif
