/* libFuzzer: a datagram through the whole core. */
#include "kit.h"

#include <stdlib.h>

static struct kit kit;

int LLVMFuzzerInitialize(int *count, char ***words);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerInitialize(int *count, char ***words)
{
	(void)count;
	(void)words;
	open_kit(&kit, getenv("CONNTRACKD_KIT"));
	return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	process(&kit, data, size);
	return 0;
}
