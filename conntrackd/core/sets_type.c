/* Locations and Ids: what is remembered of addresses and of flows. */
#include "batch.h"

#include "decide.h"

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

struct locations_object {
	struct object object;
	struct locations locations;
};

struct ids_object {
	struct object object;
	struct ids ids;
};

struct locations *open_object_locations(PyObject *object)
{
	return &((struct locations_object *)object)->locations;
}

struct ids *open_object_ids(PyObject *object)
{
	return &((struct ids_object *)object)->ids;
}

/* ---- Locations ---------------------------------------------------------------------------------------- */

static PyObject *locations_new(PyTypeObject *type, PyObject *arguments, PyObject *Py_UNUSED(names))
{
	PyObject *self;
	uint64_t seed;
	size_t limit;

	if (!parse_limit(arguments, "n:Locations", 0, &limit, &seed))
		return NULL;
	self = make_object(type);
	if (self && !open_locations(open_object_locations(self), limit, seed)) {
		Py_DECREF(self);
		return PyErr_NoMemory();
	}
	return self;
}

static void locations_dealloc(PyObject *self)
{
	close_locations(open_object_locations(self));
	free_object(self);
}

static PyObject *locations_put(PyObject *self, PyObject *arguments)
{
	uint8_t padded[ADDRESS_BYTES] = { 0 };
	const char *address;
	Py_ssize_t length, number;

	if (!PyArg_ParseTuple(arguments, "y#n:put", &address, &length, &number))
		return NULL;
	if ((length != 4 && length != ADDRESS_BYTES) || number < 0 || number >= (Py_ssize_t)MAX_LOCATIONS) {
		PyErr_SetString(PyExc_ValueError, "no address, or no number of a location");
		return NULL;
	}
	memcpy(padded, address, (size_t)length);
	if (!put_location(open_object_locations(self), padded, length == 4 ? AF_INET : AF_INET6, (uint32_t)number))
		return PyErr_NoMemory();
	Py_RETURN_NONE;
}

static PyObject *locations_clear(PyObject *self, PyObject *Py_UNUSED(none))
{
	forget_locations(open_object_locations(self));
	Py_RETURN_NONE;
}

static Py_ssize_t locations_length(PyObject *self)
{
	return (Py_ssize_t)open_object_locations(self)->used;
}

static PyMethodDef locations_methods[] = {
	{ "put", locations_put, METH_VARARGS, "(address, number): where it is, 0 for an address without Location." },
	{ "clear", locations_clear, METH_NOARGS, "Forget all addresses." },
	{ 0 },
};
static PyType_Slot locations_slots[] = {
	{ Py_tp_new, locations_new },
	{ Py_tp_dealloc, locations_dealloc },
	{ Py_tp_methods, locations_methods },
	{ Py_sq_length, locations_length },
	{ Py_tp_doc, "(limit): the Locations of addresses, by number. Belongs to one thread." },
	{ 0, NULL },
};
static PyType_Spec locations_spec = { "conntrackd.core._core.Locations", sizeof(struct locations_object), 0,
				      Py_TPFLAGS_DEFAULT, locations_slots };

PyTypeObject *create_locations_type(PyObject *module)
{
	return (PyTypeObject *)PyType_FromModuleAndSpec(module, &locations_spec, NULL);
}

/* ---- Ids ---------------------------------------------------------------------------------------------- */

static PyObject *ids_new(PyTypeObject *type, PyObject *arguments, PyObject *Py_UNUSED(names))
{
	PyObject *self;

	if (!PyArg_ParseTuple(arguments, ":Ids"))
		return NULL;
	self = make_object(type);
	if (self && !open_ids(open_object_ids(self))) {
		Py_DECREF(self);
		return PyErr_NoMemory();
	}
	return self;
}

static void ids_dealloc(PyObject *self)
{
	close_ids(open_object_ids(self));
	free_object(self);
}

static PyObject *ids_add(PyObject *self, PyObject *arguments)
{
	struct selection selection;
	struct batch *batch = parse_selection(self, arguments, "O!O:add", &selection, NULL);
	size_t count = 0;
	bool is_new;

	for (size_t index = 0; batch && index < selection.count; index++) {
		if (!add_id(open_object_ids(self), batch->events[selection.indexes[index]].id, &is_new))
			return PyErr_NoMemory();
		if (is_new)
			batch->indexes[count++] = selection.indexes[index];
	}
	return batch ? make_selection(batch, count) : NULL;
}

static PyObject *ids_discard(PyObject *self, PyObject *arguments)
{
	struct selection selection;
	const struct batch *batch = parse_selection(self, arguments, "O!O:discard", &selection, NULL);

	for (size_t index = 0; batch && index < selection.count; index++)
		remove_id(open_object_ids(self), batch->events[selection.indexes[index]].id);
	return batch ? Py_NewRef(Py_None) : NULL;
}

struct membership {
	const struct ids *ids;
	int is_known;
};

static bool is_member(const struct event *event, const void *context)
{
	const struct membership *membership = context;

	return has_id(membership->ids, event->id) == (membership->is_known != 0);
}

static PyObject *ids_select(PyObject *self, PyObject *arguments)
{
	struct membership membership = { open_object_ids(self), 1 };
	struct selection selection;
	struct batch *batch = parse_selection(self, arguments, "O!Op:select", &selection, &membership.is_known);

	return batch ? select_events(batch, &selection, is_member, &membership) : NULL;
}

static PyObject *ids_remove(PyObject *self, PyObject *arguments)
{
	const struct ids *others;
	PyObject *other;

	if (!PyArg_ParseTuple(arguments, "O!:remove", Py_TYPE(self), &other))
		return NULL;
	others = open_object_ids(other);
	if (others == open_object_ids(self)) {
		clear_ids(open_object_ids(self));
		Py_RETURN_NONE;
	}
	for (size_t slot = 0; slot < others->capacity; slot++)
		if (others->slots[slot])
			remove_id(open_object_ids(self), others->slots[slot]);
	if (others->has_zero)
		remove_id(open_object_ids(self), 0);
	Py_RETURN_NONE;
}

static Py_ssize_t ids_length(PyObject *self)
{
	return (Py_ssize_t)count_ids(open_object_ids(self));
}

static PyMethodDef ids_methods[] = {
	{ "add", ids_add, METH_VARARGS, "(batch, selection) -> those whose id was not here before." },
	{ "discard", ids_discard, METH_VARARGS, "(batch, selection): forget the ids of these events." },
	{ "select", ids_select, METH_VARARGS, "(batch, selection, is_known) -> those whose id is here, or is not." },
	{ "remove", ids_remove, METH_VARARGS, "(ids): forget all that are in the other set, too." },
	{ 0 },
};
static PyType_Slot ids_slots[] = {
	{ Py_tp_new, ids_new },
	{ Py_tp_dealloc, ids_dealloc },
	{ Py_tp_methods, ids_methods },
	{ Py_sq_length, ids_length },
	{ Py_tp_doc, "(): a set of flows' ids, some 8 to 16 bytes each. Belongs to one thread." },
	{ 0, NULL },
};
static PyType_Spec ids_spec = { "conntrackd.core._core.Ids", sizeof(struct ids_object), 0, Py_TPFLAGS_DEFAULT,
				ids_slots };

PyTypeObject *create_ids_type(PyObject *module)
{
	return (PyTypeObject *)PyType_FromModuleAndSpec(module, &ids_spec, NULL);
}
