/* A placeholder, to build packages with until the core is there. */
#include <Python.h>
#include <stdio.h>
#include <string.h>

static PyObject *describe(PyObject *self, PyObject *text)
{
	char copy[64];
	Py_ssize_t length;
	const char *bytes = PyUnicode_AsUTF8AndSize(text, &length);

	(void)self;
	if (!bytes)
		return NULL;
	snprintf(copy, sizeof(copy), "%s", bytes);
	return PyUnicode_FromStringAndSize(copy, (Py_ssize_t)strlen(copy));
}

static PyMethodDef methods[] = { { "describe", describe, METH_O, NULL }, { 0 } };
static struct PyModuleDef definition = { PyModuleDef_HEAD_INIT, .m_name = "_core", .m_doc = "The event path in C",
					 .m_methods = methods };

PyMODINIT_FUNC PyInit__core(void)
{
	return PyModuleDef_Init(&definition);
}
