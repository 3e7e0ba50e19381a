/*
 * Makes the kernel emit conntrack events: whole TCP life cycles and UDP exchanges, as fast as it can.
 *
 * Packets of both directions are written into one tun device; the kernel forwards them to a second one, whose
 * full queue throws them away. A tun write returns when the packet has been forwarded, so nothing is lost on
 * the way and what the kernel must have emitted is known exactly:
 *
 *   TCP   SYN            NEW (SYN_SENT), and DESTROY where the slot's flow of the last round was still there
 *         SYN/ACK        UPDATE (SYN_RECV)
 *         ACK            UPDATE (ESTABLISHED)
 *         FIN            UPDATE (FIN_WAIT)
 *         ACK            UPDATE (CLOSE_WAIT)
 *         FIN            UPDATE (LAST_ACK)
 *         ACK            UPDATE (TIME_WAIT)
 *   UDP   query          NEW, and DESTROY where the slot's flow of the last round was still there
 *         answer         UPDATE (SEEN_REPLY)
 *
 * The table stays small because tuples are used again: a SYN on a flow in TIME_WAIT destroys it, and so does
 * looking up a flow whose timeout is over. The namespace's timeouts for TIME_WAIT and UDP must be 1 s. At the
 * end a packet with a wrong checksum for each slot looks up, and thereby destroys, what is left.
 *
 * Usage: generator [-f FLOWS] [-r EVENTS_PER_SECOND] [-t TCP_SLOTS] [-u UDP_SLOTS] [-U PERCENT_OF_UDP]
 *                  [-6 PERCENT_OF_IPV6] [-n] [-d] FROM_TUN TO_TUN
 * -n answers to the address that arena.py's rules translate a client's to.
 * -d writes the packets to standard output instead, each after its length in two bytes, big endian.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#define BLOCK 64 /* flows whose packets are interleaved */
#define CLIENTS 1000 /* so that a rule for one source address keeps one flow in a thousand */
#define SPORTS 61 /* distance between the ports of a client's slots */
#define MAX_SLOTS 1000000
#define EXPIRY_NS 1300000000ull /* 1 s of timeout, and what a jiffy and a busy machine may add */
#define SECOND_NS 1000000000ull

enum { FIN = 1, SYN = 2, ACK = 16 };

struct packet_plan {
	bool reply;
	uint8_t flags;
	uint8_t payload;
	uint32_t seq, ack;
};

/* clang-format off */
static const struct packet_plan tcp_plan[] = {
	{ false, SYN, 0, 1000, 0 },
	{ true, SYN | ACK, 0, 5000, 1001 },
	{ false, ACK, 0, 1001, 5001 },
	{ false, FIN | ACK, 0, 1001, 5001 },
	{ true, ACK, 0, 5001, 1002 },
	{ true, FIN | ACK, 0, 5001, 1002 },
	{ false, ACK, 0, 1002, 5002 },
};
/* clang-format on */
static const struct packet_plan udp_plan[] = { { .payload = 32 }, { .reply = true, .payload = 100 } };

#define TCP_STEPS (sizeof(tcp_plan) / sizeof(*tcp_plan))
#define UDP_STEPS (sizeof(udp_plan) / sizeof(*udp_plan))
#define TCP_UPDATES 6
#define UDP_UPDATES 1

struct settings {
	unsigned long long flows;
	double rate; /* events a second, 0 for full speed */
	unsigned tcp_slots, udp_slots, udp_percent, ipv6_percent;
	bool translated, dump;
};

/* The flows of one protocol: slot numbers go round, one flow a slot at a time. */
struct ring {
	int protocol;
	unsigned slots;
	unsigned long long flows;
	uint64_t *used; /* when a slot's last packet was sent; 0 for never */
};

struct work {
	struct ring *ring;
	unsigned slot;
};

struct output {
	int fd;
	bool dump;
	double rate;
	uint64_t start;
	unsigned long long packets, events;
};

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static uint64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * SECOND_NS + time.tv_nsec;
}

static void sleep_until(uint64_t when)
{
	struct timespec time = { when / SECOND_NS, when % SECOND_NS };

	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, NULL) != 0)
		;
}

static int open_tun(const char *name)
{
	struct ifreq request = { .ifr_flags = IFF_TUN | IFF_NO_PI };
	int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);

	if (fd < 0)
		fail("generator: /dev/net/tun");
	strncpy(request.ifr_name, name, IFNAMSIZ - 1);
	if (ioctl(fd, TUNSETIFF, &request) < 0)
		fail("generator: TUNSETIFF");
	return fd;
}

/* ---- packets ---- */

static uint32_t add(uint32_t sum, const uint8_t *bytes, size_t length)
{
	size_t i = 0;

	for (; i + 1 < length; i += 2)
		sum += bytes[i] << 8 | bytes[i + 1];
	return i < length ? sum + (bytes[i] << 8) : sum;
}

static uint16_t fold(uint32_t sum)
{
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

static void put16(uint8_t *place, uint16_t value)
{
	place[0] = value >> 8;
	place[1] = value;
}

static void put32(uint8_t *place, uint32_t value)
{
	put16(place, value >> 16);
	put16(place + 2, value);
}

struct tuple {
	bool ipv6;
	uint8_t address[2][16]; /* client, server */
	uint8_t answered[16]; /* where the server sees the client */
	uint16_t port[2];
};

static struct tuple make_tuple(unsigned slot, const struct settings *settings)
{
	static const uint16_t services[] = { 443, 80, 53, 22, 8443, 123, 25, 993 };
	unsigned client = slot % CLIENTS;
	unsigned server = slot * 2654435761u >> 20; /* one of 4096, spread by Knuth's multiplication */
	struct tuple tuple = { .ipv6 = client % 100 < settings->ipv6_percent };

	if (tuple.ipv6) {
		put32(tuple.address[0], 0xfd000001);
		put32(tuple.address[0] + 12, client + 1);
		put32(tuple.address[1], 0x20010db8);
		put16(tuple.address[1] + 4, server);
		put32(tuple.address[1] + 12, 1 + server % 17);
	} else {
		put32(tuple.address[0], 0x0a010000 + client + 1); /* 10.1.0.1 to 10.1.3.232 */
		put32(tuple.address[1], 0x14000000 + server * 0x28d31u); /* 20.0.0.0 to 60.211.x.x */
	}
	memcpy(tuple.answered, tuple.address[0], 16);
	if (settings->translated) /* 2001:db8:ffff::/64, 198.18.0.0/16 */
		put32(tuple.answered, tuple.ipv6 ? 0x20010db8 : 0xc6120000 + client + 1);
	if (settings->translated && tuple.ipv6)
		put32(tuple.answered + 4, 0xffff0000);
	tuple.port[0] = 1024 + slot / CLIENTS * SPORTS;
	tuple.port[1] = services[server % 8];
	return tuple;
}

/* The IP header; returns its length. */
static size_t put_ip(uint8_t *packet, const struct tuple *tuple, bool reply, int protocol, size_t length)
{
	const uint8_t *from = tuple->address[reply], *to = reply ? tuple->answered : tuple->address[1];

	if (tuple->ipv6) {
		memset(packet, 0, 8);
		packet[0] = 0x60;
		put16(packet + 4, length);
		packet[6] = protocol;
		packet[7] = 64;
		memcpy(packet + 8, from, 16);
		memcpy(packet + 24, to, 16);
		return 40;
	}
	memset(packet, 0, 12);
	packet[0] = 0x45;
	put16(packet + 2, 20 + length);
	packet[6] = 0x40; /* do not fragment */
	packet[8] = 64;
	packet[9] = protocol;
	memcpy(packet + 12, from, 4);
	memcpy(packet + 16, to, 4);
	put16(packet + 10, fold(add(0, packet, 20)));
	return 20;
}

static size_t make_packet(uint8_t *packet, const struct tuple *tuple, int protocol, const struct packet_plan *plan)
{
	size_t header = protocol == IPPROTO_TCP ? 20 : 8, length = header + plan->payload;
	size_t offset = put_ip(packet, tuple, plan->reply, protocol, length);
	size_t addresses = tuple->ipv6 ? 32 : 8;
	uint8_t *l4 = packet + offset, *sum = l4 + (protocol == IPPROTO_TCP ? 16 : 6);
	uint16_t checksum;

	memset(l4, 0, length);
	put16(l4, tuple->port[plan->reply]);
	put16(l4 + 2, tuple->port[!plan->reply]);
	if (protocol == IPPROTO_TCP) {
		put32(l4 + 4, plan->seq);
		put32(l4 + 8, plan->ack);
		l4[12] = 5 << 4;
		l4[13] = plan->flags;
		put16(l4 + 14, 65000);
	} else {
		put16(l4 + 4, length);
	}
	/* The addresses, which end the IP header of either family, stand in the pseudo header. */
	checksum = fold(add(protocol + length, packet + offset - addresses, length + addresses));
	/* RFC 768: 0 says that there is no checksum, 0xffff is the other zero. TCP may send it too. */
	put16(sum, checksum ? checksum : 0xffff);
	return offset + length;
}

/* ---- sending ---- */

static void pace(struct output *output)
{
	uint64_t due = output->start + (uint64_t)(output->events / output->rate * SECOND_NS);

	/* A timer is not finer than this; what is late is sent without a pause. */
	if (due > now() + 50000)
		sleep_until(due);
}

static void send_packet(struct output *output, const uint8_t *packet, size_t length)
{
	if (output->dump) {
		putchar(length >> 8);
		putchar(length & 0xff);
		fwrite(packet, 1, length, stdout);
	} else {
		if (output->rate > 0)
			pace(output);
		if (write(output->fd, packet, length) != (ssize_t)length)
			fail("generator: write to tun");
	}
	output->packets++;
}

static void wait_for_expiry(const struct ring *ring, unsigned slot)
{
	if (ring->used[slot] && now() < ring->used[slot] + EXPIRY_NS)
		sleep_until(ring->used[slot] + EXPIRY_NS);
}

static void send_step(struct output *output, const struct work *work, size_t step, const struct settings *settings)
{
	struct ring *ring = work->ring;
	bool tcp = ring->protocol == IPPROTO_TCP;
	const struct packet_plan *plan = tcp ? &tcp_plan[step] : &udp_plan[step];
	struct tuple tuple = make_tuple(work->slot, settings);
	uint8_t packet[256];
	size_t length;

	if (!tcp && step == 0 && !output->dump)
		wait_for_expiry(ring, work->slot);
	if (step == 0 && ring->used[work->slot])
		output->events++; /* DESTROY of the slot's last flow, here or before by the kernel's own sweep */
	length = make_packet(packet, &tuple, ring->protocol, plan);
	send_packet(output, packet, length);
	output->events++;
	ring->used[work->slot] = now();
}

static void send_block(struct output *output, const struct work *block, size_t count, const struct settings *settings)
{
	for (size_t step = 0; step < TCP_STEPS; step++)
		for (size_t i = 0; i < count; i++)
			if (step < (block[i].ring->protocol == IPPROTO_TCP ? TCP_STEPS : UDP_STEPS))
				send_step(output, &block[i], step, settings);
}

static void send_flows(struct output *output, struct ring *tcp, struct ring *udp, const struct settings *settings)
{
	struct work block[BLOCK];
	size_t filled = 0;

	for (unsigned long long flow = 0; flow < settings->flows; flow++) {
		bool is_udp = (flow + 1) * settings->udp_percent / 100 > flow * settings->udp_percent / 100;
		struct ring *ring = is_udp ? udp : tcp;

		block[filled++] = (struct work){ ring, ring->flows++ % ring->slots };
		if (filled == BLOCK || flow + 1 == settings->flows) {
			send_block(output, block, filled, settings);
			filled = 0;
		}
	}
}

/* A packet with a wrong checksum: looks its flow up, which destroys an expired one, and makes none. */
static void sweep(struct output *output, struct ring *ring, const struct settings *settings)
{
	uint8_t packet[256];

	for (unsigned slot = 0; slot < ring->slots; slot++) {
		struct tuple tuple = make_tuple(slot, settings);
		uint64_t before = now();
		size_t length;

		if (!ring->used[slot])
			continue;
		wait_for_expiry(ring, slot);
		output->start += now() - before; /* what was waited for is not caught up with */
		length = make_packet(packet, &tuple, ring->protocol,
				     ring->protocol == IPPROTO_TCP ? tcp_plan : udp_plan);
		packet[length - 1] ^= 1;
		output->events++;
		send_packet(output, packet, length);
	}
}

/* ---- the whole ---- */

static struct ring make_ring(int protocol, unsigned slots)
{
	struct ring ring = { .protocol = protocol, .slots = slots, .used = calloc(slots, sizeof(*ring.used)) };

	if (!ring.used)
		fail("generator: calloc");
	return ring;
}

static unsigned parse_slots(const char *text)
{
	long slots = atol(text);

	if (slots < BLOCK || slots > MAX_SLOTS) {
		fprintf(stderr, "generator: slots: %d to %d, not %s\n", BLOCK, MAX_SLOTS, text);
		exit(1);
	}
	return slots;
}

static struct settings parse_settings(int argc, char **argv)
{
	struct settings settings = { 10000, 0, 16384, 65536, 50, 25, false, false };
	int option;

	while ((option = getopt(argc, argv, "f:r:t:u:U:6:nd")) != -1) {
		/* clang-format off */
		switch (option) {
		case 'f': settings.flows = strtoull(optarg, NULL, 10); break;
		case 'r': settings.rate = atof(optarg); break;
		case 't': settings.tcp_slots = parse_slots(optarg); break;
		case 'u': settings.udp_slots = parse_slots(optarg); break;
		case 'U': settings.udp_percent = atoi(optarg); break;
		case '6': settings.ipv6_percent = atoi(optarg); break;
		case 'n': settings.translated = true; break;
		case 'd': settings.dump = true; break;
		default: exit(1);
		}
		/* clang-format on */
	}
	if (!settings.dump && argc - optind != 2) {
		fprintf(stderr, "generator: two tun devices are needed\n");
		exit(1);
	}
	return settings;
}

static void report(const struct output *output, const struct ring *tcp, const struct ring *udp, double rate)
{
	printf("{\"flows\":%llu,\"packets\":%llu,\"events\":%llu,\"new\":%llu,\"update\":%llu,\"destroy\":%llu,"
	       "\"rate\":%.0f}\n",
	       tcp->flows + udp->flows, output->packets, output->events, tcp->flows + udp->flows,
	       tcp->flows * TCP_UPDATES + udp->flows * UDP_UPDATES, tcp->flows + udp->flows, rate);
}

int main(int argc, char **argv)
{
	struct settings settings = parse_settings(argc, argv);
	struct ring tcp = make_ring(IPPROTO_TCP, settings.tcp_slots);
	struct ring udp = make_ring(IPPROTO_UDP, settings.udp_slots);
	struct output output = { .dump = settings.dump, .rate = settings.rate };
	double rate;

	if (!settings.dump) {
		output.fd = open_tun(argv[optind]);
		open_tun(argv[optind + 1]); /* held, so that the device has a carrier; never read */
	}
	output.start = now();
	send_flows(&output, &tcp, &udp, &settings);
	rate = output.events * (double)SECOND_NS / (now() - output.start);
	if (settings.dump)
		return 0;
	sweep(&output, &udp, &settings);
	sweep(&output, &tcp, &settings);
	report(&output, &tcp, &udp, rate);
	return 0;
}
