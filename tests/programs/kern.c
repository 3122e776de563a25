/* Time in the kernel: reads /dev/zero in large pieces.
 *
 * usage: kern [SECONDS]
 *
 * build: gcc -O2 -fomit-frame-pointer {src} -o {out}
 */
#include "common.h"
#include <fcntl.h>

static char buffer[1 << 20];

OWN_FRAME long read_zeros(int file) {
    long sum = 0;
    for (int i = 0; i < 100; i++)
        sum += read(file, buffer, sizeof buffer);
    return sum + 1;
}

int main(int argc, char **argv) {
    live_for(argc > 1 ? argv[1] : NULL);
    int file = open("/dev/zero", O_RDONLY);
    if (file < 0)
        return 1;
    volatile long sum = 0;
    ready();
    for (;;)
        sum = sum + read_zeros(file);
}
