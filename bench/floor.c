/*
 * The floor: receive conntrack events, look at nothing, throw them away.
 *
 * No listener can spend less per event than this, so every other program is measured as a multiple of it.
 * Usage: floor [-w] GROUPS BUFFER. GROUPS is a sum of 1 NEW, 2 UPDATE, 4 DESTROY; BUFFER is in bytes.
 * With -w it does not gather, and is woken for each event that does not come while it reads.
 */
#include "listener.h"

#include <string.h>

int main(int argc, char **argv)
{
	static struct listener listener;

	if (argc < 3)
		return 2;
	listener.gathers = strcmp(argv[1], "-w") != 0;
	listen_to(&listener, atoi(argv[argc - 2]), atoi(argv[argc - 1]));
	for (;;)
		receive(&listener);
}
