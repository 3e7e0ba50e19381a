/* libFuzzer: anything as a program of rules, or as a template; events go through what opens. */
#include "kit.h"

#include <stdlib.h>
#include <string.h>

#define MAX_WORDS 64 /* of a Location's bits: more are right, and need gigabytes */

static struct kit kit;
static struct event events[KIT_EVENTS];
static size_t event_count;

int LLVMFuzzerInitialize(int *count, char ***words);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerInitialize(int *count, char ***words)
{
	(void)count;
	(void)words;
	open_kit(&kit, getenv("CONNTRACKD_KIT"));
	event_count = read_events(kit.messages, kit.message_bytes, true, events);
	for (size_t index = 0; index < event_count; index++) {
		events[index].src_location = index % 4;
		events[index].dst_location = index % 3;
		events[index].has |= HAS_SRC_LOCATION | HAS_DST_LOCATION;
	}
	return 0;
}

static void try_table(const uint8_t *program, size_t size)
{
	static const uint8_t bits[MAX_WORDS * 8] = { 0xa5, 1 };
	struct table *table = open_table(program, size, NULL, 0);
	uint16_t kept[KIT_EVENTS];

	if (table && table->location_words <= MAX_WORDS && !table_set_location(table, 2, bits))
		abort();
	if (table && decide(table, events, NULL, event_count, kept, false) > event_count)
		abort();
	close_table(table);
}

/* Three numbers of 16 bits: whether it is by stream, steps, names; then those, and the rest is the pool. */
static void try_template(const uint8_t *data, size_t size)
{
	static const char *const texts[PLACES] = { "Ulm", "", "AS1", "from somewhere" };
	static const size_t lengths[PLACES] = { 3, 0, 3, 14 };
	struct template template;
	uint16_t numbers[3];
	size_t steps, names;

	if (size < sizeof(numbers))
		return;
	memcpy(numbers, data, sizeof(numbers));
	data += sizeof(numbers);
	size -= sizeof(numbers);
	steps = numbers[1] % (size / sizeof(struct step) + 1);
	names = numbers[2] % ((size - steps * sizeof(struct step)) / sizeof(struct slice) + 1);
	if (open_template(&template, (const void *)data, steps, (const void *)(data + steps * sizeof(struct step)),
			  names, (const char *)data + steps * sizeof(struct step) + names * sizeof(struct slice),
			  size - steps * sizeof(struct step) - names * sizeof(struct slice), numbers[0] & 1)) {
		if (!template_set_places(&template, 1, texts, lengths))
			abort();
		if (template.bound < 1 << 16)
			render_checked(&template, events, event_count, &kit.output);
	}
	close_template(&template);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (size && data[0] == 'T')
		try_template(data + 1, size - 1);
	else if (size)
		try_table(data + 1, size - 1);
	return 0;
}
