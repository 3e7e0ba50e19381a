/* Text on its way from a relay to a file, which the thread of the sink writes: neither of the two waits for Python.
 *
 * There are three buffers, which change hands and are never copied: the relay renders into its own, offer_text() swaps
 * that for the empty `waiting`, and the thread swaps `waiting` for `writing` when it has written that.
 */
#ifndef CONNTRACKD_WRITER_H
#define CONNTRACKD_WRITER_H

#include "render.h"

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MOST_WRITTEN 64 /* writes that are counted apart, of one relay, or of a writer until its counts are taken */

/* Of one write. */
struct written {
	uint64_t time; /* of the first event, 0 where the kernel gave none; ns since the epoch, and so is the next */
	uint64_t done;
	size_t events, bytes;
};

/* Events as text, one behind the other. */
struct chunk {
	struct output output;
	uint64_t time; /* of the first event */
	bool is_timed; /* by the kernel */
};

struct writer {
	pthread_mutex_t lock; /* held for moments; with Python's lock it may be taken, but not the other way round */
	pthread_cond_t changed;
	/* Under the lock: */
	bool is_started; /* text may be left */
	struct chunk waiting;
	struct chunk writing; /* its text is the thread's, also without the lock */
	size_t taken; /* events from a relay, since the last take_counts() */
	struct written written[MOST_WRITTEN]; /* since then, too */
	size_t written_count;
};

/* How far a write has come: the file had `begin` bytes before, `done` were written, `whole` of these are lines. */
struct progress {
	int64_t begin;
	size_t done, whole;
};

void open_writer(struct writer *writer);
void close_writer(struct writer *writer);

/* From now on text may be left, or no more: the thread ends when all of it is written. From any thread. */
void start_writer(struct writer *writer);
void stop_writer(struct writer *writer);

/* The same, and what the thread has not begun to write is forgotten. */
void give_up_writer(struct writer *writer);

/* Takes an output with events for the thread and gives an empty one for it; false where another one is waiting still,
 * or the writer is stopped.
 */
bool offer_text(struct writer *writer, struct output *output, uint64_t time, bool is_timed);

/* Writes what is left until there is nothing more after stop_writer(), or not all could be written: then the writer is
 * stopped, and the rest stands in `writing`, without the lines that are there, and `waiting`. `is_named`: it is not
 * written to a file that has no name any more.
 */
struct progress write_texts(struct writer *writer, int descriptor, bool is_named);

#endif
