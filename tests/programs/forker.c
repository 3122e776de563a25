/* Forks for ever: children that burn for 300 ms, and between them children that burn for 5 ms.
 *
 * usage: forker [SECONDS]
 *
 * build: gcc -O2 -fomit-frame-pointer {src} -o {out}
 */
#include "common.h"
#include <sys/prctl.h>
#include <sys/wait.h>

OWN_FRAME uint64_t long_child(uint64_t value, long turns) { return churn(value, turns) + 1; }
OWN_FRAME uint64_t short_child(uint64_t value, long turns) { return churn(value, turns) + 1; }
OWN_FRAME uint64_t parent_work(uint64_t value, long turns) { return churn(value, turns) + 1; }

static void child(uint64_t (*work)(uint64_t, long), long turns, int times) {
    if (fork() != 0)
        return;
    prctl(PR_SET_NAME, "child");
    uint64_t value = 1;
    for (int i = 0; i < times; i++)
        value = work(value, turns);
    _exit((int)(value & 1));
}

int main(int argc, char **argv) {
    live_for(argc > 1 ? argv[1] : NULL);
    long turns = turns_for(5000);
    uint64_t value = 1;
    ready();
    for (;;) {
        child(long_child, turns, 60);
        for (int i = 0; i < 5; i++)
            child(short_child, turns, 1);
        value = parent_work(value, turns * 4);
        while (waitpid(-1, NULL, 0) > 0) {
        }
    }
}
