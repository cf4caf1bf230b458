/*
 * A bare edge-triggered epoll loop: the limit that the other servers are measured against.
 *
 * One thread, one buffer. It waits first and reads once per event, as a short read has emptied the socket. A connection
 * costs one entry of an array, and a buffer of its own only while its peer does not read.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define EVENTS 512
#define READS 16 /* of one connection before the others get their turn */

struct pending {
    char *bytes; /* what the peer has not taken yet; NULL: nothing */
    size_t length, at;
};

static struct pending *connections; /* by descriptor */
static size_t descriptor_count;
static size_t recv_size = 65536;
static char *buffer;
static bool sink;
static int epoll, listener, backlog = 4096;

static void die(const char *what)
{
    perror(what);
    exit(2);
}

static void drop(int fd)
{
    free(connections[fd].bytes);
    connections[fd] = (struct pending){0};
    close(fd);
}

/* False when the connection is gone. */
static bool keep(int fd, const char *bytes, size_t length)
{
    struct pending *p = &connections[fd];
    p->bytes = malloc(length);
    if (!p->bytes) {
        drop(fd);
        return false;
    }
    memcpy(p->bytes, bytes, length);
    p->length = length;
    p->at = 0;
    return true;
}

static bool answer(int fd, const char *bytes, size_t length)
{
    ssize_t n = send(fd, bytes, length, MSG_NOSIGNAL);
    if (n == (ssize_t)length)
        return true;
    if (n < 0 && errno != EAGAIN) {
        drop(fd);
        return false;
    }
    size_t sent = n > 0 ? (size_t)n : 0;
    return keep(fd, bytes + sent, length - sent);
}

/* True when nothing is pending any more. */
static bool flush(int fd)
{
    struct pending *p = &connections[fd];
    if (!p->bytes)
        return true;
    ssize_t n = send(fd, p->bytes + p->at, p->length - p->at, MSG_NOSIGNAL);
    if (n < 0) {
        if (errno != EAGAIN)
            drop(fd);
        return false;
    }
    p->at += (size_t)n;
    if (p->at < p->length)
        return false;
    free(p->bytes);
    *p = (struct pending){0};
    return true;
}

/* False when there is nothing more to read now. */
static bool read_once(int fd, bool at_end)
{
    ssize_t n = recv(fd, buffer, recv_size, 0);
    if (n == 0 || (n < 0 && errno != EAGAIN)) {
        drop(fd);
        return false;
    }
    if (n < 0)
        return false;
    if (!sink && (!answer(fd, buffer, (size_t)n) || connections[fd].bytes))
        return false;
    return at_end || (size_t)n == recv_size;
}

static void serve(int fd, uint32_t events)
{
    bool at_end = events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR);
    if (!flush(fd))
        return;
    for (int i = 0; i < READS; i++)
        if (!read_once(fd, at_end))
            return;
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.fd = fd};
    epoll_ctl(epoll, EPOLL_CTL_MOD, fd, &event); /* the edge again */
}

static void accept_all(void)
{
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0)
            return;
        struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.fd = fd};
        if ((size_t)fd >= descriptor_count || epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) < 0)
            close(fd);
    }
}

static void listen_on(const char *bind_to)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t length = sizeof address;
    char host[64];
    unsigned port;
    int one = 1;
    if (sscanf(bind_to, "%63[^:]:%u", host, &port) != 2 || inet_pton(AF_INET, host, &address.sin_addr) != 1)
        die("--bind: HOST:PORT");
    address.sin_port = htons((uint16_t)port);
    listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    setsockopt(listener, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one); /* inherited, as in the other peers */
    if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0 || listen(listener, backlog) < 0)
        die("bind");
    getsockname(listener, (struct sockaddr *)&address, &length);
    printf("listening on %s:%u\n", host, ntohs(address.sin_port));
    fflush(stdout);
}

static void prepare(void)
{
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    descriptor_count = limit.rlim_cur < 1048576 ? limit.rlim_cur : 1048576;
    connections = calloc(descriptor_count, sizeof *connections);
    buffer = malloc(recv_size);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    if (!connections || !buffer || epoll < 0)
        die("start");
}

static const char *parse(char **arguments)
{
    const char *bind_to = "127.0.0.1:0";
    for (; *arguments && arguments[1]; arguments += 2) {
        if (!strcmp(*arguments, "--bind"))
            bind_to = arguments[1];
        else if (!strcmp(*arguments, "--mode") && (!strcmp(arguments[1], "echo") || !strcmp(arguments[1], "sink")))
            sink = !strcmp(arguments[1], "sink");
        else if (!strcmp(*arguments, "--recv"))
            recv_size = strtoul(arguments[1], NULL, 10);
        else if (!strcmp(*arguments, "--backlog"))
            backlog = atoi(arguments[1]);
        else
            break;
    }
    if (*arguments || !recv_size) {
        fprintf(stderr, "usage: epoll [--bind HOST:PORT] [--mode echo|sink] [--recv BYTES] [--backlog N]\n");
        exit(2);
    }
    return bind_to;
}

int main(int count, char **arguments)
{
    struct epoll_event events[EVENTS], event = {.events = EPOLLIN, .data.fd = -1};
    const char *bind_to = parse(arguments + (count > 0));
    prepare();
    listen_on(bind_to);
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event) < 0)
        die("epoll_ctl");
    for (;;) {
        int n = epoll_wait(epoll, events, EVENTS, -1);
        for (int i = 0; i < n; i++)
            if (events[i].data.fd < 0)
                accept_all();
            else
                serve(events[i].data.fd, events[i].events);
    }
}
