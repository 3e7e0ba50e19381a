/* Numbers, addresses and times as text, into a buffer that is large enough: see render.c for its bound. */
#ifndef CONNTRACKD_TEXT_H
#define CONNTRACKD_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define NUMBER_TEXT 20 /* digits of the largest u64 */
#define ADDRESS_TEXT 45 /* `ffff:...:255.255.255.255` */
#define TIME_TEXT 40 /* RFC 3339 with nanoseconds, in a year of up to ten digits */
#define SECONDS 64
/* Short texts are copied by blocks of this size, and digits by the word: as many bytes may be read and written behind
 * their end.
 */
#define SLACK 16

enum time_style { STYLE_NANOS, STYLE_MICROS, STYLE_BSD };

/* What the text of a time has beside its fraction; it changes once a second. */
struct second {
	uint64_t number; /* seconds since the epoch, plus 1: 0 is none */
	uint8_t before_bytes, after_bytes, bsd_bytes;
	char before[32], after[SLACK], bsd[SLACK]; /* multiples of SLACK */
};

/* Flows that end now have begun in many different seconds. */
struct clock {
	struct second seconds[SECONDS];
};

/* Each returns the end of what it wrote. */
static inline char *write_bytes(char *at, const void *bytes, size_t length)
{
	char block[SLACK]; /* bytes of the same text may be just behind them */

	for (size_t done = 0; done < length; done += SLACK) {
		memcpy(block, (const char *)bytes + done, SLACK);
		memcpy(at + done, block, SLACK);
	}
	return at + length;
}

char *write_number(char *at, uint64_t number);
char *write_padded(char *at, uint32_t number, int digits);
char *write_address(char *at, const uint8_t *address, bool is_ipv4); /* as inet_ntop(3) */
char *write_time(char *at, uint64_t ns, enum time_style style, struct clock *clock); /* local time */

#endif
