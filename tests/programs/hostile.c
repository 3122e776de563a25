/* Functions and threads named against whoever reads a profile: markup, terminal escapes, marks that
 * turn the direction of writing. Each thread burns in a function of its own.
 *
 * usage: hostile [SECONDS]
 *
 * build: gcc -O2 -fomit-frame-pointer -fno-optimize-sibling-calls -pthread {src} -o {out}
 */
#include "common.h"
#include <pthread.h>
#include <sys/prctl.h>

/* A function whose symbol is `symbol`; the assembler takes any character in quotes. */
#define NAMED(function, symbol)                                  \
    uint64_t function(uint64_t value) __asm__("\"" symbol "\""); \
    OWN_FRAME uint64_t function(uint64_t value) { return churn(value, 100000) + 1; }

NAMED(image, "</script><img src=x onerror=window.__pwned=1>")
NAMED(section, "]]><script>alert(1)</script>")
NAMED(comment, "<!--<script>")
NAMED(escape, "\033]0;pwned\007\033[31mred")
NAMED(reversed, "user\342\200\256nimda\342\200\217")
NAMED(markdown, "|`[x](javascript:alert(1))**")

/* At most 15 bytes. */
static const struct {
    const char *thread;
    uint64_t (*function)(uint64_t);
} rows[] = {
    {"</script><b>t", image}, {"]]><svg/onload", section}, {"<img onerror=a>", comment},
    {"\033[2Jescape", escape}, {"a\342\200\256b\342\200\217", reversed}, {"|`*_<i>", markdown},
};

static void *run(void *argument) {
    int row = (int)(intptr_t)argument;
    prctl(PR_SET_NAME, rows[row].thread);
    for (uint64_t value = 1;;)
        value = rows[row].function(value);
    return NULL;
}

int main(int argc, char **argv) {
    live_for(argc > 1 ? argv[1] : NULL);
    prctl(PR_SET_NAME, "</script><i>");
    for (size_t row = 0; row < sizeof rows / sizeof *rows; row++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, run, (void *)(intptr_t)row) != 0)
            return 1;
    }
    ready();
    for (;;)
        pause();
}
