/* See render.h. */
#include "render.h"

#include "community.h"
#include "fields.h"

#include <stdlib.h>

#define FIRST_EVENTS 512
#define FIRST_TEXT 32768
#define NANO 1000000000ULL
#define FIELD(name) offsetof(struct event, name)

/* ---- one event ---------------------------------------------------------------------------------------- */

static char *write_name(char *at, const struct template *template, const struct step *step, uint64_t number)
{
	const struct slice *name = number < step->length ? &template->names[step->offset + number] : NULL;

	return name && name->length ? write_bytes(at, template->pool + name->offset, name->length) :
				      write_number(at, number);
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

static char *write_value(char *at, struct template *template, const struct piece *piece, const struct event *event)
{
	const struct event_field *field = piece->field;
	const struct step *step = piece->step;

	switch ((enum step_kind)piece->kind) {
	case STEP_TEXT:
	case STEP_ENDPOINT:
	case STEP_AGAIN:
		return at;
	case STEP_NUMBER:
		return write_number(at, read_field(event, field));
	case STEP_NAME:
		return write_name(at, template, step, read_field(event, field));
	case STEP_ADDRESS:
		return write_address(at, (const uint8_t *)event + field->offset, event->has & IS_IPV4);
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

static char *write_event(char *at, struct template *template, const struct plan *plan, const struct event *event)
{
	const char *text = plan->text, *begins[ENDS] = { NULL };
	size_t lengths[ENDS] = { 0 };

	for (const struct piece *piece = plan->pieces;; piece++) {
		at = write_bytes(at, text, piece->length);
		if (piece->kind == STEP_TEXT)
			return at;
		text += piece->length;
		if (piece->kind == STEP_AGAIN) {
			at = write_bytes(at, begins[piece->end], lengths[piece->end]);
			continue;
		}
		begins[piece->end] = at;
		at = write_value(at, template, piece, event);
		lengths[piece->end] = (size_t)(at - begins[piece->end]);
	}
}

/* ---- a kind of events --------------------------------------------------------------------------------- */

/* A plan while it is made: where the constants of the next piece begin, and end so far. */
struct maker {
	struct piece *piece;
	const char *begin;
	char *at;
	bool has_end[ENDS];
};

/* Of a field, by its place in struct event. */
static enum end find_end(size_t offset)
{
	switch (offset) {
	case FIELD(src):
		return SRC;
	case FIELD(dst):
		return DST;
	case FIELD(sport):
		return SPORT;
	case FIELD(dport):
		return DPORT;
	default:
		return NO_END;
	}
}

/* A value, with the constants before it. */
static void end_piece(struct maker *maker, enum step_kind kind, const struct step *step, size_t field)
{
	const uint32_t length = (uint32_t)(maker->at - maker->begin);
	const enum end end =
		kind == STEP_ADDRESS || kind == STEP_NUMBER ? find_end(event_fields[field].offset) : NO_END;

	if (end && maker->has_end[end])
		kind = STEP_AGAIN;
	*maker->piece++ = (struct piece){ length, (uint16_t)kind, (uint16_t)end, &event_fields[field], step };
	maker->begin = maker->at;
	maker->has_end[end] = true;
}

/* As far as the kind says it: the port is there or not, and an address of IPv6 before a port stands in brackets. */
static void make_endpoint(struct maker *maker, const struct step *step, const struct event *event)
{
	const bool has_port = event->has & event_fields[step->offset].has;
	const bool is_bracketed = has_port && !(event->has & IS_IPV4);

	if (is_bracketed)
		*maker->at++ = '[';
	end_piece(maker, STEP_ADDRESS, step, step->field);
	if (is_bracketed)
		*maker->at++ = ']';
	if (!has_port)
		return;
	*maker->at++ = ':';
	end_piece(maker, STEP_NUMBER, step, step->offset);
}

static void make_step(struct maker *maker, const struct template *template, const struct step *step,
		      const struct event *event)
{
	const struct event_field *field = &event_fields[step->field];
	const char *constants = template->pool + step->constants;

	maker->at = write_bytes(maker->at, constants, step->before_length);
	if (step->kind == STEP_NAME && (field->offset == FIELD(type) || field->offset == FIELD(protocol)))
		maker->at = write_name(maker->at, template, step, read_field(event, field));
	else if (step->kind == STEP_ENDPOINT)
		make_endpoint(maker, step, event);
	else if (step->kind != STEP_TEXT)
		end_piece(maker, (enum step_kind)step->kind, step, step->field);
	maker->at = write_bytes(maker->at, constants + step->before_length, step->after_length);
}

static uint16_t find_kind(const struct event *event)
{
	return (uint16_t)(event->type << 8 | event->protocol);
}

/* In place of the one that is there. False for want of memory. */
static bool make_plan(struct plan *plan, const struct template *template, const struct event *event)
{
	const struct step *end = template->steps + template->step_count;
	struct piece *pieces = calloc(2 * template->step_count + 1, sizeof(*pieces)), *fitting_pieces;
	char *text = malloc(template->bound + SLACK), *fitting_text;
	struct maker maker = { .piece = pieces, .begin = text, .at = text };

	if (!pieces || !text) {
		free(pieces);
		free(text);
		return false;
	}
	for (const struct step *step = template->steps; step < end; step++)
		if ((event->has & step->needs) == step->needs)
			make_step(&maker, template, step, event);
	end_piece(&maker, STEP_TEXT, NULL, 0);
	free(plan->pieces);
	free(plan->text);
	fitting_text = realloc(text, (size_t)(maker.at - text) + SLACK);
	fitting_pieces = realloc(pieces, (size_t)(maker.piece - pieces) * sizeof(*pieces));
	*plan = (struct plan){ .has = event->has & template->asked,
			       .kind = find_kind(event),
			       .text = fitting_text ? fitting_text : text,
			       .pieces = fitting_pieces ? fitting_pieces : pieces };
	return true;
}

/* From where its kind belongs on. Else one is made, which is all that is ever allocated for an event: at the first free
 * place, or, where the kinds are more than the places, in place of the first.
 */
static const struct plan *find_plan(struct template *template, const struct event *event)
{
	const uint64_t has = event->has & template->asked;
	const uint16_t kind = find_kind(event);
	const size_t first = (has ^ (uint64_t)kind << 48) * 0x9e3779b97f4a7c15ULL >> (64 - PLAN_BITS);
	struct plan *plan = &template->plans[first];

	for (size_t place = first; place < first + PLANS; place++) {
		struct plan *found = &template->plans[place % PLANS];

		if (!found->text) {
			plan = found;
			break;
		}
		if (found->has == has && found->kind == kind)
			return found;
	}
	return make_plan(plan, template, event) ? plan : NULL;
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
	const struct plan *plan = find_plan(template, event);

	if (!plan || !reserve_text(output, template, event))
		return false;
	output->length = (size_t)(write_event(output->text + output->length, template, plan, event) - output->text);
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
