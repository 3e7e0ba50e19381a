/* The types of the extension, for its module and for each other. */
#ifndef CONNTRACKD_TYPES_H
#define CONNTRACKD_TYPES_H

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include "decide.h"

/* Makes the type Table, adds it to the module and returns it; NULL with an exception. */
PyObject *add_table_type(PyObject *module);

/* The table of an object of that type; NULL with a TypeError for any other object. Neither decide() nor its own methods
 * may use it in two threads at once: whoever releases the GIL over it keeps others away. */
struct table *find_table(PyObject *object, PyObject *table_type);

#endif
