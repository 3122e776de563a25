/* Fails once on each of thousands of paths and addresses, and in every way that a descriptor, a
 * signal or an operation can be wrong. Everything it names can be told from its number alone.
 *
 * usage: sys_arguments [SECONDS] [paths|addresses|kinds] [HOW MANY OF EACH]
 *
 * build: gcc -O2 -fomit-frame-pointer {src} -o {out} -pthread
 */
#include "common.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <stddef.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>

enum { PAGE = 4096, THREADS = 4 };

static long many;
static int directory;

/* Directories between the root and the name `number` of a kind: some paths are short, some long. */
static int deep(char *path, long number) {
    int size = 0;
    for (long i = 0; i < number % 7 * (number % 100 == 0 ? 60 : 1); i++)
        size += sprintf(path + size, "d%ld-%ld/", number % 13, i);
    return size;
}

/* Four threads at once: each has the numbers that leave its own remainder. */
static void *fail_on_paths(void *thread) {
    char name[PAGE], path[PAGE + 16];
    struct stat status;
    /* Two pages that can be read and one that cannot: the path ends at its border, or lies across
     * the one before. */
    char *pages = mmap(NULL, 3 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED || munmap(pages + 2 * PAGE, PAGE) < 0)
        exit(1);
    for (long i = (long)thread; i < many; i += THREADS) {
        int size = deep(name, i);
        sprintf(name + size, "%ld", i);
        sprintf(path, "/no/open/%s", name);
        size = (int)strlen(path) + 1;
        char *placed = i % 2 ? pages + 2 * PAGE - size : pages + PAGE - size / 2;
        memcpy(placed, path, (size_t)size);
        open(placed, O_RDONLY);
        sprintf(path, "no/stat/%s", name);
        syscall(SYS_newfstatat, AT_FDCWD, path, &status, 0);
        sprintf(path, "no/unlink/%s", name);
        unlinkat(directory, path, 0);
        char second[PAGE + 16];
        sprintf(path, "/no/from/%s", name);
        sprintf(second, "no/to/%s", name);
        rename(path, second);
        sprintf(path, "/proc/version/%s", name);
        mkdir(path, 0700);
        sprintf(path, "/no/exec/%s", name);
        char *arguments[] = {"missing", NULL};
        execv(path, arguments);
    }
    return NULL;
}

static void fail_on_addresses(void) {
    for (long i = 0; i < many; i++) {
        struct sockaddr_in four = {.sin_family = AF_INET, .sin_port = htons((uint16_t)(1 + i % 9))};
        four.sin_addr.s_addr = htonl(0x7f000001 + (uint32_t)i);
        int tcp = socket(AF_INET, SOCK_STREAM, 0);
        connect(tcp, (struct sockaddr *)&four, sizeof four);
        close(tcp);
        struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)(1 + i))};
        inet_pton(AF_INET6, "2001:db8::", &six.sin6_addr);
        six.sin6_addr.s6_addr[14] = (uint8_t)(i >> 8);
        six.sin6_addr.s6_addr[15] = (uint8_t)i;
        int other = socket(AF_INET6, SOCK_STREAM, 0);
        bind(other, (struct sockaddr *)&six, sizeof six);
        close(other);
        struct sockaddr_un local = {.sun_family = AF_UNIX};
        snprintf(local.sun_path, sizeof local.sun_path, "/no/socket/%ld", i);
        int datagrams = socket(AF_UNIX, SOCK_DGRAM, 0);
        sendto(datagrams, "x", 1, 0, (struct sockaddr *)&local, sizeof local);
        /* The abstract namespace: the name begins with a zero and has a length. */
        memset(local.sun_path, 0, sizeof local.sun_path);
        int size = snprintf(local.sun_path + 1, sizeof local.sun_path - 1, "abstract-%ld", i) + 1;
        connect(datagrams, (struct sockaddr *)&local,
                (socklen_t)(offsetof(struct sockaddr_un, sun_path) + (size_t)size));
        close(datagrams);
    }
}

/* A connection to a socket that listens on `port`, and its other end. */
static int connected(int *other) {
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(0)};
    socklen_t size = sizeof here;
    inet_pton(AF_INET, "127.0.0.1", &here.sin_addr);
    int listener = socket(AF_INET, SOCK_STREAM, 0), client = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener, (struct sockaddr *)&here, size) < 0 || listen(listener, 1) < 0 ||
        getsockname(listener, (struct sockaddr *)&here, &size) < 0 ||
        connect(client, (struct sockaddr *)&here, size) < 0)
        exit(1);
    *other = accept(listener, NULL, NULL);
    close(listener);
    printf("port %d\n", ntohs(here.sin_port));
    fflush(stdout);
    return client;
}

static void fail_on_kinds(void) {
    char byte = 0, file[] = "deleted-file";
    int deleted = open(file, O_CREAT | O_RDONLY, 0600), kept = open("/dev/null", O_RDONLY);
    int memory = memfd_create("memory", 0), event = eventfd(0, EFD_NONBLOCK), other;
    char name[64];
    sprintf(name, "/proc/self/fd/%d", memory);
    int unwritable = open(name, O_RDONLY), client = connected(&other);
    unlink(file);
    int word = 1;
    struct timespec soon = {.tv_nsec = 1000000};
    /* The other end resets the connection and is gone: nobody but the kernel's socket knows it. */
    struct linger reset = {.l_onoff = 1};
    setsockopt(other, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    close(other);
    /* The reset may be on its way still. */
    poll(&(struct pollfd){.fd = client}, 1, -1);
    for (long i = 0; i < many; i++) {
        write(deleted, &byte, 1);
        write(kept, &byte, 1);
        write(unwritable, &byte, 1);
        read(event, &byte, 8);
        send(client, &byte, 1, MSG_NOSIGNAL);
        kill(0x3fffff, SIGTERM);
        syscall(SYS_tgkill, 0x3fffff, 0x3ffffe, SIGUSR1);
        syscall(SYS_tkill, 0x3ffffd, SIGRTMIN + 3);
        ioctl(kept, FIONREAD, &byte);
        ioctl(kept, 0xdead, &byte);
        fcntl(kept, F_SETPIPE_SZ, 4096);
        fcntl(1234567, F_GETFL);
        syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0);
        syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 1, &soon, NULL, 0);
        syscall(SYS_futex, &word, FUTEX_UNLOCK_PI, 0, NULL, NULL, 0);
        unlink("");
        fstatat(unwritable, "below", &(struct stat){0}, 0);
        syscall(70000 + i % 3);
    }
}

int main(int argc, char **argv) {
    const char *what = argc > 2 ? argv[2] : "paths";
    many = argc > 3 ? atol(argv[3]) : 100;
    live_for(argc > 1 ? argv[1] : NULL);
    directory = open("/etc", O_RDONLY | O_DIRECTORY);
    ready();
    if (strcmp(what, "addresses") == 0)
        fail_on_addresses();
    else if (strcmp(what, "kinds") == 0)
        fail_on_kinds();
    else {
        pthread_t threads[THREADS];
        for (long i = 0; i < THREADS; i++)
            pthread_create(&threads[i], NULL, fail_on_paths, (void *)i);
        for (int i = 0; i < THREADS; i++)
            pthread_join(threads[i], NULL);
    }
    return 0;
}
