/* The fields of struct event by number: what tests and steps name. Python learns the numbers from the module. */
#ifndef CONNTRACKD_FIELDS_H
#define CONNTRACKD_FIELDS_H

#include "event.h"

#include <string.h>

struct event_field {
	const char *name;
	uint16_t offset;
	uint8_t size; /* bytes of a number, ADDRESS_BYTES of an address, 0 of a text */
	uint64_t has; /* the bit of an optional field, 0 of one that every event has */
};

extern const struct event_field event_fields[];
extern const size_t event_field_count;

/* The number of a field, which is neither an address nor a text. */
static inline uint64_t read_field(const struct event *event, const struct event_field *field)
{
	const uint8_t *at = (const uint8_t *)event + field->offset;
	uint64_t wide;
	uint32_t word;
	uint16_t half;

	switch (field->size) {
	case 1:
		return *at;
	case 2:
		memcpy(&half, at, sizeof(half));
		return half;
	case 4:
		memcpy(&word, at, sizeof(word));
		return word;
	default:
		memcpy(&wide, at, sizeof(wide));
		return wide;
	}
}

#endif
