/*
 * For tests: what is allocated for events of a gateway's kinds, all of which came before (-Wl,--wrap=malloc and so on).
 *
 * allocation_driver KIT      kinds of events; allocations when they come the first time, and the second
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "kit.h"

#define KINDS 64 /* and not more, which is what a template has plans for */
#define CLOCK 1700000000000000000

static size_t allocations;

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *old, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *old, size_t size);

void *__wrap_malloc(size_t size)
{
	allocations++;
	return __real_malloc(size);
}

void *__wrap_calloc(size_t count, size_t size)
{
	allocations++;
	return __real_calloc(count, size);
}

void *__wrap_realloc(void *old, size_t size)
{
	allocations++;
	return __real_realloc(old, size);
}

/* Of NEW, UPDATE and DESTROY; TCP, UDP and ICMP; IPv4, with NAT, and IPv6; with a mark or not. */
static size_t make_kinds(struct event *events)
{
	static const uint8_t types[] = { TYPE_NEW, TYPE_UPDATE, TYPE_DESTROY }, protocols[] = { 6, 17, 1 };
	size_t count = 0;

	for (size_t kind = 0; kind < 3 * 3 * 3 * 2; kind++) {
		const uint8_t type = types[kind % 3], protocol = protocols[kind / 3 % 3];
		const bool is_ipv6 = kind / 9 % 3 == 2, is_translated = kind / 9 % 3 == 1;
		struct event event = { .type = type, .protocol = protocol, .id = (uint32_t)kind + 1, .time = CLOCK };

		event.family = is_ipv6 ? AF_INET6 : AF_INET;
		event.has = (is_ipv6 ? IS_IPV6 : IS_IPV4) | (is_translated ? HAS_NAT : 0) | (kind / 27 ? HAS_MARK : 0) |
			    (type == TYPE_DESTROY ? HAS_REASON : 0) | HAS_START;
		event.has |= protocol == 1 ? HAS_ICMP_TYPE | HAS_ICMP_CODE | HAS_ICMP_ID | HAS_REPLY_ICMP_ID :
					     HAS_SPORT | HAS_DPORT | HAS_REPLY_SPORT | HAS_REPLY_DPORT;
		event.has |= protocol == 6 ? HAS_STATE : 0;
		events[count++] = event;
	}
	return count;
}

static bool answer(void *context, const uint8_t *address, size_t bytes)
{
	return put_location(context, address, bytes == 4 ? AF_INET : AF_INET6, 3);
}

static size_t process_all(struct kit *kit, struct event *events, uint16_t *kept, size_t count)
{
	static struct stream streams[MAX_STREAMS];
	size_t stream_count, forgotten = 0;

	allocations = 0;
	for (size_t event = 0; event < count; event++)
		note_event(&kit->flows, &events[event], &forgotten);
	for (int time = 0; time < 2; time++) /* the second one sets what the first one has asked for */
		if (!locate(&kit->locations, events, kept, count, !time, answer, &kit->locations))
			return KINDS;
	(void)decide(kit->table, events, NULL, count, kept, false);
	for (size_t event = 0; event < count; event++)
		kept[event] = (uint16_t)event;
	for (size_t number = 0; number < kit->template_count; number++) {
		clear_output(&kit->output);
		if (!render(&kit->templates[number], events, kept, count, &kit->output, streams, &stream_count))
			return KINDS;
	}
	return allocations;
}

int main(int count, char **words)
{
	static struct event events[KINDS];
	uint16_t kept[KINDS];
	static struct kit kit;
	size_t kinds = make_kinds(events), first;

	if (count != 2)
		return 2;
	for (size_t event = 0; event < KINDS; event++)
		kept[event] = (uint16_t)event;
	open_kit(&kit, words[1]);
	first = process_all(&kit, events, kept, kinds);
	printf("%zu %zu %zu\n", kinds, first, process_all(&kit, events, kept, kinds));
	close_kit(&kit);
	return 0;
}
