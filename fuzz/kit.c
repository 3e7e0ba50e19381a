/* See kit.h. */
#include "kit.h"

#include "send.h"

#include <linux/netlink.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define KIT_FLOWS 2000 /* enough that the table grows, few enough that some are forgotten */

static void require(bool holds)
{
	if (!holds)
		abort();
}

static uint32_t read_word(const uint8_t **at)
{
	uint32_t word;

	memcpy(&word, *at, sizeof(word));
	*at += sizeof(word);
	return word;
}

static void open_one(struct template *template, const uint8_t **at)
{
	static const char *const texts[PLACES] = { "Ulm (DE)", "from Ulm", "AS3320", "DTAG" };
	static const size_t lengths[PLACES] = { 8, 8, 6, 4 };
	uint32_t sizes[3], by_stream;
	const uint8_t *parts[3];

	for (int part = 0; part < 3; part++)
		sizes[part] = read_word(at);
	by_stream = read_word(at);
	for (int part = 0; part < 3; part++) {
		parts[part] = *at;
		*at += sizes[part];
	}
	require(open_template(template, (const void *)parts[0], sizes[0] / sizeof(struct step), (const void *)parts[1],
			      sizes[1] / sizeof(struct slice), (const void *)parts[2], sizes[2], by_stream));
	for (uint32_t location = 1; location < 4; location += 2)
		require(template_set_places(template, location, texts, lengths));
}

static size_t read_file(const char *path, uint8_t **bytes)
{
	FILE *file = path ? fopen(path, "rb") : NULL;
	long size;

	require(file && fseek(file, 0, SEEK_END) == 0);
	size = ftell(file);
	require(size > 0 && fseek(file, 0, SEEK_SET) == 0);
	*bytes = malloc((size_t)size);
	require(*bytes && fread(*bytes, (size_t)size, 1, file) == 1);
	(void)fclose(file);
	return (size_t)size;
}

void open_kit(struct kit *kit, const char *path)
{
	const uint8_t *at, bits[8] = { 0x55 };
	uint32_t program_bytes;

	memset(kit, 0, sizeof(*kit));
	read_file(path, &kit->bytes);
	at = kit->bytes;
	program_bytes = read_word(&at);
	kit->template_count = read_word(&at);
	kit->message_bytes = read_word(&at);
	require(kit->template_count <= KIT_TEMPLATES);
	kit->table = open_table(at, program_bytes, NULL, 0);
	require(kit->table && kit->table->location_words == 1 && table_set_location(kit->table, 3, bits));
	kit->messages = at + program_bytes;
	at = kit->messages + kit->message_bytes;
	for (size_t index = 0; index < kit->template_count; index++)
		open_one(&kit->templates[index], &at);
	require(open_locations(&kit->locations, 500, 1) && open_ids(&kit->ids) &&
		open_anonymizer(&kit->anonymizer, 500, 1, SIDE_SOURCE) && open_flows(&kit->flows, KIT_FLOWS, 1) &&
		open_deltas(&kit->deltas, KIT_FLOWS, 1));
}

void close_kit(struct kit *kit)
{
	for (size_t index = 0; index < kit->template_count; index++)
		close_template(&kit->templates[index]);
	close_table(kit->table);
	close_locations(&kit->locations);
	close_anonymizer(&kit->anonymizer);
	close_ids(&kit->ids);
	close_flows(&kit->flows);
	close_deltas(&kit->deltas);
	close_output(&kit->output);
	free(kit->bytes);
}

size_t read_events(const uint8_t *datagram, size_t length, bool reports_reason, struct event *events)
{
	size_t offset = 0, count = 0;

	do {
		size_t size = find_message_length(datagram + offset, length - offset);

		count += walk_message(datagram + offset, size, 1700000000000000001, reports_reason, &events[count]);
		offset += NLMSG_ALIGN(size);
	} while (offset < length && count < KIT_EVENTS);
	return count;
}

/* Python's part of locate(): every fourth address is in no database. */
static bool answer(void *context, const uint8_t *address, size_t bytes)
{
	uint8_t padded[ADDRESS_BYTES] = { 0 };

	memcpy(padded, address, bytes);
	return put_location(context, padded, bytes == 4 ? 2 : 10, padded[3] % 4);
}

/* Each framing of a text into memory of exactly its bound. */
static void frame_checked(const struct output *output, size_t count)
{
	size_t bound = bound_frames(output->length, count);
	char *framed = malloc(bound);
	uint32_t *ends = malloc((count + 1) * sizeof(*ends));

	require(bound && framed && ends);
	for (int framing = FRAME_NONE; framing <= FRAME_PADDED; framing++) {
		uint32_t number = MAX_SEQUENCE;
		size_t size =
			frame_parts(output->text, output->ends, count, &number, (enum framing)framing, framed, ends);

		require(size <= bound && (!count || ends[count - 1] == size));
	}
	free(framed);
	free(ends);
}

void render_checked(struct template *template, const struct event *events, size_t count, struct output *output)
{
	static struct stream streams[MAX_STREAMS];
	uint16_t kept[KIT_EVENTS] = { 0 };
	size_t stream_count;

	for (size_t index = 0; index < count; index++)
		kept[index] = (uint16_t)index;
	clear_output(output);
	require(render(template, events, kept, count, output, streams, &stream_count));
	for (size_t index = 1; index < count; index++)
		require(output->ends[index] >= output->ends[index - 1]);
	if (!count)
		return;
	require(output->ends[count - 1] == output->length && output->length <= output->capacity);
	frame_checked(output, count);
}

/* As if each event had been found in the table, and each datagram were all of it. */
static void count_checked(struct kit *kit, struct event *events, size_t count)
{
	struct deltas *deltas = &kit->deltas;

	begin_reading(deltas);
	for (size_t index = 0; index < count; index++) {
		(void)see_flow(deltas, &events[index]);
		(void)advance_flow(deltas, &events[index]);
		require(deltas->slots.used <= KIT_FLOWS);
		end_flow(deltas, &events[index]);
	}
	sweep_flows(deltas);
	if (count % 2)
		end_reading(deltas);
}

/* Python's part of find_unknown(): every fourth address is written as it is. */
static bool answer_written(void *context, const uint8_t *address, size_t bytes)
{
	uint8_t padded[ADDRESS_BYTES] = { 0 }, written[ADDRESS_BYTES] = { 0 };

	memcpy(padded, address, bytes);
	memcpy(written, address, padded[3] % 4 ? bytes - 1 : bytes);
	return put_written(context, padded, bytes == 4 ? 2 : 10, written);
}

/* A text with other addresses, after which the events are what they were. */
static void render_concealed(struct kit *kit, struct event *events, const uint16_t *kept, size_t count)
{
	struct event before[KIT_EVENTS];

	memcpy(before, events, count * sizeof(*events));
	require(find_unknown(&kit->anonymizer, events, kept, count, answer_written, &kit->anonymizer) &&
		conceal(&kit->anonymizer, events, kept, count));
	for (size_t index = 0; index < kit->template_count; index++)
		render_checked(&kit->templates[index], events, count, &kit->output);
	reveal(&kit->anonymizer, events, kept, count);
	require(memcmp(before, events, count * sizeof(*events)) == 0);
}

size_t process(struct kit *kit, const uint8_t *datagram, size_t length)
{
	struct event events[KIT_EVENTS];
	uint16_t kept[KIT_EVENTS];
	size_t count = read_events(datagram, length, length & 1, events), kept_count, forgotten = 0;
	bool is_new;

	for (size_t index = 0; index < count; index++)
		kept[index] = (uint16_t)index;
	render_concealed(kit, events, kept, count);
	for (int round = 0; round < 2; round++)
		require(locate(&kit->locations, events, kept, count, round == 0, answer, &kit->locations));
	kept_count = decide(kit->table, events, NULL, count, kept, false);
	require(kept_count <= count);
	if (count_ids(&kit->ids) > 5000)
		clear_ids(&kit->ids);
	for (size_t index = 0; index < count; index++) {
		require(add_id(&kit->ids, events[index].id, &is_new) && has_id(&kit->ids, events[index].id));
		if (events[index].id % 3 == 0)
			remove_id(&kit->ids, events[index].id);
		require(has_id(&kit->ids, events[index].id) == (events[index].id % 3 != 0));
	}
	for (size_t index = 0; index < count; index++) {
		note_event(&kit->flows, &events[index], &forgotten);
		require(kit->flows.slots.used <= KIT_FLOWS);
		if (events[index].type == TYPE_DESTROY && events[index].id % 2)
			set_type(&events[index], TYPE_FLOW);
	}
	count_checked(kit, events, count);
	for (size_t index = 0; index < kit->template_count; index++)
		render_checked(&kit->templates[index], events, count, &kit->output);
	return count;
}
