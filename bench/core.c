/*
 * The daemon's core and nothing of Python: events as JSON lines on standard output, one write for all that one call
 * has received. What the daemon costs more is its loop, its threads, and what it does once a second.
 *
 * Usage: core TEMPLATE GROUPS BUFFER [SHARES]. TEMPLATE is a file of what a template is compiled to, see rows.py.
 */
#include "shares.h"

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
	struct parts *parts = calloc(1, sizeof(*parts));
	FILE *file = fopen(path, "rb");
	const uint8_t *names, *pool;

	if (!parts || !file || !fread(parts, 1, sizeof(*parts), file))
		fail(path);
	names = parts->bytes + parts->lengths[0];
	pool = names + parts->lengths[1];
	if (!open_template(template, (const void *)parts->bytes, parts->lengths[0] / sizeof(struct step),
			   (const void *)names, parts->lengths[1] / sizeof(struct slice), (const char *)pool,
			   parts->lengths[2], parts->by_stream))
		fail("template");
	fclose(file);
}

struct work {
	struct template template;
	struct output output;
	struct stream streams[MAX_STREAMS];
	struct event events[SLOTS];
	uint16_t kept[SLOTS];
};

static const char *template_path;

static void *write_lines(void *argument)
{
	struct listener *listener = argument;
	struct work *work = calloc(1, sizeof(*work));

	if (!work)
		fail("calloc");
	read_template(template_path, &work->template);
	for (;;) {
		int received = receive(listener);
		uint64_t received_ns = read_clock(CLOCK_REALTIME);
		size_t count = 0, stream_count;

		for (int slot = 0; slot < received; slot++)
			if (walk_message((const uint8_t *)listener->slots[slot], listener->messages[slot].msg_len,
					 received_ns, true, &work->events[count])) {
				work->kept[count] = (uint16_t)count;
				count++;
			}
		clear_output(&work->output);
		if (!render(&work->template, work->events, work->kept, count, &work->output, work->streams,
			    &stream_count))
			fail("render");
		if (write(STDOUT_FILENO, work->output.text, work->output.length) < 0)
			fail("write");
	}
	return NULL;
}

int main(int argc, char **argv)
{
	if (argc < 4)
		return 2;
	template_path = argv[1];
	share_events(argv[4], true, (unsigned)atoi(argv[2]), atoi(argv[3]), write_lines);
}
