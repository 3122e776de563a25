/* Fails as fast as it can from four threads, a known number of times.
 *
 * usage: sys_flood [SECONDS] [FAILURES OF EACH THREAD] [wait]     with `wait` it begins at SIGUSR1
 *
 * build: gcc -O2 -fomit-frame-pointer {src} -o {out} -pthread
 */
#include "common.h"

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/stat.h>

enum { THREADS = 4, PATHS = 8 };

static long failures;
static atomic_int ended;

static void *flood(void *argument) {
    long thread = (long)argument;
    char path[64];
    for (long i = 0; i < failures; i++) {
        snprintf(path, sizeof path, "/nonexistent/%ld/%ld", thread, i % PATHS);
        if (i % 2)
            open(path, O_RDONLY);
        else
            close(1000 + (int)thread);
    }
    ended++;
    return NULL;
}

int main(int argc, char **argv) {
    failures = number(argc, argv, 2, 50000);
    live_for(argc > 1 ? argv[1] : NULL);
    if (argc > 3)
        spin_until_told();
    else
        ready();
    struct timespec begun, over;
    clock_gettime(CLOCK_MONOTONIC, &begun);
    pthread_t threads[THREADS];
    for (long i = 0; i < THREADS; i++)
        pthread_create(&threads[i], NULL, flood, (void *)i);
    /* A wait that a tracer could interrupt would be one failure more. */
    while (ended < THREADS)
        sched_yield();
    clock_gettime(CLOCK_MONOTONIC, &over);
    double seconds = (double)(over.tv_sec - begun.tv_sec) + (double)(over.tv_nsec - begun.tv_nsec) / 1e9;
    printf("%.0f failures/s\n", (double)failures * THREADS / seconds);
    return 0;
}
