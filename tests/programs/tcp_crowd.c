/* Many connections at once: a server and, in a child process, its clients.
 *
 * The child connects CONNECTIONS times; then the parent says `client PID` and `ready`. Each time
 * that the child is told to go on (SIGCONT) it sends a byte over every connection and reads the answer,
 * ROUNDS times, and the parent says `round` when all are answered.
 *
 * usage: tcp_crowd [SECONDS [CONNECTIONS [ROUNDS]]]
 *
 * build: gcc -O2 {src} -o {out}
 */
#include "common.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static void be_client(struct sockaddr_in *address, long connections, long rounds) {
    int *fds = calloc((size_t)connections, sizeof *fds), on = 1;
    char byte = 0;
    sigset_t kept = keep_word();
    for (long i = 0; i < connections; i++) {
        fds[i] = socket(AF_INET, SOCK_STREAM, 0);
        if (fds[i] < 0 || connect(fds[i], (struct sockaddr *)address, sizeof *address) != 0)
            fail("connect");
        setsockopt(fds[i], IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    }
    for (;;) {
        await_kept_word(&kept);
        for (long round = 0; round < rounds; round++)
            for (long i = 0; i < connections; i++)
                if (send(fds[i], &byte, 1, MSG_NOSIGNAL) != 1 || recv(fds[i], &byte, 1, 0) != 1)
                    fail("exchange");
    }
}

int main(int argc, char **argv) {
    live_for(argc > 1 ? argv[1] : NULL);
    long connections = number(argc, argv, 2, 100), rounds = number(argc, argv, 3, 1);
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    if (limit.rlim_max < (rlim_t)connections + 64)
        limit.rlim_max = (rlim_t)connections + 64;
    limit.rlim_cur = limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &limit) != 0)
        fail("setrlimit");
    int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1, events = epoll_create1(0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t length = sizeof address;
    if (bind(listener, (struct sockaddr *)&address, sizeof address) != 0 || listen(listener, 1024) != 0)
        fail("listen");
    getsockname(listener, (struct sockaddr *)&address, &length);
    pid_t child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        be_client(&address, connections, rounds);
    }
    for (long i = 0; i < connections; i++) {
        int fd = accept(listener, NULL, NULL);
        struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
        if (fd < 0 || epoll_ctl(events, EPOLL_CTL_ADD, fd, &event) != 0)
            fail("accept");
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    }
    char line[32];
    snprintf(line, sizeof line, "client %d\n", (int)child);
    say(line);
    ready();
    for (long answered = 0;;) {
        struct epoll_event found[64];
        int count = epoll_wait(events, found, 64, -1);
        for (int i = 0; i < count; i++) {
            char byte;
            if (recv(found[i].data.fd, &byte, 1, 0) != 1 || send(found[i].data.fd, &byte, 1, MSG_NOSIGNAL) != 1)
                fail("answer");
            if (++answered % (connections * rounds) == 0)
                say("round\n");
        }
    }
}
