/* Flows: when those began that have not ended. */
#include "batch.h"

#include "flows.h"

#include <sys/random.h>

struct flows_object {
	struct object object;
	struct flows flows;
};

static struct flows *open_object_flows(PyObject *object)
{
	return &((struct flows_object *)object)->flows;
}

static PyObject *flows_new(PyTypeObject *type, PyObject *arguments, PyObject *Py_UNUSED(names))
{
	Py_ssize_t limit;
	PyObject *self;
	uint64_t seed;

	if (!PyArg_ParseTuple(arguments, "n:Flows", &limit))
		return NULL;
	if (limit < 1) {
		PyErr_SetString(PyExc_ValueError, "a limit below 1");
		return NULL;
	}
	if (getrandom(&seed, sizeof(seed), 0) != sizeof(seed))
		return PyErr_SetFromErrno(PyExc_OSError);
	self = make_object(type);
	if (self && !open_flows(open_object_flows(self), (size_t)limit, seed)) {
		Py_DECREF(self);
		return PyErr_NoMemory();
	}
	return self;
}

static void flows_dealloc(PyObject *self)
{
	close_flows(open_object_flows(self));
	free_object(self);
}

static PyObject *flows_note(PyObject *self, PyObject *arguments)
{
	struct selection selection;
	size_t forgotten = 0;
	struct batch *batch;
	PyObject *object;

	if (!PyArg_ParseTuple(arguments, "O!:note", find_state(self)->batch, &object))
		return NULL;
	batch = (struct batch *)object;
	if (!open_selection(batch, Py_None, &selection))
		return NULL;
	for (size_t index = 0; index < selection.count; index++)
		if (!note_event(open_object_flows(self), &batch->events[selection.indexes[index]], &forgotten))
			return PyErr_NoMemory();
	return PyLong_FromSize_t(forgotten);
}

static Py_ssize_t flows_length(PyObject *self)
{
	return (Py_ssize_t)open_object_flows(self)->used;
}

static PyMethodDef methods[] = {
	{ "note", flows_note, METH_VARARGS,
	  "(batch) -> how many flows were forgotten for want of room. Each NEW is remembered, and its time given to "
	  "the\n"
	  "flow's DESTROY as first_seen, where the kernel does not say when the flow began." },
	{ 0 },
};
static PyType_Slot slots[] = {
	{ Py_tp_new, flows_new },
	{ Py_tp_dealloc, flows_dealloc },
	{ Py_tp_methods, methods },
	{ Py_sq_length, flows_length },
	{ Py_tp_doc, "(limit): when flows began, some 21 to 43 bytes each. Belongs to one thread." },
	{ 0, NULL },
};
static PyType_Spec spec = { "conntrackd.core._core.Flows", sizeof(struct flows_object), 0, Py_TPFLAGS_DEFAULT, slots };

PyTypeObject *create_flows_type(PyObject *module)
{
	return (PyTypeObject *)PyType_FromModuleAndSpec(module, &spec, NULL);
}
