/* See render.h. */
#include "render.h"

#include "community.h"
#include "fields.h"

#include <stdlib.h>

#define FIRST_EVENTS 512
#define FIRST_TEXT 32768
#define NANO 1000000000ULL

/* ---- one event ---------------------------------------------------------------------------------------- */

static char *write_name(char *at, const struct template *template, const struct step *step, uint64_t number)
{
	const struct slice *name = number < step->length ? &template->names[step->offset + number] : NULL;

	return name && name->length ? write_bytes(at, template->pool + name->offset, name->length) :
				      write_number(at, number);
}

static char *write_endpoint(char *at, const struct event *event, const struct step *step)
{
	const uint8_t *address = (const uint8_t *)event + event_fields[step->field].offset;
	const struct event_field *port = &event_fields[step->offset];
	bool is_ipv4 = event->has & IS_IPV4, is_bracketed = !is_ipv4 && event->has & port->has;

	if (is_bracketed)
		*at++ = '[';
	at = write_address(at, address, is_ipv4);
	if (is_bracketed)
		*at++ = ']';
	if (!(event->has & port->has))
		return at;
	*at++ = ':';
	return write_number(at, read_field(event, port));
}

static char *write_duration(char *at, const struct event *event, enum duration_style style)
{
	uint32_t fraction = (uint32_t)(event->duration % NANO);

	if (event->has & IS_BACKWARD)
		*at++ = '-';
	if (style == STYLE_NANOSECONDS)
		return write_number(at, event->duration);
	at = write_number(at, event->duration / NANO);
	*at++ = '.';
	return style == STYLE_SHORT ? write_padded(at, fraction / 1000000, 3) : write_padded(at, fraction, 9);
}

static char *write_packets(char *at, uint64_t packets)
{
	static const char word[SLACK] = " packets";

	return write_bytes(write_number(at, packets), word, packets == 1 ? 7 : 8);
}

/* With one decimal, which is cut and not rounded. */
static char *write_size(char *at, uint64_t bytes)
{
	const char *unit = "kMGTPE";
	uint64_t tenth = 100; /* of the unit */

	if (bytes < 1000) {
		at = write_number(at, bytes);
	} else {
		for (; bytes / tenth >= 10000; tenth *= 1000)
			unit++;
		at = write_number(at, bytes / tenth / 10);
		*at++ = '.';
		at = write_number(at, bytes / tenth % 10);
	}
	*at++ = ' ';
	if (bytes >= 1000)
		*at++ = *unit;
	*at++ = 'B';
	return at;
}

static char *write_place(char *at, const struct template *template, const struct step *step, uint64_t location)
{
	struct slice slice;

	if (location >= template->place_count || !template->places[location])
		return at;
	memcpy(&slice, template->places[location] + step->offset * sizeof(slice), sizeof(slice));
	return write_bytes(at, template->places[location] + slice.offset, slice.length);
}

/* What no format has to escape stays as it is; names of helpers and security contexts have nothing else. */
static char *write_own_text(char *at, const char *text, size_t length)
{
	for (size_t position = 0; position < length; position++) {
		char character = text[position];
		bool is_plain = character >= ' ' && character <= '~' && !strchr("\"\\]", character);

		*at++ = is_plain ? character : '?';
	}
	return at;
}

static char *write_labels(char *at, const struct template *template, const struct step *step, const struct event *event)
{
	bool is_first = true;

	for (unsigned label = 0; label < LABEL_COUNT; label++) {
		if (!(event->labels[label / 8] >> label % 8 & 1))
			continue;
		if (!is_first)
			*at++ = ',';
		is_first = false;
		at = write_name(at, template, step, label);
	}
	return at;
}

static char *write_value(char *at, struct template *template, const struct step *step, const struct event *event)
{
	const struct event_field *field = &event_fields[step->field];

	switch ((enum step_kind)step->kind) {
	case STEP_TEXT:
		return at;
	case STEP_NUMBER:
		return write_number(at, read_field(event, field));
	case STEP_NAME:
		return write_name(at, template, step, read_field(event, field));
	case STEP_ADDRESS:
		return write_address(at, (const uint8_t *)event + field->offset, event->has & IS_IPV4);
	case STEP_ENDPOINT:
		return write_endpoint(at, event, step);
	case STEP_TIME:
		return write_time(at, read_field(event, field), (enum time_style)step->length, &template->clock);
	case STEP_DURATION:
		return write_duration(at, event, (enum duration_style)step->length);
	case STEP_PLACE:
		return write_place(at, template, step, read_field(event, field));
	case STEP_OWN_TEXT:
		return field->has == HAS_HELPER ? write_own_text(at, event->helper, event->helper_bytes) :
						  write_own_text(at, event->secctx, event->secctx_bytes);
	case STEP_LABELS:
		return write_labels(at, template, step, event);
	case STEP_AMOUNT:
		return step->length ? write_size(at, read_field(event, field)) :
				      write_packets(at, read_field(event, field));
	case STEP_COMMUNITY_ID:
		return write_community_id(at, event, (uint16_t)step->offset);
	}
	return at;
}

static char *write_event(char *at, struct template *template, const struct event *event)
{
	const struct step *end = template->steps + template->step_count;

	for (const struct step *step = template->steps; step < end; step++) {
		const char *constants = template->pool + step->constants;

		if ((event->has & step->needs) != step->needs)
			continue;
		at = write_bytes(at, constants, step->before_length);
		at = write_value(at, template, step, event);
		at = write_bytes(at, constants + step->before_length, step->after_length);
	}
	return at;
}

/* ---- a batch ------------------------------------------------------------------------------------------ */

static bool reserve_events(struct output *output, size_t count)
{
	size_t capacity = output->event_capacity ? output->event_capacity : FIRST_EVENTS;
	uint32_t *ends;
	uint64_t *moments;

	if (count <= output->event_capacity)
		return true;
	while (capacity < count)
		capacity *= 2;
	ends = realloc(output->ends, capacity * sizeof(*ends));
	if (!ends)
		return false;
	output->ends = ends;
	moments = realloc(output->moments, capacity * sizeof(*moments));
	if (!moments)
		return false;
	output->moments = moments;
	output->event_capacity = capacity;
	return true;
}

/* One look for each event, so that no step has to look. */
static bool reserve_text(struct output *output, const struct template *template, const struct event *event)
{
	uint64_t needed = SLACK + template->bound + template->place_steps * (uint64_t)template->place_bound +
			  template->step_count * ((uint64_t)event->helper_bytes + event->secctx_bytes);
	size_t capacity = output->capacity ? output->capacity : FIRST_TEXT;
	char *text;

	if (output->capacity - output->length >= needed)
		return true;
	if (needed > MAX_TEXT - output->length)
		return false;
	while (capacity - output->length < needed)
		capacity *= 2;
	text = realloc(output->text, capacity);
	if (!text)
		return false;
	output->text = text;
	output->capacity = capacity;
	return true;
}

static bool append_event(struct output *output, struct template *template, const struct event *event)
{
	if (!reserve_text(output, template, event))
		return false;
	output->length = (size_t)(write_event(output->text + output->length, template, event) - output->text);
	output->ends[output->count] = (uint32_t)output->length;
	output->moments[output->count++] = event->moment;
	return true;
}

size_t add_streams(const struct event *events, const uint16_t *kept, size_t count, struct stream *streams, size_t found)
{
	size_t position;

	for (size_t index = 0; index < count; index++) {
		const struct event *event = &events[kept[index]];

		for (position = 0; position < found; position++)
			if (streams[position].protocol == event->protocol && streams[position].type == event->type)
				break;
		if (position == found)
			streams[found++] = (struct stream){ event->type, event->protocol, 0 };
		streams[position].events++;
	}
	return found;
}

bool render(struct template *template, const struct event *events, const uint16_t *kept, size_t count,
	    struct output *output, struct stream *streams, size_t *stream_count)
{
	*stream_count = 0;
	if (!reserve_events(output, output->count + count))
		return false;
	if (!template->by_stream) {
		for (size_t index = 0; index < count; index++)
			if (!append_event(output, template, &events[kept[index]]))
				return false;
		return true;
	}
	*stream_count = add_streams(events, kept, count, streams, 0);
	for (size_t stream = 0; stream < *stream_count; stream++)
		for (size_t index = 0; index < count; index++) {
			const struct event *event = &events[kept[index]];

			if (event->protocol != streams[stream].protocol || event->type != streams[stream].type)
				continue;
			if (!append_event(output, template, event))
				return false;
		}
	return true;
}

void close_output(struct output *output)
{
	free(output->text);
	free(output->ends);
	free(output->moments);
}
