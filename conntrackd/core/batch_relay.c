/* Batches that need nothing of Python: received, decided, rendered and written one after the other. */
#include "batch.h"
#include "decide.h"
#include "send.h"

#include <errno.h>
#include <limits.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define NANO_PER_MS 1000000ULL
#define MOST_WRITTEN 64 /* writes of one call */
#define QUIET_MS 20 /* without an event: then what was relayed is counted, for people look at numbers afterwards */

/* What becomes of a text. delivery/loan.py has the same. */
enum way {
	WAY_KEEP, /* it waits for Python, which gets those of all batches as one */
	WAY_DISCARD,
	WAY_WRITE, /* to a descriptor that does not block, in whole lines that a pipe keeps together */
	WAY_NOWAIT, /* the same to one that was inherited, and may block: by RWF_NOWAIT */
	WAY_SEND, /* as datagrams, over a connected socket */
	WAYS,
};

/* Of one write. */
struct written {
	uint64_t time; /* of the first event, 0 where the kernel gave none; ns since the epoch, and so is the next */
	uint64_t done;
	size_t events, bytes;
};

struct relay {
	struct batch *batch;
	struct table *table;
	struct template *template;
	int socket, gather_us, descriptor;
	enum way way;
	size_t room; /* events that may wait for Python */
	uint32_t drops; /* the kernel's counter: Python reports what comes to it */

	int received; /* datagrams of the last batch, which is Python's; or an error of recvmmsg() */
	size_t forged, malformed; /* of the last batch, too */
	struct fill fill; /* after the last receive */
	uint32_t peak; /* the most bytes that were queued */
	uint64_t looked_ns; /* when the counter of drops was still the same; 0 where that was not seen */
	/* What was relayed: */
	size_t batches, datagrams, all_forged, all_malformed, filtered;
	struct stream streams[MAX_STREAMS];
	size_t stream_count, written_count;
	struct written written[MOST_WRITTEN];
	/* What is in the batch's output: */
	uint64_t rest_time; /* of its first event */
	bool rest_is_timed; /* by the kernel */
	size_t rest_first; /* events of the output that were written already */
	size_t rest_torn; /* so many bytes of its first event are written */
};

/* ---- how a text is written ---------------------------------------------------------------------------- */

static ssize_t write_once(const struct relay *relay, const char *text, size_t bytes)
{
	struct iovec vector = { (char *)text, bytes };

	if (relay->way == WAY_NOWAIT)
		return pwritev2(relay->descriptor, &vector, 1, -1, RWF_NOWAIT);
	return write(relay->descriptor, text, bytes);
}

/* How many lines went out at once. Another one may be there in part. */
static size_t write_lines(struct relay *relay, const char *text, const uint32_t *ends, size_t count)
{
	size_t lines = 0, done = 0;

	while (lines < count) {
		size_t next = lines;
		ssize_t taken;

		while (next < count && ends[next] - done <= PIPE_BUF)
			next++;
		if (next == lines) /* longer than a pipe would keep together */
			break;
		taken = write_once(relay, text + done, ends[next - 1] - done);
		if (taken <= 0)
			break;
		done += (size_t)taken;
		while (lines < next && ends[lines] <= done)
			lines++;
		if (lines < next) { /* a socket's buffer is full */
			relay->rest_torn = done - (lines ? ends[lines - 1] : 0);
			break;
		}
	}
	return lines;
}

static void note_rest(struct relay *relay, uint16_t index)
{
	relay->rest_time = relay->batch->events[index].time;
	relay->rest_is_timed = relay->rest_time != relay->batch->received_ns;
}

static size_t write_output(struct relay *relay, const struct output *output)
{
	int error;

	switch (relay->way) {
	case WAY_DISCARD:
		return output->count;
	case WAY_WRITE:
	case WAY_NOWAIT:
		return write_lines(relay, output->text, output->ends, output->count);
	case WAY_SEND:
		return send_parts(relay->descriptor, output->text, output->ends, output->count, 0, 0, false, &error);
	case WAY_KEEP:
	case WAYS:
		break;
	}
	return 0;
}

/* False where something is left of it. */
static bool hand_on(struct relay *relay)
{
	struct batch *batch = relay->batch;
	struct output *output = &batch->output;
	const struct event *first = &batch->events[batch->indexes[0]];
	size_t count = write_output(relay, output);

	if (count)
		relay->written[relay->written_count++] =
			(struct written){ first->time == batch->received_ns ? 0 : first->time,
					  read_clock(CLOCK_REALTIME), count, output->ends[count - 1] };
	if (count == output->count) {
		clear_output(output);
		return true;
	}
	relay->rest_first = count;
	note_rest(relay, batch->indexes[count]);
	return false;
}

/* From decision to output: 1 where there may be another batch, 0 where not, -1 for want of memory. */
static int relay_batch(struct relay *relay)
{
	struct batch *batch = relay->batch;
	struct output *output = &batch->output;
	size_t none, kept;

	if (relay->table->limits)
		relay->table->now = read_clock(CLOCK_MONOTONIC);
	kept = decide(relay->table, batch->events, NULL, batch->count, batch->indexes, false);
	relay->batches++;
	relay->datagrams += (size_t)relay->received;
	relay->all_forged += relay->forged;
	relay->all_malformed += relay->malformed;
	relay->filtered += batch->count - kept;
	relay->received = 0;
	if (!kept)
		return 1;
	relay->stream_count = add_streams(batch->events, batch->indexes, kept, relay->streams, relay->stream_count);
	if (!output->count)
		note_rest(relay, batch->indexes[0]);
	if (!render(relay->template, batch->events, batch->indexes, kept, output, NULL, &none))
		return -1;
	if (relay->way == WAY_KEEP)
		return output->count + batch->ring.slots <= relay->room;
	return hand_on(relay);
}

/* An errno, 0 for none. */
static int receive_next(struct relay *relay, int patience_ms)
{
	struct batch *batch = relay->batch;
	int code = receive_events(batch, relay->socket, patience_ms, relay->gather_us, &relay->received, &relay->forged,
				  &relay->malformed);

	if (!code && !measure_fill(relay->socket, &relay->fill))
		code = errno;
	if (relay->fill.used > relay->peak)
		relay->peak = relay->fill.used;
	if (relay->fill.drops == relay->drops)
		relay->looked_ns = batch->received_ns;
	return code;
}

/* A full batch means a high load: Python queues it, so that the sink's thread writes it on another core. */
static bool is_for_python(const struct relay *relay)
{
	struct batch *batch = relay->batch;

	return atomic_exchange(&batch->is_interrupted, false) || relay->fill.drops != relay->drops ||
	       (relay->way != WAY_KEEP && (size_t)relay->received == batch->ring.slots);
}

/* Relays for so long, or until there is something for Python to do: a batch that came after interrupt(), with a loss,
 * or, where it is to be written, that fills the slots; what could not be written at once; no room. An errno, 0 for
 * none.
 */
static int relay_batches(struct relay *relay, int milliseconds)
{
	uint64_t end = read_clock(CLOCK_MONOTONIC) + (uint64_t)milliseconds * NANO_PER_MS, now;
	int code = 0, goes_on = 1;

	clear_output(&relay->batch->output);
	while (goes_on > 0 && relay->written_count < MOST_WRITTEN && (now = read_clock(CLOCK_MONOTONIC)) < end) {
		const int left_ms = (int)((end - now) / NANO_PER_MS) + 1;

		code = receive_next(relay, left_ms < QUIET_MS ? left_ms : QUIET_MS);
		if (code || !relay->received || is_for_python(relay))
			break;
		goes_on = relay_batch(relay);
	}
	return goes_on < 0 ? ENOMEM : code;
}

/* ---- for Python --------------------------------------------------------------------------------------- */

PyObject *batch_interrupt(PyObject *self, PyObject *Py_UNUSED(none))
{
	atomic_store(&((struct batch *)self)->is_interrupted, true);
	Py_RETURN_NONE;
}

static PyObject *list_written(const struct relay *relay)
{
	PyObject *found = PyTuple_New((Py_ssize_t)relay->written_count);

	for (size_t number = 0; found && number < relay->written_count; number++) {
		const struct written *written = &relay->written[number];
		PyObject *item = Py_BuildValue("KKnn", written->time, written->done, (Py_ssize_t)written->events,
					       (Py_ssize_t)written->bytes);

		if (!item || PyTuple_SetItem(found, (Py_ssize_t)number, item) < 0)
			Py_CLEAR(found);
	}
	return found;
}

/* What was not written: text, ends, time of its first event, whether the kernel gave that, and bytes of it that were
 * written.
 */
static PyObject *make_rest(const struct relay *relay)
{
	const struct output *output = &relay->batch->output;
	const size_t first = relay->rest_first, count = output->count - first;
	const uint32_t begin = first ? output->ends[first - 1] : 0;

	for (size_t event = first; event < output->count; event++)
		output->ends[event] -= begin;
	return Py_BuildValue("NNKNn", make_bytes(output->text + begin, output->length - begin),
			     make_bytes(output->ends + first, count * sizeof(*output->ends)), relay->rest_time,
			     PyBool_FromLong(relay->rest_is_timed), (Py_ssize_t)relay->rest_torn);
}

static PyObject *make_result(const struct relay *relay)
{
	return Py_BuildValue("(nnnIII)(nnnnnKI)NNN", (Py_ssize_t)(relay->received > 0 ? relay->received : 0),
			     (Py_ssize_t)relay->forged, (Py_ssize_t)relay->malformed, relay->fill.used,
			     relay->fill.size, relay->fill.drops, (Py_ssize_t)relay->batches,
			     (Py_ssize_t)relay->datagrams, (Py_ssize_t)relay->all_forged,
			     (Py_ssize_t)relay->all_malformed, (Py_ssize_t)relay->filtered, relay->looked_ns,
			     relay->peak, list_found_streams(relay->streams, relay->stream_count), list_written(relay),
			     make_rest(relay));
}

PyObject *batch_relay(PyObject *self, PyObject *arguments)
{
	struct relay relay = { .batch = (struct batch *)self };
	PyObject *table, *template;
	int milliseconds, way, code;
	Py_ssize_t room;

	if (!PyArg_ParseTuple(arguments, "iiIiO!O!iin:relay", &relay.socket, &relay.gather_us, &relay.drops,
			      &milliseconds, find_state(self)->table, &table, find_state(self)->template, &template,
			      &way, &relay.descriptor, &room))
		return NULL;
	if (way < 0 || way >= WAYS || room < 0 || relay.gather_us < 0 || milliseconds < 0) {
		PyErr_SetString(PyExc_ValueError, "no such way, or less than nothing");
		return NULL;
	}
	if (!is_idle(self) || !is_idle(table) || !is_idle(template))
		return NULL;
	relay.table = open_object_table(table);
	relay.template = open_object_template(template);
	relay.way = (enum way)way;
	relay.room = (size_t)room;
	if (relay.template->by_stream) {
		PyErr_SetString(PyExc_ValueError, "a text by stream is one of a batch");
		return NULL;
	}
	claim_object(self);
	claim_object(table);
	claim_object(template);
	Py_BEGIN_ALLOW_THREADS
	code = relay_batches(&relay, milliseconds);
	Py_END_ALLOW_THREADS
	leave_object(template);
	leave_object(table);
	leave_object(self);
	/* What was relayed before is to be counted: the next call meets the error again. */
	return code && (!relay.batches || code == ENOMEM) ? raise_code(code) : make_result(&relay);
}
