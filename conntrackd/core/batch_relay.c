/* Batches that need nothing of Python: received, decided, rendered and written one after the other. */
#include "decide.h"
#include "outlet.h"
#include "send.h"

#include <errno.h>
#include <stdlib.h>
#include <time.h>

#define NANO_PER_MS 1000000ULL
#define QUIET_MS 20 /* without an event: then what was relayed is counted, for people look at numbers afterwards */

struct relay {
	struct batch *batch;
	struct table *table;
	PyObject *table_object; /* borrowed, as are the next two */
	PyObject *locations_object, *flows_object; /* each may be None */
	struct locations *locations; /* NULL where events have none */
	struct flows *flows; /* NULL where no beginning is remembered */
	int writes_flows; /* a FLOW for each DESTROY */
	int socket, gather_us, milliseconds;
	uint32_t drops; /* the kernel's counter as Python knows it: what is added, Python reports */

	/* The last batch: */
	int received; /* datagrams, 0 when it has been relayed; -1 for an error of recvmmsg() */
	size_t forged, malformed;
	bool is_full; /* it filled the slots */
	bool is_decided; /* by the rules, and left to Python for an address that has to be looked up */
	size_t kept; /* events, by the first of the batch's indexes */
	/* The socket's queue: */
	struct fill fill; /* after the last receive */
	uint32_t peak; /* the most bytes that were queued */
	uint64_t looked_ns; /* when the counter of drops was last the same; 0 where it never was */
	/* What was relayed: */
	size_t batches, datagrams, all_forged, all_malformed, filtered, forgotten;
	struct stream streams[MAX_STREAMS];
	size_t stream_count;
	size_t outlet_count;
	bool spreads; /* whether other threads are to write what comes under a high load */
	struct outlet outlets[MOST_OUTLETS];
};

/* ---- batch after batch -------------------------------------------------------------------------------- */

/* Of the events at the first `count` of the batch's indexes; false where Python has to look an address up. */
static bool set_locations(struct relay *relay, size_t count)
{
	struct batch *batch = relay->batch;

	return !relay->locations || locate(relay->locations, batch->events, batch->indexes, count, true, NULL, NULL);
}

/*
 * Decides the batch and sets its locations; false where Python has to go on, for an address that it has to look up.
 * Rules that ask for a location need that of every event: then nothing is decided before all are known. Others need
 * none, so that only what they keep is located, and Python gets that selection: to decide again would take a limit's
 * tokens twice.
 */
static bool choose(struct relay *relay)
{
	struct batch *batch = relay->batch;
	const bool asks_location = relay->locations && relay->table->location_words;

	if (asks_location) {
		select_all(batch);
		if (!set_locations(relay, batch->count))
			return false;
	}
	for (size_t index = 0; relay->flows && index < batch->count; index++)
		note_event(relay->flows, &batch->events[index], &relay->forgotten);
	if (relay->table->limits)
		relay->table->now = read_clock(CLOCK_MONOTONIC);
	relay->kept = decide(relay->table, batch->events, NULL, batch->count, batch->indexes, false);
	relay->is_decided = !asks_location && !set_locations(relay, relay->kept);
	return !relay->is_decided;
}

/* From decision to outlets: 1 where another batch may follow, 0 where not, -1 for want of memory. */
static int relay_batch(struct relay *relay)
{
	struct batch *batch = relay->batch;
	int goes_on = 1;
	size_t kept;

	if (!choose(relay))
		return 0;
	kept = relay->kept;
	relay->batches++;
	relay->datagrams += (size_t)relay->received;
	relay->all_forged += relay->forged;
	relay->all_malformed += relay->malformed;
	relay->filtered += batch->count - kept;
	relay->received = 0;
	if (!kept)
		return 1;
	for (size_t index = 0; relay->writes_flows && index < kept; index++)
		if (batch->events[batch->indexes[index]].type == TYPE_DESTROY)
			set_type(&batch->events[batch->indexes[index]], TYPE_FLOW);
	relay->stream_count = add_streams(batch->events, batch->indexes, kept, relay->streams, relay->stream_count);
	for (size_t outlet = 0; outlet < relay->outlet_count; outlet++) {
		const int passed = pass_batch(&relay->outlets[outlet], batch, kept);

		goes_on = passed < goes_on ? passed : goes_on;
	}
	return goes_on;
}

/* Receives a batch, and looks at the queue behind it. An errno, 0 for none. */
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

/* Before it is decided. Two full batches in a row mean a high load: Python queues the second one, so that a sink's
 * thread writes it on another core.
 */
static bool is_for_python(struct relay *relay)
{
	struct batch *batch = relay->batch;
	const bool was_full = relay->is_full;

	relay->is_full = (size_t)relay->received == batch->ring.slots;
	return atomic_exchange(&batch->is_interrupted, false) || relay->fill.drops != relay->drops ||
	       (relay->spreads && was_full && relay->is_full);
}

/*
 * Relays for so many milliseconds, or until there is something for Python to do: a batch that came after interrupt() or
 * with a loss, or is the second one in a row that fills the slots; an address to look up; what could not be written at
 * once; no room; QUIET_MS without an event. An errno, 0 for none.
 */
static int relay_batches(struct relay *relay)
{
	uint64_t now = read_clock(CLOCK_MONOTONIC), end = now + (uint64_t)relay->milliseconds * NANO_PER_MS;
	int code = 0, goes_on = 1;

	do { /* at least once, however late it is by now: Python accounts for losses by what is measured */
		const uint64_t left_ms = (end - now) / NANO_PER_MS + 1;

		code = receive_next(relay, left_ms < QUIET_MS ? (int)left_ms : QUIET_MS);
		if (code || !relay->received || is_for_python(relay))
			break;
		goes_on = relay_batch(relay);
		now = read_clock(CLOCK_MONOTONIC);
	} while (goes_on > 0 && now < end);
	for (size_t outlet = 0; goes_on >= 0 && outlet < relay->outlet_count; outlet++)
		offer_rest(&relay->outlets[outlet]);
	return goes_on < 0 ? ENOMEM : code;
}

/* ---- for Python --------------------------------------------------------------------------------------- */

PyObject *batch_interrupt(PyObject *self, PyObject *Py_UNUSED(none))
{
	atomic_store(&((struct batch *)self)->is_interrupted, true);
	Py_RETURN_NONE;
}

static PyObject *make_result(const struct relay *relay)
{
	PyObject *decided = relay->is_decided ? make_selection(relay->batch, relay->kept) : Py_NewRef(Py_None);

	return Py_BuildValue("(nnnIII)N(nnnnnnKI)NN", (Py_ssize_t)(relay->received > 0 ? relay->received : 0),
			     (Py_ssize_t)relay->forged, (Py_ssize_t)relay->malformed, relay->fill.used,
			     relay->fill.size, relay->fill.drops, decided, (Py_ssize_t)relay->batches,
			     (Py_ssize_t)relay->datagrams, (Py_ssize_t)relay->all_forged,
			     (Py_ssize_t)relay->all_malformed, (Py_ssize_t)relay->filtered,
			     (Py_ssize_t)relay->forgotten, relay->looked_ns, relay->peak,
			     list_found_streams(relay->streams, relay->stream_count),
			     make_tuple(relay->outlets, relay->outlet_count, sizeof(*relay->outlets), list_passed));
}

/* A Writer or None; false with an exception. Unlike what is_free() asks for it may be in use: its sink's thread runs it
 * meanwhile.
 */
static bool is_writer(PyObject *object, PyTypeObject *type)
{
	if (object == Py_None || Py_IS_TYPE(object, type))
		return true;
	PyErr_SetString(PyExc_TypeError, "text is left for a Writer");
	return false;
}

/* False with an exception. */
static bool open_outlet(struct relay *relay, PyObject *self, PyObject *arguments)
{
	struct outlet *outlet = &relay->outlets[relay->outlet_count];
	Py_ssize_t room, number, also_refused;
	PyObject *writer;
	int way;

	if (!PyArg_ParseTuple(arguments, "O!iinnnO:outlet", find_state(self)->template, &outlet->object, &way,
			      &outlet->descriptor, &number, &also_refused, &room, &writer) ||
	    !is_writer(writer, find_state(self)->writer))
		return false;
	if (way < 0 || way >= WAYS || room < 0 || also_refused < 0 || number < 1 || number > MAX_SEQUENCE) {
		PyErr_SetString(PyExc_ValueError, "no such way, no number of a message, or less than nothing");
		return false;
	}
	outlet->template = open_object_template(outlet->object);
	outlet->writer = writer == Py_None ? NULL : open_object_writer(writer);
	if ((way != WAY_KEEP) + outlet->template->by_stream + !!outlet->writer > 1) {
		PyErr_SetString(PyExc_ValueError, "of a way, a text by stream and a writer one excludes the others");
		return false;
	}
	outlet->way = (enum way)way;
	outlet->number = (uint32_t)number;
	outlet->also_refused = (size_t)also_refused;
	outlet->room = (size_t)room;
	outlet->output = &relay->batch->outputs[relay->outlet_count++];
	clear_output(outlet->output);
	/* Not syslog's datagrams: at 150,000 events/s less is lost where the thread that reads sends them. */
	relay->spreads |= way == WAY_WRITE || way == WAY_NOWAIT || way == WAY_SEND;
	return is_idle(outlet->object);
}

/* False with an exception: also where something of it is in use. */
static bool open_relay(struct relay *relay, PyObject *self, PyObject *arguments)
{
	const struct module_state *state = find_state(self);
	PyObject *outlets;
	Py_ssize_t count;

	if (!PyArg_ParseTuple(arguments, "iiIiO!OOpO!:relay", &relay->socket, &relay->gather_us, &relay->drops,
			      &relay->milliseconds, state->table, &relay->table_object, &relay->locations_object,
			      &relay->flows_object, &relay->writes_flows, &PyTuple_Type, &outlets))
		return false;
	count = PyTuple_Size(outlets);
	if (count < 1 || count > MOST_OUTLETS || relay->gather_us < 0 || relay->milliseconds < 0) {
		PyErr_SetString(PyExc_ValueError, "no outlet, too many of them, or less than nothing");
		return false;
	}
	relay->batch = (struct batch *)self;
	relay->table = open_object_table(relay->table_object);
	if (!is_idle(self) || !is_idle(relay->table_object) ||
	    !is_free(relay->locations_object, state->locations, "events are located by Locations") ||
	    !is_free(relay->flows_object, state->flows, "flows are remembered by Flows"))
		return false;
	if (relay->locations_object != Py_None)
		relay->locations = open_object_locations(relay->locations_object);
	if (relay->flows_object != Py_None)
		relay->flows = open_object_flows(relay->flows_object);
	for (Py_ssize_t number = 0; number < count; number++)
		if (!open_outlet(relay, self, PyTuple_GetItem(outlets, number)))
			return false;
	return true;
}

/* One may be set twice: two sinks may have the same template. */
static void set_busy(PyObject *object)
{
	((struct object *)object)->is_busy = true;
}

static void for_all_objects(struct relay *relay, void (*call)(PyObject *object))
{
	call((PyObject *)relay->batch);
	call(relay->table_object);
	if (relay->locations)
		call(relay->locations_object);
	if (relay->flows)
		call(relay->flows_object);
	for (size_t outlet = 0; outlet < relay->outlet_count; outlet++)
		call(relay->outlets[outlet].object);
}

PyObject *batch_relay(PyObject *self, PyObject *arguments)
{
	struct relay relay = { .batch = NULL };
	PyObject *result;
	int code;

	if (!open_relay(&relay, self, arguments))
		return NULL;
	for_all_objects(&relay, set_busy);
	Py_BEGIN_ALLOW_THREADS
	code = relay_batches(&relay);
	Py_END_ALLOW_THREADS
	/* What was relayed before an error has to be counted. The next call meets that error again. */
	result = code && (!relay.batches || code == ENOMEM) ? raise_code(code) : make_result(&relay);
	for_all_objects(&relay, leave_object);
	for (size_t outlet = 0; outlet < relay.outlet_count; outlet++)
		free(relay.outlets[outlet].streams);
	return result;
}
