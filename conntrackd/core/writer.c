/* See writer.h. */
#include "writer.h"

#include "receive.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

void open_writer(struct writer *writer)
{
	pthread_mutex_init(&writer->lock, NULL);
	pthread_cond_init(&writer->changed, NULL);
}

void close_writer(struct writer *writer)
{
	close_output(&writer->waiting.output);
	close_output(&writer->writing.output);
	pthread_cond_destroy(&writer->changed);
	pthread_mutex_destroy(&writer->lock);
}

static void set_started(struct writer *writer, bool is_started)
{
	pthread_mutex_lock(&writer->lock);
	writer->is_started = is_started;
	pthread_cond_signal(&writer->changed);
	pthread_mutex_unlock(&writer->lock);
}

void start_writer(struct writer *writer)
{
	set_started(writer, true);
}

void stop_writer(struct writer *writer)
{
	set_started(writer, false);
}

void give_up_writer(struct writer *writer)
{
	stop_writer(writer);
	pthread_mutex_lock(&writer->lock);
	clear_output(&writer->waiting.output);
	pthread_mutex_unlock(&writer->lock);
}

bool offer_text(struct writer *writer, struct output *output, uint64_t time, bool is_timed)
{
	const struct chunk offered = { *output, time, is_timed };
	bool takes;

	pthread_mutex_lock(&writer->lock);
	takes = writer->is_started && !writer->waiting.output.count;
	if (takes) {
		*output = writer->waiting.output;
		writer->waiting = offered;
		writer->taken += offered.output.count;
		pthread_cond_signal(&writer->changed);
	}
	pthread_mutex_unlock(&writer->lock);
	return takes;
}

/* ---- the thread --------------------------------------------------------------------------------------- */

/* Waits for a text, which is in `writing` then; false where none will come. Under the lock, as the next one. */
static bool take_text(struct writer *writer)
{
	struct chunk taken;

	while (!writer->waiting.output.count && writer->is_started)
		pthread_cond_wait(&writer->changed, &writer->lock);
	taken = writer->waiting;
	writer->waiting = writer->writing;
	writer->writing = taken;
	return taken.output.count;
}

static void note_written(struct writer *writer, size_t lines, size_t bytes)
{
	const struct chunk *chunk = &writer->writing;
	struct written *last = &writer->written[MOST_WRITTEN - 1];
	const uint64_t done = read_clock(CLOCK_REALTIME);

	if (writer->written_count < MOST_WRITTEN) {
		writer->written[writer->written_count++] =
			(struct written){ chunk->is_timed ? chunk->time : 0, done, lines, bytes };
		return;
	}
	last->done = done; /* all as late as the oldest of them: nobody has taken the counts for long */
	last->events += lines;
	last->bytes += bytes;
}

/* Where the file ends, or the position that its opener has left it at, if further; -1 where nothing may be written. */
static int64_t find_end(int descriptor, bool is_named)
{
	struct stat status;
	off_t position;

	if (fstat(descriptor, &status) < 0 || (is_named && !status.st_nlink))
		return -1;
	position = lseek(descriptor, 0, SEEK_CUR);
	return position > status.st_size ? position : status.st_size;
}

/* All of it, if nothing fails. */
static struct progress write_text(const struct output *output, int descriptor, bool is_named)
{
	struct progress progress = { .begin = find_end(descriptor, is_named) };
	ssize_t taken = 1;

	while (progress.begin >= 0 && progress.done < output->length && (taken > 0 || (taken < 0 && errno == EINTR))) {
		taken = write(descriptor, output->text + progress.done, output->length - progress.done);
		progress.done += taken > 0 ? (size_t)taken : 0;
	}
	return progress;
}

/* Without its first events, of so many bytes. */
static void cut_output(struct output *output, size_t events, size_t bytes)
{
	output->count -= events;
	output->length -= bytes;
	memmove(output->text, output->text + bytes, output->length);
	for (size_t event = 0; event < output->count; event++)
		output->ends[event] = output->ends[event + events] - (uint32_t)bytes;
}

struct progress write_texts(struct writer *writer, int descriptor, bool is_named)
{
	struct output *output = &writer->writing.output;
	struct progress progress = { 0 };

	pthread_mutex_lock(&writer->lock);
	while (take_text(writer)) {
		size_t lines = 0;

		pthread_mutex_unlock(&writer->lock); /* a disk may take its time */
		progress = write_text(output, descriptor, is_named);
		pthread_mutex_lock(&writer->lock);
		while (lines < output->count && output->ends[lines] <= progress.done)
			lines++;
		progress.whole = lines ? output->ends[lines - 1] : 0;
		if (lines)
			note_written(writer, lines, progress.whole);
		if (lines == output->count) {
			clear_output(output);
			continue;
		}
		cut_output(output, lines, progress.whole);
		writer->is_started = false;
		break;
	}
	pthread_mutex_unlock(&writer->lock);
	return progress;
}
