/* Table: rules in force, as Python has them. */
#include "binding.h"

#include "decide.h"

#include <errno.h>
#include <stdlib.h>

struct table_object {
	struct object object;
	struct table *table;
	PyObject *sets; /* a tuple, which the table points into; NULL for none */
	PyObject *limits; /* which the table points into, too; NULL for none */
};

/* Opens a table with the sets of a tuple (NULL: there are none). NULL with an exception. */
static struct table *open_with_sets(const char *program, Py_ssize_t bytes, PyObject *sets, PyTypeObject *set_type)
{
	const Py_ssize_t count = sets ? PyTuple_Size(sets) : 0;
	const struct prefixes **list = calloc((size_t)count + 1, sizeof(*list));
	struct table *table;

	if (!list) {
		PyErr_NoMemory();
		return NULL;
	}
	for (Py_ssize_t i = 0; i < count; i++) {
		PyObject *set = PyTuple_GetItem(sets, i);

		if (!Py_IS_TYPE(set, set_type)) {
			PyErr_SetString(PyExc_TypeError, "sets are of AddressSet");
			free(list);
			return NULL;
		}
		list[i] = open_object_set(set);
	}
	errno = EINVAL;
	table = count > UINT16_MAX ? NULL : open_table((const uint8_t *)program, (size_t)bytes, list, (uint32_t)count);
	if (!table && errno == ENOMEM)
		PyErr_NoMemory();
	else if (!table)
		PyErr_SetString(PyExc_ValueError, "not a program of rules that this core can run");
	free(list);
	return table;
}

/* False with an exception: they are none, or not for as many rules as the table has. */
static bool add_limits(struct table_object *self, PyObject *limits, PyTypeObject *limits_type)
{
	if (!limits || limits == Py_None)
		return true;
	if (!Py_IS_TYPE(limits, limits_type)) {
		PyErr_SetString(PyExc_TypeError, "limits are of Limits");
		return false;
	}
	self->limits = Py_NewRef(limits);
	self->table->limits = open_object_limits(limits);
	if (self->table->limits->rules == (uint64_t)self->table->rules + 1)
		return true;
	PyErr_SetString(PyExc_ValueError, "limits of other rules");
	return false;
}

static PyObject *make_table(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
	static char *names[] = { "program", "sets", "limits", NULL };
	struct table_object *self = make_object(type);
	struct module_state *state;
	PyObject *sets = NULL, *limits = NULL;
	const char *program;
	Py_ssize_t bytes;

	if (!self)
		return NULL;
	state = find_state((PyObject *)self);
	if (PyArg_ParseTupleAndKeywords(arguments, keywords, "y#|O!O:Table", names, &program, &bytes, &PyTuple_Type,
					&sets, &limits))
		self->table = open_with_sets(program, bytes, sets, state->set);
	if (!self->table || !add_limits(self, limits, state->limits)) {
		Py_DECREF(self);
		return NULL;
	}
	self->sets = Py_XNewRef(sets);
	return (PyObject *)self;
}

static void free_table(PyObject *object)
{
	close_table(((struct table_object *)object)->table);
	Py_XDECREF(((struct table_object *)object)->sets);
	Py_XDECREF(((struct table_object *)object)->limits);
	free_object(object);
}

static PyObject *get_counts(PyObject *object, void *closure)
{
	const struct table *table = ((struct table_object *)object)->table;
	const Py_ssize_t length = (Py_ssize_t)table->rules + 1;
	PyObject *counts = PyList_New(length);

	(void)closure;
	for (Py_ssize_t i = 0; counts && i < length; i++) {
		PyObject *count = PyLong_FromUnsignedLongLong(__atomic_load_n(&table->counts[i], __ATOMIC_RELAXED));

		if (!count || PyList_SetItem(counts, i, count) < 0)
			Py_CLEAR(counts);
	}
	return counts;
}

static PyObject *get_locations(PyObject *object, void *closure)
{
	(void)closure;
	return PyLong_FromUnsignedLong(((struct table_object *)object)->table->last_location);
}

static PyObject *set_location(PyObject *object, PyObject *arguments)
{
	struct table *table = ((struct table_object *)object)->table;
	const char *bits;
	Py_ssize_t bytes;
	unsigned long number;
	PyObject *given;

	if (!PyArg_ParseTuple(arguments, "O!y#:set_location", &PyLong_Type, &given, &bits, &bytes) || !is_idle(object))
		return NULL;
	number = PyLong_AsUnsignedLong(given);
	if (number == (unsigned long)-1 && PyErr_Occurred())
		return NULL;
	if (!number || number >= MAX_LOCATIONS)
		return PyErr_Format(PyExc_ValueError, "no number of a location: %lu", number);
	if ((size_t)bytes != table->location_words * sizeof(uint64_t))
		return PyErr_Format(PyExc_ValueError, "%zd bytes of a location's bits, not %zu", bytes,
				    table->location_words * sizeof(uint64_t));
	if (!table_set_location(table, (uint32_t)number, (const uint8_t *)bits))
		return PyErr_NoMemory();
	Py_RETURN_NONE;
}

static PyObject *use_sets(PyObject *object, PyObject *sets)
{
	struct table_object *self = (struct table_object *)object;
	PyTypeObject *set_type = find_state(object)->set;
	PyObject *before = self->sets;

	if (!is_idle(object))
		return NULL;
	if (!PyTuple_Check(sets) || PyTuple_Size(sets) != (Py_ssize_t)self->table->set_count) {
		PyErr_SetString(PyExc_ValueError, "not as many sets as the table has");
		return NULL;
	}
	for (Py_ssize_t i = 0; i < PyTuple_Size(sets); i++)
		if (!Py_IS_TYPE(PyTuple_GetItem(sets, i), set_type)) {
			PyErr_SetString(PyExc_TypeError, "sets are of AddressSet");
			return NULL;
		}
	for (Py_ssize_t i = 0; i < PyTuple_Size(sets); i++)
		self->table->sets[i] = open_object_set(PyTuple_GetItem(sets, i));
	self->sets = Py_NewRef(sets);
	Py_XDECREF(before); /* a tuple of a class of somebody's own may run Python at its end */
	Py_RETURN_NONE;
}

static PyObject *get_sets(PyObject *object, void *closure)
{
	PyObject *sets = ((struct table_object *)object)->sets;

	(void)closure;
	return sets ? Py_NewRef(sets) : PyTuple_New(0);
}

static PyMethodDef methods[] = {
	{ "use_sets", use_sets, METH_O, PyDoc_STR("use_sets(sets): others in their place, from the next decision on") },
	{ "set_location", set_location, METH_VARARGS,
	  PyDoc_STR("set_location(number, bits): what the rules ask of it") },
	{ NULL, NULL, 0, NULL },
};

static PyGetSetDef properties[] = {
	{ "counts", get_counts, NULL, PyDoc_STR("events that each rule decided; index 0: no rule matched"), NULL },
	{ "sets", get_sets, NULL, PyDoc_STR("those that it uses, in the order of their numbers"), NULL },
	{ "locations", get_locations, NULL, PyDoc_STR("the highest number of a location that was set"), NULL },
	{ NULL, NULL, NULL, NULL, NULL },
};

static PyType_Slot slots[] = {
	{ Py_tp_doc, PyDoc_STR("Table(program, sets=(), limits=None): rules as filter/table.py assembles them") },
	{ Py_tp_new, make_table },
	{ Py_tp_dealloc, free_table },
	{ Py_tp_methods, methods },
	{ Py_tp_getset, properties },
	{ 0, NULL },
};

static PyType_Spec spec = {
	"conntrackd.core._core.Table", sizeof(struct table_object), 0, Py_TPFLAGS_DEFAULT, slots,
};

PyTypeObject *create_table_type(PyObject *module)
{
	return (PyTypeObject *)PyType_FromModuleAndSpec(module, &spec, NULL);
}

struct table *open_object_table(PyObject *object)
{
	return ((struct table_object *)object)->table;
}
