/* Template: the steps of one sink's text. */
#include "binding.h"

#include "render.h"

#include <errno.h>
#include <stdlib.h>

struct template_object {
	struct object object;
	struct template template;
};

struct template *open_object_template(PyObject *object)
{
	return &((struct template_object *)object)->template;
}

static PyObject *template_new(PyTypeObject *type, PyObject *arguments, PyObject *Py_UNUSED(keywords))
{
	const char *steps, *names, *pool;
	Py_ssize_t steps_bytes, names_bytes, pool_bytes, step_count, name_count;
	PyObject *self;
	int by_stream;

	if (!PyArg_ParseTuple(arguments, "y#y#y#p:Template", &steps, &steps_bytes, &names, &names_bytes, &pool,
			      &pool_bytes, &by_stream))
		return NULL;
	step_count = count_items(steps_bytes, sizeof(struct step), "steps");
	name_count = count_items(names_bytes, sizeof(struct slice), "names");
	if (step_count < 0 || name_count < 0)
		return NULL;
	self = make_object(type);
	if (self && !open_template(open_object_template(self), (const struct step *)(const void *)steps,
				   (size_t)step_count, (const struct slice *)(const void *)names, (size_t)name_count,
				   pool, (size_t)pool_bytes, by_stream)) {
		if (errno == ENOMEM)
			PyErr_NoMemory();
		else
			PyErr_SetString(PyExc_ValueError, "steps that cannot be right");
		Py_CLEAR(self);
	}
	return self;
}

static void template_dealloc(PyObject *self)
{
	close_template(open_object_template(self));
	free_object(self);
}

static PyObject *set_location_texts(PyObject *self, PyObject *arguments)
{
	const char *texts[PLACES];
	Py_ssize_t sizes[PLACES];
	Py_ssize_t location;
	size_t lengths[PLACES];

	if (!PyArg_ParseTuple(arguments, "ny#y#y#y#:set_location_texts", &location, &texts[0], &sizes[0], &texts[1],
			      &sizes[1], &texts[2], &sizes[2], &texts[3], &sizes[3]) ||
	    !is_idle(self))
		return NULL;
	for (int text = 0; text < PLACES; text++)
		lengths[text] = (size_t)sizes[text];
	if (location < 0 || location >= MOST_LOCATIONS) {
		PyErr_SetString(PyExc_ValueError, "a location with too high a number");
		return NULL;
	}
	if (!template_set_places(open_object_template(self), (uint32_t)location, texts, lengths))
		return PyErr_NoMemory();
	Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
	{ "set_location_texts", set_location_texts, METH_VARARGS,
	  "(location, place as destination, as source, network as destination, as source): its texts." },
	{ 0 },
};
static PyType_Slot slots[] = {
	{ Py_tp_new, template_new },
	{ Py_tp_dealloc, template_dealloc },
	{ Py_tp_methods, methods },
	{ Py_tp_doc, "(steps, names, pool, by_stream): what a sink writes of an event. See render/steps.py." },
	{ 0, NULL },
};
static PyType_Spec spec = { "conntrackd.core._core.Template", sizeof(struct template_object), 0, Py_TPFLAGS_DEFAULT,
			    slots };

PyTypeObject *create_template_type(PyObject *module)
{
	return (PyTypeObject *)PyType_FromModuleAndSpec(module, &spec, NULL);
}
