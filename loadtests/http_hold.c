/* Connections that have made one request each, and then rest.
 *
 *     http_hold HOST PORT SOURCE PATH EXPECTED CONNECTIONS PENDING
 *
 * So many connections are opened from the address SOURCE and those behind it, PENDING of them at a time. Each makes one
 * request, whose answer must be 200 with a Content-Length and the body EXPECTED, byte by byte. When all have theirs a
 * line of JSON is printed, and nothing is sent any more: a connection that the server closes, or says something on, is
 * lost. When standard input ends, each that is left makes one request more, so that it is seen to be alive, and is
 * closed. Then comes a second line.
 *
 * A connection is a descriptor and a word here; a buffer has only who waits for an answer. Both lines have how many
 * were answered, the seconds that took, and by kind what failed until then. Exit status 2: it could not run.
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
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#ifndef IP_BIND_ADDRESS_NO_PORT
#define IP_BIND_ADDRESS_NO_PORT 24
#endif

#define PATIENCE 30.0 /* seconds without any answer, after which those that are awaited have failed */
#define LARGEST 4096  /* bytes of an answer */
#define EVENTS 512
#define STANDARD_INPUT UINT32_MAX
/* Connections from one address: half of the ports from 32768 on are tried first, and the others only when each of these
 * was found to be taken, which costs more than all else. */
#define OF_ONE_SOURCE 8192

enum failure { CONNECT, CLOSED, STATUS, BODY, TIMED_OUT, LOST, FAILURES };
static const char *const failure_names[] = {"connect", "closed", "status", "body", "timeout", "lost"};

/* Each goes forward, but that one that rests may ask again. */
enum state { NEW, CONNECTING, ASKING, RESTING, GONE };

struct connection {
    int fd;
    uint16_t exchange; /* of one that is CONNECTING or ASKING */
    uint8_t state;
};

/* Who waits for an answer, and what came of it. */
struct exchange {
    size_t got;
    char data[LARGEST];
};

static struct connection *connections;
static struct exchange *exchanges;
static uint16_t *free_exchanges; /* a stack */
static size_t count, pending, free_count;
static struct sockaddr_in server, source;
static char request[1024];
static size_t request_length;
static const char *expected;
static size_t expected_length;
static uint64_t answered, failures[FAILURES];
static double progressed;
static bool is_last; /* whether connections are closed when they have their answer */
static int epoll;

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

static void let_go(struct connection *c)
{
    if (c->state == CONNECTING || c->state == ASKING)
        free_exchanges[free_count++] = c->exchange;
    close(c->fd);
    c->state = GONE;
}

static void fail(struct connection *c, enum failure kind)
{
    failures[kind]++;
    let_go(c);
}

static void take_exchange(struct connection *c, enum state state)
{
    c->exchange = free_exchanges[--free_count];
    c->state = state;
    exchanges[c->exchange].got = 0;
}

static void begin(struct connection *c)
{
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0)
        die("socket");
    setsockopt(c->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct sockaddr_in from = source;
    from.sin_addr.s_addr = htonl(ntohl(source.sin_addr.s_addr) + (c - connections) / OF_ONE_SOURCE);
    if (bind(c->fd, (struct sockaddr *)&from, sizeof from) < 0)
        die("bind");
    take_exchange(c, CONNECTING);
    if (connect(c->fd, (struct sockaddr *)&server, sizeof server) < 0 && errno != EINPROGRESS) {
        fail(c, CONNECT);
        return;
    }
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.u32 = c - connections};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, c->fd, &event) < 0)
        die("epoll_ctl");
}

/* A request is short, and nothing is unsent: the socket takes all of it. */
static void ask(struct connection *c)
{
    c->state = ASKING;
    if (send(c->fd, request, request_length, MSG_NOSIGNAL) != (ssize_t)request_length)
        fail(c, CLOSED);
}

static void complete(struct connection *c)
{
    answered++;
    progressed = now();
    if (is_last)
        let_go(c);
    else {
        free_exchanges[free_count++] = c->exchange;
        c->state = RESTING;
    }
}

/* The length that the head announces; -1 without one. */
static long announced(const char *head)
{
    const char *field = strcasestr(head, "\r\nContent-Length:");
    return field ? strtol(field + strlen("\r\nContent-Length:"), NULL, 10) : -1;
}

static void check(struct connection *c, struct exchange *x)
{
    x->data[x->got] = 0;
    char *end = strstr(x->data, "\r\n\r\n");
    if (!end) {
        if (x->got == LARGEST - 1)
            fail(c, BODY);
        return;
    }
    end[2] = 0; /* a head of its own, which strcasestr stays in */
    long length = announced(x->data);
    end[2] = '\r';
    size_t head = end + 4 - x->data;
    if (strncmp(x->data, "HTTP/1.1 200", 12) != 0)
        fail(c, STATUS);
    else if (length != (long)expected_length || x->got > head + expected_length)
        fail(c, BODY);
    else if (x->got == head + expected_length) {
        if (memcmp(x->data + head, expected, expected_length) != 0)
            fail(c, BODY);
        else
            complete(c);
    }
}

/* Read to the end of what is there, as the next event comes only with more. */
static void read_answer(struct connection *c)
{
    while (c->state == ASKING) {
        struct exchange *x = &exchanges[c->exchange];
        ssize_t length = recv(c->fd, x->data + x->got, LARGEST - 1 - x->got, 0);
        if (length < 0 && errno == EAGAIN)
            return;
        if (length <= 0)
            fail(c, CLOSED);
        else {
            x->got += length;
            check(c, x);
        }
    }
}

static void look_at_rest(struct connection *c)
{
    char byte;
    if (recv(c->fd, &byte, 1, MSG_PEEK) >= 0 || errno != EAGAIN)
        fail(c, LOST);
}

static void serve(struct connection *c)
{
    if (c->state == CONNECTING) {
        int error = 0;
        socklen_t size = sizeof error;
        if (getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size) < 0 || error)
            fail(c, CONNECT);
        else
            ask(c);
    }
    if (c->state == ASKING)
        read_answer(c);
    if (c->state == RESTING) /* also right behind the answer: what comes in the same event is told only once */
        look_at_rest(c);
}

/* Wait for events, and serve them; true if standard input has ended. */
static bool wait_a_while(void)
{
    struct epoll_event events[EVENTS];
    bool ended = false;
    int number = epoll_wait(epoll, events, EVENTS, 1000);
    if (number < 0 && errno != EINTR)
        die("epoll_wait");
    for (int i = 0; i < number; i++)
        if (events[i].data.u32 == STANDARD_INPUT) {
            char byte;
            ended = ended || read(STDIN_FILENO, &byte, 1) <= 0;
        } else if (connections[events[i].data.u32].state != GONE)
            serve(&connections[events[i].data.u32]);
    return ended;
}

static void watch_standard_input(void)
{
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = STANDARD_INPUT};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, STDIN_FILENO, &event) < 0)
        die("standard input");
}

/* Have every connection make its request. */
static void ask_all(void)
{
    size_t next = 0;
    progressed = now();
    while (next < count || free_count < pending) {
        for (; next < count && free_count; next++)
            if (connections[next].state == NEW)
                begin(&connections[next]);
            else if (connections[next].state == RESTING) {
                take_exchange(&connections[next], ASKING);
                ask(&connections[next]);
            }
        if (free_count < pending)
            wait_a_while();
        if (now() - progressed > PATIENCE)
            break;
    }
    for (size_t i = 0; i < count; i++)
        if (connections[i].state == CONNECTING || connections[i].state == ASKING)
            fail(&connections[i], TIMED_OUT);
        else if (connections[i].state == NEW || (is_last && connections[i].state == RESTING)) {
            failures[TIMED_OUT]++; /* its turn never came */
            connections[i].state = GONE;
        }
}

static void report(double began)
{
    printf("{\"answered\": %lu, \"seconds\": %.6f, \"failures\": {", (unsigned long)answered, now() - began);
    for (int i = 0; i < FAILURES; i++)
        printf("%s\"%s\": %lu", i ? ", " : "", failure_names[i], (unsigned long)failures[i]);
    printf("}}\n");
    fflush(stdout);
}

int main(int argc, char **argv)
{
    if (argc != 8) {
        fprintf(stderr, "http_hold HOST PORT SOURCE PATH EXPECTED CONNECTIONS PENDING\n");
        return 2;
    }
    server = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(atoi(argv[2]))};
    source = (struct sockaddr_in){.sin_family = AF_INET};
    expected = argv[5];
    expected_length = strlen(expected);
    count = strtoul(argv[6], NULL, 10);
    pending = strtoul(argv[7], NULL, 10);
    request_length = snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: %s:%s\r\n\r\n", argv[4], argv[1], argv[2]);
    if (inet_pton(AF_INET, argv[1], &server.sin_addr) != 1 || inet_pton(AF_INET, argv[3], &source.sin_addr) != 1 || !count
        || !pending || pending > UINT16_MAX || request_length >= sizeof request || expected_length > LARGEST / 2) {
        fprintf(stderr, "two IPv4 addresses, connections and pending ones above 0, a short path and body expected\n");
        return 2;
    }
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
    connections = calloc(count, sizeof *connections);
    exchanges = calloc(pending, sizeof *exchanges);
    free_exchanges = calloc(pending, sizeof *free_exchanges);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    if (!connections || !exchanges || !free_exchanges || epoll < 0)
        die("no memory or descriptors");
    while (free_count < pending) {
        free_exchanges[free_count] = free_count;
        free_count++;
    }
    double began = now();
    ask_all();
    report(began);
    watch_standard_input();
    while (!wait_a_while())
        ;
    epoll_ctl(epoll, EPOLL_CTL_DEL, STDIN_FILENO, NULL);
    is_last = true;
    answered = 0;
    began = now();
    ask_all();
    report(began);
    return 0;
}
