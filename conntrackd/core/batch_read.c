/* How events come into a batch: from a socket, or from bytes. */
#include "batch.h"

#include <errno.h>
#include <linux/netlink.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MAX_GATHER_US 1000000 /* no signal of Python's is heard so long */

/* The events of the last receive. False for want of memory. */
static bool append_received(struct batch *batch, size_t *forged, size_t *malformed)
{
	for (size_t slot = 0; slot < batch->ring.received; slot++) {
		size_t length;
		const uint8_t *datagram = ring_datagram(&batch->ring, slot, &length);

		if (ring_is_forged(&batch->ring, slot))
			++*forged;
		else if (!datagram)
			++*malformed;
		else if (!append_datagram(batch, datagram, length, malformed))
			return false;
	}
	return true;
}

int receive_events(struct batch *batch, int socket, int patience_ms, int gather_us, int *received, size_t *forged,
		   size_t *malformed)
{
	int code = 0;

	batch->count = *forged = *malformed = 0;
	*received = ring_receive(&batch->ring, socket, patience_ms, gather_us);
	if (*received < 0)
		code = errno;
	batch->received_ns = read_clock(CLOCK_REALTIME);
	return append_received(batch, forged, malformed) ? code : ENOMEM;
}

PyObject *raise_code(int code)
{
	errno = code;
	return code == ENOMEM ? PyErr_NoMemory() : PyErr_SetFromErrno(PyExc_OSError);
}

PyObject *batch_receive(PyObject *self, PyObject *arguments)
{
	struct batch *batch = (struct batch *)self;
	int socket, patience_ms, gather_us, received, code;
	size_t malformed, forged;
	struct fill fill = { 0 };

	if (!PyArg_ParseTuple(arguments, "iii:receive", &socket, &patience_ms, &gather_us))
		return NULL;
	if (patience_ms < 0 || gather_us < 0 || gather_us > MAX_GATHER_US) {
		PyErr_SetString(PyExc_ValueError, "a time that is negative or too long");
		return NULL;
	}
	if (!claim_object(self))
		return NULL;
	Py_BEGIN_ALLOW_THREADS
	code = receive_events(batch, socket, patience_ms, gather_us, &received, &forged, &malformed);
	if (!code && !measure_fill(socket, &fill))
		code = errno;
	Py_END_ALLOW_THREADS
	leave_object(self);
	if (code)
		return raise_code(code);
	return Py_BuildValue("nnnIII", (Py_ssize_t)received, (Py_ssize_t)forged, (Py_ssize_t)malformed, fill.used,
			     fill.size, fill.drops);
}

/* Whole messages of this buffer from `offset` on, up to a control message of netlink's. */
PyObject *batch_load(PyObject *self, PyObject *arguments)
{
	struct batch *batch = (struct batch *)self;
	PyObject *loaded, *before;
	unsigned long long received_ns;
	size_t malformed = 0, seen = 0, at, length;
	const uint8_t *messages;
	Py_ssize_t offset;

	if (!PyArg_ParseTuple(arguments, "SnK:load", &loaded, &offset, &received_ns) || !is_idle(self))
		return NULL;
	if (offset < 0 || offset > PyBytes_Size(loaded)) {
		PyErr_SetString(PyExc_ValueError, "an offset outside the messages");
		return NULL;
	}
	before = batch->loaded;
	batch->loaded = Py_NewRef(loaded);
	batch->count = 0;
	claim_object(self); /* bytes of a class of somebody's own may run Python at their end */
	Py_XDECREF(before);
	leave_object(self);
	batch->received_ns = received_ns;
	messages = (const uint8_t *)PyBytes_AsString(loaded);
	length = (size_t)PyBytes_Size(loaded);
	for (at = (size_t)offset; length - at >= NLMSG_HDRLEN && seen < batch->ring.slots; seen++) {
		struct nlmsghdr header;

		memcpy(&header, messages + at, sizeof(header));
		if (header.nlmsg_len < NLMSG_HDRLEN || header.nlmsg_len > length - at ||
		    header.nlmsg_type < NLMSG_MIN_TYPE)
			break;
		if (!append_message(batch, messages + at, header.nlmsg_len, &malformed))
			return PyErr_NoMemory();
		at += NLMSG_ALIGN((size_t)header.nlmsg_len);
		at = at < length ? at : length;
	}
	return Py_BuildValue("nnn", (Py_ssize_t)at, (Py_ssize_t)seen, (Py_ssize_t)malformed);
}

/* The datagrams of the last receive as a recording has them: at most `limit`, each padded. */
PyObject *batch_datagrams(PyObject *self, PyObject *arguments)
{
	struct batch *batch = (struct batch *)self;
	size_t room = 0, size = 0, length, slot;
	Py_ssize_t limit, count = 0;
	PyObject *bytes;
	char *copy;

	if (!PyArg_ParseTuple(arguments, "n:datagrams", &limit) || !is_idle(self))
		return NULL;
	for (slot = 0; slot < batch->ring.received; slot++)
		if (ring_datagram(&batch->ring, slot, &length))
			room += NLMSG_ALIGN(length);
	copy = calloc(room + 1, 1);
	if (!copy)
		return PyErr_NoMemory();
	for (slot = 0; slot < batch->ring.received && count < limit; slot++) {
		const uint8_t *datagram = ring_datagram(&batch->ring, slot, &length);

		if (!datagram || !length || ring_is_forged(&batch->ring, slot))
			continue;
		memcpy(copy + size, datagram, length);
		size += NLMSG_ALIGN(length);
		count++;
	}
	bytes = PyBytes_FromStringAndSize(copy, (Py_ssize_t)size);
	free(copy);
	return bytes ? Py_BuildValue("nN", count, bytes) : NULL;
}
