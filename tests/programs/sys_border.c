/* Opens paths that end at, or lie across, the border of a page.
 *
 * usage: sys_border [SECONDS] [ROUNDS] [LENGTH]     of one length, or of all from 1 to 200
 *
 * build: gcc -O2 -fomit-frame-pointer {src} -o {out}
 */
#include "common.h"

#include <fcntl.h>
#include <sys/mman.h>

enum { PAGE = 4096, LENGTHS = 200 };

int main(int argc, char **argv) {
    long rounds = number(argc, argv, 2, 20), only = number(argc, argv, 3, 0);
    live_for(argc > 1 ? argv[1] : NULL);
    /* Two pages, and after them one that cannot be read. */
    char *pages = mmap(NULL, 3 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED || munmap(pages + 2 * PAGE, PAGE) < 0)
        return 1;
    ready();
    char path[LENGTHS + 64];
    for (long round = 0; round < rounds; round++)
        for (int length = 1; length <= LENGTHS; length++) {
            if (only && length != only)
                continue;
            int size = snprintf(path, sizeof path, "/nonexistent/%03d/", length);
            memset(path + size, 'x', (size_t)length);
            size += length;
            path[size++] = 0;
            /* The final zero is the last byte before the page that is not there. */
            char *at_the_end = pages + 2 * PAGE - size;
            memcpy(at_the_end, path, (size_t)size);
            open(at_the_end, O_RDONLY);
            path[1] = 'a';
            char *across = pages + PAGE - size / 2;
            memcpy(across, path, (size_t)size);
            open(across, O_RDONLY);
        }
    return 0;
}
