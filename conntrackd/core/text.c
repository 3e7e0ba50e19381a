/* See text.h. */
#include "text.h"

#include <endian.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define NANO 1000000000ULL
#define HUNDRED_MILLION 100000000
#define WORDS 8 /* of an IPv6 address */

#define OCTET(number) { #number ".", sizeof(#number) }
#define TEN(tens)                                                                                        \
	OCTET(tens##0), OCTET(tens##1), OCTET(tens##2), OCTET(tens##3), OCTET(tens##4), OCTET(tens##5), \
		OCTET(tens##6), OCTET(tens##7), OCTET(tens##8), OCTET(tens##9)

/* Each octet of an IPv4 address, with its point: nobody, and no processor, foresees how many digits the next one has.
 */
static const struct {
	char text[5];
	uint8_t length;
} octets[] = {
	OCTET(0), OCTET(1), OCTET(2), OCTET(3), OCTET(4),   OCTET(5),   OCTET(6),   OCTET(7),   OCTET(8),   OCTET(9),
	TEN(1),   TEN(2),   TEN(3),   TEN(4),   TEN(5),     TEN(6),     TEN(7),     TEN(8),     TEN(9),     TEN(10),
	TEN(11),  TEN(12),  TEN(13),  TEN(14),  TEN(15),    TEN(16),    TEN(17),    TEN(18),    TEN(19),    TEN(20),
	TEN(21),  TEN(22),  TEN(23),  TEN(24),  OCTET(250), OCTET(251), OCTET(252), OCTET(253), OCTET(254), OCTET(255),
};

/* Eight digits, the first one in the lowest byte: two numbers of four, then four of two, then eight of one. They are
 * divided side by side in one word, by multiplication (10486 / 2^20 is 1 / 100, and 103 / 2^10 is 1 / 10, for numbers
 * this small).
 */
static inline uint64_t split_digits(uint32_t number)
{
	uint64_t fours = number / 10000 | (uint64_t)(number % 10000) << 32;
	uint64_t hundreds = fours * 10486 >> 20 & 0x0000007f0000007f;
	uint64_t twos = hundreds | (fours - 100 * hundreds) << 16;
	uint64_t tens = twos * 103 >> 10 & 0x000f000f000f000f;

	return tens | (twos - 10 * tens) << 8;
}

/* The last `count` of eight digits. */
static char *write_digits(char *at, uint64_t split, int count)
{
	split = htole64((split | 0x3030303030303030) >> 8 * (8 - count));
	memcpy(at, &split, sizeof(split));
	return at + count;
}

char *write_number(char *at, uint64_t number)
{
	uint64_t split;

	if (number >= HUNDRED_MILLION) {
		at = write_number(at, number / HUNDRED_MILLION);
		return write_digits(at, split_digits((uint32_t)(number % HUNDRED_MILLION)), 8);
	}
	split = split_digits((uint32_t)number);
	return write_digits(at, split, 8 - __builtin_ctzll(split | 1ULL << 56) / 8);
}

char *write_padded(char *at, uint32_t number, int count)
{
	if (count > 8)
		*at++ = (char)('0' + number / HUNDRED_MILLION);
	return write_digits(at, split_digits(number % HUNDRED_MILLION), count > 8 ? 8 : count);
}

static char *write_ipv4(char *at, const uint8_t *address)
{
	for (int octet = 0; octet < 4; octet++) {
		memcpy(at, octets[address[octet]].text, 4);
		at += octets[address[octet]].length;
	}
	return at - 1;
}

/* With a colon behind it. */
static char *write_hex(char *at, uint32_t word)
{
	uint32_t nibbles = (word << 8 & 0xff0000) | (word & 0xff), letters;
	int count = 1 + (word > 0xf) + (word > 0xff) + (word > 0xfff);

	nibbles = (nibbles << 4 | nibbles) & 0x0f0f0f0f;
	letters = (nibbles + 0x06060606) >> 4 & 0x01010101; /* 1 where the digit is one */
	nibbles = htobe32((nibbles + 0x30303030 + letters * ('a' - '0' - 10)) << 8 * (4 - count));
	memcpy(at, &nibbles, sizeof(nibbles));
	at[count] = ':';
	return at + count + 1;
}

/* The first of the longest runs of words that are 0, by their bits, and its length; shorter ones than two are none. */
static int find_zeros(unsigned zeros, int *first)
{
	unsigned begins = 0; /* of runs that are longer than `length` */
	int length = 0;

	for (; zeros; zeros &= zeros >> 1, length++)
		begins = zeros;
	*first = length > 1 ? __builtin_ctz(begins) : WORDS;
	return length;
}

/* RFC 5952, with the exception that inet_ntop(3) makes for IPv4 in its last 4 bytes. */
static char *write_ipv6(char *at, const uint8_t *address)
{
	unsigned words[WORDS], zeros = 0;
	int first, length, word;

	for (word = 0; word < WORDS; word++) {
		words[word] = (unsigned)(address[2 * word] << 8 | address[2 * word + 1]);
		zeros |= (unsigned)!words[word] << word;
	}
	length = find_zeros(zeros, &first);
	for (word = 0; word < first; word++)
		at = write_hex(at, words[word]);
	if (word == WORDS)
		return at - 1;
	if (!word)
		*at++ = ':';
	*at++ = ':';
	word += length;
	if (word == WORDS)
		return at;
	if (!first && length == 5 && words[word] == 0xffff)
		at = write_hex(at, words[word++]);
	if (!first && word == 6)
		return write_ipv4(at, address + 12);
	for (; word < WORDS; word++)
		at = write_hex(at, words[word]);
	return at - 1;
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
