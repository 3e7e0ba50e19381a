/* Limits: the token buckets of rules, which the tables of several readers share. */
#include "binding.h"

#include "limit.h"

#include <errno.h>

struct limits_object {
	struct object object;
	struct limits *limits;
};

struct limits *open_object_limits(PyObject *object)
{
	return ((struct limits_object *)object)->limits;
}

static PyObject *limits_new(PyTypeObject *type, PyObject *arguments, PyObject *Py_UNUSED(names))
{
	struct limits_object *self = make_object(type);
	const char *limits;
	Py_ssize_t bytes;
	unsigned long long seed;

	if (!self)
		return NULL;
	if (PyArg_ParseTuple(arguments, "y#K:Limits", &limits, &bytes, &seed)) {
		self->limits = open_limits((const uint8_t *)limits, (size_t)bytes, seed);
		if (!self->limits && errno == ENOMEM)
			PyErr_NoMemory();
		else if (!self->limits)
			PyErr_SetString(PyExc_ValueError, "not limits that this core can keep");
	}
	if (!self->limits) {
		Py_DECREF(self);
		return NULL;
	}
	return (PyObject *)self;
}

static void limits_dealloc(PyObject *object)
{
	close_limits(open_object_limits(object));
	free_object(object);
}

static PyObject *limits_take(PyObject *object, PyObject *Py_UNUSED(nothing))
{
	struct limits *limits = open_object_limits(object);
	PyObject *found = PyList_New(0);

	for (uint32_t rule = 0; found && rule < limits->rules; rule++) {
		struct held held;
		PyObject *item;

		if (!get_held(limits, rule, false).count)
			continue;
		held = get_held(limits, rule, true);
		item = Py_BuildValue("IKKK", rule, held.count, held.since, held.until);
		if (!item || PyList_Append(found, item) < 0)
			Py_CLEAR(found);
		Py_XDECREF(item);
	}
	return found;
}

static PyObject *limits_get_totals(PyObject *object, void *Py_UNUSED(closure))
{
	struct limits *limits = open_object_limits(object);
	PyObject *totals = PyList_New((Py_ssize_t)limits->rules);

	for (uint32_t rule = 0; totals && rule < limits->rules; rule++) {
		PyObject *total = PyLong_FromUnsignedLongLong(get_held(limits, rule, false).total);

		if (!total || PyList_SetItem(totals, (Py_ssize_t)rule, total) < 0)
			Py_CLEAR(totals);
	}
	return totals;
}

static PyMethodDef methods[] = {
	{ "take", limits_take, METH_NOARGS,
	  "take() -> (rule, events, time of the first, of the last) of each limit that has held back some since." },
	{ NULL, NULL, 0, NULL },
};
static PyGetSetDef properties[] = {
	{ "totals", limits_get_totals, NULL, "Events that the limit of each rule has held back.", NULL },
	{ NULL, NULL, NULL, NULL, NULL },
};
static PyType_Slot slots[] = {
	{ Py_tp_new, limits_new },
	{ Py_tp_dealloc, limits_dealloc },
	{ Py_tp_methods, methods },
	{ Py_tp_getset, properties },
	{ Py_tp_doc, "Limits(limits, seed): as filter/limit.py assembles them. Any thread may use it." },
	{ 0, NULL },
};
static PyType_Spec spec = { "conntrackd.core._core.Limits", sizeof(struct limits_object), 0, Py_TPFLAGS_DEFAULT,
			    slots };

PyTypeObject *create_limits_type(PyObject *module)
{
	return (PyTypeObject *)PyType_FromModuleAndSpec(module, &spec, NULL);
}
