/* When flows began, for those whose start the kernel does not report at their end. */
#ifndef CONNTRACKD_FLOWS_H
#define CONNTRACKD_FLOWS_H

#include "event.h"

/* What all events of a flow have alike, and no other flow of its time has: a hash that is never 0. */
uint64_t hash_flow(const struct event *event, uint64_t seed);

/* A flow goes by a hash of its id and its original tuple: ids alone, of 32 bits, are given twice too often. */
struct beginning {
	uint64_t flow; /* 0 for a free slot */
	uint64_t time; /* of its NEW */
};

struct flows {
	struct beginning *slots;
	size_t capacity; /* a power of two; up to three quarters are used */
	size_t used, limit;
	size_t hand; /* where it is looked next for a flow to forget */
	uint64_t seed; /* so that nobody can choose flows that meet */
};

bool open_flows(struct flows *flows, size_t limit, uint64_t seed);
void close_flows(struct flows *flows);

/* A NEW is remembered, and a DESTROY is given what was remembered of its flow, which is forgotten then. Where there is
 * no room, an old one is forgotten before its end, and counted. False for want of memory.
 */
bool note_event(struct flows *flows, struct event *event, size_t *forgotten);

#endif
