/* Batch: the slots of a socket and the events in them. receive(), decide() and render() release the lock. */
#include "batch.h"

#include "decide.h"
#include "fields.h"

#include <stdlib.h>

#define MAX_SLOTS 4096
#define MAX_SLOT_BYTES (1 << 20)

/* ---- methods ------------------------------------------------------------------------------------------ */

static PyObject *batch_decide(PyObject *self, PyObject *arguments)
{
	struct batch *batch = (struct batch *)self;
	struct selection selection;
	PyObject *table, *among;
	unsigned long long now = 0;
	int is_part = 0;
	size_t count;

	if (!PyArg_ParseTuple(arguments, "O!O|pK:decide", find_state(self)->table, &table, &among, &is_part, &now) ||
	    !open_selection(batch, among, &selection) || !claim_object(table))
		return NULL;
	if (is_part && !reserve_rates(open_object_table(table), batch->count)) {
		leave_object(table);
		return PyErr_NoMemory();
	}
	open_object_table(table)->now = now;
	claim_object(self);
	Py_BEGIN_ALLOW_THREADS
	count = decide(open_object_table(table), batch->events, selection.indexes, selection.count, batch->indexes,
		       is_part != 0);
	Py_END_ALLOW_THREADS
	leave_object(table);
	leave_object(self);
	return make_selection(batch, count);
}

static bool append_missing(void *list, const uint8_t *address, size_t bytes)
{
	PyObject *missing = PyBytes_FromStringAndSize((const char *)address, (Py_ssize_t)bytes);
	int failed = missing ? PyList_Append(list, missing) : -1;

	Py_XDECREF(missing);
	return failed == 0;
}

static PyObject *batch_locate(PyObject *self, PyObject *arguments)
{
	struct batch *batch = (struct batch *)self;
	PyObject *locations, *kept, *missing;
	struct selection selection;
	int is_first;

	if (!PyArg_ParseTuple(arguments, "O!Op:locate", find_state(self)->locations, &locations, &kept, &is_first))
		return NULL;
	missing = PyList_New(0); /* before the events are looked at: the collector may run, and what it ends */
	if (missing && !open_selection(batch, kept, &selection)) {
		Py_DECREF(missing);
		return NULL;
	}
	if (missing && !locate(open_object_locations(locations), batch->events, selection.indexes, selection.count,
			       is_first, append_missing, missing)) {
		Py_DECREF(missing);
		return PyErr_Occurred() ? NULL : PyErr_NoMemory();
	}
	return missing;
}

static PyObject *make_stream(const void *item)
{
	const struct stream *stream = item;

	return Py_BuildValue("iiI", stream->type, stream->protocol, stream->events);
}

PyObject *list_found_streams(const struct stream *streams, size_t count)
{
	return make_tuple(streams, count, sizeof(*streams), make_stream);
}

PyObject *make_bytes(const void *bytes, size_t size)
{
	return PyBytes_FromStringAndSize(size ? bytes : "", (Py_ssize_t)size);
}

bool is_free(PyObject *object, PyTypeObject *type, const char *otherwise)
{
	if (object == Py_None)
		return true;
	if (!Py_IS_TYPE(object, type)) {
		PyErr_SetString(PyExc_TypeError, otherwise);
		return false;
	}
	return is_idle(object);
}

/* For as long as a text is made: the samples of a part, and what is written in place of addresses. False for want of
 * memory.
 */
static bool begin_render(struct batch *batch, const struct selection *selection, PyObject *part, PyObject *anonymizer)
{
	if (anonymizer != Py_None &&
	    !conceal(open_object_anonymizer(anonymizer), batch->events, selection->indexes, selection->count))
		return false;
	if (anonymizer != Py_None)
		claim_object(anonymizer);
	if (part != Py_None) { /* another decision by it would change what is given back below */
		claim_object(part);
		exchange_rates(open_object_table(part), batch->events, selection->indexes, selection->count);
	}
	return true;
}

static void end_render(struct batch *batch, const struct selection *selection, PyObject *part, PyObject *anonymizer)
{
	if (part != Py_None) {
		exchange_rates(open_object_table(part), batch->events, selection->indexes, selection->count);
		leave_object(part);
	}
	if (anonymizer != Py_None) {
		reveal(open_object_anonymizer(anonymizer), batch->events, selection->indexes, selection->count);
		leave_object(anonymizer);
	}
}

static PyObject *batch_render(PyObject *self, PyObject *arguments)
{
	struct batch *batch = (struct batch *)self;
	struct stream streams[MAX_STREAMS];
	size_t stream_count, moments;
	struct selection selection;
	PyObject *object, *kept, *part = Py_None, *anonymizer = Py_None;
	struct template *template;
	PyObject *result = NULL;
	bool has_memory;

	if (!PyArg_ParseTuple(arguments, "O!O|OO:render", find_state(self)->template, &object, &kept, &part,
			      &anonymizer) ||
	    !is_free(part, find_state(self)->table, "a part is decided by a Table") ||
	    !is_free(anonymizer, find_state(self)->anonymizer, "a part is concealed by an Anonymizer") ||
	    !open_selection(batch, kept, &selection) || !is_idle(object))
		return NULL;
	if (!begin_render(batch, &selection, part, anonymizer))
		return PyErr_NoMemory();
	claim_object(object);
	claim_object(self);
	template = open_object_template(object);
	clear_output(batch->outputs);
	Py_BEGIN_ALLOW_THREADS
	has_memory = render(template, batch->events, selection.indexes, selection.count, batch->outputs, streams,
			    &stream_count);
	Py_END_ALLOW_THREADS
	moments = template->by_stream ? selection.count : 0;
	if (has_memory)
		result = Py_BuildValue("NNNNK", make_bytes(batch->outputs->text, batch->outputs->length),
				       make_bytes(batch->outputs->ends, selection.count * sizeof(uint32_t)),
				       list_found_streams(streams, stream_count),
				       make_bytes(batch->outputs->moments, moments * sizeof(uint64_t)),
				       selection.count ? batch->events[selection.indexes[0]].time : 0);
	end_render(batch, &selection, part, anonymizer);
	leave_object(object);
	leave_object(self);
	return has_memory ? result : PyErr_NoMemory();
}

/* How many of each type and protocol there are. */
static PyObject *batch_tally(PyObject *self, PyObject *kept)
{
	struct batch *batch = (struct batch *)self;
	struct stream streams[MAX_STREAMS];
	struct selection selection;
	size_t count;

	if (!open_selection(batch, kept, &selection))
		return NULL;
	count = add_streams(batch->events, selection.indexes, selection.count, streams, 0);
	return list_found_streams(streams, count);
}

static bool is_of_type(const struct event *event, const void *mask)
{
	return event->type & *(const int *)mask;
}

static PyObject *batch_of_types(PyObject *self, PyObject *arguments)
{
	struct batch *batch = (struct batch *)self;
	struct selection selection;
	PyObject *among;
	int mask;

	if (!PyArg_ParseTuple(arguments, "Oi:of_types", &among, &mask) || !open_selection(batch, among, &selection))
		return NULL;
	return select_events(batch, &selection, is_of_type, &mask);
}

static PyObject *batch_set_type(PyObject *self, PyObject *arguments)
{
	struct batch *batch = (struct batch *)self;
	struct selection selection;
	PyObject *among;
	int type;

	if (!PyArg_ParseTuple(arguments, "Oi:set_type", &among, &type) || !open_selection(batch, among, &selection))
		return NULL;
	if (type != TYPE_NEW && type != TYPE_UPDATE && type != TYPE_DESTROY && type != TYPE_SNAPSHOT &&
	    type != TYPE_FLOW && type != TYPE_ALIVE) {
		PyErr_SetString(PyExc_ValueError, "there is no such type of events");
		return NULL;
	}
	for (size_t index = 0; index < selection.count; index++)
		set_type(&batch->events[selection.indexes[index]], (uint8_t)type);
	Py_RETURN_NONE;
}

static PyObject *batch_describe(PyObject *self, PyObject *arguments)
{
	const struct batch *batch = (struct batch *)self;
	PyObject *found;
	Py_ssize_t index;

	if (!PyArg_ParseTuple(arguments, "n:describe", &index) || !is_idle(self))
		return NULL;
	if (index < 0 || (size_t)index >= batch->count) {
		PyErr_SetString(PyExc_IndexError, "there is no such event");
		return NULL;
	}
	claim_object(self);
	found = PyDict_New();
	for (size_t field = 0; found && field < event_field_count; field++) {
		PyObject *value = describe_field(&batch->events[index], field);

		if (!value || PyDict_SetItemString(found, event_fields[field].name, value) < 0)
			Py_CLEAR(found);
		Py_XDECREF(value);
	}
	leave_object(self);
	return found;
}

static PyObject *batch_get_time(PyObject *self, PyObject *arguments)
{
	struct batch *batch = (struct batch *)self;
	struct selection selection;
	PyObject *selected;
	Py_ssize_t position;

	if (!PyArg_ParseTuple(arguments, "On:time", &selected, &position) ||
	    !open_selection(batch, selected, &selection))
		return NULL;
	position += position < 0 ? (Py_ssize_t)selection.count : 0;
	if (position < 0 || (size_t)position >= selection.count) {
		PyErr_SetString(PyExc_IndexError, "there is no such event");
		return NULL;
	}
	return PyLong_FromUnsignedLongLong(batch->events[selection.indexes[position]].time);
}

static PyObject *batch_get_received_ns(PyObject *self, void *Py_UNUSED(closure))
{
	return PyLong_FromUnsignedLongLong(((struct batch *)self)->received_ns);
}

/* ---- the type ----------------------------------------------------------------------------------------- */

static Py_ssize_t batch_length(PyObject *self)
{
	return (Py_ssize_t)((struct batch *)self)->count;
}

static PyObject *batch_new(PyTypeObject *type, PyObject *arguments, PyObject *names)
{
	static char *keywords[] = { "slots", "slot_bytes", "reports_reason", NULL };
	Py_ssize_t slots, slot_bytes;
	struct batch *batch;
	int reports_reason;

	if (!PyArg_ParseTupleAndKeywords(arguments, names, "nnp:Batch", keywords, &slots, &slot_bytes, &reports_reason))
		return NULL;
	if (slots < 1 || slots > MAX_SLOTS || slot_bytes < 1 || slot_bytes > MAX_SLOT_BYTES) {
		PyErr_SetString(PyExc_ValueError, "too many slots, or none");
		return NULL;
	}
	batch = make_object(type);
	if (!batch)
		return NULL;
	batch->reports_reason = reports_reason;
	if (!open_ring(&batch->ring, (size_t)slots, (size_t)slot_bytes)) {
		Py_DECREF(batch);
		return PyErr_NoMemory();
	}
	return (PyObject *)batch;
}

static void batch_dealloc(PyObject *self)
{
	struct batch *batch = (struct batch *)self;

	close_ring(&batch->ring);
	for (size_t output = 0; output < MOST_OUTLETS; output++)
		close_output(&batch->outputs[output]);
	free(batch->frames.ends);
	Py_XDECREF(batch->loaded);
	free(batch->events);
	free(batch->indexes);
	free_object(self);
}

static PyMethodDef methods[] = {
	{ "receive", batch_receive, METH_VARARGS,
	  "(socket, patience_ms, gather_us) -> datagrams, forged, malformed; bytes queued, bytes the\n"
	  "queue may have, events dropped. Waits, and reads what has come: datagrams is 0 for nothing. OSError." },
	{ "relay", batch_relay, METH_VARARGS,
	  "(socket, gather_us, drops, milliseconds, table, outlets as tuples of template, way, descriptor, room).\n"
	  "-> what receive() gives of the last batch, which is not relayed; batches, datagrams, forged, malformed,\n"
	  "filtered, when the drops were still the same, most bytes queued; kinds as tally() has them; for each "
	  "outlet\n"
	  "time, done, events and bytes of each write, and what was not written: text, ends, streams, moments, time,\n"
	  "whether that is the kernel's, and bytes of it that were." },
	{ "interrupt", batch_interrupt, METH_NOARGS,
	  "(): a relay() that is under way, or begins now, leaves what it receives next to its caller. From any\n"
	  "thread." },
	{ "load", batch_load, METH_VARARGS,
	  "(messages, offset, received_ns) -> offset of what was not read, messages, malformed.\n"
	  "Ends at an incomplete message, at a control message of netlink's, and when the slots are full." },
	{ "datagrams", batch_datagrams, METH_VARARGS,
	  "(limit) -> number, bytes: the datagrams of the last receive, one behind the other, each padded." },
	{ "decide", batch_decide, METH_VARARGS,
	  "(table, selection, is_part=False, now=0) -> the selection that the rules keep: indexes as native uint16,\n"
	  "in bytes. Here and below None is the selection of all events. is_part: of what another table has kept;\n"
	  "now: in nanoseconds, for the rules' limits." },
	{ "locate", batch_locate, METH_VARARGS,
	  "(locations, selection, is_first) -> addresses that are not known yet, 4 or 16 bytes each." },
	{ "render", batch_render, METH_VARARGS,
	  "(template, selection, part=None) -> text, ends as uint32, streams (type, protocol, events), moments as "
	  "uint64,\n"
	  "time of the first event." },
	{ "tally", batch_tally, METH_O, "(selection) -> (type, protocol, events) of each kind that is there." },
	{ "of_types", batch_of_types, METH_VARARGS, "(selection, mask) -> those whose type is in the mask." },
	{ "set_type", batch_set_type, METH_VARARGS, "(selection, type): all of them are of this type now." },
	{ "describe", batch_describe, METH_VARARGS, "(index) -> all fields by name, None for what is not there." },
	{ "time", batch_get_time, METH_VARARGS, "(selection, position) -> the event's time, ns since the epoch." },
	{ 0 },
};
static PyGetSetDef properties[] = {
	{ "received_ns", batch_get_received_ns, NULL, "When the events were read, ns since the epoch.", NULL },
	{ 0 },
};
static PyType_Slot slots[] = {
	{ Py_tp_new, batch_new },
	{ Py_tp_dealloc, batch_dealloc },
	{ Py_tp_methods, methods },
	{ Py_tp_getset, properties },
	{ Py_sq_length, batch_length },
	{ Py_tp_doc, "Datagrams of a netlink socket and the events in them. Belongs to one thread." },
	{ 0, NULL },
};
static PyType_Spec spec = { "conntrackd.core._core.Batch", sizeof(struct batch), 0, Py_TPFLAGS_DEFAULT, slots };

PyTypeObject *create_batch_type(PyObject *module)
{
	return (PyTypeObject *)PyType_FromModuleAndSpec(module, &spec, NULL);
}
