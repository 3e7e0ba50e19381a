/* What is written in place of addresses: a hash table that Python fills, and the exchange of both around a render(). */
#ifndef CONNTRACKD_ANONYMIZE_H
#define CONNTRACKD_ANONYMIZE_H

#include "locate.h"

/* Whose addresses are not written as they are: bits of `sides`. */
enum { SIDE_SOURCE = 1, SIDE_DESTINATION = 2 };

#define EVENT_ADDRESSES 6 /* src, dst, reply_src, reply_dst, master_src, master_dst */

struct anonymizer {
	struct locations numbers; /* an address's number, 0 for one that is written as it is */
	uint8_t (*written)[ADDRESS_BYTES]; /* for number n at n - 1 */
	size_t count, capacity;
	unsigned sides;
	uint8_t (*saved)[EVENT_ADDRESSES][ADDRESS_BYTES]; /* of the events that are concealed now */
	size_t saved_capacity;
};

/* Memory is bounded by `limit`, as that of locations is. */
bool open_anonymizer(struct anonymizer *anonymizer, size_t limit, uint64_t seed, unsigned sides);
void close_anonymizer(struct anonymizer *anonymizer);

/* What is written for an address, padded with 0 as those of events. False for want of memory. */
bool put_written(struct anonymizer *anonymizer, const uint8_t *address, uint32_t family, const uint8_t *written);

/* Gives each address that these events have to be concealed and that is not known to `miss`, once; to be called, and
 * answered by put_written(), before conceal(). False for want of memory, or when `miss` says so.
 */
bool find_unknown(struct anonymizer *anonymizer, const struct event *events, const uint16_t *kept, size_t count,
		  bool (*miss)(void *context, const uint8_t *address, size_t bytes), void *context);

/* Puts what is written in place of the addresses of these events, and back. What follows from the addresses, such as
 * whether there is NAT, stays. An address that nobody has answered for becomes 0. False for want of memory, and then
 * nothing is concealed.
 */
bool conceal(struct anonymizer *anonymizer, struct event *events, const uint16_t *kept, size_t count);
void reveal(struct anonymizer *anonymizer, struct event *events, const uint16_t *kept, size_t count);

#endif
