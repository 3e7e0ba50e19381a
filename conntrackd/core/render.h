/* Events -> the text of one template, by a list of steps. See render/steps.py, which writes them. */
#ifndef CONNTRACKD_RENDER_H
#define CONNTRACKD_RENDER_H

#include "event.h"
#include "text.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What a step writes between its two constants. */
enum step_kind {
	STEP_TEXT, /* nothing more */
	STEP_NUMBER, /* a field */
	STEP_NAME, /* a field's name: names[offset + number], of which there are `length`; else the number */
	STEP_ADDRESS, /* a field */
	STEP_ENDPOINT, /* an address and, where the event has it, the port at `offset`: 10.0.0.1:80, [fe80::1]:80 */
	STEP_TIME, /* a field; `length` is its time_style */
	STEP_DURATION, /* `length` is its duration_style */
	STEP_PLACE, /* the text number `offset` (0 to 3) of a Location: the field is its number */
	STEP_OWN_TEXT, /* what the kernel gives as text: a field of helper or secctx */
	STEP_LABELS, /* the names of the bits that are set, with commas; names as for STEP_NAME */
	STEP_AMOUNT, /* a field for people: `12 packets`, or `3.4 kB` where `length` is not 0 */
	STEP_COMMUNITY_ID, /* with `offset` as its seed */
	STEP_AGAIN, /* only in plans: an address or a port that the same text has already */
};

enum duration_style {
	STYLE_SECONDS, /* with nine decimals */
	STYLE_SHORT, /* with three */
	STYLE_NANOSECONDS, /* a whole number */
};

/* A step is taken where the event has all bits of `needs`. */
struct step {
	uint64_t needs;
	uint16_t kind;
	uint16_t field; /* number in event_fields[] */
	uint16_t before_length, after_length; /* of constants: in the pool at `constants`, one behind the other */
	uint32_t constants;
	uint32_t offset, length;
	uint32_t reserved; /* 0 */
};

/* A piece of a template's pool of bytes. */
struct slice {
	uint32_t offset, length;
};

/* What a text often has twice of an end of a flow: where it stands again it is copied. */
enum end { NO_END, SRC, DST, SPORT, DPORT, ENDS };

/* Constants, and the value behind them. */
struct piece {
	uint32_t length; /* of the constants, which stand behind those of the piece before */
	uint16_t kind; /* of a step: STEP_TEXT where no value follows, and no STEP_ENDPOINT */
	uint16_t end;
	const struct event_field *field;
	const struct step *step;
};

/* What a template writes of events that are of one kind: alike in all that its steps ask about, in type and in
 * protocol. Steps that are not taken are not in it, and what all these events have alike is a constant.
 */
struct plan {
	uint64_t has;
	uint16_t kind; /* the type, and the protocol in the lower byte */
	char *text; /* all constants; NULL for no plan */
	struct piece *pieces;
};
#define PLAN_BITS 6 /* a gateway has some twenty kinds of events */
#define PLANS (1 << PLAN_BITS)

#define PLACES 4 /* texts of a Location: place and network, as destination and as source */
#define MOST_LOCATIONS 65536
enum { LABEL_COUNT = 8 * LABEL_BYTES };
#define MAX_TEXT INT32_MAX /* bytes of a batch: ends have 32 bits, and a capacity must be able to double */

struct template
{
	struct step *steps;
	size_t step_count;
	uint64_t asked; /* the bits of `has` that the steps ask about */
	struct plan plans[PLANS];
	struct slice *names;
	size_t name_count;
	char *pool;
	size_t pool_bytes;
	size_t bound; /* the most bytes that an event can take, its own texts and places not counted */
	size_t place_steps;
	bool by_stream;
	char **places; /* of Location n: at n, PLACES slices and then their bytes; NULL for none */
	size_t place_count;
	size_t place_bound;
	struct clock clock;
};

/* Where texts go: grows, and is kept for the next batch. */
struct output {
	char *text;
	size_t length, capacity;
	uint32_t *ends;
	uint64_t *moments;
	size_t count, event_capacity; /* of events */
};

static inline void clear_output(struct output *output)
{
	output->length = output->count = 0;
}

struct stream {
	uint8_t type, protocol;
	uint32_t events;
};
#define MAX_STREAMS 1536 /* of six types and 256 protocols */

/* Adds these events to the `found` kinds that are in `streams`, which is of MAX_STREAMS: how many are there then, in
 * the order in which they were met.
 */
size_t add_streams(const struct event *events, const uint16_t *kept, size_t count, struct stream *streams,
		   size_t found);

/* Takes over nothing: all is copied. False where a step, a name or a length is out of bounds (errno is EINVAL
 * then), or for want of memory (ENOMEM).
 */
bool open_template(struct template *template, const struct step *steps, size_t step_count, const struct slice *names,
		   size_t name_count, const char *pool, size_t pool_bytes, bool by_stream);
void close_template(struct template *template);
/* Texts of a Location below MOST_LOCATIONS, in place of those that it has. False for want of memory. */
bool template_set_places(struct template *template, uint32_t location, const char *const *texts, const size_t *lengths);

/* The events of these indexes, in their order, behind what is in the output; by stream if the template says so, then
 * `streams` lists them and is of MAX_STREAMS. False for want of memory, and above MAX_TEXT.
 */
bool render(struct template *template, const struct event *events, const uint16_t *kept, size_t count,
	    struct output *output, struct stream *streams, size_t *stream_count);
void close_output(struct output *output);

#endif
