/* A placeholder, to build packages with until the core is there. */
#include <Python.h>

static struct PyModuleDef definition = { PyModuleDef_HEAD_INIT, .m_name = "_core", .m_doc = "The event path in C",
					 .m_size = 0 };

PyMODINIT_FUNC PyInit__core(void)
{
	return PyModuleDef_Init(&definition);
}
