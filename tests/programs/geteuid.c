/* Calls geteuid as fast as it can, and says four times a second how many calls a second it made.
 *
 * usage: geteuid [SECONDS]
 *
 * build: gcc -O2 {src} -o {out}
 */
#include "common.h"
#include <sys/syscall.h>

static int64_t nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

int main(int argc, char **argv) {
    live_for(argc > 1 ? argv[1] : NULL);
    ready();
    for (;;) {
        int64_t begun = nanoseconds(), took = 0;
        long calls = 0;
        while (took < 250000000) {
            for (int i = 0; i < 256; i++)
                syscall(SYS_geteuid);
            calls += 256;
            took = nanoseconds() - begun;
        }
        printf("%.0f\n", (double)calls * 1e9 / (double)took);
        fflush(stdout);
    }
}
