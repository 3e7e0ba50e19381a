/* Parts of one text as datagrams or framed messages. */
#ifndef CONNTRACKD_SEND_H
#define CONNTRACKD_SEND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Sends the parts that end at `ends`, from number `first` on, as one datagram each: over a connected socket, or
 * several of the same length in one call with `segments` (UDP alone). Waits at most `patience_ms` for room, and
 * then for the next. Returns how many were taken; `*error` is what kept the next one from it, or 0.
 */
size_t send_parts(int socket, const char *text, const uint32_t *ends, size_t count, size_t first, int patience_ms,
		  bool segments, int *error);

/* What stands around a syslog message on its way. */
enum framing {
	FRAME_NONE, /* a datagram */
	FRAME_OCTETS, /* RFC 6587, 3.4.1 */
	FRAME_LINE, /* RFC 6587, 3.4.2: no message of ours holds a line's end */
	FRAME_NUL, /* as syslog(3) over a local stream */
	FRAME_PADDED, /* a datagram, filled up with spaces to a multiple of PADDED_TO bytes */
};
#define PADDED_TO 64
#define MAX_SEQUENCE 2147483647 /* RFC 5424, 7.3.1: then it begins at 1 again */

/* The most that frame_parts() makes of so many parts with so many bytes; 0 where an end could be above 32 bits. */
size_t bound_frames(size_t bytes, size_t count);

/* Puts the message's number, `number` for the first, in the place of its NUL, where it has one, and frames it.
 * Returns the number of bytes; `number` is that of the next message then.
 */
size_t frame_parts(const char *text, const uint32_t *ends, size_t count, uint32_t *number, enum framing framing,
		   char *framed, uint32_t *framed_ends);

#endif
