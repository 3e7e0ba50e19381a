/* Loaded before the C library: adds the seconds that stand in the file CLOCK_FILE to the time of day. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>

static long long find_offset(void)
{
	static volatile long long *shared;

	if (!shared) {
		int fd = open(getenv("CLOCK_FILE"), O_RDONLY);
		void *mapped = mmap(NULL, sizeof(*shared), PROT_READ, MAP_SHARED, fd, 0);

		if (mapped == MAP_FAILED)
			abort();
		shared = mapped;
	}
	return *shared;
}

int clock_gettime(clockid_t id, struct timespec *time)
{
	static int (*real)(clockid_t, struct timespec *);
	int result;

	if (!real)
		real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
	result = real(id, time);
	if (result == 0 && id == CLOCK_REALTIME)
		time->tv_sec += find_offset();
	return result;
}

int gettimeofday(struct timeval *restrict time, void *restrict zone)
{
	struct timespec exact;

	(void)zone;
	clock_gettime(CLOCK_REALTIME, &exact);
	time->tv_sec = exact.tv_sec;
	time->tv_usec = exact.tv_nsec / 1000;
	return 0;
}

time_t time(time_t *where)
{
	struct timespec exact;

	clock_gettime(CLOCK_REALTIME, &exact);
	if (where)
		*where = exact.tv_sec;
	return exact.tv_sec;
}
