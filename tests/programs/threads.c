/* Threads that start and end all the time: each burns for 50 ms under a name of its own.
 *
 * usage: threads [SECONDS]
 *
 * build: gcc -O2 -fomit-frame-pointer -pthread {src} -o {out}
 */
#include "common.h"
#include <pthread.h>

static long turns;

OWN_FRAME uint64_t thread_work(uint64_t value) { return churn(value, turns) + 1; }

static void *run(void *argument) {
    char name[16];
    snprintf(name, sizeof name, "short-%ld", (long)(intptr_t)argument % 1000);
    pthread_setname_np(pthread_self(), name);
    uint64_t value = 1;
    for (int i = 0; i < 10; i++)
        value = thread_work(value);
    return (void *)(intptr_t)value;
}

int main(int argc, char **argv) {
    live_for(argc > 1 ? argv[1] : NULL);
    turns = turns_for(5000);
    ready();
    for (long count = 0;; count += 2) {
        pthread_t first, second;
        if (pthread_create(&first, NULL, run, (void *)(intptr_t)count) != 0 ||
            pthread_create(&second, NULL, run, (void *)(intptr_t)(count + 1)) != 0)
            return 1;
        pthread_join(first, NULL);
        pthread_join(second, NULL);
    }
}
