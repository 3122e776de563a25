/* Burns for a second, then becomes another program (same process, another image).
 *
 * usage: exec SECONDS PROGRAM [ARGUMENT…]
 *
 * build: gcc -O2 -fomit-frame-pointer {src} -o {out}
 */
#include "common.h"

OWN_FRAME uint64_t before_exec(uint64_t value, long turns) { return churn(value, turns) + 1; }

int main(int argc, char **argv) {
    if (argc < 3)
        return 2;
    live_for(argv[1]);
    long turns = turns_for(10000);
    uint64_t value = 1;
    ready();
    for (int i = 0; i < 100; i++)
        value = before_exec(value, turns);
    execv(argv[2], argv + 2);
    return 1;
}
