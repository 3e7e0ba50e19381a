/* The module conntrackd.core._core: its types, the sending of parts, and the numbers that Python has to know. */
#include "binding.h"

#include "decide.h"
#include "fields.h"
#include "render.h"
#include "send.h"
#include "series.h"

#include <malloc.h>
#include <stdlib.h>
#include <sys/random.h>

struct module_state *find_state(PyObject *object)
{
	return PyType_GetModuleState(Py_TYPE(object));
}

void *make_object(PyTypeObject *type)
{
	return ((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
}

void free_object(PyObject *self)
{
	PyTypeObject *type = Py_TYPE(self);

	((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
	Py_DECREF(type);
}

bool is_idle(PyObject *object)
{
	if (((struct object *)object)->is_busy)
		PyErr_SetString(PyExc_RuntimeError, "in use by another thread");
	return !((struct object *)object)->is_busy;
}

bool claim_object(PyObject *object)
{
	bool idle = is_idle(object);

	((struct object *)object)->is_busy = true;
	return idle;
}

void leave_object(PyObject *object)
{
	((struct object *)object)->is_busy = false;
}

PyObject *make_tuple(const void *items, size_t count, size_t bytes, PyObject *(*make)(const void *item))
{
	PyObject *tuple = PyTuple_New((Py_ssize_t)count);

	for (size_t index = 0; tuple && index < count; index++) {
		PyObject *made = make((const char *)items + index * bytes);

		if (!made || PyTuple_SetItem(tuple, (Py_ssize_t)index, made) < 0)
			Py_CLEAR(tuple);
	}
	return tuple;
}

Py_ssize_t count_items(Py_ssize_t bytes, size_t size, const char *what)
{
	if (bytes % (Py_ssize_t)size == 0)
		return bytes / (Py_ssize_t)size;
	PyErr_Format(PyExc_ValueError, "%s of %zd bytes", what, bytes);
	return -1;
}

bool parse_limit(PyObject *arguments, const char *format, Py_ssize_t least, size_t *limit, uint64_t *seed)
{
	Py_ssize_t number;

	if (!PyArg_ParseTuple(arguments, format, &number))
		return false;
	if (number < least) {
		PyErr_Format(PyExc_ValueError, "a limit below %zd", least);
		return false;
	}
	if (getrandom(seed, sizeof(*seed), 0) != sizeof(*seed)) {
		PyErr_SetFromErrno(PyExc_OSError);
		return false;
	}
	*limit = (size_t)number;
	return true;
}

/* The parts of a text: their number, or -1 with an exception where they do not lie in it one behind the other. Both are
 * bytes, which are aligned, and which nobody can change while the lock is released.
 */
static Py_ssize_t open_parts(PyObject *text, PyObject *bytes, const uint32_t **ends)
{
	Py_ssize_t count = count_items(PyBytes_Size(bytes), sizeof(**ends), "ends");
	size_t text_bytes = (size_t)PyBytes_Size(text);

	*ends = (const uint32_t *)(const void *)PyBytes_AsString(bytes);
	for (Py_ssize_t part = 0; part < count; part++)
		if ((*ends)[part] > text_bytes || (part && (*ends)[part] < (*ends)[part - 1])) {
			PyErr_SetString(PyExc_ValueError, "ends that are not within the text");
			return -1;
		}
	return count;
}

static PyObject *core_send(PyObject *Py_UNUSED(self), PyObject *arguments)
{
	int socket, patience_ms, segments, error;
	PyObject *text, *end_bytes;
	Py_ssize_t first, count;
	const uint32_t *ends;
	size_t sent;

	if (!PyArg_ParseTuple(arguments, "iSSnip:send", &socket, &text, &end_bytes, &first, &patience_ms, &segments))
		return NULL;
	count = open_parts(text, end_bytes, &ends);
	if (count < 0)
		return NULL;
	if (first < 0 || patience_ms < 0) {
		PyErr_SetString(PyExc_ValueError, "a part or a time that is negative");
		return NULL;
	}
	Py_BEGIN_ALLOW_THREADS
	sent = send_parts(socket, PyBytes_AsString(text), ends, (size_t)count, (size_t)first, patience_ms, segments,
			  &error);
	Py_END_ALLOW_THREADS
	return Py_BuildValue("ni", (Py_ssize_t)sent, error);
}

static PyObject *core_frame(PyObject *Py_UNUSED(self), PyObject *arguments)
{
	PyObject *text, *end_bytes, *result = NULL;
	uint32_t *framed_ends;
	const uint32_t *ends;
	Py_ssize_t count, number;
	size_t bound, size;
	char *framed;
	uint32_t next;
	int framing;

	if (!PyArg_ParseTuple(arguments, "SSni:frame", &text, &end_bytes, &number, &framing))
		return NULL;
	count = open_parts(text, end_bytes, &ends);
	if (count < 0)
		return NULL;
	bound = bound_frames(count ? ends[count - 1] : 0, (size_t)count);
	if (framing < FRAME_NONE || framing > FRAME_PADDED || number < 1 || number > MAX_SEQUENCE || !bound) {
		PyErr_SetString(PyExc_ValueError, "no framing, no number of a message, or too much text");
		return NULL;
	}
	next = (uint32_t)number;
	framed = malloc(bound);
	framed_ends = malloc((size_t)PyBytes_Size(end_bytes) + 1);
	if (framed && framed_ends) {
		size = frame_parts(PyBytes_AsString(text), ends, (size_t)count, &next, (enum framing)framing, framed,
				   framed_ends);
		result = Py_BuildValue("y#y#I", framed, (Py_ssize_t)size, framed_ends, PyBytes_Size(end_bytes), next);
	} else {
		PyErr_NoMemory();
	}
	free(framed);
	free(framed_ends);
	return result;
}

/* glibc has an arena for each thread, in which what the sinks have written leaves holes that no other thread fills.
 * Threads that allocate one at a time, under the interpreter's lock, gain nothing by it.
 */
static PyObject *core_share_arena(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(arguments))
{
#ifdef M_ARENA_MAX /* not in musl */
	mallopt(M_ARENA_MAX, 1);
#endif
	return Py_NewRef(Py_None);
}

/* Names of fields in the order of their numbers, and names of bits of `has` with their values. */
static int add_names(PyObject *module)
{
	static const struct {
		const char *name;
		uint64_t bits;
	} bits[] = {
		{ "nat", HAS_NAT },     { "mark", HAS_MARK }, { "zone", HAS_ZONE }, { "reply_zone", HAS_REPLY_ZONE },
		{ "start", HAS_START }, { "stop", HAS_STOP }, { "ipv4", IS_IPV4 },  { "ipv6", IS_IPV6 },
		{ "whole", IS_WHOLE },
	};
	PyObject *names = PyTuple_New((Py_ssize_t)event_field_count), *has = PyDict_New();
	int failed = !names || !has;

	for (size_t field = 0; !failed && field < event_field_count; field++) {
		PyObject *bit = PyLong_FromUnsignedLongLong(event_fields[field].has);
		PyObject *name = PyUnicode_FromString(event_fields[field].name);

		failed = !bit || !name || PyDict_SetItem(has, name, bit) < 0 ||
			 PyTuple_SetItem(names, (Py_ssize_t)field, Py_NewRef(name)) < 0;
		Py_XDECREF(bit);
		Py_XDECREF(name);
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

/* Of what Python packs for the core: engine/native.py compares them with its own, in this order. */
static int add_layout(PyObject *module)
{
	PyObject *layout = Py_BuildValue("(kkkkkkk)", (unsigned long)PROGRAM_FORMAT, (unsigned long)FIELDS,
					 (unsigned long)sizeof(struct test), (unsigned long)sizeof(struct limit),
					 (unsigned long)sizeof(struct step), (unsigned long)sizeof(struct slice),
					 (unsigned long)sizeof(struct series_field));
	int failed = !layout || PyModule_AddObjectRef(module, "LAYOUT", layout) < 0;

	Py_XDECREF(layout);
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
	    add_type(module, &state->ids, create_ids_type) < 0 ||
	    add_type(module, &state->flows, create_flows_type) < 0 ||
	    add_type(module, &state->deltas, create_deltas_type) < 0 ||
	    add_type(module, &state->limits, create_limits_type) < 0 ||
	    add_type(module, &state->series, create_series_type) < 0 ||
	    add_type(module, &state->set, create_set_type) < 0 ||
	    add_type(module, &state->anonymizer, create_anonymizer_type) < 0 ||
	    add_type(module, &state->writer, create_writer_type) < 0 || add_names(module) < 0)
		return -1;
	return add_layout(module);
}

/* The state's references to the types, which refer to the module. */
static int traverse(PyObject *module, visitproc visit, void *arg)
{
	const struct module_state *state = PyModule_GetState(module);

	Py_VISIT(state->batch);
	Py_VISIT(state->table);
	Py_VISIT(state->template);
	Py_VISIT(state->locations);
	Py_VISIT(state->ids);
	Py_VISIT(state->set);
	Py_VISIT(state->flows);
	Py_VISIT(state->deltas);
	Py_VISIT(state->limits);
	Py_VISIT(state->anonymizer);
	Py_VISIT(state->series);
	Py_VISIT(state->writer);
	return 0;
}

static int clear(PyObject *module)
{
	struct module_state *state = PyModule_GetState(module);

	Py_CLEAR(state->batch);
	Py_CLEAR(state->table);
	Py_CLEAR(state->template);
	Py_CLEAR(state->locations);
	Py_CLEAR(state->ids);
	Py_CLEAR(state->set);
	Py_CLEAR(state->flows);
	Py_CLEAR(state->deltas);
	Py_CLEAR(state->limits);
	Py_CLEAR(state->anonymizer);
	Py_CLEAR(state->series);
	Py_CLEAR(state->writer);
	return 0;
}

static void release(void *module)
{
	clear(module);
}

static PyMethodDef functions[] = {
	{ "send", core_send, METH_VARARGS,
	  "(socket, text, ends, first, patience_ms, segments) -> how many parts were taken, and the errno of the\n"
	  "next one or 0. Each part is a datagram." },
	{ "frame", core_frame, METH_VARARGS,
	  "(text, ends, number, framing) -> text, ends, next number: syslog messages with their numbers and frames." },
	{ "share_arena", core_share_arena, METH_NOARGS,
	  "() -> None: let the threads to come have their memory from one heap." },
	{ "sort_prefixes", core_sort_prefixes, METH_VARARGS,
	  "(entries, address_bytes) -> how many bytes are left of the buffer, which is sorted in place: each entry\n"
	  "is an address and a byte of its prefix length, and those within another one go." },
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
	.m_traverse = traverse,
	.m_clear = clear,
	.m_free = release,
};

PyMODINIT_FUNC PyInit__core(void)
{
	return PyModuleDef_Init(&definition);
}
