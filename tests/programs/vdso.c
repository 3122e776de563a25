/* Time in the vDSO: the clock is read without end.
 *
 * usage: vdso [SECONDS]
 *
 * build: gcc -O2 -fomit-frame-pointer {src} -o {out}
 */
#include "common.h"

OWN_FRAME int64_t read_clock(int turns) {
    struct timespec now = {0};
    int64_t sum = 0;
    for (int i = 0; i < turns; i++) {
        clock_gettime(CLOCK_MONOTONIC, &now);
        sum += now.tv_nsec;
    }
    return sum;
}

int main(int argc, char **argv) {
    live_for(argc > 1 ? argv[1] : NULL);
    volatile int64_t sum = 0;
    ready();
    for (;;)
        sum = sum + read_clock(1000);
}
