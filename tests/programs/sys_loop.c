/* Calls geteuid, which never fails, and says how long one call takes.
 *
 * usage: sys_loop [SECONDS] [CALLS] [REPEATS]
 *
 * build: gcc -O2 -fomit-frame-pointer {src} -o {out}
 */
#include "common.h"

#include <sys/syscall.h>

int main(int argc, char **argv) {
    long calls = number(argc, argv, 2, 2000000), repeats = number(argc, argv, 3, 1);
    live_for(argc > 1 ? argv[1] : NULL);
    ready();
    for (long repeat = 0; repeat < repeats; repeat++) {
        int64_t begun = thread_nanoseconds();
        for (long i = 0; i < calls; i++)
            syscall(SYS_geteuid);
        printf("%.2f ns a call\n", (double)(thread_nanoseconds() - begun) / (double)calls);
        fflush(stdout);
    }
    return 0;
}
