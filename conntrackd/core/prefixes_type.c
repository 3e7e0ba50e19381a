/* AddressSet: the networks of a set, in buffers of Python's; and the sorting of such a buffer. */
#include "binding.h"

struct set_object {
	struct object object;
	struct prefixes set;
	Py_buffer ipv4, ipv6; /* held, so that nobody can make them shorter */
};

const struct prefixes *open_object_set(PyObject *object)
{
	return &((struct set_object *)object)->set;
}

/* How many entries are in the buffer, -1 with an exception where they are not sorted. */
static Py_ssize_t check_entries(const Py_buffer *buffer, size_t address_bytes)
{
	const Py_ssize_t size = (Py_ssize_t)ENTRY_BYTES(address_bytes);
	bool is_sorted;

	Py_BEGIN_ALLOW_THREADS
	is_sorted = buffer->len % size == 0 &&
		    are_prefixes_sorted(buffer->buf, (size_t)(buffer->len / size), address_bytes);
	Py_END_ALLOW_THREADS
	if (is_sorted)
		return buffer->len / size;
	PyErr_SetString(PyExc_ValueError, "not the networks of a set, sorted");
	return -1;
}

static PyObject *set_new(PyTypeObject *type, PyObject *arguments, PyObject *Py_UNUSED(names))
{
	struct set_object *self = make_object(type);
	Py_ssize_t ipv4_count, ipv6_count;

	if (!self)
		return NULL;
	if (!PyArg_ParseTuple(arguments, "y*y*:AddressSet", &self->ipv4, &self->ipv6))
		goto failed;
	ipv4_count = check_entries(&self->ipv4, IPV4_BYTES);
	ipv6_count = check_entries(&self->ipv6, ADDRESS_BYTES);
	if (ipv4_count < 0 || ipv6_count < 0)
		goto failed;
	self->set = (struct prefixes){ self->ipv4.buf, self->ipv6.buf, (size_t)ipv4_count, (size_t)ipv6_count };
	return (PyObject *)self;
failed:
	Py_DECREF(self);
	return NULL;
}

static void set_dealloc(PyObject *object)
{
	struct set_object *self = (struct set_object *)object;

	PyBuffer_Release(&self->ipv4);
	PyBuffer_Release(&self->ipv6);
	free_object(object);
}

static Py_ssize_t set_length(PyObject *object)
{
	const struct prefixes *set = open_object_set(object);

	return (Py_ssize_t)(set->ipv4_count + set->ipv6_count);
}

static PyType_Slot set_slots[] = {
	{ Py_tp_new, set_new },
	{ Py_tp_dealloc, set_dealloc },
	{ Py_sq_length, set_length },
	{ Py_tp_doc, "(ipv4, ipv6): networks of a set as sort_prefixes() leaves them. Any thread may use it." },
	{ 0, NULL },
};
static PyType_Spec set_spec = { "conntrackd.core._core.AddressSet", sizeof(struct set_object), 0, Py_TPFLAGS_DEFAULT,
				set_slots };

PyTypeObject *create_set_type(PyObject *module)
{
	return (PyTypeObject *)PyType_FromModuleAndSpec(module, &set_spec, NULL);
}

PyObject *core_sort_prefixes(PyObject *Py_UNUSED(module), PyObject *arguments)
{
	Py_ssize_t address_bytes, size;
	Py_buffer buffer;
	size_t left;

	if (!PyArg_ParseTuple(arguments, "w*n:sort_prefixes", &buffer, &address_bytes))
		return NULL;
	size = ENTRY_BYTES(address_bytes);
	if ((address_bytes != IPV4_BYTES && address_bytes != ADDRESS_BYTES) || buffer.len % size) {
		PyBuffer_Release(&buffer);
		PyErr_SetString(PyExc_ValueError, "not the networks of a set");
		return NULL;
	}
	for (Py_ssize_t at = address_bytes; at < buffer.len; at += size)
		if (((const uint8_t *)buffer.buf)[at] > address_bytes * 8) {
			PyBuffer_Release(&buffer);
			PyErr_SetString(PyExc_ValueError, "more bits than an address has");
			return NULL;
		}
	Py_BEGIN_ALLOW_THREADS
	left = sort_prefixes(buffer.buf, (size_t)(buffer.len / size), (size_t)address_bytes);
	Py_END_ALLOW_THREADS
	PyBuffer_Release(&buffer);
	return PyLong_FromSize_t(left * (size_t)size);
}
