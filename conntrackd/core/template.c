/* Templates: what is checked here, render.c trusts. */
#include "render.h"

#include "community.h"
#include "fields.h"

#include <errno.h>
#include <stdlib.h>

#define MAX_STEPS 1024
#define MAX_BOUND (1u << 24) /* bytes that an event can take: some 2 KiB are usual */
#define AMOUNT_TEXT (NUMBER_TEXT + 8) /* ` packets`; a size is shorter */
#define DURATION_TEXT (NUMBER_TEXT + 11) /* a sign, seconds, a point, nine digits */

static bool is_within(uint64_t offset, uint64_t length, size_t size)
{
	return offset <= size && length <= size - offset;
}

static size_t find_longest_name(const struct template *template, const struct step *step)
{
	size_t longest = NUMBER_TEXT;

	for (size_t name = 0; name < step->length; name++)
		if (template->names[step->offset + name].length > longest)
			longest = template->names[step->offset + name].length;
	return longest;
}

/* The most bytes that a step writes between its constants; -1 where it cannot be right. */
static int64_t bound_step(const struct template *template, const struct step *step)
{
	bool is_labels;
	size_t size;

	if (step->field >= event_field_count)
		return -1;
	size = event_fields[step->field].size;
	is_labels = event_fields[step->field].has == HAS_LABELS; /* no address, but as long */
	switch ((enum step_kind)step->kind) {
	case STEP_TEXT:
		return 0;
	case STEP_NUMBER:
		return size && size <= 8 ? NUMBER_TEXT : -1;
	case STEP_NAME:
		if (!size || size > 8 || !is_within(step->offset, step->length, template->name_count))
			return -1;
		return (int64_t)find_longest_name(template, step);
	case STEP_ADDRESS:
		return size == ADDRESS_BYTES && !is_labels ? ADDRESS_TEXT : -1;
	case STEP_ENDPOINT:
		if (size != ADDRESS_BYTES || is_labels || step->offset >= event_field_count ||
		    event_fields[step->offset].size != 2)
			return -1;
		return ADDRESS_TEXT + 3 + NUMBER_TEXT;
	case STEP_TIME:
		return size == 8 && step->length <= STYLE_BSD ? TIME_TEXT : -1;
	case STEP_DURATION:
		return step->length <= STYLE_NANOSECONDS ? DURATION_TEXT : -1;
	case STEP_PLACE:
		return size == 4 && step->offset < PLACES ? 0 : -1;
	case STEP_OWN_TEXT:
		return size == 0 ? 0 : -1;
	case STEP_LABELS:
		if (!is_labels || !is_within(step->offset, step->length, template->name_count))
			return -1;
		return LABEL_COUNT * (int64_t)(1 + find_longest_name(template, step));
	case STEP_AMOUNT:
		return size == 8 ? AMOUNT_TEXT : -1;
	case STEP_COMMUNITY_ID:
		return step->offset <= MAX_COMMUNITY_SEED ? COMMUNITY_TEXT : -1;
	case STEP_AGAIN:
		return -1;
	}
	return -1;
}

static bool check_template(struct template *template)
{
	for (size_t name = 0; name < template->name_count; name++)
		if (!is_within(template->names[name].offset, template->names[name].length, template->pool_bytes))
			return false;
	for (size_t position = 0; position < template->step_count; position++) {
		const struct step *step = &template->steps[position];
		size_t constants = (size_t)step->before_length + step->after_length;
		int64_t bound = bound_step(template, step);

		if (bound < 0 || !is_within(step->constants, constants, template->pool_bytes))
			return false;
		if ((uint64_t)bound + constants > MAX_BOUND - template->bound)
			return false;
		template->bound += (size_t)bound + constants;
		template->asked |= step->needs;
		if (step->kind == STEP_ENDPOINT)
			template->asked |= IS_IPV4 | event_fields[step->offset].has;
		template->place_steps += step->kind == STEP_PLACE;
	}
	return true;
}

static void *copy(const void *from, size_t size)
{
	void *to = calloc(1, size + SLACK);

	return to ? memcpy(to, from, size) : NULL;
}

bool open_template(struct template *template, const struct step *steps, size_t step_count, const struct slice *names,
		   size_t name_count, const char *pool, size_t pool_bytes, bool by_stream)
{
	*template = (struct template){
		.step_count = step_count, .name_count = name_count, .pool_bytes = pool_bytes, .by_stream = by_stream
	};
	errno = EINVAL; /* calloc() makes it ENOMEM */
	if (step_count > MAX_STEPS)
		return false;
	template->steps = copy(steps, step_count * sizeof(*steps));
	template->names = copy(names, name_count * sizeof(*names));
	template->pool = copy(pool, pool_bytes);
	return template->steps && template->names && template->pool && check_template(template);
}

void close_template(struct template *template)
{
	for (size_t plan = 0; plan < PLANS; plan++) {
		free(template->plans[plan].text);
		free(template->plans[plan].pieces);
	}
	for (size_t location = 0; location < template->place_count; location++)
		free(template->places[location]);
	free(template->places);
	free(template->steps);
	free(template->names);
	free(template->pool);
}

bool template_set_places(struct template *template, uint32_t location, const char *const *texts, const size_t *lengths)
{
	struct slice slices[PLACES];
	size_t size = sizeof(slices), count = template->place_count;
	char *place;

	if (location >= count) {
		size_t more = count ? 2 * count : 64;
		char **grown;

		while (more <= location)
			more *= 2;
		grown = realloc(template->places, more * sizeof(*grown));
		if (!grown)
			return false;
		memset(grown + count, 0, (more - count) * sizeof(*grown));
		template->places = grown;
		template->place_count = more;
	}
	for (int text = 0; text < PLACES; text++) {
		if (lengths[text] > MAX_TEXT - size)
			return false;
		slices[text] = (struct slice){ (uint32_t)size, (uint32_t)lengths[text] };
		size += lengths[text];
	}
	place = calloc(1, size + SLACK);
	if (!place)
		return false;
	memcpy(place, slices, sizeof(slices));
	for (int text = 0; text < PLACES; text++)
		memcpy(place + slices[text].offset, texts[text], lengths[text]);
	free(template->places[location]);
	template->places[location] = place;
	if (size > template->place_bound)
		template->place_bound = size;
	return true;
}
