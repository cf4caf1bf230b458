/* HTTP requests at a fixed rate, whether or not the answers to earlier ones have come: an open loop.
 *
 *     http_load HOST PORT PATH EXPECTED CONNECTIONS RATE SECONDS WARMUP
 *
 * Request number i is due at i / RATE seconds. It goes out on a kept connection that waits for nothing, or waits itself
 * until there is one; its latency counts from the moment at which it was due, so a server that stalls is charged for all
 * that had to wait. Every answer must be 200 with a Content-Length and the body EXPECTED, byte by byte. One that fails,
 * or a connection that is closed, is counted, and its connection not used again. After the last request there are
 * DRAIN seconds for what is under way.
 *
 * Prints JSON: requests sent and answered, failures by kind, percentiles of the latency in us. Exit status 2: it could
 * not run.
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
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define DRAIN 2.0
#define LARGEST 65536
#define EVENTS 256

enum failure { CLOSED, STATUS, BODY, TIMED_OUT, FAILURES };
static const char *const failure_names[] = {"closed", "status", "body", "timeout"};

struct connection {
    int fd;
    bool busy, dead;
    double due;
    size_t got;
    char data[LARGEST];
};

static struct connection *connections;
static struct connection **waiting; /* connections that wait for nothing: a stack */
static size_t count, waiting_count, dead_count, busy_count;
static char request[1024];
static size_t request_length;
static const char *expected;
static size_t expected_length;
static double *latencies;
static size_t latency_count;
static uint64_t sent, answered, failures[FAILURES];
static double measured_from;

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

static void fail(struct connection *c, enum failure kind)
{
    failures[kind]++;
    busy_count -= c->busy;
    c->dead = true;
    dead_count++;
    close(c->fd);
}

static void open_connection(struct connection *c, const struct sockaddr_in *address, int epoll)
{
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd < 0 || connect(c->fd, (const struct sockaddr *)address, sizeof *address) < 0)
        die("connect");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP, .data.ptr = c};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, c->fd, &event) < 0)
        die("epoll_ctl");
    waiting[waiting_count++] = c;
}

/* A request is short and nothing of an earlier one is unsent: the socket takes all of it. */
static void send_request(struct connection *c, double due)
{
    c->busy = true;
    busy_count++;
    c->due = due;
    c->got = 0;
    sent++;
    if (send(c->fd, request, request_length, MSG_NOSIGNAL | MSG_DONTWAIT) != (ssize_t)request_length)
        fail(c, CLOSED);
}

static void complete(struct connection *c)
{
    answered++;
    if (c->due >= measured_from)
        latencies[latency_count++] = (now() - c->due) * 1e6;
    c->busy = false;
    busy_count--;
    waiting[waiting_count++] = c;
}

/* The length that the head announces; -1 without one. */
static long announced(const char *head)
{
    const char *field = strcasestr(head, "\r\nContent-Length:");
    return field ? strtol(field + strlen("\r\nContent-Length:"), NULL, 10) : -1;
}

static void check(struct connection *c)
{
    c->data[c->got] = 0;
    char *end = strstr(c->data, "\r\n\r\n");
    if (!end)
        return;
    end[2] = 0; /* a head of its own, which strcasestr stays in */
    long length = announced(c->data);
    end[2] = '\r';
    size_t head = end + 4 - c->data;
    if (strncmp(c->data, "HTTP/1.1 200", 12) != 0)
        fail(c, STATUS);
    else if (length != (long)expected_length || c->got > head + expected_length)
        fail(c, BODY);
    else if (c->got == head + expected_length) {
        if (memcmp(c->data + head, expected, expected_length) != 0)
            fail(c, BODY);
        else
            complete(c);
    }
}

static void read_answer(struct connection *c)
{
    if (c->dead)
        return;
    ssize_t length = recv(c->fd, c->data + c->got, sizeof c->data - 1 - c->got, MSG_DONTWAIT);
    if (length < 0 && errno == EAGAIN)
        return;
    if (length <= 0 || !c->busy)
        fail(c, c->busy || length <= 0 ? CLOSED : BODY);
    else {
        c->got += length;
        check(c);
    }
}

static void arm(int timer, double at)
{
    struct itimerspec when = {.it_value = {.tv_sec = (time_t)at, .tv_nsec = (long)((at - (time_t)at) * 1e9)}};
    if (timerfd_settime(timer, TFD_TIMER_ABSTIME, &when, NULL) < 0)
        die("timerfd_settime");
}

static struct connection *next_waiting(void)
{
    while (waiting_count) {
        struct connection *c = waiting[--waiting_count];
        if (!c->dead)
            return c;
    }
    return NULL;
}

static void run(int epoll, int timer, double rate, double seconds, double warmup)
{
    double began = now(), last = began + warmup + seconds, until = last + DRAIN;
    uint64_t next = 0;
    measured_from = began + warmup;
    while (dead_count < count) {
        double time = now(), due = began + next / rate;
        while (due < last && due <= time) {
            struct connection *c = next_waiting();
            if (!c)
                break; /* it waits for a connection, and its latency grows */
            send_request(c, due);
            due = began + ++next / rate;
        }
        if ((due >= last && !busy_count) || time >= until)
            break;
        arm(timer, due < last && due > time && waiting_count ? due : until);
        struct epoll_event events[EVENTS];
        int number = epoll_wait(epoll, events, EVENTS, -1);
        for (int i = 0; i < number; i++) {
            uint64_t ticks;
            if (events[i].data.ptr)
                read_answer(events[i].data.ptr);
            else if (read(timer, &ticks, sizeof ticks) < 0 && errno != EAGAIN)
                die("timer");
        }
    }
    for (size_t i = 0; i < count; i++)
        if (!connections[i].dead && connections[i].busy)
            fail(&connections[i], TIMED_OUT);
    for (; began + next / rate < last; next++)
        failures[TIMED_OUT]++; /* it never had a connection */
}

static int ascending(const void *a, const void *b)
{
    double difference = *(const double *)a - *(const double *)b;
    return (difference > 0) - (difference < 0);
}

static double percentile(double share)
{
    if (!latency_count)
        return 0;
    size_t at = (size_t)(share * latency_count);
    return latencies[at < latency_count ? at : latency_count - 1];
}

static void report(void)
{
    qsort(latencies, latency_count, sizeof *latencies, ascending);
    printf("{\"sent\": %lu, \"answered\": %lu, \"failures\": {", (unsigned long)sent, (unsigned long)answered);
    for (int i = 0; i < FAILURES; i++)
        printf("%s\"%s\": %lu", i ? ", " : "", failure_names[i], (unsigned long)failures[i]);
    printf("}, \"latency\": {\"count\": %zu, \"p50_us\": %.1f, \"p99_us\": %.1f, \"p999_us\": %.1f, \"max_us\": %.1f}}\n",
           latency_count, percentile(0.5), percentile(0.99), percentile(0.999), percentile(1));
}

int main(int argc, char **argv)
{
    if (argc != 9) {
        fprintf(stderr, "http_load HOST PORT PATH EXPECTED CONNECTIONS RATE SECONDS WARMUP\n");
        return 2;
    }
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[2]))};
    double rate = atof(argv[6]), seconds = atof(argv[7]), warmup = atof(argv[8]);
    expected = argv[4];
    expected_length = strlen(expected);
    count = strtoul(argv[5], NULL, 10);
    request_length = snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: %s:%s\r\n\r\n", argv[3], argv[1], argv[2]);
    if (inet_pton(AF_INET, argv[1], &address.sin_addr) != 1 || !count || rate <= 0 || request_length >= sizeof request
        || expected_length > LARGEST / 2) {
        fprintf(stderr, "an IPv4 address, connections and a rate above 0, a short path and body expected\n");
        return 2;
    }
    connections = calloc(count, sizeof *connections);
    waiting = calloc(count, sizeof *waiting);
    latencies = calloc((size_t)(rate * (seconds + warmup)) + 2, sizeof *latencies);
    int epoll = epoll_create1(EPOLL_CLOEXEC), timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (!connections || !waiting || !latencies || epoll < 0 || timer < 0)
        die("no memory or descriptors");
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, timer, &event) < 0)
        die("epoll_ctl");
    for (size_t i = 0; i < count; i++)
        open_connection(&connections[i], &address, epoll);
    run(epoll, timer, rate, seconds, warmup);
    report();
    return 0;
}
