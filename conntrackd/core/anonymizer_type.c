/* Anonymizer: what one sink writes in place of addresses. */
#include "batch.h"

#include "anonymize.h"

#include <string.h>
#include <sys/socket.h>

struct anonymizer_object {
	struct object object;
	struct anonymizer anonymizer;
};

struct anonymizer *open_object_anonymizer(PyObject *object)
{
	return &((struct anonymizer_object *)object)->anonymizer;
}

static PyObject *anonymizer_new(PyTypeObject *type, PyObject *arguments, PyObject *Py_UNUSED(names))
{
	PyObject *self, *limits;
	unsigned sides;
	uint64_t seed;
	size_t limit;
	bool is_right;

	if (!PyArg_ParseTuple(arguments, "OI:Anonymizer", &limits, &sides))
		return NULL;
	limits = PyTuple_Pack(1, limits);
	is_right = limits && parse_limit(limits, "n:Anonymizer", 0, &limit, &seed);
	Py_XDECREF(limits);
	if (!is_right)
		return NULL;
	if (!sides || sides & ~(unsigned)(SIDE_SOURCE | SIDE_DESTINATION)) {
		PyErr_SetString(PyExc_ValueError, "sides that there are not");
		return NULL;
	}
	self = make_object(type);
	if (self && !open_anonymizer(open_object_anonymizer(self), limit, seed, sides)) {
		Py_DECREF(self);
		return PyErr_NoMemory();
	}
	return self;
}

static void anonymizer_dealloc(PyObject *self)
{
	close_anonymizer(open_object_anonymizer(self));
	free_object(self);
}

static PyObject *anonymizer_put(PyObject *self, PyObject *arguments)
{
	uint8_t padded[2][ADDRESS_BYTES] = { 0 };
	const char *address, *written;
	Py_ssize_t length, written_length;

	if (!PyArg_ParseTuple(arguments, "y#y#:put", &address, &length, &written, &written_length) || !is_idle(self))
		return NULL;
	if ((length != 4 && length != ADDRESS_BYTES) || written_length != length) {
		PyErr_SetString(PyExc_ValueError, "no address, or two of different families");
		return NULL;
	}
	memcpy(padded[0], address, (size_t)length);
	memcpy(padded[1], written, (size_t)length);
	if (!put_written(open_object_anonymizer(self), padded[0], length == 4 ? AF_INET : AF_INET6, padded[1]))
		return PyErr_NoMemory();
	Py_RETURN_NONE;
}

static bool append_unknown(void *list, const uint8_t *address, size_t bytes)
{
	PyObject *unknown = PyBytes_FromStringAndSize((const char *)address, (Py_ssize_t)bytes);
	int failed = unknown ? PyList_Append(list, unknown) : -1;

	Py_XDECREF(unknown);
	return failed == 0;
}

static PyObject *anonymizer_find_unknown(PyObject *self, PyObject *arguments)
{
	PyObject *unknown = PyList_New(0); /* before the events are looked at, as in batch_locate() */
	struct selection selection;
	struct batch *batch;

	if (!unknown || !is_idle(self))
		goto failed;
	batch = parse_selection(self, arguments, "O!O:find_unknown", &selection, NULL);
	if (!batch)
		goto failed;
	if (!find_unknown(open_object_anonymizer(self), batch->events, selection.indexes, selection.count,
			  append_unknown, unknown)) {
		if (!PyErr_Occurred())
			PyErr_NoMemory();
		goto failed;
	}
	return unknown;
failed:
	Py_XDECREF(unknown);
	return NULL;
}

static Py_ssize_t anonymizer_length(PyObject *self)
{
	return (Py_ssize_t)open_object_anonymizer(self)->numbers.used;
}

static PyMethodDef methods[] = {
	{ "find_unknown", anonymizer_find_unknown, METH_VARARGS,
	  "(batch, selection) -> addresses that put() has to say something of before these events are rendered." },
	{ "put", anonymizer_put, METH_VARARGS, "(address, written): what is written in place of an address." },
	{ 0 },
};
static PyType_Slot slots[] = {
	{ Py_tp_new, anonymizer_new },
	{ Py_tp_dealloc, anonymizer_dealloc },
	{ Py_tp_methods, methods },
	{ Py_sq_length, anonymizer_length },
	{ Py_tp_doc, "(limit, sides): what is written in place of addresses; above the limit all are forgotten." },
	{ 0, NULL },
};
static PyType_Spec spec = { "conntrackd.core._core.Anonymizer", sizeof(struct anonymizer_object), 0, Py_TPFLAGS_DEFAULT,
			    slots };

PyTypeObject *create_anonymizer_type(PyObject *module)
{
	return (PyTypeObject *)PyType_FromModuleAndSpec(module, &spec, NULL);
}
