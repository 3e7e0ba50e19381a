/* Text on its way from a relay to a file, which the thread of the sink writes: neither of the two waits for Python. */
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
	pthread_mutex_t lock; /* for moments, and nobody waits for Python with it: who has Python's own may take it */
	pthread_cond_t changed;
	/* Under the lock: */
	bool is_started; /* the thread takes what is left for it */
	struct chunk waiting;
	struct chunk writing; /* what is in it belongs to the thread */
	size_t taken; /* events, since the last take_counts() */
	struct written written[MOST_WRITTEN]; /* since then, too */
	size_t written_count;
};

/* What a write has come to: bytes, and how many of them are of whole lines; the file was of `begin` bytes before. */
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

/* An empty output in exchange for one with events; false where the thread has one to take still, or takes none. */
bool offer_text(struct writer *writer, struct output *output, uint64_t time, bool is_timed);

/* Writes what is left until there is nothing more after stop_writer(), or not all could be written: then the writer is
 * stopped, and the rest stands in `writing`, without the lines that are there, and `waiting`. `is_named`: it is not
 * written to a file that has no name any more.
 */
struct progress write_texts(struct writer *writer, int descriptor, bool is_named);

#endif
