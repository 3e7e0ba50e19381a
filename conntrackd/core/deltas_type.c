/* Deltas: what flows had counted at their last record. */
#include "batch.h"

#include "deltas.h"

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
	PyObject *self;
	uint64_t seed;
	size_t limit;

	if (!parse_limit(arguments, "n:Deltas", 1, &limit, &seed))
		return NULL;
	self = make_object(type);
	if (self && !open_deltas(open_object_deltas(self), limit, seed)) {
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
	struct batch *batch = parse_selection(self, arguments, "O!:see", &selection, NULL);
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
	struct batch *batch = parse_selection(self, arguments, "O!O:advance", &selection, NULL);
	size_t without_room = 0;

	for (size_t index = 0; batch && index < selection.count; index++)
		without_room += !advance_flow(open_object_deltas(self), &batch->events[selection.indexes[index]]);
	return batch ? PyLong_FromSize_t(without_room) : NULL;
}

static PyObject *deltas_end(PyObject *self, PyObject *arguments)
{
	struct selection selection;
	struct batch *batch = parse_selection(self, arguments, "O!:end", &selection, NULL);

	for (size_t index = 0; batch && index < selection.count; index++)
		end_flow(open_object_deltas(self), &batch->events[selection.indexes[index]]);
	return batch ? Py_NewRef(Py_None) : NULL;
}

static PyObject *deltas_hide(PyObject *self, PyObject *arguments)
{
	struct selection selection;
	struct batch *batch = parse_selection(self, arguments, "O!O:hide", &selection, NULL);

	for (size_t index = 0; batch && index < selection.count; index++)
		batch->events[selection.indexes[index]].has &= ~HAS_DELTAS;
	return batch ? Py_NewRef(Py_None) : NULL;
}

static Py_ssize_t deltas_length(PyObject *self)
{
	return (Py_ssize_t)open_object_deltas(self)->slots.used;
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
