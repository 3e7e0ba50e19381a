/*
 * The floor: receive conntrack events, look at nothing, throw them away.
 *
 * No listener can spend less per event than this, so every other program is measured as a multiple of it.
 * Usage: floor [-w] GROUPS BUFFER [SHARES]. GROUPS is a sum of 1 NEW, 2 UPDATE, 4 DESTROY; BUFFER is in bytes.
 * With -w it does not gather, and is woken for each event that does not come while it reads.
 */
#include "shares.h"

#include <string.h>

static void *throw_away(void *listener)
{
	for (;;)
		receive(listener);
	return NULL;
}

int main(int argc, char **argv)
{
	const bool gathers = argc < 2 || strcmp(argv[1], "-w") != 0;
	char **rest = argv + (gathers ? 1 : 2);

	if (argv + argc - rest < 2)
		return 2;
	share_events(rest[2], gathers, (unsigned)atoi(rest[0]), atoi(rest[1]), throw_away);
}
