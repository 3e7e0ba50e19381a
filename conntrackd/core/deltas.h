/* What flows had counted at their last record, so that the next one can say how much came since. */
#ifndef CONNTRACKD_DELTAS_H
#define CONNTRACKD_DELTAS_H

#include "event.h"

#define COUNTERS 4

struct counted {
	uint64_t flow; /* see hash_flow(); 0 for a free slot */
	uint64_t counters[COUNTERS]; /* at the last record that was written of it, or when it was found */
	uint32_t seen; /* the last reading of the table that has found it */
	uint32_t based; /* the reading that has found it first, of what was there before; 0: its beginning is known */
};

struct deltas {
	struct counted *slots;
	size_t capacity; /* a power of two; up to three quarters are used */
	size_t used, limit;
	size_t hand; /* where it is looked next for flows that are gone */
	uint64_t seed; /* so that nobody can choose flows that meet */
	uint32_t reading; /* the number of the current one, from 1; one that was not whole is begun again */
	bool is_whole; /* the last one came to its end */
	bool is_complete; /* one has found a place for each flow: what is not here has begun since, with counters at 0
			   */
	size_t without_room; /* flows that had none in this reading */
};

bool open_deltas(struct deltas *deltas, size_t limit, uint64_t seed);
void close_deltas(struct deltas *deltas);

/* The table is read from its beginning, and to its end. */
void begin_reading(struct deltas *deltas);
void end_reading(struct deltas *deltas);

/* A flow of the table. False where this reading has seen it before. Until one is complete a flow that is not known may
 * be one of which an earlier process has written: it is counted from here on.
 */
bool see_flow(struct deltas *deltas, const struct event *event);

/* A record of it is written now: the event has what came since the last one, unless nobody knows. False where the flow
 * has no room here: then it never has.
 */
bool advance_flow(struct deltas *deltas, struct event *event);

/* The same for its last one, where it is a DESTROY. */
void end_flow(struct deltas *deltas, struct event *event);

/* Forgets those of the next slots that no reading has found for long: their DESTROY was lost, or is not heard. */
void sweep_flows(struct deltas *deltas);

#endif
