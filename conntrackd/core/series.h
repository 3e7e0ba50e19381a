/* Counts of connections by the values of some fields: what an entry of metrics.flows asks for. */
#ifndef CONNTRACKD_SERIES_H
#define CONNTRACKD_SERIES_H

#include "slots.h"

#define MAX_SERIES_FIELDS 8
#define DURATION_BUCKETS 9 /* the last one is for what is longer than all bounds: see series.c */

/* A field by whose values is counted; an event without all of `needs` has no value. */
struct series_field {
	uint64_t needs;
	uint64_t number; /* in event_fields, of a number or an address */
};

/* The value of one of them. Bytes: 0 for none, 1 of a number, else of an address. */
struct series_value {
	uint64_t bytes;
	uint64_t halves[2];
};

/* All sums are modulo 2^64. */
struct counts {
	uint64_t opened, closed, living; /* living: opened and not closed, see struct series */
	uint64_t orig_packets, orig_bytes, reply_packets, reply_bytes;
	uint64_t seconds, nanoseconds; /* of those whose duration is known; nanoseconds below one second */
	uint64_t durations[DURATION_BUCKETS];
};

struct one_series {
	uint64_t hash; /* of its values, as struct slots wants it; see find_series() */
	struct counts counts;
	struct series_value values[];
};

struct series {
	struct slots slots;
	struct series_field fields[MAX_SERIES_FIELDS];
	size_t field_count;
	struct counts other; /* of the events whose values have no series, for want of room or memory */
	uint64_t overflows; /* how many these are */
	struct slots living; /* the connections that were opened here: the end of another one is none of theirs */
};

/* At most `limit` series, of the fields in `series`; at most so many connections live. False for want of memory. */
bool open_series(struct series *series, size_t limit, size_t most_living, uint64_t seed);
void close_series(struct series *series);

/* A NEW opens a connection and a DESTROY closes it; other events count nothing. */
void count_event(struct series *series, const struct event *event);

#endif
