/* See send.h. */
#include "send.h"

#include "text.h"

#include <errno.h>
#include <linux/udp.h>
#include <netinet/in.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif
#define MOST_PARTS 256 /* in one call */
#define MOST_SEGMENTS 64 /* include/linux/udp.h, UDP_MAX_SEGMENTS of kernels before 6.8 */
#define MOST_SEGMENT_BYTES 65000 /* they are one IP packet to the stack, of 65,535 bytes with its headers */

static size_t part_begin(const uint32_t *ends, size_t part)
{
	return part ? ends[part - 1] : 0;
}

static bool wait_for_room(int socket, int patience_ms, int *error)
{
	struct pollfd room = { .fd = socket, .events = POLLOUT };
	int ready = poll(&room, 1, patience_ms);

	if (ready < 0 && errno == EINTR)
		return true;
	*error = ready < 0 ? errno : ETIMEDOUT;
	return ready > 0;
}

/* As many as are taken at once, at most `most`; -1 with errno. */
static int send_apart(int socket, const char *text, const uint32_t *ends, size_t first, size_t most)
{
	struct mmsghdr messages[MOST_PARTS];
	struct iovec vectors[MOST_PARTS];

	memset(messages, 0, most * sizeof(*messages));
	for (size_t part = 0; part < most; part++) {
		size_t begin = part_begin(ends, first + part);

		vectors[part] = (struct iovec){ (char *)text + begin, ends[first + part] - begin };
		messages[part].msg_hdr.msg_iov = &vectors[part];
		messages[part].msg_hdr.msg_iovlen = 1;
	}
	return sendmmsg(socket, messages, (unsigned)most, MSG_DONTWAIT | MSG_NOSIGNAL);
}

/* Parts of one length that follow each other, the last one may be shorter: the kernel cuts them (udp(7)). */
static int send_segments(int socket, const char *text, const uint32_t *ends, size_t first, size_t most)
{
	_Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(uint16_t))] = { 0 };
	size_t begin = part_begin(ends, first), size = ends[first] - begin, count = 1;
	struct iovec vector = { (char *)text + begin, size };
	struct msghdr message = { .msg_iov = &vector, .msg_iovlen = 1 };
	uint16_t segment = (uint16_t)size;

	while (count < most && count < MOST_SEGMENTS && ends[first + count] - begin <= MOST_SEGMENT_BYTES) {
		size_t next = ends[first + count] - ends[first + count - 1];

		if (!next || next > size) /* the kernel cuts no segment of nothing */
			break;
		vector.iov_len += next;
		count++;
		if (next < size)
			break;
	}
	if (count > 1) {
		struct cmsghdr *header;

		message.msg_control = control;
		message.msg_controllen = sizeof(control);
		header = CMSG_FIRSTHDR(&message);
		*header = (struct cmsghdr){ .cmsg_len = CMSG_LEN(sizeof(segment)),
					    .cmsg_level = IPPROTO_UDP,
					    .cmsg_type = UDP_SEGMENT };
		memcpy(CMSG_DATA(header), &segment, sizeof(segment));
	}
	return sendmsg(socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 ? -1 : (int)count;
}

/*
 * Why sendmmsg() stopped between two the kernel keeps to itself (net/socket.c), and it forgets a refusal of UDP.
 * So one is sent alone after that: it brings the reason again, or, where it was sent and refused, the next does.
 */
size_t send_parts(int socket, const char *text, const uint32_t *ends, size_t count, size_t first, int patience_ms,
		  bool segments, int *error)
{
	size_t sent = 0, most = MOST_PARTS;

	*error = 0;
	while (first + sent < count) {
		size_t left = count - first - sent, asked = left < most ? left : most;
		int taken = segments && asked > 1 ? send_segments(socket, text, ends, first + sent, asked) :
						    send_apart(socket, text, ends, first + sent, asked);

		if (taken < 0 && errno == EINTR)
			continue;
		/* What is longer than a packet of the path may be a datagram, and no segment (EINVAL); a device that
		 * makes no checksums takes none at all (EIO). */
		if (taken < 0 && segments && asked > 1 && (errno == EINVAL || errno == EIO || errno == EMSGSIZE)) {
			segments = false;
			continue;
		}
		if (taken < 0 && errno == EAGAIN) {
			if (!wait_for_room(socket, patience_ms, error))
				return sent;
			*error = 0;
			continue;
		}
		if (taken < 0) {
			*error = errno;
			return sent;
		}
		sent += (size_t)taken;
		most = segments || (size_t)taken == asked ? MOST_PARTS : 1;
	}
	return sent;
}

size_t bound_frames(size_t bytes, size_t count)
{
	const uint64_t bound = bytes + count * (uint64_t)(2 * NUMBER_TEXT + 1 + PADDED_TO) + SLACK;

	return bound <= UINT32_MAX ? (size_t)bound : 0;
}

static char *write_body(char *at, const char *part, size_t length, uint32_t number)
{
	const char *place = memchr(part, '\0', length);
	size_t begin = place ? (size_t)(place - part) : length, rest = place ? length - begin - 1 : 0;

	memcpy(at, part, begin);
	if (!place)
		return at + begin;
	at = write_number(at + begin, number);
	memcpy(at, place + 1, rest);
	return at + rest;
}

/* An octet count stands before what is not written yet: room is left for it, and closed when it is known. */
static char *frame_octets(char *at, const char *part, size_t length, uint32_t number)
{
	char *body = at + NUMBER_TEXT + 1, *end = write_body(body, part, length, number);
	size_t size = (size_t)(end - body);

	at = write_number(at, size);
	*at++ = ' ';
	memmove(at, body, size);
	return at + size;
}

size_t frame_parts(const char *text, const uint32_t *ends, size_t count, uint32_t *number, enum framing framing,
		   char *framed, uint32_t *framed_ends)
{
	char *at = framed;

	for (size_t part = 0; part < count; part++) {
		size_t begin = part_begin(ends, part), length = ends[part] - begin;
		char *start = at;

		at = framing == FRAME_OCTETS ? frame_octets(at, text + begin, length, *number) :
					       write_body(at, text + begin, length, *number);
		if (framing == FRAME_LINE)
			*at++ = '\n';
		if (framing == FRAME_NUL)
			*at++ = '\0';
		while (framing == FRAME_PADDED && (at - start) % PADDED_TO)
			*at++ = ' ';
		framed_ends[part] = (uint32_t)(at - framed);
		if (memchr(text + begin, '\0', length))
			*number = *number >= MAX_SEQUENCE ? 1 : *number + 1;
	}
	return (size_t)(at - framed);
}
