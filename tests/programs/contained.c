/* All that a container needs: no library, no file, no privilege.
 *
 * It works in `settle`, asks itself over TCP on the loopback address, and tries to open
 * `/etc/shop.yaml`, which is not there, in rounds of a few milliseconds. With `late` it only works, in
 * `late_work`.
 *
 * usage: contained [SECONDS] [late]
 *
 * build: gcc -O2 -fomit-frame-pointer -no-pie -fno-pie -static {src} -o {out} -lpthread
 */
#include "common.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sys/socket.h>

#define WORK(name)                                              \
    OWN_FRAME uint64_t name(uint64_t value, long turns) { \
        return churn(value, turns);                             \
    }
WORK(settle)
WORK(late_work)

static struct sockaddr_in address = {.sin_family = AF_INET};

static void *answer(void *argument) {
    int listener = (int)(intptr_t)argument;
    int fd = accept(listener, NULL, NULL);
    char byte;
    while (recv(fd, &byte, 1, 0) == 1 && send(fd, &byte, 1, MSG_NOSIGNAL) == 1)
        ;
    close(fd);
    return NULL;
}

/* A connection to a thread of this process that sends back what it gets. */
static int connect_to_self(void) {
    int listener = socket(AF_INET, SOCK_STREAM, 0), client = socket(AF_INET, SOCK_STREAM, 0);
    socklen_t length = sizeof address;
    pthread_t thread;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 1) ||
        getsockname(listener, (struct sockaddr *)&address, &length) ||
        pthread_create(&thread, NULL, answer, (void *)(intptr_t)listener) ||
        connect(client, (struct sockaddr *)&address, sizeof address)) {
        perror("loopback");
        exit(1);
    }
    return client;
}

int main(int argc, char **argv) {
    live_for(argc > 1 ? argv[1] : NULL);
    long unit = turns_for(4000);
    uint64_t value = 1;
    if (argc > 2) {
        ready();
        for (;;)
            value = late_work(value, unit);
    }
    int fd = connect_to_self();
    ready();
    for (;;) {
        char byte = 1;
        value = settle(value, unit);
        if (open("/etc/shop.yaml", O_RDONLY) >= 0 || send(fd, &byte, 1, MSG_NOSIGNAL) != 1 ||
            recv(fd, &byte, 1, 0) != 1)
            return 1;
    }
}
