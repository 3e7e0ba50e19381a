/* Which Location an address has, by number: a hash table that Python fills with what the databases say. */
#ifndef CONNTRACKD_LOCATE_H
#define CONNTRACKD_LOCATE_H

#include "event.h"

struct located {
	uint8_t address[ADDRESS_BYTES];
	uint32_t number; /* of the Location, 0 for none, NOT_KNOWN until Python has said */
	uint32_t family; /* 0: this entry is free */
};
#define NOT_KNOWN UINT32_MAX

struct locations {
	struct located *entries;
	size_t capacity; /* a power of two, at least twice what is used */
	size_t used;
	size_t limit; /* when a batch begins with more than these, all are forgotten */
	uint64_t seed; /* so that nobody can choose addresses that all fall into one place */
};

bool open_locations(struct locations *locations, size_t limit, uint64_t seed);
void close_locations(struct locations *locations);
void forget_locations(struct locations *locations);
/* The entry of an address, NULL for none: until the next put_location(). */
const struct located *find_location(const struct locations *locations, const uint8_t *address, uint32_t family);
bool put_location(struct locations *locations, const uint8_t *address, uint32_t family, uint32_t number);

/* Sets both Locations of these events, as far as they are known. `is_first`: the batch was not located before.
 * An address that is not known is given to `miss`, once. False for want of memory, or when `miss` says so, or with the
 * first that is not known where `miss` is NULL.
 */
bool locate(struct locations *locations, struct event *events, const uint16_t *kept, size_t count, bool is_first,
	    bool (*miss)(void *context, const uint8_t *address, size_t bytes), void *context);

#endif
