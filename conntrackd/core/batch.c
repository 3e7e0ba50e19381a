/* See batch.h. */
#include "batch.h"

#include "fields.h"

#include <linux/netlink.h>
#include <stdlib.h>
#include <string.h>

#define MAX_INDEX UINT16_MAX /* of an event: what a selection is made of */

static bool reserve_event(struct batch *batch)
{
	size_t capacity = batch->capacity ? 2 * batch->capacity : batch->ring.slots;
	struct event *events;
	uint16_t *indexes;

	if (batch->count < batch->capacity)
		return true;
	events = realloc(batch->events, capacity * sizeof(*events));
	if (!events)
		return false;
	batch->events = events;
	indexes = realloc(batch->indexes, capacity * sizeof(*indexes));
	if (!indexes)
		return false;
	batch->indexes = indexes;
	batch->capacity = capacity;
	return true;
}

/* A moment is one nanosecond after the last one's where both have the same time. */
bool append_message(struct batch *batch, const uint8_t *message, size_t length, size_t *malformed)
{
	struct event *event;

	if (!reserve_event(batch))
		return false;
	event = &batch->events[batch->count];
	if (batch->count > MAX_INDEX ||
	    !walk_message(message, length, batch->received_ns, batch->reports_reason, event)) {
		++*malformed;
		return true;
	}
	event->moment = event->time;
	if (batch->count && event[-1].time == event->time)
		event->moment = event[-1].moment + 1;
	batch->count++;
	return true;
}

bool append_datagram(struct batch *batch, const uint8_t *datagram, size_t length, size_t *malformed)
{
	size_t offset = 0;

	do {
		size_t size = find_message_length(datagram + offset, length - offset);

		if (!append_message(batch, datagram + offset, size, malformed))
			return false;
		offset += NLMSG_ALIGN(size);
	} while (offset < length);
	return true;
}

void select_all(struct batch *batch)
{
	for (size_t index = 0; index < batch->count; index++)
		batch->indexes[index] = (uint16_t)index;
}

bool open_selection(struct batch *batch, PyObject *object, struct selection *selection)
{
	Py_ssize_t length, count;
	char *bytes;

	if (!is_idle((PyObject *)batch))
		return false;
	if (object == Py_None) {
		select_all(batch);
		*selection = (struct selection){ batch->indexes, batch->count };
		return true;
	}
	if (PyBytes_AsStringAndSize(object, &bytes, &length) < 0)
		return false;
	count = count_items(length, sizeof(uint16_t), "a selection");
	if (count < 0)
		return false;
	*selection = (struct selection){ (const uint16_t *)(const void *)bytes, (size_t)count };
	for (size_t index = 0; index < selection->count; index++)
		if (index >= batch->count || selection->indexes[index] >= batch->count) {
			PyErr_SetString(PyExc_ValueError, "a selection of another batch");
			return false;
		}
	return true;
}

struct batch *parse_selection(PyObject *self, PyObject *arguments, const char *format, struct selection *selection,
			      int *flag)
{
	PyObject *batch, *selected = Py_None;

	if (!PyArg_ParseTuple(arguments, format, find_state(self)->batch, &batch, &selected, flag) ||
	    !open_selection((struct batch *)batch, selected, selection))
		return NULL;
	return (struct batch *)batch;
}

PyObject *make_selection(const struct batch *batch, size_t count)
{
	return PyBytes_FromStringAndSize((const char *)batch->indexes, (Py_ssize_t)(count * sizeof(uint16_t)));
}

PyObject *select_events(struct batch *batch, const struct selection *among,
			bool (*is_kept)(const struct event *event, const void *context), const void *context)
{
	size_t count = 0;

	for (size_t index = 0; index < among->count; index++)
		if (is_kept(&batch->events[among->indexes[index]], context))
			batch->indexes[count++] = among->indexes[index];
	return make_selection(batch, count);
}

static PyObject *describe_text(const struct event *event, uint64_t has)
{
	return has == HAS_HELPER ? PyBytes_FromStringAndSize(event->helper, event->helper_bytes) :
				   PyBytes_FromStringAndSize(event->secctx, event->secctx_bytes);
}

PyObject *describe_field(const struct event *event, size_t number)
{
	const struct event_field *field = &event_fields[number];
	const char *at = (const char *)event + field->offset;
	bool is_labels = field->has == HAS_LABELS;

	if ((event->has & field->has) != field->has)
		Py_RETURN_NONE;
	if (field->size == 0)
		return describe_text(event, field->has);
	if (field->size == ADDRESS_BYTES)
		return PyBytes_FromStringAndSize(at, !is_labels && event->has & IS_IPV4 ? 4 : ADDRESS_BYTES);
	return PyLong_FromUnsignedLongLong(read_field(event, field));
}
