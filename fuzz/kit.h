/* What fuzzers and the tests' drivers put events through: the daemon's templates, rules, and what goes with them. */
#ifndef CONNTRACKD_FUZZ_KIT_H
#define CONNTRACKD_FUZZ_KIT_H

#include "anonymize.h"
#include "decide.h"
#include "deltas.h"
#include "flows.h"
#include "ids.h"
#include "locate.h"
#include "render.h"

#define KIT_EVENTS 64
#define KIT_TEMPLATES 16

struct kit {
	struct table *table;
	struct template templates[KIT_TEMPLATES];
	size_t template_count;
	struct locations locations;
	struct anonymizer anonymizer;
	struct ids ids;
	struct flows flows;
	struct deltas deltas;
	struct output output;
	uint8_t *bytes; /* of the file */
	const uint8_t *messages; /* events that go through what is fuzzed itself */
	size_t message_bytes;
};

/* From a file of fuzz/native.py's. Ends the process where it is none. */
void open_kit(struct kit *kit, const char *path);
void close_kit(struct kit *kit);

/* The events of a datagram; at most KIT_EVENTS. */
size_t read_events(const uint8_t *datagram, size_t length, bool reports_reason, struct event *events);

/* A datagram all the way: its events, their Locations, ids, decisions, texts and frames. Returns the events. */
size_t process(struct kit *kit, const uint8_t *datagram, size_t length);

/* The text of these events by a template, which has to hold what render.h says. */
void render_checked(struct template *template, const struct event *events, size_t count, struct output *output);

#endif
