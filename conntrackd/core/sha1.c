/* See sha1.h. */
#include "sha1.h"

#include <endian.h>
#include <string.h>

#define WORDS 16 /* of a block */
#define ROUNDS 80

static inline uint32_t rotate(uint32_t word, int bits)
{
	return word << bits | word >> (32 - bits);
}

/* FIPS 180-4, 6.1.3: of the schedule only the last 16 words are kept. */
static inline uint32_t next_word(uint32_t *words, int round)
{
	uint32_t *word = &words[round % WORDS];

	if (round >= WORDS)
		*word = rotate(words[(round + 13) % WORDS] ^ words[(round + 8) % WORDS] ^ words[(round + 2) % WORDS] ^
				       *word,
			       1);
	return *word;
}

struct state {
	uint32_t a, b, c, d, e;
};

static inline void turn(struct state *state, uint32_t function, uint32_t constant, uint32_t word)
{
	uint32_t next = rotate(state->a, 5) + function + state->e + constant + word;

	*state = (struct state){ next, state->a, rotate(state->b, 30), state->c, state->d };
}

static void hash_block(uint32_t *words, uint32_t *hash)
{
	struct state state = { hash[0], hash[1], hash[2], hash[3], hash[4] };
	int round = 0;

	for (; round < 20; round++)
		turn(&state, (state.b & state.c) | (~state.b & state.d), 0x5a827999, next_word(words, round));
	for (; round < 40; round++)
		turn(&state, state.b ^ state.c ^ state.d, 0x6ed9eba1, next_word(words, round));
	for (; round < 60; round++)
		turn(&state, (state.b & state.c) | (state.b & state.d) | (state.c & state.d), 0x8f1bbcdc,
		     next_word(words, round));
	for (; round < ROUNDS; round++)
		turn(&state, state.b ^ state.c ^ state.d, 0xca62c1d6, next_word(words, round));
	hash[0] += state.a;
	hash[1] += state.b;
	hash[2] += state.c;
	hash[3] += state.d;
	hash[4] += state.e;
}

void sha1(const uint8_t *text, size_t length, uint8_t *digest)
{
	uint32_t hash[SHA1_BYTES / 4] = { 0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0 };
	uint8_t block[4 * WORDS] = { 0 };
	uint32_t words[WORDS];

	memcpy(block, text, length);
	block[length] = 0x80;
	memcpy(words, block, sizeof(words));
	for (int word = 0; word < WORDS - 1; word++)
		words[word] = be32toh(words[word]);
	words[WORDS - 1] = (uint32_t)(8 * length); /* in bits */
	hash_block(words, hash);
	for (size_t word = 0; word < SHA1_BYTES / 4; word++) {
		uint32_t big = htobe32(hash[word]);

		memcpy(digest + 4 * word, &big, sizeof(big));
	}
}
