/* What the files of the binding share: the limited API of Python 3.11, and the types that take each other. */
#ifndef CONNTRACKD_BINDING_H
#define CONNTRACKD_BINDING_H

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include "anonymize.h"
#include "flows.h"
#include "ids.h"
#include "limit.h"
#include "locate.h"
#include "prefixes.h"
#include "render.h"

/* How each of our objects begins. Busy: a call on it works without Python's lock, or makes objects from it. */
struct object {
	PyObject_HEAD
	bool is_busy;
};

struct module_state {
	PyTypeObject *batch, *table, *template, *locations, *ids, *flows, *deltas, *limits, *set, *series, *anonymizer,
		*writer;
};

/* Each makes a type of the module, NULL with an exception. */
PyTypeObject *create_batch_type(PyObject *module);
PyTypeObject *create_table_type(PyObject *module);
PyTypeObject *create_template_type(PyObject *module);
PyTypeObject *create_locations_type(PyObject *module);
PyTypeObject *create_ids_type(PyObject *module);
PyTypeObject *create_set_type(PyObject *module);
PyTypeObject *create_flows_type(PyObject *module);
PyTypeObject *create_deltas_type(PyObject *module);
PyTypeObject *create_limits_type(PyObject *module);
PyTypeObject *create_anonymizer_type(PyObject *module);
PyTypeObject *create_series_type(PyObject *module);
PyTypeObject *create_writer_type(PyObject *module);

/* The module's state, found from an object of one of its types. */
struct module_state *find_state(PyObject *object);

/* An object of this type with all bytes 0, whose deallocator has to be able to take it as it is; and its end. There is
 * no tp_init: Python could call it twice, or never.
 */
void *make_object(PyTypeObject *type);
void free_object(PyObject *self);

/* False with an exception: another thread, or an object that was collected meanwhile, comes in while a call is busy. */
bool is_idle(PyObject *object);
bool claim_object(PyObject *object); /* idle before, busy now */
void leave_object(PyObject *object);

/* What is in an object, whose type was checked. */
struct table *open_object_table(PyObject *object);
struct template *open_object_template(PyObject *object);
struct locations *open_object_locations(PyObject *object);
struct flows *open_object_flows(PyObject *object);
struct ids *open_object_ids(PyObject *object);
struct limits *open_object_limits(PyObject *object);
struct anonymizer *open_object_anonymizer(PyObject *object);
struct writer *open_object_writer(PyObject *object);
const struct prefixes *open_object_set(PyObject *object);

/* A tuple of what is made of each item: so many, one behind the other, of so many bytes. NULL with an exception. */
PyObject *make_tuple(const void *items, size_t count, size_t bytes, PyObject *(*make)(const void *item));

/* Bytes that hold native numbers of this size: how many, or -1 with an exception. */
Py_ssize_t count_items(Py_ssize_t bytes, size_t size, const char *what);

/* The only argument of a new object: how many it may hold, at least `least`; and a seed for its hashes. False with an
 * exception.
 */
bool parse_limit(PyObject *arguments, const char *format, Py_ssize_t least, size_t *limit, uint64_t *seed);

/* Functions of the module that are not in module.c. */
PyObject *core_sort_prefixes(PyObject *module, PyObject *arguments);

#endif
