/* Three functions in rounds of 10 ms; the share of the first is a parameter.
 *
 * usage: regress [SECONDS] [UNITS]
 *
 * `suspect` takes UNITS of (UNITS + 90) parts, `steady` 60 and `minor` 30 parts; 10 by default, 10 %.
 * The leaves are the same instructions at the same alignment.
 *
 * build: gcc -O2 -fomit-frame-pointer -fcf-protection=none {src} -o {out}
 */
#include "common.h"

#define LEAF(name)                                                                      \
    OWN_FRAME __attribute__((aligned(64))) uint64_t name(uint64_t value, long turns) { \
        return churn(value, turns);                                                     \
    }
LEAF(suspect)
LEAF(steady)
LEAF(minor)

OWN_FRAME uint64_t serve(uint64_t value, long unit, long units) {
    value = suspect(value, units * unit);
    value = steady(value, 60 * unit);
    value = minor(value, 30 * unit);
    return value + 1;
}

int main(int argc, char **argv) {
    live_for(argc > 1 ? argv[1] : NULL);
    long units = argc > 2 ? atol(argv[2]) : 10;
    long unit = turns_for(100);
    uint64_t value = 1;
    ready();
    for (;;)
        value = serve(value, unit, units);
}
