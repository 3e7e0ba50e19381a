/* The Community ID of a flow, version 1: https://github.com/corelight/community-id-spec */
#ifndef CONNTRACKD_COMMUNITY_H
#define CONNTRACKD_COMMUNITY_H

#include "event.h"

#define COMMUNITY_TEXT 30 /* `1:` and 20 bytes in base64 */
#define MAX_COMMUNITY_SEED UINT16_MAX

/* Of the original tuple. Returns the end of what it wrote. */
char *write_community_id(char *at, const struct event *event, uint16_t seed);

#endif
