/* Answers requests over TCP after a wait of its own: the truth that latencies are held against.
 *
 * Each connection has a thread. A request is REQUEST bytes; the answer is ANSWER bytes, in as many
 * sends as PIECES says.
 *
 * usage: tcp_server [SECONDS [PORT [WAIT_US [REQUEST [ANSWER [PIECES]]]]]]
 *
 * Port 0 is any; it says `port N`, then `ready`.
 *
 * build: gcc -O2 {src} -o {out} -lpthread
 */
#include "common.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <sys/socket.h>

static long wait_us, request_bytes, answer_bytes, pieces;

static int receive(int fd, char *bytes, long count) {
    for (long got = 0; got < count;) {
        ssize_t n = recv(fd, bytes + got, (size_t)(count - got), 0);
        if (n <= 0)
            return 0;
        got += n;
    }
    return 1;
}

static int transmit(int fd, const char *bytes, long count) {
    for (long sent = 0; sent < count;) {
        ssize_t n = send(fd, bytes + sent, (size_t)(count - sent), MSG_NOSIGNAL);
        if (n <= 0)
            return 0;
        sent += n;
    }
    return 1;
}

static void *serve(void *argument) {
    int fd = (int)(intptr_t)argument;
    char *request = malloc((size_t)request_bytes), *answer = calloc(1, (size_t)answer_bytes);
    struct timespec wait = {wait_us / 1000000, wait_us % 1000000 * 1000};
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    while (request && answer && receive(fd, request, request_bytes)) {
        if (wait_us > 0)
            nanosleep(&wait, NULL);
        int whole = 1;
        for (long piece = 0; piece < pieces && whole; piece++)
            whole = transmit(fd, answer, answer_bytes / pieces);
        if (!whole)
            break;
    }
    free(request);
    free(answer);
    close(fd);
    return NULL;
}

int main(int argc, char **argv) {
    live_for(argc > 1 ? argv[1] : NULL);
    long port = number(argc, argv, 2, 0);
    wait_us = number(argc, argv, 3, 0);
    request_bytes = number(argc, argv, 4, 64);
    answer_bytes = number(argc, argv, 5, 64);
    pieces = number(argc, argv, 6, 1);
    int listener = socket(AF_INET6, SOCK_STREAM, 0), on = 1, off = 0;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    setsockopt(listener, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
    struct sockaddr_in6 address = {.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port), .sin6_addr = in6addr_any};
    socklen_t length = sizeof address;
    if (bind(listener, (struct sockaddr *)&address, sizeof address) != 0 || listen(listener, 1024) != 0)
        return 1;
    getsockname(listener, (struct sockaddr *)&address, &length);
    char line[32];
    snprintf(line, sizeof line, "port %u\n", ntohs(address.sin6_port));
    say(line);
    ready();
    for (;;) {
        int fd = accept(listener, NULL, NULL);
        pthread_t thread;
        if (fd < 0)
            continue;
        if (pthread_create(&thread, NULL, serve, (void *)(intptr_t)fd) == 0)
            pthread_detach(thread);
        else
            close(fd);
    }
}
