/* SHA-1 of a short text, FIPS 180-4. To name things that others name alike, and for nothing that has to be secret. */
#ifndef CONNTRACKD_SHA1_H
#define CONNTRACKD_SHA1_H

#include <stddef.h>
#include <stdint.h>

#define SHA1_BYTES 20
#define SHA1_MOST 55 /* bytes of a text: with its end and its length it is one block of 64 */

void sha1(const uint8_t *text, size_t length, uint8_t *digest);

#endif
