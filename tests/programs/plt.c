/* Calls through the procedure linkage table, to functions that take next to no time.
 *
 * usage: plt [SECONDS]
 *
 * build: gcc -O2 -fomit-frame-pointer -fno-builtin -fcf-protection=none -Wl,-z,lazy {src} -o {out}
 * build(plt-now): gcc -O2 -fomit-frame-pointer -fno-builtin -fcf-protection=none -Wl,-z,now {src} -o {out}
 * build(plt-ibt): gcc -O2 -fomit-frame-pointer -fno-builtin -fcf-protection=full -Wl,-z,lazy,-z,ibtplt {src} -o {out}
 */
#include "common.h"
#include <ctype.h>
#include <strings.h>

OWN_FRAME int call_out(int turns) {
    int sum = 0;
    for (int i = 0; i < turns; i++)
        sum += abs(i) + (int)labs(sum) + toupper(i & 0x7f) + ffs(i);
    return sum;
}

int main(int argc, char **argv) {
    live_for(argc > 1 ? argv[1] : NULL);
    volatile int sum = 0;
    ready();
    for (;;)
        sum = sum + call_out(1000);
}
