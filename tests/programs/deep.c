/* A stack of exactly known depth: main, `frames` calls of descend_0, _1 and _2 in turn, bottom.
 *
 * usage: deep [SECONDS [FRAMES [plain|handler|altstack]]]
 *
 * plain     the frames stand on main
 * handler   half of them stand on main, then a timer's signal strikes in `await_signal` at
 *           an arbitrary instruction, and its handler `on_signal` descends the other half
 * altstack  the same with the handler on a stack of its own
 *
 * build: gcc -O2 -fomit-frame-pointer -fno-optimize-sibling-calls {src} -o {out}
 * build(deep-static): gcc -O2 -fomit-frame-pointer -fno-optimize-sibling-calls -static {src} -o {out}
 * build(deep-musl): musl-gcc -O2 -fomit-frame-pointer -fno-optimize-sibling-calls -static {src} -o {out}
 */
#include "common.h"
#include <sys/time.h>

static long burst;
static long handler_frames;
static volatile sig_atomic_t struck;

OWN_FRAME uint64_t bottom(uint64_t value) { return churn(value, burst) + 1; }

OWN_FRAME uint64_t await_signal(uint64_t value) {
    struck = 0;
    struct itimerval once = {.it_value = {.tv_usec = 1000}};
    setitimer(ITIMER_VIRTUAL, &once, NULL);
    while (!struck)
        value = value * 3 + 1;
    return value;
}

typedef uint64_t (*descent)(long frames, uint64_t value, uint64_t (*at_bottom)(uint64_t));
uint64_t descend_1(long frames, uint64_t value, uint64_t (*at_bottom)(uint64_t));
uint64_t descend_2(long frames, uint64_t value, uint64_t (*at_bottom)(uint64_t));

/* Three shapes of frame: a little one, one with saved registers, one with an array. */
OWN_FRAME uint64_t descend_0(long frames, uint64_t value, uint64_t (*at_bottom)(uint64_t)) {
    if (frames <= 1)
        return at_bottom(value) + 1;
    return descend_1(frames - 1, value, at_bottom) + 1;
}

OWN_FRAME uint64_t descend_1(long frames, uint64_t value, uint64_t (*at_bottom)(uint64_t)) {
    uint64_t a = value * 3, b = value * 5, c = value * 7, d = value * 11, e = value * 13;
    __asm__ volatile("" : "+r"(a), "+r"(b), "+r"(c), "+r"(d), "+r"(e));
    uint64_t below = frames <= 1 ? at_bottom(value) : descend_2(frames - 1, value, at_bottom);
    return below + a + b + c + d + e;
}

OWN_FRAME uint64_t descend_2(long frames, uint64_t value, uint64_t (*at_bottom)(uint64_t)) {
    volatile uint64_t array[20];
    array[value % 20] = value;
    uint64_t below = frames <= 1 ? at_bottom(value) : descend_0(frames - 1, value, at_bottom);
    return below + array[value % 20];
}

OWN_FRAME void on_signal(int signal) {
    (void)signal;
    for (int i = 0; i < 50; i++)
        descend_0(handler_frames, 1, bottom);
    struck = 1;
}

static void install(int on_own_stack) {
    static char stack[1 << 20];
    stack_t own = {.ss_sp = stack, .ss_size = sizeof stack};
    if (on_own_stack)
        sigaltstack(&own, NULL);
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_signal;
    action.sa_flags = on_own_stack ? SA_ONSTACK : 0;
    sigaction(SIGVTALRM, &action, NULL);
}

int main(int argc, char **argv) {
    live_for(argc > 1 ? argv[1] : NULL);
    long frames = number(argc, argv, 2, 9);
    const char *mode = argc > 3 ? argv[3] : "plain";
    int in_handler = strcmp(mode, "plain") != 0;
    burst = turns_for(5000);
    uint64_t value = 1;
    if (in_handler) {
        install(strcmp(mode, "altstack") == 0);
        handler_frames = frames / 2;
    }
    ready();
    for (;;)
        value += descend_0(frames - handler_frames, value, in_handler ? await_signal : bottom);
}
