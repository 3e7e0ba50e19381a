/* Series: counts of connections by the values of some fields. */
#include "batch.h"

#include "fields.h"
#include "series.h"

struct series_object {
	struct object object;
	struct series series;
};

static struct series *open_object_series(PyObject *object)
{
	return &((struct series_object *)object)->series;
}

/* False with an exception: too many, or one that has no value of which there could be a series. */
static bool read_fields(struct series *series, const char *bytes, Py_ssize_t length)
{
	Py_ssize_t count = count_items(length, sizeof(series->fields[0]), "fields");

	if (count < 0)
		return false;
	if (count > MAX_SERIES_FIELDS) {
		PyErr_SetString(PyExc_ValueError, "too many fields");
		return false;
	}
	series->field_count = (size_t)count;
	memcpy(series->fields, bytes, (size_t)length);
	for (size_t field = 0; field < series->field_count; field++) {
		uint64_t number = series->fields[field].number;

		if (number >= event_field_count || !event_fields[number].size ||
		    event_fields[number].has == HAS_LABELS) {
			PyErr_SetString(PyExc_ValueError, "there is no such field");
			return false;
		}
	}
	return true;
}

static PyObject *series_new(PyTypeObject *type, PyObject *arguments, PyObject *Py_UNUSED(names))
{
	Py_ssize_t length, limit, most_living;
	unsigned long long seed;
	const char *fields;
	PyObject *self;

	if (!PyArg_ParseTuple(arguments, "y#nnK:Series", &fields, &length, &limit, &most_living, &seed))
		return NULL;
	if (limit < 1 || most_living < 1) {
		PyErr_SetString(PyExc_ValueError, "a limit below 1");
		return NULL;
	}
	self = make_object(type);
	if (self && (!read_fields(open_object_series(self), fields, length) ||
		     !open_series(open_object_series(self), (size_t)limit, (size_t)most_living, seed))) {
		Py_DECREF(self);
		return PyErr_Occurred() ? NULL : PyErr_NoMemory();
	}
	return self;
}

static void series_dealloc(PyObject *self)
{
	close_series(open_object_series(self));
	free_object(self);
}

static PyObject *series_count(PyObject *self, PyObject *arguments)
{
	struct selection selection;
	struct batch *batch = parse_selection(self, arguments, "O!O:count", &selection, NULL);

	if (!batch || !is_idle(self))
		return NULL;
	for (size_t index = 0; index < selection.count; index++)
		count_event(open_object_series(self), &batch->events[selection.indexes[index]]);
	Py_RETURN_NONE;
}

/* ---- what was counted --------------------------------------------------------------------------------- */

static PyObject *make_number(const void *item)
{
	return PyLong_FromUnsignedLongLong(*(const uint64_t *)item);
}

static PyObject *make_value(const void *item)
{
	const struct series_value *value = item;

	if (!value->bytes)
		Py_RETURN_NONE;
	if (value->bytes == 1)
		return PyLong_FromUnsignedLongLong(value->halves[0]);
	return PyBytes_FromStringAndSize((const char *)value->halves, (Py_ssize_t)value->bytes);
}

static PyObject *make_counts(const struct counts *counts)
{
	const size_t sums = offsetof(struct counts, durations) / sizeof(uint64_t);

	return Py_BuildValue("NN", make_tuple(counts, sums, sizeof(uint64_t), make_number),
			     make_tuple(counts->durations, DURATION_BUCKETS, sizeof(uint64_t), make_number));
}

static bool append_series(PyObject *list, const struct series *series, size_t number)
{
	const struct one_series *found = get_slot(&series->slots, number);
	PyObject *item;
	int failed;

	if (!found->hash)
		return true;
	item = Py_BuildValue("NN", make_tuple(found->values, series->field_count, sizeof(*found->values), make_value),
			     make_counts(&found->counts));
	failed = item ? PyList_Append(list, item) : -1;
	Py_XDECREF(item);
	return failed == 0;
}

static PyObject *series_list(PyObject *self, PyObject *Py_UNUSED(arguments))
{
	const struct series *series = open_object_series(self);
	PyObject *list;

	if (!claim_object(self))
		return NULL;
	list = PyList_New(0);
	for (size_t number = 0; list && number < series->slots.capacity; number++)
		if (!append_series(list, series, number))
			Py_CLEAR(list);
	leave_object(self);
	return list;
}

static PyObject *series_get_other(PyObject *self, void *Py_UNUSED(closure))
{
	return make_counts(&open_object_series(self)->other);
}

static PyObject *series_get_overflows(PyObject *self, void *Py_UNUSED(closure))
{
	return PyLong_FromUnsignedLongLong(open_object_series(self)->overflows);
}

static Py_ssize_t series_length(PyObject *self)
{
	return (Py_ssize_t)open_object_series(self)->slots.used;
}

static PyMethodDef methods[] = {
	{ "count", series_count, METH_VARARGS, "(batch, selection): connections that these events open and close." },
	{ "list", series_list, METH_NOARGS,
	  "() -> ((value, ...), ((sum, ...), (events of a bucket, ...))) of each: a number, an address, or None." },
	{ 0 },
};
static PyGetSetDef attributes[] = {
	{ "other", series_get_other, NULL, "What was counted for want of room for one more series.", NULL },
	{ "overflows", series_get_overflows, NULL, "How many events that was.", NULL },
	{ 0 },
};
static PyType_Slot slots[] = {
	{ Py_tp_new, series_new },
	{ Py_tp_dealloc, series_dealloc },
	{ Py_tp_methods, methods },
	{ Py_tp_getset, attributes },
	{ Py_sq_length, series_length },
	{ Py_tp_doc,
	  "(fields, limit, most_living, seed): counts of connections by the values of these, in so many series." },
	{ 0, NULL },
};
static PyType_Spec spec = { "conntrackd.core._core.Series", sizeof(struct series_object), 0, Py_TPFLAGS_DEFAULT,
			    slots };

PyTypeObject *create_series_type(PyObject *module)
{
	return (PyTypeObject *)PyType_FromModuleAndSpec(module, &spec, NULL);
}
