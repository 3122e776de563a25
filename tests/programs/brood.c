/* Forks a child every 10 ms of its CPU time, 300 in all; each forks one of its own. None of them ends.
 *
 * usage: brood [SECONDS]
 *
 * build: gcc -O2 -fomit-frame-pointer {src} -o {out}
 */
#include "common.h"

OWN_FRAME uint64_t parent_work(uint64_t value, long turns) { return churn(value, turns) + 1; }

static void child(const char *seconds) {
    live_for(seconds);
    fork();
    for (;;)
        pause();
}

int main(int argc, char **argv) {
    const char *seconds = argc > 1 ? argv[1] : NULL;
    live_for(seconds);
    long turns = turns_for(10000);
    uint64_t value = 1;
    ready();
    for (int i = 0; i < 300; i++) {
        if (fork() == 0)
            child(seconds);
        value = parent_work(value, turns);
    }
    for (;;)
        value = parent_work(value, turns);
}
