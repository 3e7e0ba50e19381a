/*
 * For tests with sanitizers: tables that grow until there is no memory (-Wl,--wrap=calloc), and what is left of them.
 *
 * memory_driver      of FLOWS connections that begin and end: forgotten, known when they ended, series, overflows,
 * living
 */
#include <stdio.h>
#include <stdlib.h>

#include "fields.h"
#include "flows.h"
#include "series.h"

#define FLOWS 2000
#define SEED 7

static int calls_left = 3; /* a first table for flows, one for series, one for what lives, and none to grow into */

void *__real_calloc(size_t count, size_t size);
void *__wrap_calloc(size_t count, size_t size);

void *__wrap_calloc(size_t count, size_t size)
{
	return calls_left-- > 0 ? __real_calloc(count, size) : NULL;
}

static struct event make_event(uint8_t type, uint32_t id)
{
	struct event event = { .type = type, .id = id, .time = id, .has = HAS_DPORT, .dport = (uint16_t)id };

	return event;
}

int main(void)
{
	struct series series = { .field_count = 1 };
	struct flows flows;
	size_t forgotten = 0, known = 0;

	while (event_fields[series.fields[0].number].offset != offsetof(struct event, dport))
		series.fields[0].number++;
	if (!open_flows(&flows, FLOWS, SEED) || !open_series(&series, FLOWS, FLOWS, SEED))
		return 1;
	for (uint32_t id = 1; id <= FLOWS; id++) {
		struct event event = make_event(TYPE_NEW, id);

		note_event(&flows, &event, &forgotten);
		count_event(&series, &event);
	}
	for (uint32_t id = 1; id <= FLOWS; id++) {
		struct event event = make_event(TYPE_DESTROY, id);

		note_event(&flows, &event, &forgotten);
		known += event.has & HAS_FIRST_SEEN && event.first_seen == id;
	}
	printf("%zu %zu %zu %llu %zu\n", forgotten, known, series.slots.used, (unsigned long long)series.overflows,
	       series.living.used);
	close_flows(&flows);
	close_series(&series);
	return 0;
}
