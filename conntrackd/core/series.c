/* See series.h. */
#include "series.h"

#include "fields.h"

#define NANO 1000000000ULL

/* Nanoseconds. engine/__init__.py has the same in seconds. */
static const uint64_t bounds[DURATION_BUCKETS - 1] = {
	NANO / 10, NANO, 10 * NANO, 60 * NANO, 300 * NANO, 1800 * NANO, 7200 * NANO, 86400 * NANO,
};

bool open_series(struct series *series, size_t limit, size_t most_living, uint64_t seed)
{
	size_t values = series->field_count * sizeof(struct series_value);

	return open_slots(&series->living, sizeof(uint64_t), most_living, seed) &&
	       open_slots(&series->slots, sizeof(struct one_series) + values, limit, seed);
}

void close_series(struct series *series)
{
	close_slots(&series->slots);
	close_slots(&series->living);
}

static struct series_value read_value(const struct event *event, const struct series_field *by)
{
	const struct event_field *field = &event_fields[by->number];
	struct series_value value = { 0 };

	if ((event->has & by->needs) != by->needs || (event->has & field->has) != field->has)
		return value;
	if (field->size == ADDRESS_BYTES) {
		value.bytes = event->has & IS_IPV4 ? 4 : ADDRESS_BYTES;
		memcpy(value.halves, (const uint8_t *)event + field->offset, ADDRESS_BYTES);
	} else {
		value.bytes = 1;
		value.halves[0] = read_field(event, field);
	}
	return value;
}

/* The slot of the series that has these values, or the free one that it would have; and the key by which it is there.
 * Others may have their hash, and be chosen for it whatever the seed is: then it is the next one that is not taken.
 */
static struct one_series *find_series(const struct series *series, const struct series_value *values, uint64_t *key)
{
	const size_t bytes = series->field_count * sizeof(*values);
	const struct slots *slots = &series->slots;
	struct one_series *found;

	*key = hash_words(values, bytes / sizeof(uint64_t), slots->seed);
	while ((found = get_slot(slots, find_slot(slots, *key)))->hash && memcmp(found->values, values, bytes) != 0)
		*key += *key == UINT64_MAX ? 2 : 1;
	return found;
}

/* The counts of the series that has these values, those of `other` where there is no room for one. */
static struct counts *find_counts(struct series *series, const struct series_value *values)
{
	uint64_t key;
	struct one_series *found = find_series(series, values, &key);

	if (found->hash)
		return &found->counts;
	found = add_slot(&series->slots, key);
	if (!found) {
		series->overflows++;
		return &series->other;
	}
	memcpy(found->values, values, series->field_count * sizeof(*values));
	return &found->counts;
}

static void add_duration(struct counts *counts, const struct event *event)
{
	uint64_t duration = event->has & IS_BACKWARD ? 0 : event->duration;
	size_t bucket = 0;

	while (bucket < DURATION_BUCKETS - 1 && duration > bounds[bucket])
		bucket++;
	counts->durations[bucket]++;
	counts->nanoseconds += duration % NANO;
	counts->seconds += duration / NANO + counts->nanoseconds / NANO;
	counts->nanoseconds %= NANO;
}

/* For want of room or memory it is not known to live. */
static void open_connection(struct slots *living, struct counts *counts, const struct event *event)
{
	uint64_t flow = hash_flow(event, living->seed);

	counts->opened++;
	if (!get_flow(living, find_slot(living, flow)) && add_slot(living, flow))
		counts->living++;
}

/* One of which the opening was not counted, by a limit, say, or before the start, is none of those that live. */
static void close_connection(struct slots *living, struct counts *counts, const struct event *event)
{
	size_t number = find_slot(living, hash_flow(event, living->seed));

	counts->closed++;
	if (get_flow(living, number)) {
		remove_slot(living, number);
		if (counts->living) /* it may have been opened in `other`, for want of memory */
			counts->living--;
	}
	if (event->has & HAS_ORIG_PACKETS)
		counts->orig_packets += event->orig_packets;
	if (event->has & HAS_ORIG_BYTES)
		counts->orig_bytes += event->orig_bytes;
	if (event->has & HAS_REPLY_PACKETS)
		counts->reply_packets += event->reply_packets;
	if (event->has & HAS_REPLY_BYTES)
		counts->reply_bytes += event->reply_bytes;
	if (event->has & HAS_DURATION)
		add_duration(counts, event);
}

void count_event(struct series *series, const struct event *event)
{
	struct series_value values[MAX_SERIES_FIELDS];
	struct counts *counts;

	if (event->type != TYPE_NEW && !(event->type & TYPE_DESTROY))
		return;
	for (size_t field = 0; field < series->field_count; field++)
		values[field] = read_value(event, &series->fields[field]);
	counts = find_counts(series, values);
	if (event->type == TYPE_NEW)
		open_connection(&series->living, counts, event);
	else
		close_connection(&series->living, counts, event);
}
