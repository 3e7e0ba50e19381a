/* Where the text of one template goes while batches are relayed. */
#ifndef CONNTRACKD_OUTLET_H
#define CONNTRACKD_OUTLET_H

#include "batch.h"
#include "binding.h"
#include "writer.h"

/* What becomes of a text. delivery/loan.py has the same. */
enum way {
	WAY_KEEP, /* it waits for a writer that takes it, or for Python, which gets those of all batches as one */
	WAY_DISCARD,
	WAY_WRITE, /* to a descriptor that does not block, in whole lines that a pipe keeps together */
	WAY_NOWAIT, /* the same to one that was inherited, and may block: by RWF_NOWAIT */
	WAY_SEND, /* as datagrams, over a connected socket */
	WAY_NUMBER, /* the same, each with the number of a syslog message: see frame_parts() */
	WAY_SEGMENT, /* the same, padded, and several in one call: see send_parts() */
	WAYS,
};

struct outlet {
	PyObject *object; /* of the template; borrowed */
	struct template *template;
	struct output *output; /* the batch's, with what is left for Python in the end */
	enum way way;
	int descriptor;
	uint32_t number; /* of the next message of syslog */
	size_t also_refused; /* datagrams that went nowhere before one that is refused: see DatagramSocket */
	int error; /* of the socket, which says it once */
	size_t room; /* events that may wait for Python */
	struct writer *writer; /* may take them instead; borrowed; NULL for none */
	size_t left; /* events that it has taken */
	size_t written_count;
	struct written written[MOST_WRITTEN];
	struct stream *streams; /* of a template by stream, one batch's behind the other's */
	size_t stream_count, stream_capacity;
	/* What is in the output: */
	uint64_t rest_time; /* of its first event */
	bool rest_is_timed; /* by the kernel */
	size_t rest_first; /* events of the output that were written already */
	size_t rest_torn; /* bytes that were written of the first event that was not written whole */
};

/* Renders the events at the first `kept` of the batch's indexes and writes what can be written at once, or keeps it: 1
 * where the next batch may follow, 0 where not, for want of room or because something is left; -1 for want of memory.
 */
int pass_batch(struct outlet *outlet, struct batch *batch, size_t kept);

/* Leaves what waits for Python to the writer, if there is one and it takes more. */
void offer_rest(struct outlet *outlet);

/* Of one outlet, in the order of Passed in delivery/loan.py: what was written; what was not, in the order of render();
 * whether the kernel gave the time of its first event, and bytes of that which were written; the number of the next
 * message; an errno; and how many events the writer has taken. NULL with an exception.
 */
PyObject *list_passed(const void *outlet);

/* Of one struct written, in the order of Written in delivery/loan.py. */
PyObject *make_written(const void *written);

#endif
