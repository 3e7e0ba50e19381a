/* Deltas: what flows had counted at their last record. */
#include "batch.h"

#include "deltas.h"

#include <sys/random.h>

struct deltas_object {
	struct object object;
	struct deltas deltas;
};

static struct deltas *open_object_deltas(PyObject *object)
{
	return &((struct deltas_object *)object)->deltas;
}

static PyObject *deltas_new(PyTypeObject *type, PyObject *arguments, PyObject *Py_UNUSED(names))
{
	Py_ssize_t limit;
	PyObject *self;
	uint64_t seed;

	if (!PyArg_ParseTuple(arguments, "n:Deltas", &limit))
		return NULL;
	if (limit < 1) {
		PyErr_SetString(PyExc_ValueError, "a limit below 1");
		return NULL;
	}
	if (getrandom(&seed, sizeof(seed), 0) != sizeof(seed))
		return PyErr_SetFromErrno(PyExc_OSError);
	self = make_object(type);
	if (self && !open_deltas(open_object_deltas(self), (size_t)limit, seed)) {
		Py_DECREF(self);
		return PyErr_NoMemory();
	}
	return self;
}

static void deltas_dealloc(PyObject *self)
{
	close_deltas(open_object_deltas(self));
	free_object(self);
}

/* The batch and the selection of these arguments. NULL with an exception. */
static struct batch *open_batch(PyObject *self, PyObject *arguments, struct selection *selection)
{
	PyObject *object, *selected = Py_None;

	if (!PyArg_ParseTuple(arguments, "O!|O", find_state(self)->batch, &object, &selected) ||
	    !open_selection((struct batch *)object, selected, selection))
		return NULL;
	return (struct batch *)object;
}

static PyObject *deltas_begin(PyObject *self, PyObject *Py_UNUSED(arguments))
{
	begin_reading(open_object_deltas(self));
	Py_RETURN_NONE;
}

static PyObject *deltas_finish(PyObject *self, PyObject *Py_UNUSED(arguments))
{
	end_reading(open_object_deltas(self));
	Py_RETURN_NONE;
}

static PyObject *deltas_see(PyObject *self, PyObject *arguments)
{
	struct selection selection;
	struct batch *batch = open_batch(self, arguments, &selection);
	size_t count = 0;

	if (!batch)
		return NULL;
	for (size_t index = 0; index < selection.count; index++) {
		uint16_t number = selection.indexes[index];

		if (see_flow(open_object_deltas(self), &batch->events[number]))
			batch->indexes[count++] = number;
	}
	sweep_flows(open_object_deltas(self));
	return make_selection(batch, count);
}

static PyObject *deltas_advance(PyObject *self, PyObject *arguments)
{
	struct selection selection;
	struct batch *batch = open_batch(self, arguments, &selection);
	size_t without_room = 0;

	if (!batch)
		return NULL;
	for (size_t index = 0; index < selection.count; index++)
		without_room += !advance_flow(open_object_deltas(self), &batch->events[selection.indexes[index]]);
	return PyLong_FromSize_t(without_room);
}

static PyObject *deltas_end(PyObject *self, PyObject *arguments)
{
	struct selection selection;
	struct batch *batch = open_batch(self, arguments, &selection);

	if (!batch)
		return NULL;
	for (size_t index = 0; index < selection.count; index++)
		end_flow(open_object_deltas(self), &batch->events[selection.indexes[index]]);
	Py_RETURN_NONE;
}

static PyObject *deltas_hide(PyObject *self, PyObject *arguments)
{
	struct selection selection;
	struct batch *batch = open_batch(self, arguments, &selection);

	if (!batch)
		return NULL;
	for (size_t index = 0; index < selection.count; index++)
		batch->events[selection.indexes[index]].has &= ~HAS_DELTAS;
	Py_RETURN_NONE;
}

static Py_ssize_t deltas_length(PyObject *self)
{
	return (Py_ssize_t)open_object_deltas(self)->used;
}

static PyMethodDef methods[] = {
	{ "begin", deltas_begin, METH_NOARGS, "The table is read from its beginning." },
	{ "finish", deltas_finish, METH_NOARGS, "The table is read to its end." },
	{ "see", deltas_see, METH_VARARGS, "(batch) -> flows of the table that this reading has not seen before." },
	{ "advance", deltas_advance, METH_VARARGS,
	  "(batch, selection) -> how many flows there is no room for. Each other one is given what it has counted\n"
	  "since its last record, unless nobody knows." },
	{ "end", deltas_end, METH_VARARGS, "(batch): the same for the DESTROY of each flow, which is forgotten." },
	{ "hide", deltas_hide, METH_VARARGS, "(batch, selection): these do not have it any more." },
	{ 0 },
};
static PyType_Slot slots[] = {
	{ Py_tp_new, deltas_new },
	{ Py_tp_dealloc, deltas_dealloc },
	{ Py_tp_methods, methods },
	{ Py_sq_length, deltas_length },
	{ Py_tp_doc, "(limit): what flows had counted at their last record, some 64 to 128 bytes each." },
	{ 0, NULL },
};
static PyType_Spec spec = { "conntrackd.core._core.Deltas", sizeof(struct deltas_object), 0, Py_TPFLAGS_DEFAULT,
			    slots };

PyTypeObject *create_deltas_type(PyObject *module)
{
	return (PyTypeObject *)PyType_FromModuleAndSpec(module, &spec, NULL);
}
