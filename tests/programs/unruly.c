/* A process that makes it as hard as it can for whoever looks at it.
 *
 * usage: unruly SECONDS MODE [COUNT | FILE]
 *
 *   rename         threads take names of escapes, marks of direction, line breaks, all the time, and
 *                  look for files so named
 *   exec           executes itself again and again, each time under another name
 *   exit           threads and children that end as soon as they have begun
 *   fork           children that fork
 *   maps COUNT     executable mappings without a file
 *   files COUNT    executable mappings of a file, page by page
 *   modules        maps files that nobody has seen, and unmaps them, all the time
 *   threads COUNT  threads that wait, and one that works
 *   rbp            a frame pointer that points to itself
 *   rsp            a stack pointer into nothing
 *   stack FILE     a stack in a file that is then cut to nothing
 *
 * build: gcc -O2 -fomit-frame-pointer -fno-optimize-sibling-calls -pthread {src} -o {out}
 */
#include "common.h"
#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>

static const char *const names[] = {
    "\033[2J\033[31mred", "a\342\200\256cilam\342\200\217", "one\ntwo\rthree", "</script><b>", "\302\233" "31mC1", "%s%n;&\"'`$(x)",
};
#define NAMES (sizeof names / sizeof *names)

OWN_FRAME uint64_t toil(uint64_t value, long turns) { return churn(value, turns) + 1; }

static void work_for_ever(void) {
    for (uint64_t value = 1;;)
        value = toil(value, 100000);
}

static int thread_of(void *(*run)(void *)) {
    pthread_attr_t attributes;
    pthread_t thread;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 32 << 10);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    return pthread_create(&thread, &attributes, run, NULL);
}

static void *rename_for_ever(void *unused) {
    for (uint64_t turn = 1;; turn = toil(turn, 1000)) {
        prctl(PR_SET_NAME, names[turn % NAMES]);
        open(names[turn % NAMES], O_RDONLY | O_CLOEXEC);
    }
    return unused;
}

static void *wait_for_ever(void *unused) {
    for (;;)
        pause();
    return unused;
}

static void *end_at_once(void *unused) {
    toil(1, 1000);
    return unused;
}

static int exec_again(char **argv) {
    ready();
    unsigned turn = (unsigned)number(3, argv, 2, 0);
    toil(turn, 1000000);
    char next[16], path[4096];
    ssize_t length = readlink("/proc/self/exe", path, sizeof path - 1);
    if (length < 0)
        return 1;
    path[length] = 0;
    snprintf(next, sizeof next, "%u", turn + 1);
    execl(path, names[turn % NAMES], "exec again", next, (char *)NULL);
    return 1;
}

static void end_again_and_again(void) {
    for (;;) {
        thread_of(end_at_once);
        if (fork() == 0) {
            toil(1, 10000);
            _exit(0);
        }
        while (waitpid(-1, NULL, WNOHANG) > 0)
            ;
        toil(1, 10000);
    }
}

/* A child forks a child, and so on to the fifth. */
static void fork_again_and_again(void) {
    for (;;) {
        int depth = 0;
        while (depth < 5 && fork() == 0)
            depth++;
        toil(1, 20000);
        while (wait(NULL) > 0)
            ;
        if (depth > 0)
            _exit(0);
    }
}

/* `count` executable pages; neighbours differ, so that the kernel does not join them. */
static int map_many(long count, int file) {
    for (long i = 0; i < count; i++) {
        int flags = MAP_PRIVATE | (file < 0 ? MAP_ANONYMOUS : 0);
        int protection = PROT_READ | PROT_EXEC | (file < 0 && i % 2 ? PROT_WRITE : 0);
        if (mmap(NULL, 4096, protection, flags, file, 0) == MAP_FAILED)
            return 1;
    }
    ready();
    work_for_ever();
    return 0;
}

static void map_modules(void) {
    static char page[4096] = "\177ELF\2\1\1\0\0\0\0\0\0\0\0\0\3\0\76";
    for (uint64_t turn = 1;; turn = toil(turn, 1000)) {
        int file = memfd_create("a\033[2Jmodule\n", MFD_CLOEXEC);
        if (file < 0)
            continue;
        page[100] = (char)turn;
        if (write(file, page, sizeof page) == sizeof page) {
            void *memory = mmap(NULL, sizeof page, PROT_READ | PROT_EXEC, MAP_PRIVATE, file, 0);
            if (memory != MAP_FAILED)
                munmap(memory, sizeof page);
        }
        close(file);
    }
}

/* lea 0(%rip),%rax; push %rax; push %rbp; mov %rsp,%rbp; mov %rbp,(%rbp); 1: pause; jmp 1b */
static const unsigned char loop[] = {
    0x48, 0x8d, 0x05, 0, 0, 0, 0, 0x50, 0x55, 0x48, 0x89, 0xe5, 0x48, 0x89, 0x6d, 0, 0xf3, 0x90, 0xeb, 0xfc,
};

static int loop_of_frames(void) {
    void *memory = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return 1;
    memcpy(memory, loop, sizeof loop);
    ready();
    ((void (*)(void))memory)();
    return 0;
}

OWN_FRAME void spin_with_stack_at(uintptr_t stack) {
    __asm__ volatile("mov %0, %%rsp\n1: pause\njmp 1b" ::"r"(stack) : "memory");
}

static int stack_in_a_file(const char *path) {
    int file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (file < 0 || ftruncate(file, 1 << 20) != 0)
        return 1;
    char *memory = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (memory == MAP_FAILED || ftruncate(file, 0) != 0)
        return 1;
    ready();
    spin_with_stack_at((uintptr_t)memory + (1 << 19));
    return 0;
}

int main(int argc, char **argv) {
    if (argc > 2 && strcmp(argv[1], "exec again") == 0)
        return exec_again(argv);
    live_for(argc > 1 ? argv[1] : NULL);
    const char *mode = argc > 2 ? argv[2] : "";
    long count = number(argc, argv, 3, 0);
    if (strcmp(mode, "exec") == 0)
        return exec_again((char *[]){argv[0], "exec again", "0", NULL});
    if (strcmp(mode, "maps") == 0)
        return map_many(count, -1);
    if (strcmp(mode, "files") == 0)
        return map_many(count, open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
    if (strcmp(mode, "rbp") == 0)
        return loop_of_frames();
    if (strcmp(mode, "stack") == 0)
        return stack_in_a_file(argc > 3 ? argv[3] : "");
    for (long i = 0; strcmp(mode, "threads") == 0 && i < count; i++)
        if (thread_of(wait_for_ever) != 0)
            return 1;
    for (int i = 0; strcmp(mode, "rename") == 0 && i < 3; i++)
        thread_of(rename_for_ever);
    ready();
    if (strcmp(mode, "exit") == 0)
        end_again_and_again();
    else if (strcmp(mode, "fork") == 0)
        fork_again_and_again();
    else if (strcmp(mode, "modules") == 0)
        map_modules();
    else if (strcmp(mode, "rsp") == 0)
        spin_with_stack_at(4096);
    else if (strcmp(mode, "rename") == 0)
        rename_for_ever(NULL);
    work_for_ever();
}
