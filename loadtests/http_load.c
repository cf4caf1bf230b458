/* HTTP requests at a fixed rate, whether or not the answers to earlier ones have come: an open loop.
 *
 *     http_load HOST PORT PATH EXPECTED CONNECTIONS RATE SECONDS WARMUP [SLICE]
 *
 * Request number i is due at i / RATE seconds. It goes out on a kept connection that waits for nothing, or waits itself
 * until there is one; its latency counts from the moment at which it was due, so a server that stalls is charged for all
 * that had to wait. Every answer must be 200 with a Content-Length and the body EXPECTED, byte by byte. One that fails,
 * or a connection that is closed, is counted, and its connection not used again. After the last request there are
 * DRAIN seconds for what is under way.
 *
 * With SLICE it is a client of a server that is reloaded: a connection that is closed, or told to be by Connection:
 * close, is opened anew. Only a request that was written and not answered has failed. Connections take turns, so that
 * all of them are used. The latencies are also told of each SLICE seconds, by when the requests were due. `began` is
 * written to stderr when the warm-up begins.
 *
 * Prints JSON: requests sent and answered, failures by kind, connections opened anew, percentiles of the latency in us.
 * Exit status 2: it could not run.
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
static struct connection **waiting; /* connections that wait for nothing: a ring */
static size_t count, waiting_first, waiting_count, dead_count, busy_count;
static char request[1024];
static size_t request_length;
static const char *expected;
static size_t expected_length;
static double *latencies;
static uint16_t *slices; /* of each latency, the slice in which the request was due */
static size_t latency_count;
static uint64_t sent, answered, opened_anew, failures[FAILURES];
static double measured_from, slice; /* seconds; no slice: a connection that is closed is not used again */
static struct sockaddr_in address;
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

static void put_waiting(struct connection *c)
{
    waiting[(waiting_first + waiting_count++) % count] = c;
}

static bool opened(struct connection *c)
{
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd < 0 || connect(c->fd, (const struct sockaddr *)&address, sizeof address) < 0)
        return false;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP, .data.ptr = c};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, c->fd, &event) < 0)
        die("epoll_ctl");
    return true;
}

/* The socket in the place of one that was closed. It is where the other one was: among those that wait, or not. */
static void open_anew(struct connection *c)
{
    close(c->fd);
    opened_anew++;
    if (!opened(c))
        die("connect");
}

static void fail(struct connection *c, enum failure kind)
{
    failures[kind]++;
    busy_count -= c->busy;
    if (slice && kind == CLOSED) {
        c->busy = false;
        open_anew(c);
        put_waiting(c);
        return;
    }
    c->dead = true;
    dead_count++;
    close(c->fd);
}

/* A request is short and nothing of an earlier one is unsent: the socket takes all of it. */
static void send_request(struct connection *c, double due)
{
    c->busy = true;
    busy_count++;
    c->due = due;
    c->got = 0;
    sent++;
    ssize_t length = send(c->fd, request, request_length, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (length < 0 && slice) { /* it was closed at rest */
        open_anew(c);
        length = send(c->fd, request, request_length, MSG_NOSIGNAL | MSG_DONTWAIT);
    }
    if (length != (ssize_t)request_length)
        fail(c, CLOSED);
}

static void complete(struct connection *c, bool is_last)
{
    answered++;
    if (c->due >= measured_from) {
        slices[latency_count] = slice ? (c->due - measured_from) / slice : 0;
        latencies[latency_count++] = (now() - c->due) * 1e6;
    }
    c->busy = false;
    busy_count--;
    if (slice && is_last)
        open_anew(c);
    put_waiting(c);
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
    bool is_last = strcasestr(c->data, "\r\nConnection: close") != NULL;
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
            complete(c, is_last);
    }
}

static void read_answer(struct connection *c)
{
    if (c->dead)
        return;
    ssize_t length = recv(c->fd, c->data + c->got, sizeof c->data - 1 - c->got, MSG_DONTWAIT);
    if (length < 0 && errno == EAGAIN)
        return;
    if (slice && length <= 0 && !c->busy)
        open_anew(c); /* it was closed at rest, and waits where it did */
    else if (length <= 0 || !c->busy)
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
        struct connection *c;
        waiting_count--;
        if (slice) { /* the one that has waited the longest */
            c = waiting[waiting_first];
            waiting_first = (waiting_first + 1) % count;
        } else /* the one that was used last */
            c = waiting[(waiting_first + waiting_count) % count];
        if (!c->dead)
            return c;
    }
    return NULL;
}

static void run(int timer, double rate, double seconds, double warmup)
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

static double percentile(const double *sorted, size_t number, double share)
{
    if (!number)
        return 0;
    size_t at = (size_t)(share * number);
    return sorted[at < number ? at : number - 1];
}

/* Latencies in microseconds, which are sorted by it. */
static void print_latency(double *found, size_t number)
{
    qsort(found, number, sizeof *found, ascending);
    printf("{\"count\": %zu, \"p50_us\": %.1f, \"p99_us\": %.1f, \"p999_us\": %.1f, \"max_us\": %.1f}", number,
           percentile(found, number, 0.5), percentile(found, number, 0.99), percentile(found, number, 0.999),
           percentile(found, number, 1));
}

static void print_slices(void)
{
    double *found = calloc(latency_count + 1, sizeof *found);
    uint16_t last = 0;
    if (!found)
        die("no memory");
    for (size_t i = 0; i < latency_count; i++)
        last = slices[i] > last ? slices[i] : last;
    for (uint16_t at = 0; slice && latency_count && at <= last; at++) {
        size_t number = 0;
        for (size_t i = 0; i < latency_count; i++)
            if (slices[i] == at)
                found[number++] = latencies[i];
        printf("%s", at ? ", " : "");
        print_latency(found, number);
    }
    free(found);
}

static void report(void)
{
    printf("{\"sent\": %lu, \"answered\": %lu, \"opened_anew\": %lu, \"failures\": {", (unsigned long)sent,
           (unsigned long)answered, (unsigned long)opened_anew);
    for (int i = 0; i < FAILURES; i++)
        printf("%s\"%s\": %lu", i ? ", " : "", failure_names[i], (unsigned long)failures[i]);
    printf("}, \"slices\": [");
    print_slices();
    printf("], \"latency\": ");
    print_latency(latencies, latency_count);
    printf("}\n");
}

int main(int argc, char **argv)
{
    if (argc != 9 && argc != 10) {
        fprintf(stderr, "http_load HOST PORT PATH EXPECTED CONNECTIONS RATE SECONDS WARMUP [SLICE]\n");
        return 2;
    }
    address = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(atoi(argv[2]))};
    double rate = atof(argv[6]), seconds = atof(argv[7]), warmup = atof(argv[8]);
    slice = argc == 10 ? atof(argv[9]) : 0;
    expected = argv[4];
    expected_length = strlen(expected);
    count = strtoul(argv[5], NULL, 10);
    request_length = snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: %s:%s\r\n\r\n", argv[3], argv[1], argv[2]);
    if (inet_pton(AF_INET, argv[1], &address.sin_addr) != 1 || !count || rate <= 0 || slice < 0
        || (slice && seconds / slice >= UINT16_MAX) || request_length >= sizeof request
        || expected_length > LARGEST / 2) {
        fprintf(stderr, "an IPv4 address, connections and a rate above 0, a short path and body expected\n");
        return 2;
    }
    connections = calloc(count, sizeof *connections);
    waiting = calloc(count, sizeof *waiting);
    size_t most = (size_t)(rate * (seconds + warmup)) + 2;
    latencies = calloc(most, sizeof *latencies);
    slices = calloc(most, sizeof *slices);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (!connections || !waiting || !latencies || !slices || epoll < 0 || timer < 0)
        die("no memory or descriptors");
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, timer, &event) < 0)
        die("epoll_ctl");
    for (size_t i = 0; i < count; i++) {
        if (!opened(&connections[i]))
            die("connect");
        put_waiting(&connections[i]);
    }
    if (slice)
        fprintf(stderr, "began\n");
    run(timer, rate, seconds, warmup);
    report();
    return 0;
}
