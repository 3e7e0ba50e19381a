/*
 * Sets of networks: each an address and behind it the number of leading bits that count, a byte. Sorted as bytes, and
 * none of them within another one, so that an address can only be in the last that does not begin above it.
 */
#ifndef CONNTRACKD_PREFIXES_H
#define CONNTRACKD_PREFIXES_H

#include "event.h"

#define IPV4_BYTES 4
#define ENTRY_BYTES(address_bytes) ((address_bytes) + 1)

struct prefixes {
	const uint8_t *ipv4, *ipv6; /* entries of 5 and of 17 bytes, which belong to somebody else */
	size_t ipv4_count, ipv6_count;
};

/* Sorts entries: first those that are within no other one, and how many these are; then the rest. Addresses of so many
 * bytes. */
size_t sort_prefixes(uint8_t *entries, size_t count, size_t address_bytes);

/* Whether each has as many bits as an address can have, and begins above the one before. */
bool are_prefixes_sorted(const uint8_t *entries, size_t count, size_t address_bytes);

bool has_ipv4(const struct prefixes *set, const uint8_t *address);
bool has_ipv6(const struct prefixes *set, const uint8_t *address);

#endif
