/* Load over TCP: C connections with up to D requests outstanding on each.
 *
 *   drive_tcp --frame native|handle|http|redis --port P [--host IPV4] --requests FILE [--needles FILE]
 *             [--hello FILE] [--connections C] [--depth D] [--once 1] [--rate R]
 *             [--first 1] [--reconnect 1] [--anew 1] [--warm-ms N] [--ms N] [--server-pids N,N]
 *
 * A closed loop: the next request leaves when a reply has come. With `--rate` an open one: they
 * leave R times a second, whatever the server does.
 *
 * Every reply is checked: its id is that of a request outstanding on its connection (where the
 * protocol has ids; elsewhere it is the oldest one's), it says success, and it holds the octets
 * of its request's needle. With `--once` every request is sent once, in order, and the run is
 * over when all are answered or the time is up. Prints one line of JSON; exit code 1 when a reply
 * was wrong, failed or never came.
 *
 * With `--reconnect` a connection that the server ends is made anew: what was outstanding on it is
 * counted as cut, and asked no more. Otherwise it is the end of the run.
 *
 * With `--anew` there is a connection for each request, of servers that end it after their answer;
 * connecting counts in the latency.
 *
 * The server's processor time is read at the two ends of the counted time, by the one who
 * measures, so that both are of the same span. */
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "measure.h"
#include "pace.h"
#include "server.h"

#define CONNECTIONS_MAX 4096
#define DEPTH_MAX 4096
#define IN_OCTETS (1 << 18)
#define DRAIN_NS (2 * NS)

struct asked {
    size_t which; /* NO_MORE: nothing is outstanding here */
    uint64_t sent_ns;
};

struct connection {
    int socket, writing, unflushed;
    int spent; /* has answered and is not asked again; 2: a new one is to follow */
    struct asked *slots;
    size_t oldest, newest; /* without ids: the replies come in this order, modulo the depth */
    uint8_t *in, *out;
    size_t in_size, out_size, out_sent, out_room;
    size_t needle_at;
};

static struct connection connections[CONNECTIONS_MAX];
static struct messages requests, needles;
static struct order order;
static struct run run;
static enum frame frame;
static long depth, outstanding;
static int poll_fd;
static struct pace pace;
static struct sockaddr_in server;
static struct messages hello;
static int reconnects, anew;

/* Room for requests, in an open loop. */
static struct room {
    struct connection *c;
    size_t slot;
} *rooms;
static size_t rooms_free;

static void ask(struct connection *c, size_t slot, uint64_t now) {
    size_t which = next_message(&order);
    c->slots[slot].which = which;
    if (which == NO_MORE) return;
    struct octets request = requests.each[which];
    if (c->out_size + request.size > c->out_room) {
        c->out_room = 2 * (c->out_size + request.size);
        c->out = realloc(c->out, c->out_room);
        if (c->out == NULL) die("no memory");
    }
    memcpy(c->out + c->out_size, request.at, request.size);
    if (frame_has_id(frame)) frame_set_id(frame, c->out + c->out_size, (uint32_t)slot + 1);
    c->out_size += request.size;
    c->slots[slot].sent_ns = now;
    c->newest++;
    outstanding++;
}

/* A connection that the server ended: made anew, or it is the end of the run. */
static void lose(struct connection *c, const char *why);

/* In place of a connection that has served its one request. */
static void renew(struct connection *c, uint64_t now);

static void flush(struct connection *c) {
    while (c->out_sent < c->out_size) {
        ssize_t some = send(c->socket, c->out + c->out_sent, c->out_size - c->out_sent, MSG_NOSIGNAL);
        if (some < 0 && (errno == EAGAIN || errno == EINTR)) break;
        if (some < 0) return lose(c, strerror(errno));
        c->out_sent += (size_t)some;
    }
    if (c->out_sent == c->out_size) c->out_sent = c->out_size = 0;
    int writing = c->out_size > 0;
    if (writing != c->writing) {
        struct epoll_event event = {.events = EPOLLIN | (writing ? EPOLLOUT : 0u), .data.ptr = c};
        epoll_ctl(poll_fd, EPOLL_CTL_MOD, c->socket, &event);
        c->writing = writing;
    }
}

/* The slot that a reply answers, or NO_MORE. */
static size_t slot_of(struct connection *c, const uint8_t *reply) {
    size_t slot = c->oldest % (size_t)depth;
    if (frame_has_id(frame)) {
        slot = (size_t)frame_id(frame, reply) - 1;
        if (slot >= (size_t)depth) return NO_MORE;
    } else if (c->oldest == c->newest) {
        return NO_MORE;
    }
    return c->slots[slot].which == NO_MORE ? NO_MORE : slot;
}

static void take(struct connection *c, const uint8_t *reply, size_t size, uint64_t now, int more) {
    size_t slot = slot_of(c, reply);
    if (slot == NO_MORE) {
        run.wrong++;
        return;
    }
    struct asked was = c->slots[slot];
    c->slots[slot].which = NO_MORE;
    c->oldest++;
    outstanding--;
    if (!frame_succeeded(frame, reply, size)) {
        if (run.errors++ == 0) show("failed", reply, size);
    } else if (needles.count && !holds(reply, size, needles.each[was.which], &c->needle_at)) {
        if (run.wrong++ == 0) show("wrong", reply, size);
    } else {
        note_reply(&run, was.sent_ns, now);
    }
    if (pace.mean_ns > 0)
        rooms[rooms_free++] = (struct room){c, slot};
    else if (anew)
        c->spent = 1 + !!more;
    else if (more)
        ask(c, slot, now);
}

/* Send what is due, as far as there is room. */
static void ask_due(uint64_t now) {
    static struct connection *asked[CONNECTIONS_MAX];
    size_t count = 0;
    while (rooms_free && is_due(&pace, now)) {
        struct room room = rooms[--rooms_free];
        ask(room.c, room.slot, take_due(&pace));
        if (!room.c->unflushed) asked[count++] = room.c;
        room.c->unflushed = 1;
    }
    while (count) {
        struct connection *c = asked[--count];
        c->unflushed = 0;
        flush(c);
    }
}

static void hear(struct connection *c, uint64_t now, int more) {
    ssize_t some = recv(c->socket, c->in + c->in_size, IN_OCTETS - c->in_size, 0);
    if (some < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (some <= 0) return lose(c, some ? strerror(errno) : "end of stream");
    c->in_size += (size_t)some;
    size_t at = 0;
    ssize_t octets;
    while ((octets = frame_octets(frame, c->in + at, c->in_size - at)) > 0) {
        take(c, c->in + at, (size_t)octets, now, more);
        at += (size_t)octets;
    }
    if (octets < 0 || (at == 0 && c->in_size == IN_OCTETS)) die("the stream cannot be followed");
    memmove(c->in, c->in + at, c->in_size - at);
    c->in_size -= at;
    if (c->spent) return renew(c, now);
    if (c->out_size) flush(c);
}

/* Connect, and say what has to be said first: its reply is waited for. */
static void meet(struct connection *c) {
    int one = 1;
    struct timeval patience = {.tv_sec = 10};
    /* One that is made anew connects while the others are served: what is sent waits for it. */
    c->socket = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | (anew ? SOCK_NONBLOCK : 0), 0);
    setsockopt(c->socket, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(c->socket, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    if (connect(c->socket, (const struct sockaddr *)&server, sizeof server) < 0 &&
        !(anew && errno == EINPROGRESS))
        die("cannot connect: %s", strerror(errno));
    setsockopt(c->socket, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    for (size_t i = 0; i < hello.count; i++) {
        if (send(c->socket, hello.each[i].at, hello.each[i].size, MSG_NOSIGNAL) < 0)
            die("no greeting: %s", strerror(errno));
        size_t size = 0;
        ssize_t octets = 0;
        while (octets == 0) {
            ssize_t some = recv(c->socket, c->in + size, IN_OCTETS - size, 0);
            if (some <= 0) die("the server does not greet");
            size += (size_t)some;
            octets = frame_octets(frame, c->in, size);
        }
        if (octets < 0 || !frame_succeeded(frame, c->in, (size_t)octets)) die("the greeting failed");
    }
    fcntl(c->socket, F_SETFL, O_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    epoll_ctl(poll_fd, EPOLL_CTL_ADD, c->socket, &event);
}

static void lose(struct connection *c, const char *why) {
    if (!reconnects) die("the server hung up: %s", why);
    close(c->socket);
    c->in_size = c->out_size = c->out_sent = 0;
    c->writing = 0;
    c->oldest = c->newest = 0;
    meet(c);
    uint64_t now = now_ns();
    for (long slot = 0; slot < depth; slot++) {
        if (c->slots[slot].which == NO_MORE) continue;
        c->slots[slot].which = NO_MORE;
        outstanding--;
        run.cut++;
        if (pace.mean_ns > 0)
            rooms[rooms_free++] = (struct room){c, (size_t)slot};
        else
            ask(c, (size_t)slot, now);
    }
    flush(c);
}

static void renew(struct connection *c, uint64_t now) {
    struct linger at_once = {.l_onoff = 1}; /* else the ports would run out */
    setsockopt(c->socket, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    close(c->socket);
    int follows = c->spent == 2;
    c->in_size = c->out_size = c->out_sent = 0;
    c->writing = c->spent = 0;
    c->oldest = c->newest = 0;
    c->socket = -1;
    if (!follows || (order.once && order.next == order.count)) return;
    meet(c);
    ask(c, 0, now);
    flush(c);
}

int main(int argc, char **argv) {
    frame = frame_named(option(argc, argv, "--frame", NULL));
    if (frame == FRAMES || frame == DNS) die("--frame: native, handle, http or redis");
    requests = read_messages(option(argc, argv, "--requests", NULL));
    needles = read_messages(option(argc, argv, "--needles", ""));
    hello = read_messages(option(argc, argv, "--hello", ""));
    long count = number(argc, argv, "--connections", "64", 1, CONNECTIONS_MAX);
    depth = number(argc, argv, "--depth", "1", 1, DEPTH_MAX);
    order = (struct order){requests.count, 0, (int)number(argc, argv, "--once", "0", 0, 1),
                           0x9e3779b97f4a7c15ull ^ now_ns()};
    if (requests.count == 0) die("there is nothing to ask");
    if (needles.count && needles.count != requests.count) die("as many needles as requests");
    server = server_address(argc, argv);
    reconnects = (int)number(argc, argv, "--reconnect", "0", 0, 1);
    anew = (int)number(argc, argv, "--anew", "0", 0, 1);
    if (anew && (depth > 1 || hello.count || number(argc, argv, "--rate", "0", 0, 100000000)))
        die("--anew: not with --depth, --hello or --rate");
    poll_fd = epoll_create1(EPOLL_CLOEXEC);
    for (long i = 0; i < count; i++) {
        connections[i].in = malloc(IN_OCTETS);
        connections[i].slots = malloc((size_t)depth * sizeof(struct asked));
        if (connections[i].in == NULL || connections[i].slots == NULL) die("no memory");
        for (long slot = 0; slot < depth; slot++) connections[i].slots[slot].which = NO_MORE;
        meet(&connections[i]);
    }

    start_run(&run, argc, argv);
    uint64_t now = now_ns(), last = 0;
    if (run.warm_ns == 0) begin_counting(&run, now);
    pace = start_pace(argc, argv, now);
    if (pace.mean_ns > 0 && (order.once || (depth > 1 && !frame_has_id(frame))))
        die("--rate: not with --once, and without ids not with a depth");
    rooms = malloc((size_t)(count * depth) * sizeof *rooms);
    if (rooms == NULL) die("no memory");
    for (long i = 0; i < count; i++) {
        for (long slot = 0; slot < depth; slot++)
            if (pace.mean_ns > 0)
                rooms[rooms_free++] = (struct room){&connections[i], (size_t)slot};
            else
                ask(&connections[i], (size_t)slot, now);
        flush(&connections[i]);
    }
    struct epoll_event events[256];
    int over = 0;
    while (!over || ((outstanding || is_due(&pace, now)) && now < last + DRAIN_NS)) {
        int paced = pace.mean_ns > 0 && !over && rooms_free;
        if (paced) wait_until_due(&pace, &run, poll_fd, now);
        int ready = epoll_wait(poll_fd, events, 256, paced ? 0 : 10);
        now = now_ns();
        if (!over && !run.counting && now >= run.counted_from) begin_counting(&run, now);
        if (!over && run.counting &&
            (now >= run.counted_to || (order.once && order.next == order.count && outstanding == 0))) {
            end_counting(&run, now);
            pace.until_ns = now;
            over = 1;
            last = now;
        }
        for (int i = 0; i < ready; i++) {
            struct connection *c = events[i].data.ptr;
            if (events[i].events & EPOLLOUT) flush(c);
            if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) hear(c, now, !over);
        }
        if (pace.mean_ns > 0) ask_due(now);
    }
    run.lost = (uint64_t)outstanding + count_unsent(&pace);
    print_run(&run);
    return run.errors || run.wrong || run.lost ? 1 : 0;
}
