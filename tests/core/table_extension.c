/* For tests until the core's own module decides: the type Table, and decide() over messages. */
#include <stdlib.h>
#include <string.h>

#include "types.h"

/* What no message carries, one for each. */
struct extra {
	uint32_t type; /* 0: as in the message */
	uint32_t src_location, dst_location;
};

struct state {
	PyObject *table_type;
};

static struct event *read_events(const char *messages, size_t bytes, const struct extra *extras, size_t count)
{
	struct event *events = calloc(count ? count : 1, sizeof(*events));

	for (size_t i = 0; events && i < count; i++) {
		size_t length = find_message_length((const uint8_t *)messages, bytes);

		if (!walk_message((const uint8_t *)messages, length, 0, false, &events[i])) {
			free(events);
			return NULL;
		}
		events[i].src_location = extras[i].src_location;
		events[i].dst_location = extras[i].dst_location;
		if (extras[i].type)
			events[i].type = (uint8_t)extras[i].type;
		messages += length;
		bytes -= length;
	}
	return events;
}

static PyObject *decide_messages(PyObject *module, PyObject *arguments)
{
	struct state *state = PyModule_GetState(module);
	const char *messages, *extras, *among = NULL;
	Py_ssize_t bytes, extra_bytes, among_bytes = 0;
	PyObject *object, *result = NULL;
	struct table *table;
	struct event *events;
	uint16_t *kept;
	size_t count, asked;

	if (!PyArg_ParseTuple(arguments, "Oy#y#|z#", &object, &messages, &bytes, &extras, &extra_bytes, &among,
			      &among_bytes))
		return NULL;
	table = find_table(object, state->table_type);
	if (!table)
		return NULL;
	count = (size_t)extra_bytes / sizeof(struct extra);
	asked = among ? (size_t)among_bytes / sizeof(*kept) : count;
	events = read_events(messages, (size_t)bytes, (const struct extra *)extras, count);
	kept = calloc(asked ? asked : 1, sizeof(*kept));
	if (events && kept) {
		size_t found = decide(table, events, (const uint16_t *)among, asked, kept);

		result = PyBytes_FromStringAndSize((const char *)kept, (Py_ssize_t)(found * sizeof(*kept)));
	} else {
		PyErr_SetString(PyExc_ValueError, "not the messages of events");
	}
	free(events);
	free(kept);
	return result;
}

static PyMethodDef methods[] = {
	{ "decide", decide_messages, METH_VARARGS, "decide(table, messages, extras, among=None): kept indexes" },
	{ NULL, NULL, 0, NULL },
};

static int fill_module(PyObject *module)
{
	struct state *state = PyModule_GetState(module);

	state->table_type = add_table_type(module);
	return state->table_type ? 0 : -1;
}

static int clear_module(PyObject *module)
{
	struct state *state = PyModule_GetState(module);

	Py_CLEAR(state->table_type);
	return 0;
}

static PyModuleDef_Slot slots[] = { { Py_mod_exec, fill_module }, { 0, NULL } };

static struct PyModuleDef definition = {
	PyModuleDef_HEAD_INIT, "table_extension", NULL, sizeof(struct state), methods, slots, NULL, clear_module, NULL,
};

PyMODINIT_FUNC PyInit_table_extension(void)
{
	return PyModuleDef_Init(&definition);
}
