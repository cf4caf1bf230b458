/*
 * The bare loop that TLS servers are compared with: epoll, edge-triggered, OpenSSL on the descriptor.
 *
 *     tls_epoll --bind HOST:PORT --mode echo|download --cert FILE --key FILE [--size BYTES]
 *
 * echo answers with the same bytes; download answers the first byte with SIZE bytes over and over until the client
 * leaves.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/ssl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define EVENTS (EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET)

struct connection {
    int fd;
    SSL *ssl;
    bool is_open, is_download;
    int left; /* of what is being echoed: it is in the buffer again when it is written again */
    char *kept;
};

static char buffer[1 << 16];
static int set, size = 65536;
static bool download;

static void end(struct connection *conn) {
    SSL_shutdown(conn->ssl);
    SSL_free(conn->ssl);
    close(conn->fd);
    free(conn->kept);
    free(conn);
}

static bool is_over(struct connection *conn, int result) {
    int why = SSL_get_error(conn->ssl, result);
    return why != SSL_ERROR_WANT_READ && why != SSL_ERROR_WANT_WRITE;
}

static void serve(struct connection *conn) {
    int result;
    if (!conn->is_open) {
        if ((result = SSL_accept(conn->ssl)) != 1) {
            if (is_over(conn, result)) end(conn);
            return;
        }
        conn->is_open = true;
    }
    if (conn->is_download) {
        for (int turns = 0; turns < 64; turns++) {
            if ((result = SSL_write(conn->ssl, buffer, size)) > 0) continue;
            if (is_over(conn, result)) end(conn);
            return;
        }
        /* Others first: it is writable still, and only a change of its events has the kernel tell so. */
        struct epoll_event event = {.events = EVENTS, .data.ptr = conn};
        epoll_ctl(set, EPOLL_CTL_MOD, conn->fd, &event);
        return;
    }
    for (;;) {
        if ((result = SSL_read(conn->ssl, buffer, sizeof buffer)) <= 0) {
            if (is_over(conn, result)) end(conn);
            return;
        }
        if (download) {
            conn->is_download = true;
            serve(conn);
            return;
        }
        if ((result = SSL_write(conn->ssl, buffer, result)) <= 0) { /* 64 bytes always fit */
            end(conn);
            return;
        }
    }
}

int main(int count, char **words) {
    static struct option options[] = {{"bind", 1, 0, 'b'}, {"mode", 1, 0, 'm'}, {"cert", 1, 0, 'c'}, {"key", 1, 0, 'k'},
                                      {"size", 1, 0, 's'}, {"recv", 1, 0, 'r'}, {0, 0, 0, 0}};
    const char *cert = "", *key = "";
    int letter, one = 1;
    while ((letter = getopt_long(count, words, "", options, NULL)) != -1) {
        if (letter == 'm') download = !strcmp(optarg, "download");
        if (letter == 'c') cert = optarg;
        if (letter == 'k') key = optarg;
        if (letter == 's') size = atoi(optarg);
    }
    if ((size_t)size > sizeof buffer) size = sizeof buffer;
    signal(SIGPIPE, SIG_IGN);
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    SSL_CTX *context = SSL_CTX_new(TLS_server_method());
    SSL_CTX_set_mode(context, SSL_MODE_RELEASE_BUFFERS | SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    SSL_CTX_set_session_id_context(context, (const unsigned char *)"c", 1);
    if (SSL_CTX_use_certificate_chain_file(context, cert) != 1) return 1;
    if (SSL_CTX_use_PrivateKey_file(context, key, SSL_FILETYPE_PEM) != 1) return 1;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    setsockopt(listener, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096)) return 1;
    getsockname(listener, (struct sockaddr *)&address, &length);
    printf("listening on 127.0.0.1:%d\n", ntohs(address.sin_port));
    fflush(stdout);
    set = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL}, events[256];
    epoll_ctl(set, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int found = epoll_wait(set, events, 256, -1);
        for (int index = 0; index < found; index++) {
            if (events[index].data.ptr != NULL) {
                serve(events[index].data.ptr);
                continue;
            }
            int fd;
            while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
                struct connection *conn = calloc(1, sizeof *conn);
                conn->fd = fd;
                conn->ssl = SSL_new(context);
                SSL_set_fd(conn->ssl, fd);
                event.events = EVENTS;
                event.data.ptr = conn;
                epoll_ctl(set, EPOLL_CTL_ADD, fd, &event);
            }
        }
    }
}
