/* Flows: when those began that have not ended. */
#include "batch.h"

#include "flows.h"

struct flows_object {
	struct object object;
	struct flows flows;
};

struct flows *open_object_flows(PyObject *object)
{
	return &((struct flows_object *)object)->flows;
}

static PyObject *flows_new(PyTypeObject *type, PyObject *arguments, PyObject *Py_UNUSED(names))
{
	PyObject *self;
	uint64_t seed;
	size_t limit;

	if (!parse_limit(arguments, "n:Flows", 1, &limit, &seed))
		return NULL;
	self = make_object(type);
	if (self && !open_flows(open_object_flows(self), limit, seed)) {
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
	struct batch *batch = parse_selection(self, arguments, "O!:note", &selection, NULL);
	size_t forgotten = 0;

	for (size_t index = 0; batch && index < selection.count; index++)
		note_event(open_object_flows(self), &batch->events[selection.indexes[index]], &forgotten);
	return batch ? PyLong_FromSize_t(forgotten) : NULL;
}

static Py_ssize_t flows_length(PyObject *self)
{
	return (Py_ssize_t)open_object_flows(self)->slots.used;
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
