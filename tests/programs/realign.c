/* Frames whose stack is realigned for 32- and 64-byte locals, and frames of unknown size: their CFA
 * is a value in memory (`*(rbp - 8)`) or hangs on rbp.
 *
 * usage: realign [SECONDS]
 *
 * build: gcc -O2 -fomit-frame-pointer -fno-optimize-sibling-calls {src} -o {out}
 * build(realign-O1): gcc -O1 -fomit-frame-pointer -fno-optimize-sibling-calls {src} -o {out}
 */
#include "common.h"
#include <alloca.h>

OWN_FRAME uint64_t leaf(uint64_t value) { return churn(value, 20000) + 1; }

OWN_FRAME uint64_t use(volatile unsigned char *memory, int length, uint64_t value) {
    memory[value % (unsigned)length] = (unsigned char)value;
    return leaf(value) + memory[0];
}

/* A realigned frame of unknown size: the compiler keeps the entry's rsp in r10 and saves it in the frame. */
OWN_FRAME uint64_t aligned_variable(uint64_t value, int length) {
    volatile unsigned char fixed[64] __attribute__((aligned(32)));
    volatile unsigned char *memory = alloca((size_t)length);
    fixed[0] = memory[0] = 3;
    return use(memory, length, value) + use(fixed, 64, value) + 1;
}

OWN_FRAME uint64_t aligned_32(uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f, uint64_t g) {
    volatile unsigned char memory[96] __attribute__((aligned(32)));
    memory[0] = (unsigned char)(b + c + d + e + f);
    return use(memory, 96, a) + g;
}

OWN_FRAME uint64_t aligned_64(uint64_t value) {
    volatile unsigned char memory[192] __attribute__((aligned(64)));
    memory[0] = 1;
    return use(memory, 192, value) + aligned_32(value, 1, 2, 3, 4, 5, 6) + 1;
}

OWN_FRAME uint64_t variable(uint64_t value, int length) {
    volatile unsigned char *memory = alloca((size_t)length);
    memory[0] = 2;
    return use(memory, length, value) + aligned_64(value) + aligned_variable(value, length) + 1;
}

int main(int argc, char **argv) {
    live_for(argc > 1 ? argv[1] : NULL);
    uint64_t value = 1;
    ready();
    for (int length = 16;; length = 16 + (length * 7) % 4096)
        value = variable(value, length);
}
