/* See text.h. */
#include "text.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define NANO 1000000000ULL
#define WORDS 8 /* of an IPv6 address */

static const char digits[] = "00010203040506070809101112131415161718192021222324252627282930313233343536373839"
			     "40414243444546474849505152535455565758596061626364656667686970717273747576777879"
			     "8081828384858687888990919293949596979899";

/* From the last pair of digits to the first. */
static char *write_long(char *at, uint64_t number)
{
	char reversed[NUMBER_TEXT + SLACK], *end = reversed + NUMBER_TEXT, *begin = end;

	while (number >= 100) {
		begin -= 2;
		memcpy(begin, &digits[number % 100 * 2], 2);
		number /= 100;
	}
	begin -= 2;
	memcpy(begin, &digits[number * 2], 2);
	begin += number < 10;
	return write_bytes(at, begin, (size_t)(end - begin));
}

char *write_number(char *at, uint64_t number)
{
	if (number >= 1000)
		return write_long(at, number);
	if (number >= 100) {
		*at = (char)('0' + number / 100);
		memcpy(at + 1, &digits[number % 100 * 2], 2);
		return at + 3;
	}
	if (number >= 10) {
		memcpy(at, &digits[number * 2], 2);
		return at + 2;
	}
	*at = (char)('0' + number);
	return at + 1;
}

char *write_padded(char *at, uint32_t number, int count)
{
	for (int position = count; position > 0; number /= 100) {
		position -= 2;
		if (position >= 0)
			memcpy(at + position, &digits[2UL * (number % 100)], 2);
		else
			*at = (char)('0' + number % 10);
	}
	return at + count;
}

static char *write_ipv4(char *at, const uint8_t *address)
{
	for (int octet = 0; octet < 4; octet++) {
		if (octet)
			*at++ = '.';
		at = write_number(at, address[octet]);
	}
	return at;
}

static char *write_hex(char *at, uint16_t word)
{
	int digit_count = 1 + (word > 0xf) + (word > 0xff) + (word > 0xfff);

	for (int shift = 4 * (digit_count - 1); shift >= 0; shift -= 4)
		*at++ = "0123456789abcdef"[word >> shift & 0xf];
	return at;
}

/* The first of the longest runs of words that are 0; shorter ones than two are none. Returns its length. */
static int find_zeros(const uint16_t *words, int *first)
{
	int longest = 1, length = 0;

	*first = WORDS;
	for (int word = 0; word < WORDS; word++) {
		length = words[word] ? 0 : length + 1;
		if (length > longest) {
			longest = length;
			*first = word + 1 - length;
		}
	}
	return longest;
}

/* RFC 5952, with the exception that inet_ntop(3) makes for IPv4 in its last 4 bytes. */
static char *write_ipv6(char *at, const uint8_t *address)
{
	uint16_t words[WORDS];
	int zeros, first;

	for (size_t word = 0; word < WORDS; word++)
		words[word] = (uint16_t)(address[2 * word] << 8 | address[2 * word + 1]);
	zeros = find_zeros(words, &first);
	for (int word = 0; word < WORDS; word++) {
		if (word == first) {
			*at++ = ':';
			*at++ = ':';
			word += zeros - 1;
			continue;
		}
		if (word && word != first + zeros)
			*at++ = ':';
		if (word == 6 && first == 0 && (zeros == 6 || (zeros == 5 && words[5] == 0xffff)))
			return write_ipv4(at, address + 12);
		at = write_hex(at, words[word]);
	}
	return at;
}

char *write_address(char *at, const uint8_t *address, bool is_ipv4)
{
	return is_ipv4 ? write_ipv4(at, address) : write_ipv6(at, address);
}

static void render_second(struct second *second, uint64_t number)
{
	static const char months[] = "JanFebMarAprMayJunJulAugSepOctNovDec";
	time_t seconds = (time_t)number;
	struct tm local = { 0 };
	long minutes;

	localtime_r(&seconds, &local);
	minutes = labs(local.tm_gmtoff) / 60;
	second->number = number + 1;
	second->before_bytes = (uint8_t)strftime(second->before, sizeof(second->before), "%Y-%m-%dT%H:%M:%S.", &local);
	second->after_bytes =
		(uint8_t)snprintf(second->after, sizeof(second->after), "%c%02u:%02u", local.tm_gmtoff < 0 ? '-' : '+',
				  (unsigned)(minutes / 60) % 100, (unsigned)(minutes % 60));
	/* RFC 3164, 4.1.2: local time without a year, the day in two places. */
	second->bsd_bytes = (uint8_t)snprintf(second->bsd, sizeof(second->bsd), "%.3s %2u %02u:%02u:%02u",
					      &months[3L * local.tm_mon], (unsigned)local.tm_mday % 100,
					      (unsigned)local.tm_hour % 100, (unsigned)local.tm_min % 100,
					      (unsigned)local.tm_sec % 100);
}

char *write_time(char *at, uint64_t ns, enum time_style style, struct clock *clock)
{
	uint64_t number = ns / NANO;
	uint32_t fraction = (uint32_t)(ns % NANO);
	struct second *second = &clock->seconds[number % SECONDS];

	if (second->number != number + 1)
		render_second(second, number);
	if (style == STYLE_BSD)
		return write_bytes(at, second->bsd, second->bsd_bytes);
	at = write_bytes(at, second->before, second->before_bytes);
	at = style == STYLE_NANOS ? write_padded(at, fraction, 9) : write_padded(at, fraction / 1000, 6);
	return write_bytes(at, second->after, second->after_bytes);
}
