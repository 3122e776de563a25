/* Sends requests over TCP and keeps the times by its own clock.
 *
 * It connects CONNECTIONS times, says `ready` and waits DELAY_MS, or with a negative one stops
 * until it is told to go on (SIGCONT). Then each connection in turn sends a request of
 * REQUEST bytes and reads ANSWER bytes, COUNT rounds. With AHEAD it sends so many requests before
 * it reads the first answer, in sends of their own. At the end it says, for each
 * connection, `info LOCAL_PORT SRTT MIN_RTT RTTVAR RETRANSMITS SENT RECEIVED` from TCP_INFO, then
 * the quantiles of all times as `times P50 P90 P99 MAX` in nanoseconds, `done`, and keeps the
 * connections open.
 *
 * usage: tcp_client [SECONDS [ADDRESS [PORT [COUNT [REQUEST [ANSWER [CONNECTIONS [DELAY_MS [AHEAD]]]]]]]]]
 *
 * build: gcc -O2 {src} -o {out}
 */
#include "common.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <linux/tcp.h>
#include <sys/socket.h>

static int64_t nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

static int dial(const char *text, long port) {
    struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port)};
    struct sockaddr_in four = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    int fd, on = 1, failed;
    if (inet_pton(AF_INET6, text, &six.sin6_addr) == 1) {
        fd = socket(AF_INET6, SOCK_STREAM, 0);
        failed = connect(fd, (struct sockaddr *)&six, sizeof six);
    } else {
        inet_pton(AF_INET, text, &four.sin_addr);
        fd = socket(AF_INET, SOCK_STREAM, 0);
        failed = connect(fd, (struct sockaddr *)&four, sizeof four);
    }
    if (failed) {
        close(fd);
        return -1;
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return fd;
}

static void receive(int fd, char *bytes, long count) {
    while (count > 0) {
        ssize_t n = recv(fd, bytes, (size_t)count, 0);
        if (n <= 0)
            exit(2);
        count -= n;
    }
}

static int ascending(const void *left, const void *right) {
    int64_t a = *(const int64_t *)left, b = *(const int64_t *)right;
    return (a > b) - (a < b);
}

static void tell(int fd) {
    struct tcp_info info;
    socklen_t length = sizeof info;
    struct sockaddr_in6 local;
    socklen_t address_length = sizeof local;
    char line[256];
    memset(&info, 0, sizeof info);
    getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length);
    getsockname(fd, (struct sockaddr *)&local, &address_length);
    snprintf(line, sizeof line, "info %u %u %u %u %u %llu %llu\n", ntohs(local.sin6_port), info.tcpi_rtt,
             info.tcpi_min_rtt, info.tcpi_rttvar, info.tcpi_total_retrans,
             (unsigned long long)(info.tcpi_bytes_sent - info.tcpi_bytes_retrans),
             (unsigned long long)info.tcpi_bytes_received);
    say(line);
}

int main(int argc, char **argv) {
    live_for(argc > 1 ? argv[1] : NULL);
    sigset_t kept = keep_word();
    const char *address = argc > 2 ? argv[2] : "127.0.0.1";
    long port = number(argc, argv, 3, 0), count = number(argc, argv, 4, 100);
    long request_bytes = number(argc, argv, 5, 64), answer_bytes = number(argc, argv, 6, 64);
    long connections = number(argc, argv, 7, 1), delay_ms = number(argc, argv, 8, 0);
    long ahead = number(argc, argv, 9, 1);
    char *request = calloc(1, (size_t)request_bytes), *answer = malloc((size_t)answer_bytes);
    int *fds = calloc((size_t)connections, sizeof *fds);
    int64_t *times = calloc((size_t)(count * connections + 1), sizeof *times);
    for (long i = 0; i < connections; i++)
        if ((fds[i] = dial(address, port)) < 0)
            say("refused\n");
    ready();
    if (delay_ms < 0)
        await_kept_word(&kept);
    else
        usleep((useconds_t)delay_ms * 1000);
    long taken = 0;
    for (long round = 0; round < count; round++)
        for (long i = 0; i < connections && fds[i] >= 0; i++) {
            int64_t begun = nanoseconds();
            for (long n = 0; n < ahead; n++) {
                if (n > 0)
                    usleep(2000);
                send(fds[i], request, (size_t)request_bytes, MSG_NOSIGNAL);
            }
            for (long n = 0; n < ahead; n++)
                receive(fds[i], answer, answer_bytes);
            times[taken++] = nanoseconds() - begun;
        }
    usleep(100000);
    for (long i = 0; i < connections && fds[i] >= 0; i++)
        tell(fds[i]);
    qsort(times, (size_t)taken, sizeof *times, ascending);
    if (taken > 0) {
        char line[160];
        snprintf(line, sizeof line, "times %lld %lld %lld %lld\n", (long long)times[(taken + 1) / 2 - 1],
                 (long long)times[(taken * 9 + 9) / 10 - 1], (long long)times[(taken * 99 + 99) / 100 - 1],
                 (long long)times[taken - 1]);
        say(line);
    }
    say("done\n");
    for (;;)
        pause();
}
