/*
 * The daemon's core and nothing of Python: events as JSON lines on standard output, one write for all that one call
 * has received. What the daemon costs more is its loop, its threads, and what it does once a second.
 *
 * Usage: core TEMPLATE GROUPS BUFFER. TEMPLATE is a file of what a template is compiled to, see rows.py.
 */
#include "listener.h"

#include "event.h"
#include "receive.h"
#include "render.h"

#include <string.h>
#include <unistd.h>

#define TEMPLATE_BYTES (1 << 20)

struct parts {
	uint32_t lengths[3]; /* of steps, names and pool */
	uint32_t by_stream;
	uint8_t bytes[TEMPLATE_BYTES];
};

static void read_template(const char *path, struct template *template)
{
	static struct parts parts;
	FILE *file = fopen(path, "rb");
	const uint8_t *names = parts.bytes, *pool = parts.bytes;

	if (!file || !fread(&parts, 1, sizeof(parts), file))
		fail(path);
	names += parts.lengths[0];
	pool = names + parts.lengths[1];
	if (!open_template(template, (const void *)parts.bytes, parts.lengths[0] / sizeof(struct step),
			   (const void *)names, parts.lengths[1] / sizeof(struct slice), (const char *)pool,
			   parts.lengths[2], parts.by_stream))
		fail("template");
	fclose(file);
}

int main(int argc, char **argv)
{
	static struct listener listener = { .gathers = true };
	static struct template template;
	static struct output output;
	static struct stream streams[MAX_STREAMS];
	static struct event events[SLOTS];
	static uint16_t kept[SLOTS];

	if (argc != 4)
		return 2;
	read_template(argv[1], &template);
	listen_to(&listener, atoi(argv[2]), atoi(argv[3]));
	for (;;) {
		int received = receive(&listener);
		uint64_t received_ns = read_clock(CLOCK_REALTIME);
		size_t count = 0, stream_count;

		for (int slot = 0; slot < received; slot++)
			if (walk_message((const uint8_t *)listener.slots[slot], listener.messages[slot].msg_len,
					 received_ns, true, &events[count])) {
				kept[count] = (uint16_t)count;
				count++;
			}
		clear_output(&output);
		if (!render(&template, events, kept, count, &output, streams, &stream_count))
			fail("render");
		if (write(STDOUT_FILENO, output.text, output.length) < 0)
			fail("write");
	}
}
