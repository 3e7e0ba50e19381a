/* The text of a batch on its way out, as far as it goes at once; the rest is kept for a writer or Python. */
#include "outlet.h"

#include "send.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

/* For a writer. A write of so many bytes costs no more for each event than a larger one, and they are still in the
 * cache.
 */
#define MUCH_TEXT (1 << 16)

static ssize_t write_once(const struct outlet *outlet, const char *text, size_t bytes)
{
	struct iovec vector = { (char *)text, bytes };

	if (outlet->way == WAY_NOWAIT)
		return pwritev2(outlet->descriptor, &vector, 1, -1, RWF_NOWAIT);
	return write(outlet->descriptor, text, bytes);
}

/* How many lines were written whole. Of the next one `rest_torn` bytes may be. */
static size_t write_lines(struct outlet *outlet, const char *text, const uint32_t *ends, size_t count)
{
	size_t lines = 0, done = 0;

	while (lines < count) {
		size_t next = lines;
		ssize_t taken;

		while (next < count && ends[next] - done <= PIPE_BUF)
			next++;
		if (next == lines) /* longer than a pipe would keep together */
			break;
		taken = write_once(outlet, text + done, ends[next - 1] - done);
		if (taken <= 0)
			break;
		done += (size_t)taken;
		while (lines < next && ends[lines] <= done)
			lines++;
		if (lines < next) { /* a socket's buffer is full */
			outlet->rest_torn = done - (lines ? ends[lines - 1] : 0);
			break;
		}
	}
	return lines;
}

/* The error that earlier datagrams have brought, 0 for none; the socket forgets it. */
static int read_error(int socket)
{
	int error = 0;
	socklen_t size = sizeof(error);

	return getsockopt(socket, SOL_SOCKET, SO_ERROR, &error, &size) ? errno : error;
}

/* Of earlier datagrams, by their receiver or a firewall. delivery/datagrams.py has the same. */
static bool is_refusal(int error)
{
	return error == ECONNREFUSED || error == EHOSTUNREACH;
}

/* Room for messages and their ends. False for want of memory, and where they would be too large. */
static bool reserve_frames(struct frames *frames, const struct output *output)
{
	const size_t bound = bound_frames(output->length, output->count);
	const size_t bytes = output->count * sizeof(*frames->ends) + bound;

	if (bound && bytes > frames->bytes) {
		free(frames->ends);
		frames->ends = malloc(bytes);
		frames->bytes = frames->ends ? bytes : 0;
	}
	return bound && frames->bytes;
}

/*
 * How many messages of syslog were sent, and their bytes. All are framed before they are sent; where some were not, the
 * sent ones are framed once more, to know their size and the number that the next one gets.
 */
static size_t send_messages(struct outlet *outlet, struct frames *frames, const struct output *output, size_t *bytes)
{
	const bool segments = outlet->way == WAY_SEGMENT;
	const enum framing framing = segments ? FRAME_PADDED : FRAME_NONE;
	uint32_t number = outlet->number;
	size_t sent;
	char *text;

	if (!reserve_frames(frames, output))
		return 0;
	text = (char *)(frames->ends + output->count);
	frame_parts(output->text, output->ends, output->count, &number, framing, text, frames->ends);
	sent = send_parts(outlet->descriptor, text, frames->ends, output->count, 0, 0, segments, &outlet->error);
	if (!outlet->error && outlet->also_refused)
		outlet->error = read_error(outlet->descriptor);
	if (is_refusal(outlet->error))
		sent -= sent < outlet->also_refused ? sent : outlet->also_refused;
	if (sent < output->count) { /* the others get their numbers when they are sent */
		number = outlet->number;
		frame_parts(output->text, output->ends, sent, &number, framing, text, frames->ends);
	}
	outlet->number = number;
	*bytes = sent ? frames->ends[sent - 1] : 0;
	return sent;
}

/* How many events were written, and their bytes. */
static size_t write_output(struct outlet *outlet, struct frames *frames, size_t *bytes)
{
	const struct output *output = outlet->output;
	size_t count = 0;

	switch (outlet->way) {
	case WAY_DISCARD:
		count = output->count;
		break;
	case WAY_WRITE:
	case WAY_NOWAIT:
		count = write_lines(outlet, output->text, output->ends, output->count);
		break;
	case WAY_SEND:
		count = send_parts(outlet->descriptor, output->text, output->ends, output->count, 0, 0, false,
				   &outlet->error);
		break;
	case WAY_NUMBER:
	case WAY_SEGMENT:
		return send_messages(outlet, frames, output, bytes);
	case WAY_KEEP:
	case WAYS:
		break;
	}
	*bytes = count ? output->ends[count - 1] : 0;
	return count;
}

/* That the text for later begins with this event. */
static void note_rest(struct outlet *outlet, const struct batch *batch, uint16_t index)
{
	outlet->rest_time = batch->events[index].time;
	outlet->rest_is_timed = outlet->rest_time != batch->received_ns;
}

/* What can be written; the rest stays in the output. False where Python has something to do before the next batch. */
static bool write_at_once(struct outlet *outlet, struct batch *batch)
{
	struct output *output = outlet->output;
	const struct event *first = &batch->events[batch->indexes[0]];
	size_t bytes, count = write_output(outlet, &batch->frames, &bytes);

	if (count)
		outlet->written[outlet->written_count++] =
			(struct written){ first->time == batch->received_ns ? 0 : first->time,
					  read_clock(CLOCK_REALTIME), count, bytes };
	if (count == output->count) {
		clear_output(output);
		return outlet->written_count < MOST_WRITTEN && !outlet->error;
	}
	outlet->rest_first = count;
	note_rest(outlet, batch, batch->indexes[count]);
	return false;
}

/* False for want of memory. */
static bool append_streams(struct outlet *outlet, const struct stream *streams, size_t count)
{
	if (outlet->stream_count + count > outlet->stream_capacity) {
		size_t capacity = 2 * outlet->stream_capacity + count;
		struct stream *grown = realloc(outlet->streams, capacity * sizeof(*grown));

		if (!grown)
			return false;
		outlet->streams = grown;
		outlet->stream_capacity = capacity;
	}
	for (size_t stream = 0; stream < count; stream++)
		outlet->streams[outlet->stream_count++] = streams[stream];
	return true;
}

int pass_batch(struct outlet *outlet, struct batch *batch, size_t kept)
{
	struct output *output = outlet->output;
	struct stream streams[MAX_STREAMS];
	size_t stream_count;

	if (!output->count)
		note_rest(outlet, batch, batch->indexes[0]);
	if (!render(outlet->template, batch->events, batch->indexes, kept, output, streams, &stream_count) ||
	    !append_streams(outlet, streams, stream_count))
		return -1;
	if (outlet->way != WAY_KEEP)
		return write_at_once(outlet, batch);
	if (output->length >= MUCH_TEXT)
		offer_rest(outlet);
	return output->count + batch->ring.slots <= outlet->room;
}

void offer_rest(struct outlet *outlet)
{
	const size_t count = outlet->output->count;

	if (outlet->writer && count &&
	    offer_text(outlet->writer, outlet->output, outlet->rest_time, outlet->rest_is_timed))
		outlet->left += count;
}

PyObject *make_written(const void *item)
{
	const struct written *written = item;

	return Py_BuildValue("KKnn", written->time, written->done, (Py_ssize_t)written->events,
			     (Py_ssize_t)written->bytes);
}

PyObject *list_passed(const void *item)
{
	const struct outlet *outlet = item;
	const struct output *output = outlet->output;
	const size_t first = outlet->rest_first, count = output->count - first;
	const uint32_t begin = first ? output->ends[first - 1] : 0;

	for (size_t event = first; event < output->count; event++)
		output->ends[event] -= begin;
	return Py_BuildValue("N(NNNNK)NnIin",
			     make_tuple(outlet->written, outlet->written_count, sizeof(*outlet->written), make_written),
			     make_bytes(output->text + begin, output->length - begin),
			     make_bytes(output->ends + first, count * sizeof(*output->ends)),
			     list_found_streams(outlet->streams, outlet->stream_count),
			     make_bytes(output->moments, outlet->stream_count ? count * sizeof(*output->moments) : 0),
			     outlet->rest_time, PyBool_FromLong(outlet->rest_is_timed), (Py_ssize_t)outlet->rest_torn,
			     outlet->number, outlet->error, (Py_ssize_t)outlet->left);
}
