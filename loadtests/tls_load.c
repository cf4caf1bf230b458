/*
 * The client side of the load tests of TLS: one edge-triggered epoll loop, OpenSSL on the descriptor.
 *
 *     tls_load HOST PORT MODE CONNECTIONS SECONDS WARMUP PID
 *
 * MODE: echo, 64 bytes and their echo over and over; full and resumed, a handshake, one echo and close, over and over;
 * idle, one echo on each and then nothing until standard input ends (a line "ready" on standard output tells of it);
 * download, one byte out and what the server sends for it, counted in MB. Certificates are not verified: it is the
 * server's work that is measured. What comes back is checked.
 *
 * Output: one JSON object: operations, seconds, and the server's CPU seconds in the time that was measured. Exit: 0;
 * 1 if something failed (standard error says what).
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define SIZE 64
#define MOST_EVENTS 256
#define AT_ONCE 32  /* handshakes, where that is not what is measured */

enum state { SHAKING, SENDING, RECEIVING, RESTING };

struct connection {
    int fd;
    SSL *ssl;
    enum state state;
    size_t got;
    bool is_warm;  /* its session was kept */
};

static char message[SIZE], answer[1 << 16];
static struct sockaddr_in address;
static SSL_CTX *context;
static SSL_SESSION *session;
static int set;
static bool is_echo, is_short, is_resumed, is_idle, is_download;
static double operations;
static int resting, shaken;

static void fail(const char *what) {
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

static double seconds_of(clockid_t id) {
    struct timespec now;
    if (clock_gettime(id, &now)) fail("clock");
    return now.tv_sec + now.tv_nsec * 1e-9;
}

static int keep(SSL *ssl, SSL_SESSION *made) {
    (void)ssl;
    if (session) SSL_SESSION_free(session);
    session = made;
    return 1;
}

static void begin(struct connection *conn) {
    int one = 1;
    conn->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (conn->fd < 0) fail("socket");
    setsockopt(conn->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(conn->fd, (struct sockaddr *)&address, sizeof address) && errno != EINPROGRESS) fail("connect");
    conn->ssl = SSL_new(context);
    SSL_set_fd(conn->ssl, conn->fd);
    SSL_set_connect_state(conn->ssl);
    if (is_resumed && session) SSL_set_session(conn->ssl, session);
    conn->state = SHAKING;
    conn->got = 0;
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.ptr = conn};
    if (epoll_ctl(set, EPOLL_CTL_ADD, conn->fd, &event)) fail("epoll_ctl");
}

static void end(struct connection *conn) {
    SSL_shutdown(conn->ssl);
    SSL_free(conn->ssl);
    close(conn->fd);
}

/* True if the call is to be made again when there is an event. */
static bool waits(struct connection *conn, int result) {
    int why = SSL_get_error(conn->ssl, result);
    if (why == SSL_ERROR_WANT_READ || why == SSL_ERROR_WANT_WRITE) return true;
    fprintf(stderr, "TLS failed in state %d: %d, %s\n", conn->state, why, strerror(errno));
    exit(1);
}

static void go_on(struct connection *conn) {
    int result;
    for (;;) {
        switch (conn->state) {
        case SHAKING:
            if ((result = SSL_connect(conn->ssl)) != 1) {
                waits(conn, result);
                return;
            }
            if (is_resumed && conn->is_warm && !SSL_session_reused(conn->ssl)) {
                fprintf(stderr, "the session was not resumed\n");
                exit(1);
            }
            conn->state = SENDING;
            shaken++;
            break;
        case SENDING:
            if ((result = SSL_write(conn->ssl, message, is_download ? 1 : SIZE)) <= 0) {
                waits(conn, result);
                return;
            }
            conn->state = RECEIVING;
            conn->got = 0;
            break;
        case RECEIVING:
            if ((result = SSL_read(conn->ssl, answer, is_download ? sizeof answer : SIZE - conn->got)) <= 0) {
                waits(conn, result);
                return;
            }
            if (is_download) {
                operations += result / 1e6;
                break;
            }
            if (memcmp(answer, message + conn->got, result)) fail("a wrong answer");
            conn->got += result;
            if (conn->got < SIZE) break;
            operations++;
            if (is_idle) {
                conn->state = RESTING;
                resting++;
            } else if (is_echo) {
                conn->state = SENDING;
            } else {
                end(conn);
                conn->is_warm = is_resumed && session != NULL;
                begin(conn);
            }
            break;
        case RESTING:
            SSL_read(conn->ssl, answer, 1); /* tickets */
            return;
        }
    }
}

int main(int count, char **words) {
    if (count != 8) {
        fprintf(stderr, "usage: tls_load HOST PORT MODE CONNECTIONS SECONDS WARMUP PID\n");
        return 2;
    }
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    address.sin_family = AF_INET;
    address.sin_port = htons(atoi(words[2]));
    inet_pton(AF_INET, words[1], &address.sin_addr);
    is_echo = !strcmp(words[3], "echo");
    is_resumed = !strcmp(words[3], "resumed");
    is_short = is_resumed || !strcmp(words[3], "full");
    is_idle = !strcmp(words[3], "idle");
    is_download = !strcmp(words[3], "download");
    int connections = atoi(words[4]);
    double measured = atof(words[5]), warmup = atof(words[6]);
    clockid_t server;
    if (clock_getcpuclockid(atoi(words[7]), &server)) fail("the server's clock");
    for (int index = 0; index < SIZE; index++) message[index] = 'a' + index % 26;
    context = SSL_CTX_new(TLS_client_method());
    SSL_CTX_set_mode(context, SSL_MODE_RELEASE_BUFFERS);
    if (is_resumed) {
        SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
        SSL_CTX_sess_set_new_cb(context, keep);
    }
    set = epoll_create1(EPOLL_CLOEXEC);
    struct connection *all = calloc(connections, sizeof *all);
    struct epoll_event events[MOST_EVENTS];
    double start = seconds_of(CLOCK_MONOTONIC), from = start + warmup, now = start, cpu = 0, before = 0, began = 0;
    int begun = 0;
    bool is_measuring = false;
    while (!is_measuring || is_idle || now < from + measured) {
        /* Not all at once: what handshakes take for a while would be counted as memory of idle connections. */
        while (begun < connections && begun < shaken + AT_ONCE) begin(&all[begun++]);
        int found = epoll_wait(set, events, MOST_EVENTS, 10);
        for (int index = 0; index < found; index++) go_on(events[index].data.ptr);
        now = seconds_of(CLOCK_MONOTONIC);
        if (!is_measuring && now >= from && begun == connections) {
            is_measuring = true;
            began = from = now;
            before = operations;
            cpu = seconds_of(server);
        }
        if (is_idle && resting == connections) {
            printf("ready\n");
            fflush(stdout);
            while (read(0, answer, sizeof answer) > 0) {}
            break;
        }
    }
    cpu = seconds_of(server) - cpu;
    printf("{\"operations\": %.3f, \"seconds\": %.6f, \"server_seconds\": %.6f}\n", operations - before, now - began, cpu);
    return 0;
}
