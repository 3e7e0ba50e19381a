/* Batch: the slots of a socket and the events in them. Every call that waits or works releases the lock. */
#include "batch.h"

#include "decide.h"
#include "fields.h"

#include <errno.h>
#include <linux/netlink.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* ---- methods ------------------------------------------------------------------------------------------ */

static PyObject *batch_receive(PyObject *self, PyObject *arguments)
{
	struct batch *batch = (struct batch *)self;
	int socket, patience_ms, gather_us, received, code = 0;
	size_t malformed = 0, forged = 0;
	struct fill fill = { 0 };
	bool has_memory = true;

	if (!PyArg_ParseTuple(arguments, "iii:receive", &socket, &patience_ms, &gather_us))
		return NULL;
	Py_BEGIN_ALLOW_THREADS
	batch->count = 0;
	received = ring_receive(&batch->ring, socket, patience_ms, gather_us);
	batch->received_ns = read_clock(CLOCK_REALTIME);
	for (int slot = 0; slot < received && has_memory; slot++) {
		size_t length;
		const uint8_t *datagram = ring_datagram(&batch->ring, (size_t)slot, &length);

		if (ring_is_forged(&batch->ring, (size_t)slot))
			forged++;
		else if (!datagram)
			malformed++;
		else
			has_memory = append_datagram(batch, datagram, length, &malformed);
	}
	if (received < 0 || !measure_fill(socket, &fill))
		code = errno;
	Py_END_ALLOW_THREADS
	if (!has_memory)
		return PyErr_NoMemory();
	if (code) {
		errno = code;
		return PyErr_SetFromErrno(PyExc_OSError);
	}
	return Py_BuildValue("nnnIII", (Py_ssize_t)received, (Py_ssize_t)forged, (Py_ssize_t)malformed, fill.used,
			     fill.size, fill.drops);
}

/* Whole messages of this buffer from `offset` on, until one that is no event of conntrack's but netlink's own. */
static PyObject *batch_load(PyObject *self, PyObject *arguments)
{
	struct batch *batch = (struct batch *)self;
	const char *messages;
	Py_ssize_t length, offset;
	unsigned long long received_ns;
	size_t malformed = 0, seen = 0, at;
	bool has_memory;

	if (!PyArg_ParseTuple(arguments, "y#nK:load", &messages, &length, &offset, &received_ns))
		return NULL;
	if (offset < 0 || offset > length) {
		PyErr_SetString(PyExc_ValueError, "an offset outside the messages");
		return NULL;
	}
	free(batch->loaded);
	batch->loaded = malloc((size_t)(length - offset) + 1);
	has_memory = batch->loaded != NULL;
	batch->count = 0;
	batch->received_ns = received_ns;
	length -= offset;
	if (has_memory)
		memcpy(batch->loaded, messages + offset, (size_t)length);
	for (at = 0; has_memory && (size_t)length - at >= NLMSG_HDRLEN && seen < batch->ring.slots; seen++) {
		struct nlmsghdr header;

		memcpy(&header, batch->loaded + at, sizeof(header));
		if (header.nlmsg_len < NLMSG_HDRLEN || header.nlmsg_len > (size_t)length - at ||
		    header.nlmsg_type < NLMSG_MIN_TYPE)
			break;
		has_memory = append_message(batch, batch->loaded + at, header.nlmsg_len, &malformed);
		at += NLMSG_ALIGN(header.nlmsg_len);
		at = at < (size_t)length ? at : (size_t)length;
	}
	if (!has_memory)
		return PyErr_NoMemory();
	return Py_BuildValue("nnn", offset + (Py_ssize_t)at, (Py_ssize_t)seen, (Py_ssize_t)malformed);
}

/* The datagrams of the last receive as a recording has them: at most `limit`, each padded. */
static PyObject *batch_datagrams(PyObject *self, PyObject *arguments)
{
	struct batch *batch = (struct batch *)self;
	size_t size = 0, length, slot, count = 0;
	Py_ssize_t limit;
	PyObject *bytes;
	char *copy;

	if (!PyArg_ParseTuple(arguments, "n:datagrams", &limit))
		return NULL;
	copy = calloc(batch->ring.received + 1, NLMSG_ALIGN(batch->ring.slot_bytes));
	if (!copy)
		return PyErr_NoMemory();
	for (slot = 0; slot < batch->ring.received && count < (size_t)limit; slot++) {
		const uint8_t *datagram = ring_datagram(&batch->ring, slot, &length);

		if (!datagram || !length || ring_is_forged(&batch->ring, slot))
			continue;
		memcpy(copy + size, datagram, length);
		size += NLMSG_ALIGN(length);
		count++;
	}
	bytes = PyBytes_FromStringAndSize(copy, (Py_ssize_t)size);
	free(copy);
	return bytes ? Py_BuildValue("nN", (Py_ssize_t)count, bytes) : NULL;
}

static PyObject *batch_decide(PyObject *self, PyObject *arguments)
{
	struct batch *batch = (struct batch *)self;
	struct selection selection;
	PyObject *table, *among;
	size_t count;

	if (!PyArg_ParseTuple(arguments, "O!O:decide", find_state(self)->table, &table, &among) ||
	    !open_selection(batch, among, &selection))
		return NULL;
	Py_BEGIN_ALLOW_THREADS
	count = decide(open_object_table(table), batch->events, selection.indexes, selection.count,
		       batch->indexes);
	Py_END_ALLOW_THREADS
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

	if (!PyArg_ParseTuple(arguments, "O!Op:locate", find_state(self)->locations, &locations, &kept, &is_first) ||
	    !open_selection(batch, kept, &selection))
		return NULL;
	missing = PyList_New(0);
	if (missing && !locate(open_object_locations(locations), batch->events, selection.indexes, selection.count,
			       is_first, append_missing, missing)) {
		Py_DECREF(missing);
		return PyErr_Occurred() ? NULL : PyErr_NoMemory();
	}
	return missing;
}

static PyObject *list_found_streams(const struct stream *streams, size_t count)
{
	PyObject *found = PyTuple_New((Py_ssize_t)count);

	for (size_t stream = 0; found && stream < count; stream++) {
		PyObject *item = Py_BuildValue("iiI", streams[stream].type, streams[stream].protocol,
					       streams[stream].events);

		if (!item || PyTuple_SetItem(found, (Py_ssize_t)stream, item) < 0)
			Py_CLEAR(found);
	}
	return found;
}

static PyObject *batch_render(PyObject *self, PyObject *arguments)
{
	struct batch *batch = (struct batch *)self;
	struct stream streams[MAX_STREAMS];
	size_t stream_count, moments;
	struct selection selection;
	PyObject *object, *kept;
	struct template *template;
	bool has_memory;

	if (!PyArg_ParseTuple(arguments, "O!O:render", find_state(self)->template, &object, &kept) ||
	    !open_selection(batch, kept, &selection))
		return NULL;
	template = open_object_template(object);
	Py_BEGIN_ALLOW_THREADS
	has_memory = render(template, batch->events, selection.indexes, selection.count, &batch->output, streams,
			    &stream_count);
	Py_END_ALLOW_THREADS
	if (!has_memory)
		return PyErr_NoMemory();
	moments = template->by_stream ? selection.count : 0;
	return Py_BuildValue("y#y#Ny#K", batch->output.text, (Py_ssize_t)batch->output.length, batch->output.ends,
			     (Py_ssize_t)(selection.count * sizeof(uint32_t)), list_found_streams(streams, stream_count),
			     batch->output.moments, (Py_ssize_t)(moments * sizeof(uint64_t)),
			     selection.count ? batch->events[selection.indexes[0]].time : 0);
}

/* How many of each type and protocol there are. */
static PyObject *batch_tally(PyObject *self, PyObject *kept)
{
	struct batch *batch = (struct batch *)self;
	struct stream streams[MAX_STREAMS];
	struct selection selection;

	if (!open_selection(batch, kept, &selection))
		return NULL;
	return list_found_streams(streams,
				  list_streams(batch->events, selection.indexes, selection.count, streams));
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
	for (size_t index = 0; index < selection.count; index++)
		batch->events[selection.indexes[index]].type = (uint8_t)type;
	Py_RETURN_NONE;
}

static PyObject *batch_describe(PyObject *self, PyObject *arguments)
{
	const struct batch *batch = (struct batch *)self;
	PyObject *found = NULL;
	Py_ssize_t index;

	if (!PyArg_ParseTuple(arguments, "n:describe", &index))
		return NULL;
	if (index < 0 || (size_t)index >= batch->count) {
		PyErr_SetString(PyExc_IndexError, "there is no such event");
		return NULL;
	}
	found = PyDict_New();
	for (size_t field = 0; found && field < event_field_count; field++) {
		PyObject *value = describe_field(&batch->events[index], field);

		if (!value || PyDict_SetItemString(found, event_fields[field].name, value) < 0)
			Py_CLEAR(found);
		Py_XDECREF(value);
	}
	return found;
}

static PyObject *batch_get_time(PyObject *self, PyObject *arguments)
{
	const struct batch *batch = (struct batch *)self;
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

static int batch_init(PyObject *self, PyObject *arguments, PyObject *names)
{
	static char *keywords[] = { "slots", "slot_bytes", "tells_reason", NULL };
	struct batch *batch = (struct batch *)self;
	Py_ssize_t slots, slot_bytes;
	int tells_reason;

	if (!PyArg_ParseTupleAndKeywords(arguments, names, "nnp:Batch", keywords, &slots, &slot_bytes, &tells_reason))
		return -1;
	batch->tells_reason = tells_reason;
	if (slots < 1 || slots > 4096 || slot_bytes < 1 || slot_bytes > 1 << 20 || batch->ring.slots) {
		PyErr_SetString(PyExc_ValueError, "too many slots, or none");
		return -1;
	}
	if (!open_ring(&batch->ring, (size_t)slots, (size_t)slot_bytes)) {
		PyErr_NoMemory();
		return -1;
	}
	return 0;
}

static void batch_dealloc(PyObject *self)
{
	struct batch *batch = (struct batch *)self;
	PyTypeObject *type = Py_TYPE(self);

	close_ring(&batch->ring);
	close_output(&batch->output);
	free(batch->loaded);
	free(batch->events);
	free(batch->indexes);
	((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
	Py_DECREF(type);
}

static PyMethodDef methods[] = {
	{ "receive", batch_receive, METH_VARARGS,
	  "(socket, patience_ms, gather_us) -> datagrams, forged, malformed; bytes queued, bytes the\n"
	  "queue may have, events dropped. Waits, and reads what has come: datagrams is 0 for nothing. OSError." },
	{ "load", batch_load, METH_VARARGS,
	  "(messages, offset, received_ns) -> offset of what was not read, messages, malformed.\n"
	  "Ends at what is no whole message, at a control message of netlink's, and when the slots are full." },
	{ "datagrams", batch_datagrams, METH_VARARGS,
	  "(limit) -> number, bytes: the datagrams of the last receive, one behind the other, each padded." },
	{ "decide", batch_decide, METH_VARARGS, "(table, selection) -> the selection that the rules keep: indexes as native uint16, in\n"
	  "bytes. Here and below None is the selection of all events." },
	{ "locate", batch_locate, METH_VARARGS,
	  "(locations, selection, is_first) -> addresses that are not known yet, 4 or 16 bytes each." },
	{ "render", batch_render, METH_VARARGS,
	  "(template, selection) -> text, ends as uint32, streams (type, protocol, events), moments as uint64,\n"
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
	{ Py_tp_init, batch_init },
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
