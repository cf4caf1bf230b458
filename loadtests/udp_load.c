/*
 * The client side of the load tests of datagrams: one epoll loop.
 *
 *     udp_load HOST PORT MODE SOCKETS SECONDS WARMUP PID [MOST]
 *
 * MODE: echo, 64 bytes and their echo over and over, on so many sockets; sink, bursts of 1,200-byte datagrams that get
 * no answer, each cut by the kernel from two sends (UDP_SEGMENT), as QUIC's senders do it. Behind each burst goes one
 * datagram of a byte, which the server answers with how many long ones it got, in figures: then the next burst goes out,
 * so that none is lost for want of a buffer, and what is counted is what the program was given.
 *
 * With MOST it ends after so many datagrams, whatever the time.
 *
 * What does not come back within a fifth of a second is sent once more, and counted as lost.
 *
 * Output: one JSON object: datagrams, seconds, those that were lost, and the CPU seconds of the server and of this
 * program in the time that was measured. Exit: 0; 1 if it could not run (standard error says why).
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
#include <time.h>
#include <unistd.h>

#define SIZE 64
#define LONG 1200
#define EACH 44 /* datagrams that fit one send of 64 KiB, by a little less */
#define SENDS 2
#define PATIENCE 0.2
#define MOST_EVENTS 256
#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif

struct client {
    int fd;
    unsigned char sequence;
    double since;
};

static char message[SIZE], burst[LONG * EACH];
static struct client *clients;
static long long done, lost, sent;
static bool is_sink;

static void fail(const char *what) {
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

static double seconds_of(clockid_t id) {
    struct timespec now;
    if (clock_gettime(id, &now)) fail("clock");
    return now.tv_sec + now.tv_nsec * 1e-9;
}

/* An error of an earlier one is told here, too: nobody is there any more. */
static void send_one(struct client *client, const char *data, size_t size) {
    if (send(client->fd, data, size, 0) < 0 && errno != EAGAIN) fail("send");
    client->since = seconds_of(CLOCK_MONOTONIC);
}

static void send_burst(struct client *client) {
    for (int each = 0; each < SENDS; each++) {
        union { char room[CMSG_SPACE(sizeof(unsigned short))]; struct cmsghdr align; } extra;
        struct iovec place = {burst, sizeof burst};
        struct msghdr head = {.msg_iov = &place, .msg_iovlen = 1, .msg_control = &extra, .msg_controllen = sizeof extra};
        struct cmsghdr *cut = CMSG_FIRSTHDR(&head);
        unsigned short size = LONG;
        cut->cmsg_level = IPPROTO_UDP;
        cut->cmsg_type = UDP_SEGMENT;
        cut->cmsg_len = CMSG_LEN(sizeof size);
        memcpy(CMSG_DATA(cut), &size, sizeof size);
        if (sendmsg(client->fd, &head, 0) < 0) fail("sendmsg with UDP_SEGMENT");
        sent += EACH;
    }
    send_one(client, "?", 1);
}

static void begin(struct client *client) {
    if (is_sink) {
        send_burst(client);
        return;
    }
    message[0] = ++client->sequence;
    send_one(client, message, SIZE);
}

static void hear(struct client *client) {
    char answer[2 * SIZE];
    ssize_t count;
    while ((count = recv(client->fd, answer, sizeof answer - 1, 0)) >= 0) {
        if (is_sink) {
            answer[count] = 0;
            done = atoll(answer);
        } else {
            if (count != SIZE || memcmp(answer + 1, message + 1, SIZE - 1)) {
                errno = EPROTO;
                fail("a wrong echo");
            }
            if ((unsigned char)answer[0] != client->sequence) continue; /* late: it was sent once more meanwhile */
            done++;
        }
        begin(client);
    }
    if (errno != EAGAIN) fail("recv");
}

static void look_for_lost(int count) {
    double now = seconds_of(CLOCK_MONOTONIC);
    for (int each = 0; each < count; each++)
        if (now - clients[each].since > PATIENCE) {
            lost++;
            if (is_sink) send_one(&clients[each], "?", 1);
            else begin(&clients[each]);
        }
}

int main(int argc, char **argv) {
    struct epoll_event events[MOST_EVENTS];
    struct sockaddr_in address = {.sin_family = AF_INET};
    if (argc != 8 && argc != 9) {
        fprintf(stderr, "usage: udp_load HOST PORT echo|sink SOCKETS SECONDS WARMUP PID [MOST]\n");
        return 1;
    }
    address.sin_port = htons(atoi(argv[2]));
    if (inet_pton(AF_INET, argv[1], &address.sin_addr) != 1) fail(argv[1]);
    is_sink = !strcmp(argv[3], "sink");
    int count = atoi(argv[4]), set = epoll_create1(0);
    double seconds = atof(argv[5]), warmup = atof(argv[6]);
    clockid_t server = (~atoi(argv[7]) << 3) | 2;
    memset(message, 'x', sizeof message);
    memset(burst, 'x', sizeof burst);
    clients = calloc(count, sizeof *clients);
    if (!clients || set < 0) fail("begin");
    for (int each = 0; each < count; each++) {
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &clients[each]};
        clients[each].fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
        if (clients[each].fd < 0) fail("socket");
        if (connect(clients[each].fd, (struct sockaddr *)&address, sizeof address)) fail("connect");
        if (epoll_ctl(set, EPOLL_CTL_ADD, clients[each].fd, &event)) fail("epoll_ctl");
        begin(&clients[each]);
    }
    double start = seconds_of(CLOCK_MONOTONIC) + warmup, end = start + seconds, now, looked = 0, cpu = 0, own = 0;
    long long before = 0, before_lost = 0, most = argc == 9 ? atoll(argv[8]) : 0;
    bool is_warm = false;
    while ((now = seconds_of(CLOCK_MONOTONIC)) < end && (!most || done < most)) {
        if (!is_warm && now >= start) {
            is_warm = true;
            start = now;
            before = done;
            before_lost = lost;
            cpu = seconds_of(server);
            own = seconds_of(CLOCK_PROCESS_CPUTIME_ID);
        }
        int ready = epoll_wait(set, events, MOST_EVENTS, 10);
        for (int each = 0; each < ready; each++) hear(events[each].data.ptr);
        if (now - looked > PATIENCE / 4) {
            looked = now;
            look_for_lost(count);
        }
    }
    printf("{\"datagrams\": %lld, \"seconds\": %.6f, \"lost\": %lld, \"server_seconds\": %.9f, \"own_seconds\": %.9f}\n",
           done - before, now - start, is_sink ? sent - (long long)SENDS * EACH * count - done : lost - before_lost,
           seconds_of(server) - cpu, seconds_of(CLOCK_PROCESS_CPUTIME_ID) - own);
    return 0;
}
