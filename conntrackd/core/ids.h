/* A set of flows' ids: which flows the sinks have heard of, of which the table of a loss may know more. */
#ifndef CONNTRACKD_IDS_H
#define CONNTRACKD_IDS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct ids {
	uint32_t *slots; /* ids, 0 for a free one */
	size_t capacity; /* a power of two */
	size_t used;
	bool has_zero; /* the id 0, which no slot can hold */
};

bool open_ids(struct ids *ids);
void close_ids(struct ids *ids);
bool add_id(struct ids *ids, uint32_t id, bool *is_new);
void remove_id(struct ids *ids, uint32_t id);
bool has_id(const struct ids *ids, uint32_t id);
size_t count_ids(const struct ids *ids);
void clear_ids(struct ids *ids);

#endif
