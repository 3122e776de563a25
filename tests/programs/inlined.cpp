/* A chain of inlined functions at known lines, with its debug information in each of the usual places.
 *
 * usage: inlined [SECONDS]
 *
 * build: g++ -g -O2 -fomit-frame-pointer {src} -o {out}
 * build(inlined-debuglink): g++ -g -O2 -fomit-frame-pointer {src} -o {out} && objcopy --only-keep-debug {out} {out}.debug && strip {out} && objcopy --add-gnu-debuglink={out}.debug {out}
 * build(inlined-buildid): g++ -g -O2 -fomit-frame-pointer -Wl,--build-id=0xabcdef0123456789abcdef0123456789abcdef01 {src} -o {out} && objcopy --only-keep-debug {out} {out}.debug && strip {out}
 * build(inlined-mini): g++ -O2 -fomit-frame-pointer {src} -o {out} && objcopy --only-keep-debug {out} {out}.mini && xz -f {out}.mini && strip {out} && objcopy --add-section .gnu_debugdata={out}.mini.xz {out} && rm {out}.mini.xz
 */
#include "common.h"

namespace inlined {
static inline __attribute__((always_inline)) uint64_t innermost(uint64_t value, long turns) {
    return churn(value, turns); /* LINE: innermost */
}

template <typename Number> static inline __attribute__((always_inline)) Number middle(Number value, long turns) {
    return innermost(value, turns) + 1; /* LINE: middle */
}

OWN_FRAME uint64_t outer(uint64_t value, long turns) {
    return middle<uint64_t>(value, turns) + 2; /* LINE: outer */
}
} // namespace inlined

int main(int argc, char **argv) {
    live_for(argc > 1 ? argv[1] : nullptr);
    long turns = turns_for(1000);
    uint64_t value = 1;
    ready();
    for (;;)
        value = inlined::outer(value, turns);
}
