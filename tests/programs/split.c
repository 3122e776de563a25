/* Self time in a known split: 50 % half, 30 % third, 20 % fifth, in rounds of 100 ms.
 *
 * usage: split [SECONDS]
 *
 * The three leaves are the same instructions at the same alignment, so the split is that of
 * their turns, whatever the machine.
 *
 * build: gcc -O2 -fomit-frame-pointer -fcf-protection=none {src} -o {out}
 * build(split-nopie): gcc -O2 -fomit-frame-pointer -no-pie -fno-pie {src} -o {out}
 * build(split-static): gcc -O2 -fomit-frame-pointer -no-pie -fno-pie -static {src} -o {out}
 * build(split-static-pie): gcc -O2 -fomit-frame-pointer -static-pie -fPIE {src} -o {out}
 * build(split-stripped): gcc -O2 -fomit-frame-pointer -s {src} -o {out}
 * build(split-musl): musl-gcc -O2 -fomit-frame-pointer -static {src} -o {out}
 * build(split-lld): gcc -O2 -fomit-frame-pointer -fuse-ld=lld {src} -o {out}
 * build(split-fp): gcc -O2 -fno-omit-frame-pointer {src} -o {out}
 */
#include "common.h"

#define LEAF(name)                                                                      \
    OWN_FRAME __attribute__((aligned(64))) uint64_t name(uint64_t value, long turns) { \
        return churn(value, turns);                                                     \
    }
LEAF(half)
LEAF(third)
LEAF(fifth)

OWN_FRAME uint64_t one_round(uint64_t value, long unit) {
    value = half(value, 5 * unit);
    value = third(value, 3 * unit);
    value = fifth(value, 2 * unit);
    return value + 1;
}

int main(int argc, char **argv) {
    live_for(argc > 1 ? argv[1] : NULL);
    long unit = turns_for(10000);
    uint64_t value = 1;
    ready();
    for (;;)
        value = one_round(value, unit);
}
