// Calls of many shapes, for ever: library callbacks, PLT, variable frames, realigned stacks.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static volatile unsigned long sink;

static int compare(const void *a, const void *b) { return *(const int *)a - *(const int *)b; }

__attribute__((noinline)) static void sort(unsigned seed) {
    int values[64];
    for (int i = 0; i < 64; i++) values[i] = (int)(seed = seed * 1103515245u + 12345u);
    qsort(values, 64, sizeof *values, compare);
    sink += (unsigned)values[0];
}

__attribute__((noinline)) static void variable(unsigned n) {
    char buffer[n % 512 + 16];
    memset(buffer, (int)n, sizeof buffer);
    snprintf(buffer, sizeof buffer, "%u %g", n, n * 0.5);
    sink += strlen(buffer);
}

__attribute__((noinline)) static void aligned(unsigned n) {
    _Alignas(128) char block[256];
    char tail[n % 100 + 1];
    memset(block, (int)n, sizeof block);
    memset(tail, (int)n, sizeof tail);
    sink += (unsigned char)block[n % 256] + (unsigned char)tail[n % sizeof tail];
}

__attribute__((noinline)) static void heap(unsigned n) {
    char *text = malloc(n % 3000 + 1);
    if (text) text[0] = 1;
    text = realloc(text, n % 5000 + 1);
    sink += text != 0;
    free(text);
}

__attribute__((noinline)) static unsigned recurse(unsigned depth, unsigned n) {
    if (depth == 0) {
        variable(n);
        return n;
    }
    return recurse(depth - 1, n * 3 + 1) + depth;
}

int main(void) {
    puts("ready");
    fflush(stdout);
    for (unsigned n = 0;; n++) {
        struct timespec now;
        sort(n);
        variable(n);
        aligned(n);
        heap(n);
        sink += recurse(n % 20, n);
        clock_gettime(CLOCK_MONOTONIC, &now);
        sink += (unsigned long)now.tv_nsec;
    }
}
