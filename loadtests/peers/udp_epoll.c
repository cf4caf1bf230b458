/*
 * A bare loop on datagrams: edge-triggered epoll, recvmmsg with UDP_GRO, sendto. What it costs at the least.
 *
 *     udp_epoll --bind HOST:PORT [--mode echo|sink]
 *
 * The modes are those of the other peers (udp_load.c).
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#define READS 16
#define SLOT 65536
#ifndef UDP_GRO
#define UDP_GRO 104
#endif

static char slots[READS][SLOT];
static long long longs;
static bool is_sink;

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static void serve(int fd, struct msghdr *head, size_t size) {
    char answer[32];
    int each = 0;
    if (!is_sink) {
        sendto(fd, head->msg_iov->iov_base, size, 0, head->msg_name, head->msg_namelen);
        return;
    }
    if (size == 1) {
        sendto(fd, answer, sprintf(answer, "%lld", longs), 0, head->msg_name, head->msg_namelen);
        return;
    }
    for (struct cmsghdr *extra = CMSG_FIRSTHDR(head); extra; extra = CMSG_NXTHDR(head, extra))
        if (extra->cmsg_level == IPPROTO_UDP && extra->cmsg_type == UDP_GRO) memcpy(&each, CMSG_DATA(extra), sizeof each);
    longs += each ? (size + each - 1) / each : 1;
}

int main(int argc, char **argv) {
    struct sockaddr_in address = {.sin_family = AF_INET}, peers[READS];
    union { char room[CMSG_SPACE(sizeof(int))]; struct cmsghdr align; } extras[READS];
    struct mmsghdr heads[READS];
    struct iovec places[READS];
    socklen_t length = sizeof address;
    char *port = NULL, text[INET_ADDRSTRLEN];
    int one = 1, much = 1 << 20, count;
    for (int each = 1; each + 1 < argc; each += 2)
        if (!strcmp(argv[each], "--bind")) {
            port = strrchr(argv[each + 1], ':');
            if (!port) break;
            *port++ = 0;
            if (inet_pton(AF_INET, argv[each + 1], &address.sin_addr) != 1) port = NULL;
        } else if (!strcmp(argv[each], "--mode")) is_sink = !strcmp(argv[each + 1], "sink");
    if (!port) {
        fprintf(stderr, "usage: udp_epoll --bind HOST:PORT [--mode echo|sink]\n");
        return 2;
    }
    address.sin_port = htons(atoi(port));
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0), set = epoll_create1(0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address)) fail("bind");
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &much, sizeof much);
    setsockopt(fd, IPPROTO_UDP, UDP_GRO, &one, sizeof one);
    struct epoll_event event = {.events = EPOLLIN | EPOLLET};
    if (epoll_ctl(set, EPOLL_CTL_ADD, fd, &event)) fail("epoll_ctl");
    getsockname(fd, (struct sockaddr *)&address, &length);
    printf("listening on %s:%d\n", inet_ntop(AF_INET, &address.sin_addr, text, sizeof text), ntohs(address.sin_port));
    fflush(stdout);
    for (;;) {
        if (epoll_wait(set, &event, 1, -1) < 0 && errno != EINTR) fail("epoll_wait");
        do {
            for (int each = 0; each < READS; each++) {
                places[each] = (struct iovec){slots[each], SLOT};
                heads[each].msg_hdr = (struct msghdr){.msg_name = &peers[each], .msg_namelen = sizeof peers[each],
                    .msg_iov = &places[each], .msg_iovlen = 1, .msg_control = &extras[each],
                    .msg_controllen = sizeof extras[each]};
            }
            count = recvmmsg(fd, heads, READS, 0, NULL);
            for (int each = 0; each < count; each++) serve(fd, &heads[each].msg_hdr, heads[each].msg_len);
        } while (count == READS);
    }
}
