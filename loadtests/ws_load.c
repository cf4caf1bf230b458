/* WebSocket echoes in a closed loop: each connection sends a text message of 64 characters, and the next when it is back.
 *
 *     ws_load HOST PORT PATH CONNECTIONS SECONDS [FRAMES]
 *
 * All connections are opened first, and one message of each is answered; then it says "ready N", and waits for a line.
 * Every frame is masked with a key of its own; every answer must be one frame, not masked, with the same characters. With
 * SECONDS 0 it keeps the connections, silent, until its input ends. FRAMES is "text" (the default) or "binary".
 *
 * Prints JSON: messages answered, seconds, failures, CPU time of its own in seconds. Exit status 2: it could not run.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define SIZE 64
#define EVENTS 256
#define PATIENCE 20.0

struct connection {
    int fd;
    bool open, dead;
    size_t got;
    char data[512];
    char payload[SIZE];
};

static struct connection *connections;
static size_t count, open_count, failed;
static uint64_t messages, serial = 88172645463325252ull;
static char request[512];
static size_t request_length;
static uint8_t opcode = 1;
static bool sending = true;

static void die(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(2);
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec * 1e-9;
}

static uint64_t chance(void)
{
    serial ^= serial << 13;
    serial ^= serial >> 7;
    serial ^= serial << 17;
    return serial;
}

static void fail(struct connection *c)
{
    failed++;
    c->dead = true;
    close(c->fd);
}

static void send_message(struct connection *c)
{
    uint8_t frame[6 + SIZE], key[4];
    uint32_t drawn = (uint32_t)chance();
    memcpy(key, &drawn, 4);
    frame[0] = 0x80 | opcode;
    frame[1] = 0x80 | SIZE;
    memcpy(frame + 2, key, 4);
    for (int i = 0; i < SIZE; i++) {
        if (i % 8 == 0)
            drawn = (uint32_t)chance();
        c->payload[i] = 'a' + (drawn >> (i % 8 * 4)) % 16;
        frame[6 + i] = (uint8_t)c->payload[i] ^ key[i % 4];
    }
    c->got = 0;
    if (send(c->fd, frame, sizeof frame, MSG_NOSIGNAL) != sizeof frame)
        fail(c);
}

static void take(struct connection *c)
{
    ssize_t size = recv(c->fd, c->data + c->got, sizeof c->data - 1 - c->got, MSG_DONTWAIT);
    if (size < 0 && errno == EAGAIN)
        return;
    if (size <= 0) {
        fail(c);
        return;
    }
    c->got += (size_t)size;
    if (!c->open) {
        c->data[c->got] = 0;
        char *end = strstr(c->data, "\r\n\r\n");
        if (!end && c->got < sizeof c->data - 1)
            return;
        if (!end || end[4] || strncmp(c->data, "HTTP/1.1 101 ", 13)) {
            fail(c);
            return;
        }
        c->open = true;
        send_message(c);
        return;
    }
    if (c->got < SIZE + 2)
        return;
    if (c->got > SIZE + 2 || (uint8_t)c->data[0] != (0x80 | opcode) || c->data[1] != SIZE
        || memcmp(c->data + 2, c->payload, SIZE)) {
        fail(c);
        return;
    }
    messages++;
    if (sending)
        send_message(c);
    else
        open_count++;
}

static void run(int epoll, double until)
{
    struct epoll_event events[EVENTS];
    while (now() < until && (sending || open_count + failed < count)) {
        int found = epoll_wait(epoll, events, EVENTS, 100);
        for (int i = 0; i < found; i++) {
            struct connection *c = events[i].data.ptr;
            if (!c->dead)
                take(c);
        }
    }
}

int main(int argc, char **argv)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    if (argc < 6 || inet_pton(AF_INET, argv[1], &address.sin_addr) != 1 || strlen(argv[3]) > 100) {
        fprintf(stderr, "ws_load HOST PORT PATH CONNECTIONS SECONDS [text|binary]\n");
        return 2;
    }
    address.sin_port = htons(atoi(argv[2]));
    count = strtoul(argv[4], NULL, 10);
    double seconds = atof(argv[5]);
    opcode = argc > 6 && !strcmp(argv[6], "binary") ? 2 : 1;
    request_length = snprintf(request, sizeof request,
        "GET %s HTTP/1.1\r\nHost: %s:%s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
        argv[3], argv[1], argv[2]);
    connections = calloc(count, sizeof *connections);
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    if (!connections || epoll < 0)
        die("no memory or descriptors");
    sending = false;
    for (size_t i = 0; i < count; i++) {
        struct connection *c = &connections[i];
        int one = 1;
        c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&address, sizeof address) < 0)
            die("connect");
        setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
        if (epoll_ctl(epoll, EPOLL_CTL_ADD, c->fd, &event) < 0)
            die("epoll_ctl");
        if (send(c->fd, request, request_length, MSG_NOSIGNAL) != (ssize_t)request_length)
            fail(c);
    }
    run(epoll, now() + PATIENCE);
    failed = count - open_count;
    printf("ready %zu\n", open_count);
    fflush(stdout);
    if (seconds > 0)
        getchar();
    double began = now(), ended = began;
    if (seconds > 0 && !failed) {
        messages = 0;
        sending = true;
        for (size_t i = 0; i < count; i++)
            send_message(&connections[i]);
        run(epoll, began + seconds);
        ended = now();
    } else if (seconds <= 0) {
        while (getchar() != EOF)
            ;
        ended = now();
    }
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    printf("{\"messages\": %llu, \"seconds\": %.6f, \"failed\": %zu, \"cpu_seconds\": %.6f}\n",
           (unsigned long long)messages, ended - began, failed,
           usage.ru_utime.tv_sec + usage.ru_stime.tv_sec + (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6);
    return 0;
}
