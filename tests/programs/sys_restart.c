/* Is interrupted by signals a known number of times: in a read that goes on after the handler, in
 * one that does not, in a sleep and in a pause.
 *
 * usage: sys_restart [SECONDS] [ROUNDS]     the seconds are not counted: SIGALRM is its own
 *
 * build: gcc -O2 -fomit-frame-pointer {src} -o {out}
 */
#include "common.h"

#include <errno.h>
#include <sys/time.h>

static int ends[2];

static void tick(int signal) {
    (void)signal;
    if (write(ends[1], "x", 1) != 1)
        _exit(1);
}

static void arm(int flags) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = tick;
    action.sa_flags = flags;
    sigaction(SIGALRM, &action, NULL);
    struct itimerval once = {.it_value = {.tv_usec = 200000}};
    setitimer(ITIMER_REAL, &once, NULL);
}

int main(int argc, char **argv) {
    long rounds = number(argc, argv, 2, 5);
    char byte;
    if (pipe(ends) < 0)
        return 1;
    ready();
    for (long i = 0; i < rounds; i++) {
        arm(SA_RESTART);
        if (read(ends[0], &byte, 1) != 1)
            return 1;
        arm(0);
        if (read(ends[0], &byte, 1) != -1 || errno != EINTR || read(ends[0], &byte, 1) != 1)
            return 1;
        arm(0);
        pause();
        if (read(ends[0], &byte, 1) != 1)
            return 1;
        arm(SA_RESTART);
        struct timespec second = {.tv_sec = 1};
        nanosleep(&second, NULL);
        if (read(ends[0], &byte, 1) != 1)
            return 1;
    }
    return 0;
}
