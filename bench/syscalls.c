/*
 * The floor of four sinks: what their system calls cost, in a program that does nothing else.
 *
 * It reads events like floor.c, and for each it sends constant bytes of the size that the daemon's have: a line to
 * standard output, one write for all that one call has received; an entry to journald, one datagram each by sendmmsg;
 * a message to a syslog server; and a part of the body of a push to Loki, which is sent when it has as many events as
 * the daemon would push at once. What is sent is the kernel's work and counts. Making it does not: no event is looked
 * at, no text is written, the body is taken for compressed already, and Loki's answer is read but not looked at.
 *
 * Usage: syscalls udp|segments|tcp SYSLOG_PORT LOKI_PORT LINE ENTRY MESSAGE EVENTS_A_PUSH BYTES_A_PUSH
 * `segments`: MESSAGE, whose length is that of a segment, goes out many a call by UDP_SEGMENT; `tcp`: all in one write.
 */
#include "listener.h"

#include <arpa/inet.h>
#include <netinet/udp.h>
#include <string.h>
#include <sys/un.h>
#include <unistd.h>

#define BUFFER (64 << 20)
#define JOURNAL "/run/systemd/journal/socket"
#define SEND_BUFFER (8 << 20) /* the daemon's for journald */
#define SEGMENTS 30 /* messages of one UDP datagram that the kernel cuts */
#define ALL 7 /* NEW, UPDATE, DESTROY */

/* One text as often as there are events in a batch, side by side. */
struct copies {
	size_t size;
	char *text;
	struct mmsghdr messages[SLOTS];
	struct iovec vectors[SLOTS];
};

static void copy(struct copies *copies, const char *text)
{
	copies->size = strlen(text);
	copies->text = malloc(copies->size * SLOTS);
	if (!copies->text)
		fail("malloc");
	for (int i = 0; i < SLOTS; i++) {
		char *mine = memcpy(copies->text + i * copies->size, text, copies->size);

		copies->vectors[i] = (struct iovec){ mine, copies->size };
		copies->messages[i].msg_hdr = (struct msghdr){ .msg_iov = &copies->vectors[i], .msg_iovlen = 1 };
	}
}

static int connect_to(int kind, const void *address, socklen_t size, int family)
{
	int fd = socket(family, kind | SOCK_CLOEXEC, 0), buffer = SEND_BUFFER;

	if (fd < 0)
		fail("socket");
	if (family == AF_UNIX && setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &buffer, sizeof(buffer)) < 0)
		fail("SO_SNDBUFFORCE");
	if (connect(fd, address, size) < 0)
		fail("connect");
	return fd;
}

static int connect_to_port(int kind, int port)
{
	struct sockaddr_in address = { AF_INET, htons(port), { htonl(INADDR_LOOPBACK) }, { 0 } };

	return connect_to(kind, &address, sizeof(address), AF_INET);
}

static int connect_to_journal(void)
{
	struct sockaddr_un address = { AF_UNIX, JOURNAL };

	return connect_to(SOCK_DGRAM, &address, sizeof(address), AF_UNIX);
}

static void write_all(int fd, const char *text, size_t size)
{
	for (ssize_t written; size; text += written, size -= written)
		if ((written = write(fd, text, size)) < 0)
			fail("write");
}

static void send_datagrams(int fd, struct copies *copies, int count)
{
	for (int sent = 0, more; sent < count; sent += more)
		if ((more = sendmmsg(fd, copies->messages + sent, count - sent, 0)) < 0)
			fail("sendmmsg");
}

static void send_segments(int fd, const struct copies *copies, int count)
{
	for (int now; count; count -= now) {
		now = count < SEGMENTS ? count : SEGMENTS;
		write_all(fd, copies->text, now * copies->size);
	}
}

static void push(int fd, const char *request, size_t size)
{
	static bool is_asked;
	char answer[4096];

	if (is_asked && read(fd, answer, sizeof(answer)) <= 0)
		fail("loki");
	write_all(fd, request, size);
	is_asked = true;
}

/* A request with a body of so many bytes; its size comes back too. */
static char *make_request(int body, size_t *size)
{
	char *request = calloc(1, body + 256);

	if (!request)
		fail("calloc");
	*size = body + sprintf(request,
			       "POST /discard HTTP/1.1\r\nHost: localhost\r\nContent-Encoding: gzip\r\n"
			       "Content-Type: application/json\r\nContent-Length: %d\r\n\r\n",
			       body);
	return request;
}

int main(int argc, char **argv)
{
	static struct listener listener = { .gathers = true };
	static struct copies line, entry, message;
	int journal, syslog, loki, segment, waiting = 0;
	size_t request_size;
	char *request;

	if (argc != 9)
		return 2;
	copy(&line, argv[4]);
	copy(&entry, argv[5]);
	copy(&message, argv[6]);
	request = make_request(atoi(argv[8]), &request_size);
	journal = connect_to_journal();
	syslog = connect_to_port(argv[1][0] == 't' ? SOCK_STREAM : SOCK_DGRAM, atoi(argv[2]));
	loki = connect_to_port(SOCK_STREAM, atoi(argv[3]));
	segment = message.size;
	if (argv[1][0] == 's' && setsockopt(syslog, SOL_UDP, UDP_SEGMENT, &segment, sizeof(segment)) < 0)
		fail("UDP_SEGMENT");
	listen_to(&listener, ALL, BUFFER);
	for (;;) {
		int received = receive(&listener);

		write_all(1, line.text, received * line.size);
		send_datagrams(journal, &entry, received);
		switch (argv[1][0]) {
		case 'u':
			send_datagrams(syslog, &message, received);
			break;
		case 's':
			send_segments(syslog, &message, received);
			break;
		default:
			write_all(syslog, message.text, received * message.size);
		}
		for (waiting += received; waiting >= atoi(argv[7]); waiting -= atoi(argv[7]))
			push(loki, request, request_size);
	}
}
