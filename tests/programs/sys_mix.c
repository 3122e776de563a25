/* Fails in every way, a known number of times: in threads, in children, on all kinds of arguments.
 * It never blocks: a tracer that stops it would interrupt the call.
 *
 * usage: sys_mix [SECONDS] [ROUNDS] [wait]     with `wait` it begins at SIGUSR1
 *
 * build: gcc -O2 -fomit-frame-pointer {src} -o {out} -pthread
 */
#include "common.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <termios.h>

enum { THREADS = 3, CHILDREN = 2 };

static long rounds;
static atomic_int ended;

OWN_FRAME static void fail_on_paths(int directory) {
    struct stat status;
    open("/nonexistent/absolute", O_RDONLY);
    open("relative/missing", O_RDONLY);
    openat(directory, "in-a-directory", O_RDONLY);
    stat("/proc/version/not-a-directory", &status);
    mkdir("/tmp", 0700);
    unlink("/nonexistent/unlinked");
    rename("/nonexistent/from", "/nonexistent/to");
    renameat(directory, "old-name", AT_FDCWD, "/nonexistent/new-name");
    symlink("target of the link", "/proc/1/link");
    access("/nonexistent/accessed", R_OK);
    char *arguments[] = {"missing", NULL};
    execv("/nonexistent/program", arguments);
    syscall(SYS_openat, AT_FDCWD, (char *)8, O_RDONLY);
    syscall(SYS_openat, AT_FDCWD, NULL, O_RDONLY);
}

OWN_FRAME static void fail_on_sockets(void) {
    struct sockaddr_in closed = {.sin_family = AF_INET, .sin_port = htons(1)};
    inet_pton(AF_INET, "127.0.0.1", &closed.sin_addr);
    int tcp = socket(AF_INET, SOCK_STREAM, 0);
    connect(tcp, (struct sockaddr *)&closed, sizeof closed);
    sendto(tcp, "x", 1, MSG_NOSIGNAL, NULL, 0);
    close(tcp);
    struct sockaddr_in6 taken = {.sin6_family = AF_INET6, .sin6_port = htons(2)};
    inet_pton(AF_INET6, "2001:db8::1", &taken.sin6_addr);
    int six = socket(AF_INET6, SOCK_STREAM, 0);
    bind(six, (struct sockaddr *)&taken, sizeof taken);
    close(six);
    struct sockaddr_un missing = {.sun_family = AF_UNIX, .sun_path = "/nonexistent/socket"};
    int local = socket(AF_UNIX, SOCK_STREAM, 0);
    connect(local, (struct sockaddr *)&missing, sizeof missing);
    close(local);
    socket(AF_INET, 77, 0);
}

OWN_FRAME static void fail_on_descriptors(int directory, int nonblocking) {
    char byte;
    struct termios terminal;
    close(-1);
    read(directory, &byte, 1);
    write(nonblocking, NULL, 0), read(nonblocking, &byte, 1);
    tcgetattr(directory, &terminal);
    fcntl(directory, 9999);
    lseek(nonblocking, 0, SEEK_SET);
    ftruncate(directory, 1);
}

OWN_FRAME static void fail_otherwise(void) {
    kill(0x3fffff, SIGTERM);
    mmap((void *)1, 1, PROT_READ, MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS, -1, 0);
    syscall(1000, 1, 2, 3);
    setpriority(PRIO_PROCESS, 0x3fffff, 0);
}

static void *fail(void *unused) {
    (void)unused;
    int directory = open("/etc", O_RDONLY | O_DIRECTORY);
    int ends[2];
    if (directory < 0 || pipe2(ends, O_NONBLOCK) < 0)
        exit(1);
    for (long i = 0; i < rounds; i++) {
        fail_on_paths(directory);
        fail_on_sockets();
        fail_on_descriptors(directory, ends[0]);
        fail_otherwise();
    }
    close(directory);
    close(ends[0]);
    close(ends[1]);
    ended++;
    return NULL;
}

int main(int argc, char **argv) {
    rounds = number(argc, argv, 2, 10);
    live_for(argc > 1 ? argv[1] : NULL);
    if (argc > 3)
        spin_until_told();
    else
        ready();
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++)
        pthread_create(&threads[i], NULL, fail, NULL);
    for (int i = 0; i < CHILDREN; i++)
        if (fork() == 0) {
            fail(NULL);
            _exit(0);
        }
    while (ended < THREADS)
        sched_yield();
    for (pid_t child = 0; child >= 0; child = waitpid(-1, NULL, WNOHANG))
        sched_yield();
    say("done\n");
    return 0;
}
