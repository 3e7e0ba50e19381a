/* Writer: what a relay and the thread of a sink have between them. */
#include "outlet.h"

#include <string.h>

struct writer_object {
	struct object object;
	struct writer writer;
};

struct writer *open_object_writer(PyObject *object)
{
	return &((struct writer_object *)object)->writer;
}

static PyObject *writer_new(PyTypeObject *type, PyObject *Py_UNUSED(arguments), PyObject *Py_UNUSED(names))
{
	PyObject *self = make_object(type);

	if (self)
		open_writer(open_object_writer(self));
	return self;
}

static void writer_dealloc(PyObject *self)
{
	close_writer(open_object_writer(self));
	free_object(self);
}

static PyObject *writer_start(PyObject *self, PyObject *Py_UNUSED(none))
{
	start_writer(open_object_writer(self));
	Py_RETURN_NONE;
}

static PyObject *writer_stop(PyObject *self, PyObject *Py_UNUSED(none))
{
	stop_writer(open_object_writer(self));
	Py_RETURN_NONE;
}

static PyObject *writer_give_up(PyObject *self, PyObject *Py_UNUSED(none))
{
	give_up_writer(open_object_writer(self));
	Py_RETURN_NONE;
}

static PyObject *writer_run(PyObject *self, PyObject *arguments)
{
	struct progress progress;
	int descriptor, is_named;

	if (!PyArg_ParseTuple(arguments, "ip:run", &descriptor, &is_named) || !claim_object(self))
		return NULL;
	Py_BEGIN_ALLOW_THREADS
	progress = write_texts(open_object_writer(self), descriptor, is_named != 0);
	Py_END_ALLOW_THREADS
	leave_object(self);
	return Py_BuildValue("Lnn", progress.begin, (Py_ssize_t)progress.done, (Py_ssize_t)progress.whole);
}

static PyObject *writer_take_counts(PyObject *self, PyObject *Py_UNUSED(none))
{
	struct writer *writer = open_object_writer(self);
	const struct chunk *first = &writer->writing;
	struct written written[MOST_WRITTEN];
	size_t taken, count;
	uint64_t oldest;

	pthread_mutex_lock(&writer->lock);
	taken = writer->taken;
	count = writer->written_count;
	memcpy(written, writer->written, count * sizeof(*written));
	first = first->output.count ? first : &writer->waiting;
	oldest = first->output.count ? first->time : 0;
	writer->taken = writer->written_count = 0;
	pthread_mutex_unlock(&writer->lock);
	return Py_BuildValue("nKN", (Py_ssize_t)taken, oldest,
			     make_tuple(written, count, sizeof(*written), make_written));
}

static PyObject *make_chunk(const void *item)
{
	const struct chunk *chunk = *(const struct chunk *const *)item;
	const struct output *output = &chunk->output;

	return Py_BuildValue("(NNnK)N", make_bytes(output->text, output->length),
			     make_bytes(output->ends, output->count * sizeof(*output->ends)), (Py_ssize_t)output->count,
			     chunk->time, PyBool_FromLong(chunk->is_timed));
}

/* Nobody else has it: the thread has returned, and a writer that it stopped takes nothing. */
static PyObject *writer_take_rest(PyObject *self, PyObject *Py_UNUSED(none))
{
	struct writer *writer = open_object_writer(self);
	const struct chunk *chunks[2];
	size_t count = 0;
	PyObject *rest;

	if (!is_idle(self))
		return NULL;
	if (writer->writing.output.count)
		chunks[count++] = &writer->writing;
	if (writer->waiting.output.count)
		chunks[count++] = &writer->waiting;
	rest = make_tuple(chunks, count, sizeof(*chunks), make_chunk);
	if (rest) {
		clear_output(&writer->writing.output);
		clear_output(&writer->waiting.output);
	}
	return rest;
}

static PyMethodDef methods[] = {
	{ "start", writer_start, METH_NOARGS, "(): a relay may leave text, which the next run() writes." },
	{ "stop", writer_stop, METH_NOARGS, "(): it may not; a run() ends when all is written. From any thread." },
	{ "give_up", writer_give_up, METH_NOARGS, "(): stop(), and what run() has not begun to write is forgotten." },
	{ "run", writer_run, METH_VARARGS,
	  "(descriptor, is_named) -> of the last write: bytes of the file before, bytes written, those of whole "
	  "lines.\n"
	  "Writes what a relay leaves, until stop(); or stops when not all could be written, or a file that has to be\n"
	  "is not named any more." },
	{ "take_counts", writer_take_counts, METH_NOARGS,
	  "() -> events taken since the last call; the time of the first that is not written, 0 for none;\n"
	  "and since then time, done, events and bytes of each write." },
	{ "take_rest", writer_take_rest, METH_NOARGS,
	  "() -> what run() has not written, in its order: (text, ends, events, time), whether that is the kernel's." },
	{ 0 },
};
static PyType_Slot slots[] = {
	{ Py_tp_new, writer_new },
	{ Py_tp_dealloc, writer_dealloc },
	{ Py_tp_methods, methods },
	{ Py_tp_doc, "(): text that a relay leaves for the thread that writes it to a file." },
	{ 0, NULL },
};
static PyType_Spec spec = { "conntrackd.core._core.Writer", sizeof(struct writer_object), 0, Py_TPFLAGS_DEFAULT,
			    slots };

PyTypeObject *create_writer_type(PyObject *module)
{
	return (PyTypeObject *)PyType_FromModuleAndSpec(module, &spec, NULL);
}
