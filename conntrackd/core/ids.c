/* See ids.h. */
#include "ids.h"

#include <stdlib.h>
#include <string.h>

#define FIRST_CAPACITY 1024

static size_t find_home(const struct ids *ids, uint32_t id)
{
	/* The kernel's ids are hashes already; the table of a hostile one would only be slow. */
	return (id * 0x9e3779b1U >> 7 ^ id) & (ids->capacity - 1);
}

static size_t find_slot(const struct ids *ids, uint32_t id)
{
	size_t slot = find_home(ids, id);

	while (ids->slots[slot] && ids->slots[slot] != id)
		slot = (slot + 1) & (ids->capacity - 1);
	return slot;
}

bool open_ids(struct ids *ids)
{
	*ids = (struct ids){ .capacity = FIRST_CAPACITY };
	ids->slots = calloc(FIRST_CAPACITY, sizeof(*ids->slots));
	return ids->slots != NULL;
}

void close_ids(struct ids *ids)
{
	free(ids->slots);
}

static bool grow(struct ids *ids)
{
	uint32_t *old = ids->slots;
	size_t count = ids->capacity;

	ids->slots = calloc(2 * count, sizeof(*old));
	if (!ids->slots) {
		ids->slots = old;
		return false;
	}
	ids->capacity = 2 * count;
	for (size_t slot = 0; slot < count; slot++)
		if (old[slot])
			ids->slots[find_slot(ids, old[slot])] = old[slot];
	free(old);
	return true;
}

bool add_id(struct ids *ids, uint32_t id, bool *is_new)
{
	size_t slot;

	if (id == 0) {
		*is_new = !ids->has_zero;
		ids->has_zero = true;
		return true;
	}
	if (2 * (ids->used + 1) > ids->capacity && !grow(ids))
		return false;
	slot = find_slot(ids, id);
	*is_new = ids->slots[slot] == 0;
	ids->used += *is_new;
	ids->slots[slot] = id;
	return true;
}

/* What follows in the same run moves up, unless that would be before its home: no slot is ever left dead. */
void remove_id(struct ids *ids, uint32_t id)
{
	size_t mask = ids->capacity - 1, hole, slot;

	if (id == 0) {
		ids->has_zero = false;
		return;
	}
	hole = find_slot(ids, id);
	if (!ids->slots[hole])
		return;
	ids->used--;
	for (slot = (hole + 1) & mask; ids->slots[slot]; slot = (slot + 1) & mask) {
		size_t distance = (slot - find_home(ids, ids->slots[slot])) & mask;

		if (distance < ((slot - hole) & mask))
			continue;
		ids->slots[hole] = ids->slots[slot];
		hole = slot;
	}
	ids->slots[hole] = 0;
}

bool has_id(const struct ids *ids, uint32_t id)
{
	return id == 0 ? ids->has_zero : ids->slots[find_slot(ids, id)] == id;
}

size_t count_ids(const struct ids *ids)
{
	return ids->used + ids->has_zero;
}

void clear_ids(struct ids *ids)
{
	memset(ids->slots, 0, ids->capacity * sizeof(*ids->slots));
	ids->used = 0;
	ids->has_zero = false;
}
