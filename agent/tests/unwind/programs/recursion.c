// Stays at the bottom of a deep recursion.
#include <stdio.h>

static volatile unsigned long sink;

__attribute__((noinline)) static unsigned long descend(unsigned long depth) {
    if (depth == 0) {
        for (;;) sink++;
    }
    unsigned long below = descend(depth - 1);
    return below + sink;
}

int main(void) {
    puts("ready");
    fflush(stdout);
    return (int)descend(2500);
}
