/* The module conntrackd.core._core: its types, the sending of parts, and the numbers that Python has to know. */
#include "binding.h"

#include "fields.h"
#include "render.h"
#include "send.h"

#include <stdlib.h>

struct module_state *find_state(PyObject *object)
{
	return PyType_GetModuleState(Py_TYPE(object));
}

/* The parts of a text: their number, or -1 with an exception where they do not lie in it one behind the other. */
static Py_ssize_t check_parts(Py_ssize_t text_bytes, const uint32_t *ends, Py_ssize_t ends_bytes)
{
	Py_ssize_t count = count_items(ends_bytes, sizeof(*ends), "ends");

	for (Py_ssize_t part = 0; part < count; part++)
		if (ends[part] > (size_t)text_bytes || (part && ends[part] < ends[part - 1])) {
			PyErr_SetString(PyExc_ValueError, "ends that are not within the text");
			return -1;
		}
	return count;
}

static PyObject *core_send(PyObject *Py_UNUSED(self), PyObject *arguments)
{
	const char *text, *bytes;
	Py_ssize_t text_bytes, ends_bytes, first, count;
	int socket, patience_ms, segments, error;
	size_t sent;

	if (!PyArg_ParseTuple(arguments, "iy#y#nip:send", &socket, &text, &text_bytes, &bytes, &ends_bytes, &first,
			      &patience_ms, &segments))
		return NULL;
	count = check_parts(text_bytes, (const uint32_t *)(const void *)bytes, ends_bytes);
	if (count < 0 || first < 0)
		return NULL;
	Py_BEGIN_ALLOW_THREADS
	sent = send_parts(socket, text, (const uint32_t *)(const void *)bytes, (size_t)count, (size_t)first,
			  patience_ms, segments, &error);
	Py_END_ALLOW_THREADS
	return Py_BuildValue("ni", (Py_ssize_t)sent, error);
}

static PyObject *core_frame(PyObject *Py_UNUSED(self), PyObject *arguments)
{
	const char *text, *bytes;
	Py_ssize_t text_bytes, ends_bytes, count;
	PyObject *result = NULL;
	uint32_t *framed_ends;
	char *framed;
	unsigned number;
	size_t size;
	int framing;

	if (!PyArg_ParseTuple(arguments, "y#y#Ii:frame", &text, &text_bytes, &bytes, &ends_bytes, &number, &framing))
		return NULL;
	count = check_parts(text_bytes, (const uint32_t *)(const void *)bytes, ends_bytes);
	if (count < 0)
		return NULL;
	if (framing < FRAME_NONE || framing > FRAME_PADDED) {
		PyErr_SetString(PyExc_ValueError, "there is no such framing");
		return NULL;
	}
	framed = malloc(bound_frames((size_t)text_bytes, (size_t)count));
	framed_ends = malloc((size_t)ends_bytes + 1);
	if (framed && framed_ends) {
		size = frame_parts(text, (const uint32_t *)(const void *)bytes, (size_t)count, number,
				   (enum framing)framing, framed, framed_ends);
		result = Py_BuildValue("y#y#", framed, (Py_ssize_t)size, framed_ends, ends_bytes);
	} else {
		PyErr_NoMemory();
	}
	free(framed);
	free(framed_ends);
	return result;
}

/* Names of fields in the order of their numbers, and names of bits of `has` with their values. */
static int add_names(PyObject *module)
{
	static const struct {
		const char *name;
		uint64_t bits;
	} bits[] = {
		{ "nat", HAS_NAT },	  { "mark", HAS_MARK },		{ "zone", HAS_ZONE },	{ "reply_zone", HAS_REPLY_ZONE },
		{ "start", HAS_START },	  { "stop", HAS_STOP },		{ "ipv4", IS_IPV4 },	{ "ipv6", IS_IPV6 },
	};
	PyObject *names = PyTuple_New((Py_ssize_t)event_field_count), *has = PyDict_New();
	int failed = !names || !has;

	for (size_t field = 0; !failed && field < event_field_count; field++) {
		PyObject *bit = PyLong_FromUnsignedLongLong(event_fields[field].has);

		failed = !bit || PyDict_SetItemString(has, event_fields[field].name, bit) < 0 ||
			 PyTuple_SetItem(names, (Py_ssize_t)field, PyUnicode_FromString(event_fields[field].name)) < 0;
		Py_XDECREF(bit);
	}
	for (size_t entry = 0; !failed && entry < sizeof(bits) / sizeof(bits[0]); entry++) {
		PyObject *bit = PyLong_FromUnsignedLongLong(bits[entry].bits);

		failed = !bit || PyDict_SetItemString(has, bits[entry].name, bit) < 0;
		Py_XDECREF(bit);
	}
	failed = failed || PyModule_AddObjectRef(module, "FIELDS", names) < 0 ||
		 PyModule_AddObjectRef(module, "HAS", has) < 0;
	Py_XDECREF(names);
	Py_XDECREF(has);
	return failed ? -1 : 0;
}

static int add_type(PyObject *module, PyTypeObject **type, PyTypeObject *(*create)(PyObject *module))
{
	*type = create(module);
	return *type ? PyModule_AddType(module, *type) : -1;
}

static int execute(PyObject *module)
{
	struct module_state *state = PyModule_GetState(module);

	if (add_type(module, &state->batch, create_batch_type) < 0 ||
	    add_type(module, &state->table, create_table_type) < 0 ||
	    add_type(module, &state->template, create_template_type) < 0 ||
	    add_type(module, &state->locations, create_locations_type) < 0 ||
	    add_type(module, &state->ids, create_ids_type) < 0 || add_names(module) < 0)
		return -1;
	return PyModule_AddIntConstant(module, "STEP_BYTES", sizeof(struct step));
}

static PyMethodDef functions[] = {
	{ "send", core_send, METH_VARARGS,
	  "(socket, text, ends, first, patience_ms, segments) -> how many parts were taken, and the errno of the\n"
	  "next one or 0. Each part is a datagram." },
	{ "frame", core_frame, METH_VARARGS,
	  "(text, ends, number, framing) -> text, ends: syslog messages with their numbers and frames." },
	{ 0 },
};
static PyModuleDef_Slot module_slots[] = {
	{ Py_mod_exec, (void *)execute },
	{ 0, NULL },
};
static struct PyModuleDef definition = {
	.m_base = PyModuleDef_HEAD_INIT,
	.m_name = "_core",
	.m_doc = "What happens to every event. Bytes and numbers in, bytes and numbers out.",
	.m_size = sizeof(struct module_state),
	.m_methods = functions,
	.m_slots = module_slots,
};

PyMODINIT_FUNC PyInit__core(void)
{
	return PyModuleDef_Init(&definition);
}
