/*
 * The traffic generator of greensock's load tests: one edge-triggered epoll loop per thread.
 *
 * Owns: the client side of every connection of a run. The main thread is the coordinator: it moves the run through
 * its phases (opening, warmup, measuring, draining), and takes the counters, the clock and the server's CPU clock
 * at the same instant, so a rate and its CPU cost belong to the same messages.
 *
 * Invariants:
 *   - A connection is a pair of byte streams. `want` is how far the sent stream should reach, `sent` and `got` how far
 *     each stream came; an exchange is over when got == want. Nothing is stored per message.
 *   - What is at a position of a connection's stream is a function of the two (the pattern), so sending copies
 *     nothing and checking is one memcmp.
 *   - No allocation after the start. A run ends at its deadline at the latest, except while holding idle connections,
 *     which ends when standard input does.
 *
 * Output: one JSON object on stdout. Exit: 0, all answers right; 1, something failed (the JSON says what); 2, usage.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#ifndef IP_BIND_ADDRESS_NO_PORT
#define IP_BIND_ADDRESS_NO_PORT 24
#endif

#define NANO 1000000000ull
#define CHUNK 131072u         /* bytes per read or write at most */
#define PERIOD 8191u          /* the pattern's period: a prime, so that no message size divides it */
#define WRITE_BUDGET 262144u  /* bytes written to one connection before the others get their turn */
#define MARK 0xff             /* what a marked connection sends; in no other connection's pattern */
#define EVENTS 512
#define MAX_PIDS 64
#define MAX_SAMPLES 4096

enum mode { PINGPONG, FLOOD, SHORTLIVED, RAMP, IDLE, OPENLOOP, MODES };
static const char *const mode_names[MODES] = {"pingpong", "flood", "shortlived", "ramp", "idle", "openloop"};

enum failure { REFUSED, RESET, TIMEOUT, MISMATCH, SHORT, PORTS, OTHER, FAILURES };
static const char *const failure_names[FAILURES] = {"refused", "reset", "timeout", "mismatch",
                                                    "short",   "ports", "other"};

/* Phases only go forward. OPENING: connect, and exchange a first message where the mode has answers, so that the
 * server has accepted everybody. FLUSHING: a flood stops at a whole message. DRAINING: start nothing new, finish what is
 * under way. ABORTING: leave now. */
enum phase { OPENING, RUNNING, FLUSHING, DRAINING, ABORTING };

/* CONNECTING: no answer from the kernel yet. GREETING: the first exchange. OPEN: exchanging. HALF_CLOSED: our FIN is
 * out, waiting for the server's. CLOSED: no descriptor. */
enum state { CLOSED, CONNECTING, GREETING, OPEN, HALF_CLOSED };

struct options {
    enum mode mode;
    const char *target;
    uint64_t connections, size, burst, batch, messages, threads, pending, sources, max_failures, sndbuf;
    uint64_t mark_every, flooders;
    double seconds, warmup, deadline, drain, stall, rate;
    const char *source;
    const char *pids;
    bool progress;
};

static struct options options = {
    .connections = 64, .size = 64, .burst = 1, .threads = 1, .pending = 256, .max_failures = 10000,
    .seconds = 2, .drain = 10, .stall = 10, .rate = 1000,
};

struct connection {
    int fd;
    uint8_t state;
    bool marked;      /* the server blocks on it: see --mark-every */
    bool paced;       /* its messages are due at fixed times (openloop) */
    bool flooded;     /* all of its flood is sent */
    bool retry;       /* shortlived: it failed; its slot goes on after this batch of events */
    uint32_t index;   /* over all threads */
    uint32_t cycles;  /* exchanges completed, in shortlived mode */
    uint64_t want, sent, got;
    uint64_t done; /* whole messages counted so far */
    const uint8_t *pattern;
};

/* Log-linear: 32 buckets to each power of two of nanoseconds, so a value is kept to 3 %. */
#define SUB_BITS 5
#define BUCKETS ((64 - SUB_BITS + 1) << SUB_BITS)
struct histogram {
    uint64_t count, max;
    uint64_t bucket[BUCKETS];
};

struct worker {
    pthread_t thread;
    int epoll, wake;
    enum phase phase;
    struct connection *connections;
    uint32_t count;      /* of connections */
    uint32_t begun;      /* connections whose opening was started */
    uint32_t opening;    /* started and not yet open */
    uint32_t unfinished; /* not closed for good */
    uint32_t retries;    /* connections with `retry` set */
    uint32_t source;     /* rotates over the source addresses */
    uint64_t paced, due; /* paced connections; paced messages sent so far */
    uint32_t number;
    struct histogram *latency, *marked_latency;
    char last_error[128];
    /* Written by this thread, read by the coordinator. */
    _Atomic uint64_t messages, opened, settled, flooded, finished, failures[FAILURES];
    uint8_t buffer[CHUNK];
    struct epoll_event events[EVENTS];
};

static struct worker *workers;
static _Atomic int current_phase = OPENING;
static int notify_fd, signal_fd;
static uint64_t started_at, deadline_at;
static uint64_t schedule_start, schedule_end, measure_start; /* openloop; set before RUNNING */
static struct sockaddr_storage target;
static socklen_t target_length;
static struct in_addr first_source;
static pid_t pids[MAX_PIDS];
static int pid_count;
static bool interrupted;
static _Atomic bool ramp_is_over; /* its time is: what is not open by now is left, and no failure */
static uint8_t pattern[PERIOD + CHUNK], marked_pattern[PERIOD + CHUNK];

/* ---- small things ---- */

static void die(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs("generator: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    exit(2);
}

static uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * NANO + (uint64_t)t.tv_nsec;
}

static uint64_t nanoseconds(double seconds)
{
    return (uint64_t)(seconds * 1e9);
}

/* Only the owner writes a counter, so a load and a store do: no locked instruction on the hot path. */
static void bump(_Atomic uint64_t *counter, uint64_t by)
{
    atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + by, memory_order_relaxed);
}

static void notify(void)
{
    uint64_t one = 1;
    if (write(notify_fd, &one, sizeof one) < 0)
        die("eventfd: %s", strerror(errno));
}

static enum phase phase_now(void)
{
    return (enum phase)atomic_load_explicit(&current_phase, memory_order_acquire);
}

static void make_patterns(void)
{
    uint32_t x = 2463534242u;
    for (size_t i = 0; i < PERIOD; i++) {
        x ^= x << 13, x ^= x >> 17, x ^= x << 5;
        pattern[i] = (uint8_t)(x % MARK);
    }
    for (size_t i = PERIOD; i < sizeof pattern; i++)
        pattern[i] = pattern[i - PERIOD];
    memset(marked_pattern, MARK, sizeof marked_pattern);
}

/* Up to CHUNK bytes from here on are the connection's stream from `position` on. */
static const uint8_t *expected(const struct connection *c, uint64_t position)
{
    return c->pattern + (position + (uint64_t)c->index * 2654435761u) % PERIOD;
}

/* ---- latency ---- */

static unsigned bucket_of(uint64_t value)
{
    if (value < (1u << SUB_BITS))
        return (unsigned)value;
    unsigned shift = 63u - (unsigned)__builtin_clzll(value) - SUB_BITS;
    return ((shift + 1) << SUB_BITS) + (unsigned)((value >> shift) & ((1u << SUB_BITS) - 1));
}

/* The highest value that falls into a bucket. */
static uint64_t bucket_top(unsigned bucket)
{
    if (bucket < (1u << SUB_BITS))
        return bucket;
    unsigned shift = (bucket >> SUB_BITS) - 1;
    uint64_t mantissa = (bucket & ((1u << SUB_BITS) - 1)) + (1u << SUB_BITS);
    return ((mantissa + 1) << shift) - 1;
}

static void record(struct histogram *h, uint64_t value)
{
    h->count++;
    h->bucket[bucket_of(value)]++;
    if (value > h->max)
        h->max = value;
}

static uint64_t percentile(const struct histogram *h, double fraction)
{
    uint64_t rank = (uint64_t)((double)h->count * fraction), seen = 0;
    for (unsigned i = 0; i < BUCKETS; i++) {
        seen += h->bucket[i];
        if (seen > rank)
            return bucket_top(i) < h->max ? bucket_top(i) : h->max;
    }
    return h->max;
}

static void merge(struct histogram *into, const struct histogram *from)
{
    into->count += from->count;
    if (from->max > into->max)
        into->max = from->max;
    for (unsigned i = 0; i < BUCKETS; i++)
        into->bucket[i] += from->bucket[i];
}

/* ---- the end of a connection ---- */

static void finish(struct worker *w, struct connection *c)
{
    if (c->fd >= 0)
        close(c->fd);
    c->fd = -1;
    c->state = CLOSED;
    w->unfinished--;
    bump(&w->finished, 1);
    if (w->unfinished == 0)
        notify();
}

static enum failure kind_of(int error)
{
    switch (error) {
    case ECONNREFUSED:
        return REFUSED;
    case ECONNRESET:
    case EPIPE:
    case ECONNABORTED:
        return RESET;
    case ETIMEDOUT:
        return TIMEOUT;
    case EADDRNOTAVAIL:
        return PORTS;
    default:
        return OTHER;
    }
}

/* Opened or failed: nobody waits for this opening any more. */
static void opening_settled(struct worker *w, struct connection *c)
{
    if (c->state != CONNECTING && c->state != GREETING)
        return;
    w->opening--;
    bump(&w->settled, 1);
    if (atomic_load_explicit(&w->settled, memory_order_relaxed) == w->count)
        notify();
}

static void begin(struct worker *w, struct connection *c);

static bool may_begin_again(const struct worker *w, const struct connection *c)
{
    return options.mode == SHORTLIVED && w->phase < DRAINING && (!options.messages || c->cycles < options.messages);
}

/* In shortlived mode a slot goes on with its next connection, whatever became of the last one. */
static void leave(struct worker *w, struct connection *c)
{
    opening_settled(w, c);
    if (!may_begin_again(w, c)) {
        finish(w, c);
        return;
    }
    if (c->fd >= 0)
        close(c->fd);
    c->fd = -1;
    c->state = CLOSED;
    begin(w, c);
}

static void fail(struct worker *w, struct connection *c, enum failure kind, const char *what)
{
    bump(&w->failures[kind], 1);
    snprintf(w->last_error, sizeof w->last_error, "%s", what);
    c->cycles++; /* a failed exchange counts, so that --messages ends */
    if (!may_begin_again(w, c)) {
        leave(w, c);
        return;
    }
    /* Not at once: a server that refuses would be asked again within this very call, for ever. */
    opening_settled(w, c);
    if (c->fd >= 0)
        close(c->fd);
    c->fd = -1;
    c->state = CLOSED;
    c->retry = true;
    w->retries++;
}

static void fail_errno(struct worker *w, struct connection *c, int error)
{
    fail(w, c, kind_of(error), strerror(error));
}

/* ---- sending ---- */

static bool flush(struct worker *w, struct connection *c)
{
    uint64_t budget = WRITE_BUDGET;
    uint64_t limit = options.batch ? options.batch * options.size : CHUNK;
    while (c->sent < c->want) {
        uint64_t length = c->want - c->sent;
        if (length > limit)
            length = limit;
        if (length > CHUNK)
            length = CHUNK;
        ssize_t n = send(c->fd, expected(c, c->sent), length, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0) {
            if (errno == EAGAIN || errno == EINTR)
                return true; /* an edge follows */
            fail_errno(w, c, errno);
            return false;
        }
        c->sent += (uint64_t)n;
        if ((uint64_t)n >= budget) {
            /* Re-arm the edge, so that this connection comes round again after the others. */
            struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = c};
            epoll_ctl(w->epoll, EPOLL_CTL_MOD, c->fd, &event);
            return true;
        }
        budget -= (uint64_t)n;
    }
    return true;
}

static void count_sent(struct worker *w, struct connection *c)
{
    uint64_t done = c->sent / options.size;
    bump(&w->messages, done - c->done);
    c->done = done;
}

static void flood_on(struct worker *w, struct connection *c)
{
    if (!flush(w, c))
        return;
    count_sent(w, c);
    if (c->sent < c->want || c->flooded)
        return;
    c->flooded = true;
    bump(&w->flooded, 1);
    notify();
}

static void send_burst(struct worker *w, struct connection *c)
{
    uint64_t burst = options.burst;
    if (options.messages && !c->paced && options.messages - c->done < burst)
        burst = options.messages - c->done;
    c->want += burst * options.size;
    flush(w, c);
}

/* ---- receiving ---- */

static bool has_messages_left(const struct connection *c)
{
    return !options.messages || c->done < options.messages;
}

static void next_exchange(struct worker *w, struct connection *c)
{
    if (w->phase >= DRAINING || !has_messages_left(c))
        finish(w, c);
    else
        send_burst(w, c);
}

static void opened(struct worker *w, struct connection *c)
{
    bump(&w->opened, 1);
    opening_settled(w, c);
    c->state = OPEN;
    if (w->phase >= DRAINING)
        finish(w, c);
    else if (options.mode == RAMP)
        next_exchange(w, c);
}

static void exchange_done(struct worker *w, struct connection *c)
{
    if (options.mode == SHORTLIVED) {
        c->cycles++;
        bump(&w->opened, 1);
        leave(w, c);
    } else if (c->state == GREETING) {
        opened(w, c);
    } else if (!c->paced && options.mode != IDLE) {
        next_exchange(w, c);
    } else if (w->phase >= DRAINING) {
        finish(w, c);
    }
}

/* When the j-th message of a connection is due follows from j: nothing is stored per message, and a message that had
 * to wait in the generator is charged with the wait. */
static uint64_t due_at(const struct worker *w, uint64_t k)
{
    return schedule_start + (uint64_t)((double)(k * options.threads + w->number) * 1e9 / options.rate);
}

static void record_latency(struct worker *w, struct connection *c, uint64_t from, uint64_t to)
{
    uint64_t time = now();
    uint64_t place = (uint64_t)(c - w->connections);
    for (uint64_t j = from; j < to; j++) {
        if (j == 0)
            continue; /* the greeting */
        uint64_t due = due_at(w, (j - 1) * w->paced + place);
        if (due >= measure_start)
            record(c->marked ? w->marked_latency : w->latency, time > due ? time - due : 0);
    }
}

static void count_received(struct worker *w, struct connection *c)
{
    uint64_t done = c->got / options.size;
    if (c->paced)
        record_latency(w, c, c->done, done);
    if (c->paced || options.mode != OPENLOOP)
        bump(&w->messages, done - c->done);
    c->done = done;
}

static bool check(struct worker *w, struct connection *c, size_t n)
{
    if (options.mode == FLOOD) {
        fail(w, c, MISMATCH, "a sink has answered");
        return false;
    }
    if (c->got + n > c->sent) {
        fail(w, c, MISMATCH, "more came back than was sent");
        return false;
    }
    if (memcmp(w->buffer, expected(c, c->got), n) != 0) {
        fail(w, c, MISMATCH, "wrong bytes came back");
        return false;
    }
    return true;
}

static void end_of_input(struct worker *w, struct connection *c)
{
    if (c->state == HALF_CLOSED)
        finish(w, c);
    else
        fail(w, c, SHORT, "the server closed early");
}

/* False when the connection is over, or nothing more is to be read now. */
static bool receive_some(struct worker *w, struct connection *c, bool at_end)
{
    ssize_t n = recv(c->fd, w->buffer, CHUNK, MSG_DONTWAIT);
    if (n == 0) {
        end_of_input(w, c);
        return false;
    }
    if (n < 0) {
        if (errno != EAGAIN && errno != EINTR)
            fail_errno(w, c, errno);
        return false;
    }
    if (!check(w, c, (size_t)n))
        return false;
    c->got += (uint64_t)n;
    int fd = c->fd;
    uint32_t cycles = c->cycles;
    count_received(w, c);
    if (c->got == c->want)
        exchange_done(w, c);
    /* A short read has emptied the socket: no second call just to be told EAGAIN. */
    return c->fd == fd && c->cycles == cycles && (at_end || n == CHUNK);
}

static void receive(struct worker *w, struct connection *c, uint32_t events)
{
    while (receive_some(w, c, events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)))
        continue;
}

/* ---- opening ---- */

static bool has_answers(void)
{
    return options.mode != FLOOD && !(options.mode == IDLE && options.messages == 0);
}

static void bind_source(int fd, struct worker *w)
{
    int one = 1;
    struct sockaddr_in from = {.sin_family = AF_INET};
    from.sin_addr.s_addr = htonl(ntohl(first_source.s_addr) + w->source++ % (uint32_t)options.sources);
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
    bind(fd, (struct sockaddr *)&from, sizeof from); /* if it fails, the kernel's own choice will do */
}

static void set_options(int fd)
{
    int one = 1, bytes = (int)options.sndbuf;
    if (target.ss_family != AF_UNIX && options.mode != SHORTLIVED)
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (bytes)
        setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
}

/* A Unix socket whose backlog is full answers a non-blocking connect with EAGAIN and no event after it: let it block,
 * within limits. Everything after the connect asks for MSG_DONTWAIT itself. */
static int new_socket(void)
{
    if (target.ss_family != AF_UNIX)
        return socket(target.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct timeval limit = {.tv_sec = 5};
    if (fd >= 0)
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    return fd;
}

static bool start_connect(struct worker *w, struct connection *c)
{
    c->fd = new_socket();
    if (c->fd < 0) {
        fail_errno(w, c, errno);
        return false;
    }
    set_options(c->fd);
    if (options.sources)
        bind_source(c->fd, w);
    if (connect(c->fd, (struct sockaddr *)&target, target_length) < 0 && errno != EINPROGRESS) {
        fail_errno(w, c, errno == EAGAIN ? ETIMEDOUT : errno);
        return false;
    }
    return true;
}

/* On loopback the handshake is over before connect() returns EINPROGRESS, so the first message is sent right away
 * and saves a wake-up; where it is not over, send() says EAGAIN and an edge follows. */
static void begin(struct worker *w, struct connection *c)
{
    c->want = c->sent = c->got = c->done = 0;
    c->state = CONNECTING;
    w->opening++;
    if (!start_connect(w, c))
        return;
    if (has_answers()) {
        c->want = options.size * (options.mode == SHORTLIVED ? options.burst : 1);
        if (!flush(w, c))
            return;
        if (c->sent)
            c->state = GREETING;
    }
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = c};
    if (epoll_ctl(w->epoll, EPOLL_CTL_ADD, c->fd, &event) < 0)
        fail_errno(w, c, errno);
}

static void open_more(struct worker *w)
{
    uint64_t share = (options.pending + options.threads - 1) / options.threads;
    if (options.mode == SHORTLIVED)
        share = w->count; /* --connections says how many at a time */
    while (w->begun < w->count && w->opening < share && w->phase < DRAINING)
        begin(w, &w->connections[w->begun++]);
}

static void retry_failed(struct worker *w)
{
    for (uint32_t i = 0; w->retries && i < w->count; i++) {
        struct connection *c = &w->connections[i];
        if (!c->retry)
            continue;
        c->retry = false;
        w->retries--;
        if (may_begin_again(w, c))
            begin(w, c);
        else
            finish(w, c);
    }
}

/* False when it has failed. */
static bool connected(struct worker *w, struct connection *c, uint32_t events)
{
    int error = 0;
    socklen_t length = sizeof error;
    if (!(events & (EPOLLOUT | EPOLLERR | EPOLLHUP)))
        return true;
    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &length);
    if (error) {
        fail_errno(w, c, error);
        return false;
    }
    if (has_answers())
        c->state = GREETING;
    else
        opened(w, c);
    return c->fd >= 0;
}

/* ---- phases ---- */

static void start_flood(struct worker *w, struct connection *c)
{
    c->want = options.messages ? options.messages * options.size : UINT64_MAX / 2 / options.size * options.size;
    flood_on(w, c);
}

static void start_running(struct worker *w, struct connection *c)
{
    if (c->state != OPEN)
        return;
    if (options.mode == FLOOD)
        start_flood(w, c);
    else if (options.mode == PINGPONG || (options.mode == OPENLOOP && !c->paced))
        next_exchange(w, c);
}

static void start_flushing(struct worker *w, struct connection *c)
{
    if (options.mode != FLOOD || c->state != OPEN || c->flooded)
        return;
    c->want = (c->sent + options.size - 1) / options.size * options.size;
    flood_on(w, c);
}

/* The server's FIN will say that it has read everything; a reset, that it has not. */
static void half_close(struct connection *c)
{
    c->state = HALF_CLOSED;
    shutdown(c->fd, SHUT_WR);
}

static void start_draining(struct worker *w, struct connection *c)
{
    if (c->state != OPEN) {
        if (c->state != CLOSED && c->state != HALF_CLOSED && ramp_is_over)
            leave(w, c);
        return;
    }
    if (options.mode == FLOOD)
        half_close(c);
    else if (c->got == c->want)
        finish(w, c);
}

static void abort_connection(struct worker *w, struct connection *c)
{
    if (c->state != CLOSED)
        fail(w, c, TIMEOUT, "no answer before the deadline");
}

/* Connections that were not even begun leave as well. */
static void leave_unbegun(struct worker *w)
{
    while (w->begun < w->count) {
        bump(&w->settled, 1);
        finish(w, &w->connections[w->begun++]);
    }
}

static void enter_phase(struct worker *w, enum phase phase)
{
    static void (*const enter[])(struct worker *, struct connection *) = {
        [RUNNING] = start_running, [FLUSHING] = start_flushing,
        [DRAINING] = start_draining, [ABORTING] = abort_connection};
    w->phase = phase;
    for (uint32_t i = 0; i < w->begun; i++)
        enter[phase](w, &w->connections[i]);
    if (phase >= DRAINING)
        leave_unbegun(w);
}

/* ---- the loop ---- */

static void dispatch(struct worker *w, struct connection *c, uint32_t events)
{
    if (c->state == CLOSED)
        return;
    if (c->state == CONNECTING && !connected(w, c, events))
        return;
    if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR))
        receive(w, c, events);
    if (c->fd >= 0 && (events & EPOLLOUT) && c->sent < c->want) {
        if (options.mode == FLOOD)
            flood_on(w, c);
        else
            flush(w, c);
    }
}

static void send_due(struct worker *w)
{
    uint64_t time = now();
    for (uint64_t due = due_at(w, w->due); due <= time && due < schedule_end; due = due_at(w, w->due)) {
        struct connection *c = &w->connections[w->due++ % w->paced];
        if (c->state != OPEN)
            continue;
        c->want += options.size;
        flush(w, c);
    }
}

static void run_events(struct worker *w, int timeout)
{
    int n = epoll_wait(w->epoll, w->events, EVENTS, timeout);
    for (int i = 0; i < n; i++) {
        struct connection *c = w->events[i].data.ptr;
        uint64_t drop;
        if (c)
            dispatch(w, c, w->events[i].events);
        else if (read(w->wake, &drop, sizeof drop) < 0)
            return;
    }
}

static void *work(void *argument)
{
    struct worker *w = argument;
    open_more(w);
    while (w->unfinished) {
        /* Open loop: spin, because a sleeping thread wakes some 50 us late and the figure is a latency. */
        bool spin = options.mode == OPENLOOP && w->phase == RUNNING;
        run_events(w, spin ? 0 : w->retries ? 1 : 100);
        enum phase phase = phase_now();
        while (w->phase < phase)
            enter_phase(w, w->phase + 1);
        open_more(w);
        retry_failed(w);
        if (spin && w->phase == RUNNING && w->paced)
            send_due(w);
    }
    return NULL;
}

/* ---- the coordinator ---- */

struct snapshot {
    uint64_t time, messages, opened, settled, flooded, finished, failures, server_cpu, own_cpu;
};

static uint64_t clock_of(clockid_t clock)
{
    struct timespec t;
    return clock_gettime(clock, &t) == 0 ? (uint64_t)t.tv_sec * NANO + (uint64_t)t.tv_nsec : 0;
}

/* A process's CPU clock is exact to the nanosecond even while it runs; schedstat's is only brought up to date on a
 * timer tick. */
static uint64_t server_cpu(void)
{
    uint64_t sum = 0;
    clockid_t clock;
    for (int i = 0; i < pid_count; i++)
        if (clock_getcpuclockid(pids[i], &clock) == 0)
            sum += clock_of(clock);
    return sum;
}

/* The workers share our core, so we may be put aside between two clocks: then read them again. */
static struct snapshot read_clocks(void)
{
    static const uint64_t together = 50000; /* ns */
    struct snapshot s = {0};
    for (int tries = 0; tries < 20; tries++) {
        s.time = now();
        s.server_cpu = server_cpu();
        s.own_cpu = clock_of(CLOCK_PROCESS_CPUTIME_ID);
        if (now() - s.time < together)
            break;
    }
    return s;
}

static struct snapshot take_snapshot(void)
{
    struct snapshot s = read_clocks();
    for (uint64_t i = 0; i < options.threads; i++) {
        struct worker *w = &workers[i];
        s.messages += atomic_load_explicit(&w->messages, memory_order_relaxed);
        s.opened += atomic_load_explicit(&w->opened, memory_order_relaxed);
        s.settled += atomic_load_explicit(&w->settled, memory_order_relaxed);
        s.flooded += atomic_load_explicit(&w->flooded, memory_order_relaxed);
        s.finished += atomic_load_explicit(&w->finished, memory_order_relaxed);
        for (int kind = 0; kind < FAILURES; kind++)
            s.failures += atomic_load_explicit(&w->failures[kind], memory_order_relaxed);
    }
    return s;
}

static uint64_t total_connections(void)
{
    return options.connections + options.flooders;
}

static void set_phase(enum phase phase)
{
    uint64_t one = 1;
    atomic_store_explicit(&current_phase, phase, memory_order_release);
    for (uint64_t i = 0; i < options.threads; i++)
        if (write(workers[i].wake, &one, sizeof one) < 0)
            die("eventfd: %s", strerror(errno));
}

static struct snapshot at_start;       /* before the first connect */
static double samples[MAX_SAMPLES][2]; /* seconds, connections: ramp */
static size_t sample_count;
static uint64_t per_second[MAX_SAMPLES]; /* messages in each whole second */
static size_t second_count;
static uint64_t last_second_at, last_second_messages;

static void sample_ramp(const struct snapshot *s)
{
    if (options.mode != RAMP || sample_count == MAX_SAMPLES)
        return;
    samples[sample_count][0] = (double)(s->time - started_at) / 1e9;
    samples[sample_count++][1] = (double)s->opened;
}

static void tick(const struct snapshot *s)
{
    if (s->time - last_second_at < NANO)
        return;
    if (second_count < MAX_SAMPLES)
        per_second[second_count++] =
            (uint64_t)((double)(s->messages - last_second_messages) * 1e9 / (double)(s->time - last_second_at));
    last_second_at = s->time;
    last_second_messages = s->messages;
    if (!options.progress)
        return;
    fprintf(stderr, "{\"seconds\": %.1f, \"messages\": %llu, \"connections\": %llu, \"failures\": %llu}\n",
            (double)(s->time - started_at) / 1e9, (unsigned long long)s->messages,
            (unsigned long long)s->opened, (unsigned long long)s->failures);
}

typedef bool condition(const struct snapshot *);

static bool all_settled(const struct snapshot *s)
{
    return s->settled >= total_connections();
}

static bool all_finished(const struct snapshot *s)
{
    return s->finished >= total_connections();
}

static bool all_flooded(const struct snapshot *s)
{
    return s->flooded + s->finished >= total_connections();
}

static bool too_many_failures(const struct snapshot *s)
{
    return options.max_failures && s->failures >= options.max_failures;
}

static void sleep_until(uint64_t until)
{
    static const uint64_t pause = 50000000; /* ns between two samples */
    uint64_t time = now();
    uint64_t wait = until > time ? until - time : 0;
    struct timespec t = {.tv_nsec = (long)(wait < pause ? wait : pause)};
    struct pollfd fds[] = {{.fd = notify_fd, .events = POLLIN}, {.fd = signal_fd, .events = POLLIN}};
    ppoll(fds, 2, &t, NULL);
    uint64_t drop;
    if (fds[0].revents && read(notify_fd, &drop, sizeof drop) < 0)
        die("eventfd: %s", strerror(errno));
    if (fds[1].revents)
        interrupted = true;
}

static uint64_t progress_of(const struct snapshot *s)
{
    return s->messages + s->opened + s->settled + s->finished;
}

/* Wait for the condition, until the time, the deadline, a signal, a stall or too many failures. */
static struct snapshot wait_for(condition *holds, uint64_t until)
{
    uint64_t progress = 0, moved_at = now();
    if (until > deadline_at)
        until = deadline_at;
    for (;;) {
        struct snapshot s = take_snapshot();
        sample_ramp(&s);
        tick(&s);
        if (progress_of(&s) != progress) {
            progress = progress_of(&s);
            moved_at = s.time;
        }
        if (holds(&s) || s.time >= until || interrupted || too_many_failures(&s))
            return s;
        if (s.time - moved_at >= nanoseconds(options.stall))
            return s;
        sleep_until(until);
    }
}

/* A sink sends nothing that would tell when it has accepted everybody: wait until it uses no CPU any more. */
static void wait_until_server_is_idle(void)
{
    uint64_t until = now() + 10 * NANO, before = server_cpu();
    while (pid_count && now() < until) {
        usleep(20000);
        uint64_t after = server_cpu();
        if (after - before < 1000000)
            return;
        before = after;
    }
}

static bool all_acknowledged(void)
{
    for (uint64_t i = 0; i < options.threads; i++)
        for (uint32_t j = 0; j < workers[i].count; j++) {
            int bytes = 0, fd = workers[i].connections[j].fd;
            if (fd >= 0 && ioctl(fd, SIOCOUTQ, &bytes) == 0 && bytes)
                return false;
        }
    return true;
}

/* A flood is over when the server has read all of it, and before the connections close, which costs the server too.
 * It has when everything lies on its side and it uses no CPU any more; the moment is the last one that it used any. */
static struct snapshot when_flood_was_read(void)
{
    static const uint64_t quiet = 50000000, noise = 20000; /* ns */
    struct snapshot busy = take_snapshot(), s = busy;
    while (s.time < busy.time + quiet && s.time < deadline_at && !interrupted) {
        sleep_until(s.time + 1000000);
        s = take_snapshot();
        if (s.server_cpu > busy.server_cpu + noise || s.finished > busy.finished || !all_acknowledged())
            busy = s;
    }
    return busy;
}

static void hold_idle(void)
{
    struct pollfd fds[] = {{.fd = 0, .events = POLLIN}, {.fd = signal_fd, .events = POLLIN},
                           {.fd = notify_fd, .events = POLLIN}};
    char drop[256];
    struct snapshot s = take_snapshot();
    fprintf(stderr, "{\"ready\": %llu, \"failures\": %llu}\n", (unsigned long long)s.opened,
            (unsigned long long)s.failures);
    while (!all_finished(&s)) {
        if (poll(fds, 3, -1) < 0 || fds[1].revents)
            return;
        if (fds[0].revents && read(0, drop, sizeof drop) <= 0)
            return;
        if (fds[2].revents && read(notify_fd, drop, sizeof drop) < 0)
            return;
        s = take_snapshot();
    }
}

struct window {
    struct snapshot start, end;
    double open_seconds;
};

static void set_schedule(void)
{
    schedule_start = now() + 1000000;
    measure_start = schedule_start + nanoseconds(options.warmup);
    schedule_end = measure_start + nanoseconds(options.seconds);
}

static void start_window(struct window *window, struct snapshot start)
{
    window->start = start;
    last_second_at = start.time;
    last_second_messages = start.messages;
}

static void end_window(struct window *window, condition *holds)
{
    uint64_t until = options.seconds > 0 ? window->start.time + nanoseconds(options.seconds) : deadline_at;
    window->end = wait_for(holds, until);
}

static void measure(struct window *window)
{
    if (options.mode == OPENLOOP)
        set_schedule();
    set_phase(RUNNING);
    start_window(window, wait_for(all_finished, now() + nanoseconds(options.warmup)));
    end_window(window, all_finished);
}

/* No messages in the warmup: those in the sockets' buffers at its end would be lost to the count. */
static void flood(struct window *window)
{
    wait_until_server_is_idle();
    wait_for(all_finished, now() + nanoseconds(options.warmup));
    start_window(window, take_snapshot());
    set_phase(RUNNING);
    end_window(window, all_flooded);
    set_phase(FLUSHING);
    window->end = wait_for(all_flooded, deadline_at);
    if (pid_count)
        window->end = when_flood_was_read();
}

static void ramp(struct window *window)
{
    window->start = at_start;
    set_phase(RUNNING);
    uint64_t until = options.seconds > 0 ? started_at + nanoseconds(options.seconds) : deadline_at;
    window->end = wait_for(all_settled, until);
    ramp_is_over = options.seconds > 0 && window->end.time >= until;
}

static void shortlived(struct window *window)
{
    start_window(window, at_start);
    if (options.warmup > 0)
        start_window(window, wait_for(all_finished, now() + nanoseconds(options.warmup)));
    end_window(window, all_finished);
}

static void drain(struct window *window)
{
    uint64_t limit = options.mode == FLOOD ? deadline_at : now() + nanoseconds(options.drain);
    set_phase(DRAINING);
    interrupted = false;
    struct snapshot s = wait_for(all_finished, limit);
    if (options.mode == FLOOD && !pid_count)
        window->end = s; /* all that is known: by now everything was read and closed */
    set_phase(ABORTING);
}

static struct window coordinate(void)
{
    struct window window = {0};
    if (options.mode == SHORTLIVED) {
        shortlived(&window);
    } else if (options.mode == RAMP) {
        ramp(&window);
        window.open_seconds = (double)(window.end.time - started_at) / 1e9;
    } else {
        struct snapshot s = wait_for(all_settled, deadline_at);
        window.open_seconds = (double)(s.time - started_at) / 1e9;
        window.start = window.end = s;
        if (options.mode == IDLE)
            hold_idle();
        else if (options.mode == FLOOD)
            flood(&window);
        else if (s.time < deadline_at)
            measure(&window);
    }
    drain(&window);
    return window;
}

/* ---- output ---- */

static void print_latency(const char *name, const struct histogram *h)
{
    const char *comma = "";
    printf(", \"%s\": {\"count\": %llu, \"p50_us\": %.1f, \"p99_us\": %.1f, \"p999_us\": %.1f, \"max_us\": %.1f, "
           "\"histogram\": [", name, (unsigned long long)h->count, (double)percentile(h, 0.5) / 1e3,
           (double)percentile(h, 0.99) / 1e3, (double)percentile(h, 0.999) / 1e3, (double)h->max / 1e3);
    for (unsigned i = 0; i < BUCKETS; i++)
        if (h->bucket[i]) {
            printf("%s[%.2f, %llu]", comma, (double)bucket_top(i) / 1e3, (unsigned long long)h->bucket[i]);
            comma = ", ";
        }
    printf("]}");
}

static void print_latencies(void)
{
    for (uint64_t i = 1; i < options.threads; i++) {
        merge(workers[0].latency, workers[i].latency);
        merge(workers[0].marked_latency, workers[i].marked_latency);
    }
    print_latency("latency", workers[0].latency);
    if (options.mark_every)
        print_latency("marked_latency", workers[0].marked_latency);
}

static void print_failures(void)
{
    uint64_t all = 0;
    const char *last = "";
    printf(", \"failures\": {");
    for (int kind = 0; kind < FAILURES; kind++) {
        uint64_t sum = 0;
        for (uint64_t i = 0; i < options.threads; i++)
            sum += workers[i].failures[kind];
        printf("%s\"%s\": %llu", kind ? ", " : "", failure_names[kind], (unsigned long long)sum);
        all += sum;
    }
    for (uint64_t i = 0; i < options.threads; i++)
        if (workers[i].last_error[0])
            last = workers[i].last_error;
    printf("}, \"failed\": %llu, \"last_error\": \"%s\"", (unsigned long long)all, last);
}

static void print_series(void)
{
    printf(", \"per_second\": [");
    for (size_t i = 0; i < second_count; i++)
        printf("%s%llu", i ? ", " : "", (unsigned long long)per_second[i]);
    printf("], \"ramp\": [");
    for (size_t i = 0; i < sample_count; i++)
        printf("%s[%.3f, %.0f]", i ? ", " : "", samples[i][0], samples[i][1]);
    printf("]");
}

static void print_result(const struct window *window)
{
    const struct snapshot *a = &window->start, *b = &window->end;
    struct snapshot total = take_snapshot();
    double seconds = (double)(b->time - a->time) / 1e9;
    uint64_t messages = b->messages - a->messages;
    printf("{\"mode\": \"%s\", \"connections\": %llu, \"size\": %llu, \"burst\": %llu, \"threads\": %llu",
           mode_names[options.mode], (unsigned long long)options.connections, (unsigned long long)options.size,
           (unsigned long long)options.burst, (unsigned long long)options.threads);
    printf(", \"seconds\": %.6f, \"messages\": %llu, \"rate\": %.1f, \"total_messages\": %llu, \"opened\": %llu"
           ", \"open_seconds\": %.6f, \"server_cpu_ns\": %llu, \"generator_cpu_ns\": %llu",
           seconds, (unsigned long long)messages, seconds > 0 ? (double)messages / seconds : 0.0,
           (unsigned long long)total.messages, (unsigned long long)total.opened, window->open_seconds,
           (unsigned long long)(b->server_cpu - a->server_cpu), (unsigned long long)(b->own_cpu - a->own_cpu));
    print_failures();
    print_series();
    if (options.mode == OPENLOOP)
        print_latencies();
    printf("}\n");
}

/* ---- the start ---- */

enum type { NUMBER, REAL, TEXT, FLAG };
static const struct {
    const char *name;
    enum type type;
    void *value;
    const char *help;
} table[] = {
    {"connect", TEXT, &options.target, "HOST:PORT, or a path: the server (needed)"},
    {"connections", NUMBER, &options.connections, "how many at a time"},
    {"size", NUMBER, &options.size, "bytes a message"},
    {"burst", NUMBER, &options.burst, "messages sent before their answers are awaited"},
    {"batch", NUMBER, &options.batch, "messages a write at most; 0: as many as there are to send"},
    {"messages", NUMBER, &options.messages, "messages (shortlived: exchanges) a connection; 0: until the time is over;"
                                            " idle: any but 0 exchanges one message on each"},
    {"seconds", REAL, &options.seconds, "how long to measure; 0: until --messages are done, or all are open (ramp)"},
    {"warmup", REAL, &options.warmup, "seconds before measuring starts"},
    {"rate", REAL, &options.rate, "openloop: messages a second over all connections"},
    {"mark-every", NUMBER, &options.mark_every, "every n-th connection sends bytes 255 only, with a histogram apart"},
    {"flooders", NUMBER, &options.flooders, "openloop: further connections that ping-pong bursts without a pause"},
    {"threads", NUMBER, &options.threads, "threads"},
    {"pending", NUMBER, &options.pending, "openings under way at a time at most"},
    {"source", TEXT, &options.source, "first source address; default 127.0.0.1 to a loopback server"},
    {"sources", NUMBER, &options.sources, "source addresses to spread over; default 32 to a loopback server"},
    {"sndbuf", NUMBER, &options.sndbuf, "SO_SNDBUF of every connection; 0: the kernel's choice"},
    {"pid", TEXT, &options.pids, "process ids, by commas, whose CPU time to report"},
    {"drain", REAL, &options.drain, "seconds to wait for answers under way when the time is over"},
    {"stall", REAL, &options.stall, "give up after so many seconds in which nothing was opened, answered or closed"},
    {"deadline", REAL, &options.deadline, "seconds after which to give up in any case; default by the other options"},
    {"max-failures", NUMBER, &options.max_failures, "give up after so many; 0: never"},
    {"progress", FLAG, &options.progress, "a line of JSON on stderr every second"},
};

static void usage(void)
{
    fprintf(stderr, "usage: generator pingpong|flood|shortlived|ramp|idle|openloop --connect HOST:PORT [options]\n");
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        fprintf(stderr, "  --%-14s %s\n", table[i].name, table[i].help);
    exit(2);
}

static void set_option(const char *name, enum type type, void *value, const char *text)
{
    char *end = NULL;
    if (type == TEXT)
        *(const char **)value = text;
    else if (type == NUMBER)
        *(uint64_t *)value = strtoull(text, &end, 10);
    else
        *(double *)value = strtod(text, &end);
    if (end && (*end || end == text || *text == '-'))
        die("--%s: not a number: %s", name, text);
}

static char **parse_option(char **argument)
{
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        if (strncmp(*argument, "--", 2) != 0 || strcmp(*argument + 2, table[i].name) != 0)
            continue;
        if (table[i].type == FLAG) {
            *(bool *)table[i].value = true;
            return argument + 1;
        }
        if (!argument[1])
            die("%s needs a value", *argument);
        set_option(table[i].name, table[i].type, table[i].value, argument[1]);
        return argument + 2;
    }
    die("unknown option %s", *argument);
    return NULL;
}

static void parse(char **arguments)
{
    int mode = 0;
    if (!*arguments)
        usage();
    while (mode < MODES && strcmp(*arguments, mode_names[mode]) != 0)
        mode++;
    if (mode == MODES)
        usage();
    options.mode = (enum mode)mode;
    for (arguments++; *arguments;)
        arguments = parse_option(arguments);
    if (!options.target || !options.connections || !options.size || !options.burst || !options.threads)
        usage();
}

static void check_options(void)
{
    bool endless = options.mode != IDLE && options.mode != RAMP && options.seconds <= 0 && !options.messages;
    if (endless)
        die("needs --seconds or --messages");
    if (options.threads > options.connections)
        die("more threads than connections");
    if (options.flooders && options.mode != OPENLOOP)
        die("--flooders is for openloop");
    if (options.mode == OPENLOOP && options.rate <= 0)
        die("--rate must be above 0");
    if (!options.deadline)
        options.deadline = 60 + options.warmup + options.seconds + (double)options.connections / 500;
}

static void parse_pids(void)
{
    const char *text = options.pids;
    while (text && *text && pid_count < MAX_PIDS) {
        char *end;
        pids[pid_count++] = (pid_t)strtol(text, &end, 10);
        if (end == text || (*end && *end != ','))
            die("--pid: %s", options.pids);
        text = *end ? end + 1 : end;
    }
}

static void parse_unix(void)
{
    struct sockaddr_un *address = (struct sockaddr_un *)&target;
    if (strlen(options.target) >= sizeof address->sun_path)
        die("path too long: %s", options.target);
    address->sun_family = AF_UNIX;
    strcpy(address->sun_path, options.target);
    target_length = sizeof *address;
}

static void parse_target(void)
{
    char host[256];
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found;
    const char *colon = strrchr(options.target, ':');
    if (strchr(options.target, '/')) {
        parse_unix();
        return;
    }
    if (!colon || (size_t)(colon - options.target) >= sizeof host)
        die("--connect: HOST:PORT or a path, not %s", options.target);
    bool bracketed = options.target[0] == '[' && colon > options.target && colon[-1] == ']';
    snprintf(host, sizeof host, "%.*s", (int)(colon - options.target) - 2 * bracketed, options.target + bracketed);
    if (getaddrinfo(host, colon + 1, &hints, &found) != 0)
        die("--connect: cannot resolve %s", options.target);
    memcpy(&target, found->ai_addr, found->ai_addrlen);
    target_length = found->ai_addrlen;
    freeaddrinfo(found);
}

/* One source address has some 28,000 ports, and the side that closes first keeps each for a minute in TIME_WAIT:
 * every address of 127.0.0.0/8 is ours, so spread. */
static void choose_sources(void)
{
    const struct sockaddr_in *address = (const struct sockaddr_in *)&target;
    bool loopback = address->sin_family == AF_INET && ntohl(address->sin_addr.s_addr) >> 24 == 127;
    if (address->sin_family != AF_INET) {
        options.sources = 0;
        return;
    }
    if (options.source && inet_pton(AF_INET, options.source, &first_source) != 1)
        die("--source: not an IPv4 address: %s", options.source);
    if (!options.source && loopback)
        first_source.s_addr = htonl(INADDR_LOOPBACK);
    if (!options.sources)
        options.sources = options.source ? 1 : loopback ? 32 : 0;
    if (options.sources && !first_source.s_addr)
        die("--sources needs --source");
}

static void raise_descriptor_limit(void)
{
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    if (total_connections() + 2 * options.threads + 16 > limit.rlim_cur)
        die("%llu connections, but only %llu descriptors", (unsigned long long)total_connections(),
            (unsigned long long)limit.rlim_cur);
}

static void *allocate(size_t count, size_t size)
{
    void *memory = calloc(count, size);
    if (!memory)
        die("out of memory");
    return memory;
}

static void prepare_connection(struct worker *w, uint32_t place, bool paced)
{
    struct connection *c = &w->connections[place];
    c->fd = -1;
    c->paced = paced;
    c->index = place * (uint32_t)options.threads + w->number;
    c->marked = options.mark_every && c->index % options.mark_every == options.mark_every - 1;
    c->pattern = c->marked ? marked_pattern : pattern;
}

static void prepare_worker(struct worker *w, uint32_t number)
{
    uint64_t share = options.connections / options.threads + (number < options.connections % options.threads);
    uint64_t flooders = number == 0 ? options.flooders : 0;
    w->number = number;
    w->count = w->unfinished = (uint32_t)(share + flooders);
    w->connections = allocate(w->count, sizeof *w->connections);
    w->paced = options.mode == OPENLOOP ? share : 0;
    for (uint32_t i = 0; i < w->count; i++)
        prepare_connection(w, i, i < w->paced);
    w->latency = allocate(1, sizeof *w->latency);
    w->marked_latency = allocate(1, sizeof *w->marked_latency);
    w->source = number * 7;
    w->epoll = epoll_create1(EPOLL_CLOEXEC);
    w->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    if (w->epoll < 0 || w->wake < 0 || epoll_ctl(w->epoll, EPOLL_CTL_ADD, w->wake, &event) < 0)
        die("epoll: %s", strerror(errno));
}

static void prepare_signals(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
    signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    notify_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
}

static void start_workers(void)
{
    workers = allocate(options.threads, sizeof *workers);
    for (uint64_t i = 0; i < options.threads; i++)
        prepare_worker(&workers[i], (uint32_t)i);
    at_start = take_snapshot();
    started_at = last_second_at = at_start.time;
    deadline_at = started_at + nanoseconds(options.deadline);
    for (uint64_t i = 0; i < options.threads; i++)
        if (pthread_create(&workers[i].thread, NULL, work, &workers[i]) != 0)
            die("cannot start a thread");
}

int main(int count, char **arguments)
{
    parse(arguments + (count > 0));
    check_options();
    parse_pids();
    parse_target();
    choose_sources();
    raise_descriptor_limit();
    make_patterns();
    prepare_signals();
    start_workers();
    struct window window = coordinate();
    for (uint64_t i = 0; i < options.threads; i++)
        pthread_join(workers[i].thread, NULL);
    print_result(&window);
    return take_snapshot().failures ? 1 : 0;
}
