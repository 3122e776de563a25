/* Code made at run time, with a frame pointer but without unwind rows or a symbol.
 *
 * usage: jit [SECONDS]
 *
 * build: gcc -O2 -fomit-frame-pointer -fno-optimize-sibling-calls {src} -o {out}
 */
#include "common.h"
#include <sys/mman.h>

/* push %rbp; mov %rsp,%rbp; mov %rsi,%rcx; 1: imul $0x11,%rdi,%rdi; dec %rcx; jnz 1b; mov %rdi,%rax; pop %rbp; ret */
static const unsigned char code[] = {
    0x55, 0x48, 0x89, 0xe5, 0x48, 0x89, 0xf1, 0x48, 0x6b, 0xff, 0x11, 0x48,
    0xff, 0xc9, 0x75, 0xf7, 0x48, 0x89, 0xf8, 0x5d, 0xc3,
};

typedef uint64_t (*jitted)(uint64_t value, long turns);

OWN_FRAME uint64_t call_jitted(jitted function, uint64_t value) { return function(value, 100000) + 1; }

int main(int argc, char **argv) {
    live_for(argc > 1 ? argv[1] : NULL);
    void *memory = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return 1;
    memcpy(memory, code, sizeof code);
    if (mprotect(memory, 4096, PROT_READ | PROT_EXEC) != 0)
        return 1;
    uint64_t value = 1;
    char line[64];
    snprintf(line, sizeof line, "code %lx\n", (unsigned long)memory);
    say(line);
    ready();
    for (;;)
        value = call_jitted((jitted)memory, value);
}
