/* Sleeps: a target without a single sample.
 *
 * usage: idle [SECONDS]
 *
 * build: gcc -O2 -fomit-frame-pointer {src} -o {out}
 */
#include "common.h"

int main(int argc, char **argv) {
    live_for(argc > 1 ? argv[1] : NULL);
    ready();
    for (;;)
        pause();
}
