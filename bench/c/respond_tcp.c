/* The limit of a TCP server on one core: epoll, whole frames found, one fixed reply each.
 *
 *   respond_tcp --frame native|handle --reply-octets N [--port P]
 *
 * It parses the framing of what is asked, so that split and pipelined requests count as they are,
 * and echoes the request's id; nothing is looked up. Listens on 127.0.0.1; prints its port. Ends
 * with its parent. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>

#include "measure.h"

#define CONNECTIONS_MAX 4096
#define ASKED_OCTETS (64 << 10)
#define UNSENT_OCTETS (1 << 20)

struct connection {
    int socket, writing;
    size_t asked, unsent, sent;
    uint8_t in[ASKED_OCTETS], out[UNSENT_OCTETS];
};

static struct connection *connections[CONNECTIONS_MAX];
static uint8_t reply[65536];
static size_t reply_octets;
static enum frame frame;

/* 0 when the connection is over. */
static int flush(struct connection *c) {
    while (c->sent < c->unsent) {
        ssize_t some = send(c->socket, c->out + c->sent, c->unsent - c->sent, MSG_NOSIGNAL);
        if (some < 0) return errno == EAGAIN || errno == EINTR;
        c->sent += (size_t)some;
    }
    c->sent = c->unsent = 0;
    return 1;
}

static int answer(struct connection *c) {
    ssize_t some = recv(c->socket, c->in + c->asked, ASKED_OCTETS - c->asked, 0);
    if (some <= 0) return some < 0 && (errno == EAGAIN || errno == EINTR);
    c->asked += (size_t)some;
    size_t at = 0;
    ssize_t octets;
    while ((octets = frame_octets(frame, c->in + at, c->asked - at)) > 0) {
        if (c->unsent + reply_octets > UNSENT_OCTETS) return 0; /* it does not read */
        memcpy(c->out + c->unsent, reply, reply_octets);
        frame_set_id(frame, c->out + c->unsent, frame_id(frame, c->in + at));
        c->unsent += reply_octets;
        at += (size_t)octets;
    }
    if (octets < 0 || (at == 0 && c->asked == ASKED_OCTETS)) return 0;
    memmove(c->in, c->in + at, c->asked - at);
    c->asked -= at;
    return flush(c);
}

int main(int argc, char **argv) {
    frame = frame_named(option(argc, argv, "--frame", NULL));
    if (frame != NATIVE && frame != HANDLE) die("--frame: native or handle");
    reply_octets = (size_t)number(argc, argv, "--reply-octets", NULL, 1, sizeof reply);
    if (!frame_fill(frame, reply, reply_octets)) die("--reply-octets is too small");
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((uint16_t)number(argc, argv, "--port", "0", 0, 65535)),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&address, size) < 0 || listen(listener, 1024) < 0)
        die("cannot listen: %s", strerror(errno));
    getsockname(listener, (struct sockaddr *)&address, &size);
    printf("{\"port\": %d}\n", ntohs(address.sin_port));
    fflush(stdout);

    int poll = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener}, events[256];
    epoll_ctl(poll, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int ready = epoll_wait(poll, events, 256, -1);
        for (int i = 0; i < ready; i++) {
            int fd = events[i].data.fd;
            if (fd == listener) {
                int peer = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
                if (peer < 0) continue;
                if (peer >= CONNECTIONS_MAX || !(connections[peer] = malloc(sizeof(struct connection)))) {
                    close(peer);
                    continue;
                }
                struct connection *c = connections[peer];
                c->socket = peer;
                c->asked = c->unsent = c->sent = 0;
                c->writing = 0;
                setsockopt(peer, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                event = (struct epoll_event){.events = EPOLLIN, .data.fd = peer};
                epoll_ctl(poll, EPOLL_CTL_ADD, peer, &event);
                continue;
            }
            struct connection *c = connections[fd];
            int open = 1;
            if (events[i].events & EPOLLOUT) open = flush(c);
            if (open && events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) open = answer(c);
            if (!open) {
                close(fd);
                free(c);
                connections[fd] = NULL;
            } else if (c->writing != (c->unsent > 0)) {
                c->writing = c->unsent > 0;
                event = (struct epoll_event){.events = EPOLLIN | (c->writing ? EPOLLOUT : 0u),
                                             .data.fd = fd};
                epoll_ctl(poll, EPOLL_CTL_MOD, fd, &event);
            }
        }
    }
}
