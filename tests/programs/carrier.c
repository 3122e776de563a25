/* Runs code out of a file that need not be a program: whatever else the file holds, this process
 * has it mapped, executable, and is at work in it.
 *
 * usage: carrier SECONDS FILE [OFFSET]
 *
 * The code is a function of (value, turns) that starts at OFFSET, a multiple of the page size.
 *
 * build: gcc -O2 -fomit-frame-pointer -fno-optimize-sibling-calls {src} -o {out}
 */
#include "common.h"
#include <fcntl.h>
#include <sys/mman.h>

typedef uint64_t (*carried)(uint64_t value, long turns);

OWN_FRAME uint64_t call_carried(carried function, uint64_t value) { return function(value, 100000) + 1; }

int main(int argc, char **argv) {
    live_for(argc > 1 ? argv[1] : NULL);
    int file = open(argc > 2 ? argv[2] : "", O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return 1;
    void *memory = mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE, file, number(argc, argv, 3, 4096));
    if (memory == MAP_FAILED)
        return 1;
    uint64_t value = call_carried((carried)memory, 1);
    ready();
    for (;;)
        value = call_carried((carried)memory, value);
}
