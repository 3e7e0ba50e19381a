/* A batch, and selections of its events: their indexes, in bytes that Python hands from one call to the next. */
#ifndef CONNTRACKD_BATCH_H
#define CONNTRACKD_BATCH_H

#include "binding.h"

#include "event.h"
#include "receive.h"
#include "render.h"

#include <stdatomic.h>

#define MOST_OUTLETS 8 /* of a relay */

/* Room for messages on their way: it grows, and is kept for the next ones. */
struct frames {
	uint32_t *ends; /* and behind them the text */
	size_t bytes;
};

struct batch {
	struct object object;
	struct ring ring;
	uint64_t received_ns;
	bool reports_reason; /* see walk_message() */
	PyObject *loaded; /* the bytes that load() was given: events point into them */
	struct event *events;
	uint16_t *indexes; /* room for a selection of all of them, while it is made */
	size_t count, capacity;
	struct output outputs[MOST_OUTLETS]; /* the first is render()'s, too */
	struct frames frames;
	atomic_bool is_interrupted; /* see relay_batches() */
};

struct selection {
	const uint16_t *indexes;
	size_t count;
};

/* Adds the event of a message, or counts it as malformed. False for want of memory. */
bool append_message(struct batch *batch, const uint8_t *message, size_t length, size_t *malformed);

/* The kernel sends events one by one, but netlink allows several messages in a datagram. */
bool append_datagram(struct batch *batch, const uint8_t *datagram, size_t length, size_t *malformed);

/* The next batch from a socket: see batch_receive(). An errno, 0 for none. */
int receive_events(struct batch *batch, int socket, int patience_ms, int gather_us, int *received, size_t *forged,
		   size_t *malformed);

/* NULL with the exception for an errno. */
PyObject *raise_code(int code);

/* All events, by the batch's indexes. */
void select_all(struct batch *batch);

/* None selects all events. False with an exception: it is not a selection, not one of this batch, or the batch is busy.
 * It has no more indexes than there are events, so that a selection of it has room in the batch's.
 */
bool open_selection(struct batch *batch, PyObject *object, struct selection *selection);

/* The batch and the selection of it, all where there is none, that a method of another type is given; and a flag behind
 * them where the format has one. NULL with an exception.
 */
struct batch *parse_selection(PyObject *self, PyObject *arguments, const char *format, struct selection *selection,
			      int *flag);

/* The first `count` of the batch's indexes as bytes. */
PyObject *make_selection(const struct batch *batch, size_t count);

/* Those of a selection that `is_kept` keeps, as a new object. */
PyObject *select_events(struct batch *batch, const struct selection *among,
			bool (*is_kept)(const struct event *event, const void *context), const void *context);

/* The value of a field for people and tests: a number, bytes, or None where the event has none. */
PyObject *describe_field(const struct event *event, size_t field);

/* (type, protocol, events) of each. */
PyObject *list_found_streams(const struct stream *streams, size_t count);

/* One of this type that nobody uses now, or None. False with an exception, which says `otherwise` of another type. */
bool is_free(PyObject *object, PyTypeObject *type, const char *otherwise);

/* No bytes may be at NULL. */
PyObject *make_bytes(const void *bytes, size_t size);

/* Methods of the type, which batch_type.c lists, that are in batch_relay.c and batch_read.c. */
PyObject *batch_relay(PyObject *self, PyObject *arguments);
PyObject *batch_interrupt(PyObject *self, PyObject *Py_UNUSED(none));
PyObject *batch_receive(PyObject *self, PyObject *arguments);
PyObject *batch_load(PyObject *self, PyObject *arguments);
PyObject *batch_datagrams(PyObject *self, PyObject *arguments);

#endif
