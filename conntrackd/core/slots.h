/* A table by flow, or by other keys: slots of one size, each of which begins with the hash of its key, 0 where it is
 * free.
 */
#ifndef CONNTRACKD_SLOTS_H
#define CONNTRACKD_SLOTS_H

#include "event.h"

struct slots {
	uint8_t *bytes;
	size_t size; /* of a slot */
	size_t capacity; /* a power of two; up to three quarters are used */
	size_t used, limit;
	uint64_t seed; /* so that nobody can choose flows that meet */
};

/* What all events of a flow have alike, and no other flow of its time has: a hash that is never 0. By its id and its
 * original tuple: ids alone, of 32 bits, are given twice too often.
 */
uint64_t hash_flow(const struct event *event, uint64_t seed);

/* Of so many words, likewise. */
uint64_t hash_words(const void *words, size_t count, uint64_t seed);

bool open_slots(struct slots *slots, size_t size, size_t limit, uint64_t seed);
void close_slots(struct slots *slots);

/* A slot by its number, the number of a flow's slot or of the free one that it would have, and the flow in a slot. */
void *get_slot(const struct slots *slots, size_t number);
size_t find_slot(const struct slots *slots, uint64_t flow);
uint64_t get_flow(const struct slots *slots, size_t number);

/* A slot for a flow that has none, with nothing but the flow in it; NULL where there is no room, by the limit or for
 * want of memory. What find_slot() has given is not valid any more.
 */
void *add_slot(struct slots *slots, uint64_t flow);

/* Others may be in its slot then, and in those behind it. */
void remove_slot(struct slots *slots, size_t hole);

#endif
