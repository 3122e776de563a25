// Handles a fast timer signal on an alternate stack while it works.
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/time.h>

static volatile unsigned long sink;
static char alternate[65536];

__attribute__((noinline)) static unsigned long work(unsigned long n) {
    char buffer[100];
    snprintf(buffer, sizeof buffer, "%lu %g", n, n * 1.5);
    return strlen(buffer);
}

static void handle(int signal) {
    (void)signal;
    for (unsigned long i = 0; i < 3000; i++) sink += work(i);
}

int main(void) {
    stack_t stack = {.ss_sp = alternate, .ss_size = sizeof alternate};
    sigaltstack(&stack, 0);
    struct sigaction action = {.sa_handler = handle, .sa_flags = SA_ONSTACK | SA_RESTART};
    sigaction(SIGALRM, &action, 0);
    struct itimerval timer = {{0, 3000}, {0, 3000}};
    puts("ready");
    fflush(stdout);
    setitimer(ITIMER_REAL, &timer, 0);
    for (unsigned long n = 0;; n++) sink += work(n);
}
