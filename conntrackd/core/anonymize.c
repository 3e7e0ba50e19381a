/* See anonymize.h. */
#include "anonymize.h"

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define FIRST_CAPACITY 1024

static const struct {
	size_t offset;
	uint64_t needs;
	unsigned side;
	size_t twin; /* the place before it that has the same address where nothing is translated; else itself */
} places[EVENT_ADDRESSES] = {
	{ offsetof(struct event, src), 0, SIDE_SOURCE, 0 },
	{ offsetof(struct event, dst), 0, SIDE_DESTINATION, 1 },
	/* Replies come from the destination after its translation, and go to the source after its own. */
	{ offsetof(struct event, reply_src), 0, SIDE_DESTINATION, 1 },
	{ offsetof(struct event, reply_dst), 0, SIDE_SOURCE, 0 },
	{ offsetof(struct event, master_src), HAS_MASTER_SRC, SIDE_SOURCE, 4 },
	{ offsetof(struct event, master_dst), HAS_MASTER_DST, SIDE_DESTINATION, 5 },
};

static uint8_t *address_at(struct event *event, size_t place)
{
	return (uint8_t *)event + places[place].offset;
}

static const uint8_t *read_address(const struct event *event, size_t place)
{
	return (const uint8_t *)event + places[place].offset;
}

/* Another place's address, and the same: one look is enough for both. */
static bool is_twin(const uint8_t *address, const uint8_t *other)
{
	return address != other && memcmp(address, other, ADDRESS_BYTES) == 0;
}

static bool equals_another(const struct event *event, size_t place, unsigned sides)
{
	for (size_t other = 0; other < EVENT_ADDRESSES; other++)
		if (places[other].side & sides && (event->has & places[other].needs) == places[other].needs &&
		    memcmp(read_address(event, place), read_address(event, other), ADDRESS_BYTES) == 0)
			return true;
	return false;
}

/* An address that is concealed at one place of a record is so at each: side by side they would give it away. */
static bool is_concealed(const struct event *event, size_t place, unsigned sides)
{
	if ((event->has & places[place].needs) != places[place].needs)
		return false;
	return places[place].side & sides || equals_another(event, place, sides);
}

bool open_anonymizer(struct anonymizer *anonymizer, size_t limit, uint64_t seed, unsigned sides)
{
	*anonymizer = (struct anonymizer){ .sides = sides };
	return open_locations(&anonymizer->numbers, limit, seed);
}

void close_anonymizer(struct anonymizer *anonymizer)
{
	close_locations(&anonymizer->numbers);
	free(anonymizer->written);
	free(anonymizer->saved);
}

bool put_written(struct anonymizer *anonymizer, const uint8_t *address, uint32_t family, const uint8_t *written)
{
	size_t capacity = anonymizer->capacity ? 2 * anonymizer->capacity : FIRST_CAPACITY;

	if (memcmp(address, written, ADDRESS_BYTES) == 0)
		return put_location(&anonymizer->numbers, address, family, 0);
	if (anonymizer->count == anonymizer->capacity) {
		void *grown = realloc(anonymizer->written, capacity * sizeof(*anonymizer->written));

		if (!grown)
			return false;
		anonymizer->written = grown;
		anonymizer->capacity = capacity;
	}
	memcpy(anonymizer->written[anonymizer->count], written, ADDRESS_BYTES);
	if (!put_location(&anonymizer->numbers, address, family, (uint32_t)anonymizer->count + 1))
		return false;
	anonymizer->count++;
	return true;
}

bool find_unknown(struct anonymizer *anonymizer, const struct event *events, const uint16_t *kept, size_t count,
		  bool (*miss)(void *context, const uint8_t *address, size_t bytes), void *context)
{
	struct locations *numbers = &anonymizer->numbers;

	if (numbers->used > numbers->limit) {
		forget_locations(numbers);
		anonymizer->count = 0;
	}
	for (size_t index = 0; index < count; index++) {
		const struct event *event = &events[kept[index]];

		for (size_t place = 0; place < EVENT_ADDRESSES; place++) {
			const uint8_t *address = read_address(event, place);

			if (is_twin(address, read_address(event, places[place].twin)) ||
			    !is_concealed(event, place, anonymizer->sides) ||
			    find_location(numbers, address, event->family))
				continue;
			if (!put_location(numbers, address, event->family, NOT_KNOWN) ||
			    !miss(context, address, event->family == AF_INET ? 4 : ADDRESS_BYTES))
				return false;
		}
	}
	return true;
}

static void write_concealed(const struct anonymizer *anonymizer, uint32_t family, uint8_t *address)
{
	const struct located *entry = find_location(&anonymizer->numbers, address, family);
	uint32_t number = entry ? entry->number : NOT_KNOWN;

	if (number == NOT_KNOWN)
		memset(address, 0, ADDRESS_BYTES);
	else if (number)
		memcpy(address, anonymizer->written[number - 1], ADDRESS_BYTES);
}

bool conceal(struct anonymizer *anonymizer, struct event *events, const uint16_t *kept, size_t count)
{
	if (count > anonymizer->saved_capacity) {
		void *grown = realloc(anonymizer->saved, count * sizeof(*anonymizer->saved));

		if (!grown)
			return false;
		anonymizer->saved = grown;
		anonymizer->saved_capacity = count;
	}
	for (size_t index = 0; index < count; index++) {
		struct event *event = &events[kept[index]];
		bool is_here[EVENT_ADDRESSES];

		for (size_t place = 0; place < EVENT_ADDRESSES; place++) {
			memcpy(anonymizer->saved[index][place], address_at(event, place), ADDRESS_BYTES);
			is_here[place] = is_concealed(event, place, anonymizer->sides);
		}
		for (size_t place = 0; place < EVENT_ADDRESSES; place++) {
			size_t twin = places[place].twin;

			if (is_twin(anonymizer->saved[index][place], anonymizer->saved[index][twin]))
				memcpy(address_at(event, place), address_at(event, twin), ADDRESS_BYTES);
			else if (is_here[place])
				write_concealed(anonymizer, event->family, address_at(event, place));
		}
	}
	return true;
}

/* From the last to the first: who is concealed twice was itself before the first time. */
void reveal(struct anonymizer *anonymizer, struct event *events, const uint16_t *kept, size_t count)
{
	for (size_t index = count; index-- > 0;)
		for (size_t place = 0; place < EVENT_ADDRESSES; place++)
			memcpy(address_at(&events[kept[index]], place), anonymizer->saved[index][place], ADDRESS_BYTES);
}
