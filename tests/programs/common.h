/* What every C and C++ target shares: its life time, its word that it is warm, and a
 * piece of work whose cost does not depend on where it is linked.
 *
 * Every target takes the seconds it shall live as its first argument; 0 or none means until
 * it is killed. The end comes by SIGALRM, so that no target reads a clock for it. */
#ifndef COMMON_H
#define COMMON_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* A function that keeps its own frame: neither inlined nor cloned, nor folded with its twin. */
#define OWN_FRAME __attribute__((noipa))

static void end_of_life(int signal) {
    (void)signal;
    _exit(0);
}

/* Ends the process after the seconds of `text`. */
static inline void live_for(const char *text) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = end_of_life;
    sigaction(SIGALRM, &action, NULL);
    alarm(text ? (unsigned)atoi(text) : 0);
}

static inline void say(const char *word) {
    size_t length = strlen(word);
    while (length > 0) {
        ssize_t written = write(1, word, length);
        if (written <= 0)
            return;
        word += written;
        length -= (size_t)written;
    }
}

static inline void ready(void) { say("ready\n"); }

static volatile sig_atomic_t told;

static void on_word(int signal) {
    (void)signal;
    told = 1;
}

/* Spins until SIGUSR1 comes: a call that waits would be interrupted, which is a failed call. */
static inline void spin_until_told(void) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_word;
    sigaction(SIGUSR1, &action, NULL);
    ready();
    while (!told)
        __asm__ volatile("pause");
}

/* From here on SIGCONT waits for `await_kept_word`, however early it comes: one that found a process
 * on its way to stopping itself would be gone. */
static inline sigset_t keep_word(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGCONT);
    sigprocmask(SIG_BLOCK, &set, NULL);
    return set;
}

/* Waits for the signal that `keep_word` keeps. */
static inline void await_kept_word(const sigset_t *kept) {
    int taken;
    sigwait(kept, &taken);
}

/* Argument `index` as a number, or `otherwise`. */
static inline long number(int argc, char **argv, int index, long otherwise) {
    return argc > index ? atol(argv[index]) : otherwise;
}

/* A chain of dependent multiplications, one a turn. */
static inline __attribute__((always_inline)) uint64_t churn(uint64_t value, long turns) {
    for (long i = 0; i < turns; i++)
        __asm__ volatile("imul $0x2545f491, %0, %0" : "+r"(value));
    return value;
}

static inline int64_t thread_nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

/* The turns of `churn` that take about `microseconds` of CPU time on this machine. */
static inline long turns_for(long microseconds) {
    long turns = 1 << 16;
    int64_t took = 0;
    do {
        turns *= 2;
        int64_t begun = thread_nanoseconds();
        __asm__ volatile("" ::"r"(churn(1, turns)));
        took = thread_nanoseconds() - begun;
    } while (took < 5000000);
    return (long)((double)turns * 1000.0 * (double)microseconds / (double)took) + 1;
}

#endif
