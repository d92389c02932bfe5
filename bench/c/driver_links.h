/* Of driver.c: questions under way, connections, and the book of what came of them. */
#ifndef DRIVER_LINKS_H
#define DRIVER_LINKS_H

#include "driver_load.h"

/* Questions under way, in the order they were due ----------------------------------------- */

struct ask {
    double due, sent;
    uint32_t question;
    int32_t connection; /* -1: not sent yet */
    uint32_t slot;
    bool done;
};

static struct ask *asks;
static uint64_t ask_room, head, unsent, tail;
#define ASK(number) (asks[(number) & (ask_room - 1)])

static void make_ask(double due, uint32_t question) {
    if (tail - head == ask_room) {
        struct ask *larger = room(2 * ask_room * sizeof *larger);
        for (uint64_t i = head; i < tail; i++) larger[i & (2 * ask_room - 1)] = ASK(i);
        free(asks);
        asks = larger;
        ask_room *= 2;
    }
    ASK(tail++) = (struct ask){.due = due, .question = question, .connection = -1};
}

/* Connections ----------------------------------------------------------------------------- */

struct slot {
    uint64_t ask;
    uint32_t id;
    bool taken;
};

struct connection {
    int socket;
    enum state state;
    double retry_at;
    bool queued, dirty, writing;
    uint32_t free_count, next_id;
    uint32_t *free_slots;
    struct slot *slots;
    uint64_t *line; /* http: asks in the order they were sent */
    uint32_t line_at, line_count;
    uint8_t *in, *out;
    size_t in_size, in_room, out_size, out_sent, out_room;
};

static struct connection *connections;
static uint32_t connection_count, pipeline;
static uint32_t *ready_ring, ready_at, ready_count; /* connections with free places, in turn */
static uint32_t *dirty_list, dirty_count;
static uint32_t opened_count;
static enum front front;
static int poll_fd, timer_fd;
static struct sockaddr_storage address;
static socklen_t address_size;
static uint8_t *greeting;
static size_t greeting_size;
static char fault_text[128] = "no connection in time";

/* The book ---------------------------------------------------------------------------------- */

static struct histogram latencies[KINDS], lateness, refusals;
static uint64_t right[KINDS], refused, failed, wrong, scheduled, reconnects, octets;
static uint64_t from_source[KINDS][3];
static const char *source_names[3] = {"cache", "store", "stale"};
static struct {
    char code[CODE_OCTETS];
    uint64_t count;
} codes[CODES_MAX];
static char first_wrong[WRONG_KEPT][256];
static uint32_t wrong_kept;
static uint64_t (*seconds)[5];
static uint32_t seconds_room, seconds_used;
static double start_at, measured, end_at, timeout_s, patience_s;

static uint64_t *second_of(double now) {
    double at = now - measured;
    uint32_t index = at < 0 ? 0 : (uint32_t)at;
    if (index >= seconds_room) index = seconds_room - 1;
    if (index >= seconds_used) seconds_used = index + 1;
    return seconds[index];
}

static void longest(uint64_t *second, double waited) {
    uint64_t us = (uint64_t)(waited * 1e6);
    if (us > second[4]) second[4] = us;
}

static void note_failure(const char *code) {
    failed++;
    uint32_t i = 0;
    while (i < CODES_MAX - 1 && codes[i].count && strcmp(codes[i].code, code)) i++;
    if (!codes[i].count)
        snprintf(codes[i].code, CODE_OCTETS, "%s", i == CODES_MAX - 1 ? "other" : code);
    codes[i].count++;
}

static void note_wrong(const struct question *q, const char *why) {
    wrong++;
    if (wrong_kept == WRONG_KEPT) return;
    /* The name stands in the question: print what of it can be printed. */
    char shown[160];
    size_t size = 0;
    for (uint32_t i = 0; i < q->size && size < sizeof shown - 1; i++) {
        uint8_t c = q->octets[i];
        if (c == '\r') break;
        if (c >= 32 && c < 127 && c != '"' && c != '\\') shown[size++] = (char)c;
    }
    shown[size] = 0;
    snprintf(first_wrong[wrong_kept++], sizeof first_wrong[0], "%s: %s", shown, why);
}

static void push_ready(uint32_t which) {
    struct connection *c = &connections[which];
    if (c->queued || !c->free_count || c->state != OPEN) return;
    c->queued = true;
    ready_ring[(ready_at + ready_count++) % connection_count] = which;
}

static void release(struct connection *c, uint32_t slot) {
    c->slots[slot].taken = false;
    c->free_slots[c->free_count++] = slot;
    push_ready((uint32_t)(c - connections));
}

/* Of an answer: RECORD "", ABSENT, or another code. */
static void settle(uint64_t number, const char *code, const uint8_t *body, size_t size,
                   int source, double now) {
    struct ask *ask = &ASK(number);
    if (ask->done) return;
    ask->done = true;
    const struct question *q = &questions[ask->question];
    bool counted = ask->due >= measured;
    bool record = !*code, absent = !strcmp(code, "identifier-not-found");
    const char *why = NULL;
    if (q->kind == KIND_UNKNOWN ? record : absent)
        why = record ? "is not registered, and was found" : "is registered, and was not found";
    else if (record && q->needle_size && !memmem(body, size, q->needle, q->needle_size))
        why = "has another answer";
    if (why) note_wrong(q, why);
    if (!counted) return;
    uint64_t *second = second_of(now);
    longest(second, now - ask->due);
    if (why) {
        second[3]++;
    } else if (record || absent) {
        second[0]++;
        right[q->kind]++;
        octets += size;
        add_us(&latencies[q->kind], now - ask->due);
        if (source >= 0 && source < 3) from_source[q->kind][source]++;
    } else if (!strcmp(code, "over-capacity") || !strcmp(code, "too-many-requests")) {
        second[1]++;
        refused++;
        add_us(&refusals, now - ask->sent);
    } else {
        second[2]++;
        note_failure(code);
    }
}

static void lose(uint64_t number, const char *code, double now, bool waited) {
    struct ask *ask = &ASK(number);
    if (ask->done) return;
    ask->done = true;
    if (ask->due < measured) return;
    uint64_t *second = second_of(now);
    second[2]++;
    note_failure(code);
    if (waited) {
        longest(second, now - ask->due);
        add_us(&latencies[questions[ask->question].kind], now - ask->due);
    }
}

static void drop(struct connection *c, const char *code, double now) {
    if (c->state == CLOSED) return;
    if (c->state == OPEN) opened_count--;
    if (c->socket >= 0) close(c->socket);
    c->socket = -1;
    c->state = CLOSED;
    c->retry_at = now + RETRY_S;
    reconnects++;
    for (uint32_t i = 0; i < c->line_count; i++)
        lose(c->line[(c->line_at + i) % pipeline], code, now, false);
    c->line_count = 0;
    for (uint32_t i = 0; i < pipeline; i++) {
        if (c->slots[i].taken) lose(c->slots[i].ask, code, now, false);
        c->slots[i].taken = false;
    }
}

static void watch(struct connection *c, uint32_t events, int how) {
    struct epoll_event event = {.events = events, .data.u32 = (uint32_t)(c - connections)};
    if (epoll_ctl(poll_fd, how, c->socket, &event)) die("epoll: %s", strerror(errno));
}

static void flush(struct connection *c, double now) {
    while (c->out_sent < c->out_size) {
        ssize_t sent = send(c->socket, c->out + c->out_sent, c->out_size - c->out_sent,
                            MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno == EAGAIN) {
                if (!c->writing) watch(c, EPOLLIN | EPOLLOUT, EPOLL_CTL_MOD);
                c->writing = true;
                return;
            }
            if (errno == EINTR) continue;
            drop(c, "lost", now);
            return;
        }
        c->out_sent += (size_t)sent;
    }
    c->out_sent = c->out_size = 0;
    if (c->writing) watch(c, EPOLLIN, EPOLL_CTL_MOD);
    c->writing = false;
}

static void queue_out(struct connection *c, const uint8_t *data, size_t size) {
    if (c->out_size + size > c->out_room) {
        c->out_room = 2 * (c->out_size + size);
        c->out = realloc(c->out, c->out_room);
        if (!c->out) die("no memory");
    }
    memcpy(c->out + c->out_size, data, size);
    c->out_size += size;
}

static void begin(struct connection *c, double now) {
    c->line_at = c->line_count = 0;
    c->in_size = c->out_size = c->out_sent = 0;
    c->writing = false;
    c->free_count = 0;
    for (uint32_t i = pipeline; i-- > 0;) {
        c->slots[i].taken = false;
        c->free_slots[c->free_count++] = i;
    }
    if (greeting_size) {
        c->state = GREETING;
        queue_out(c, greeting, greeting_size);
        flush(c, now);
    } else {
        c->state = OPEN;
        opened_count++;
        push_ready((uint32_t)(c - connections));
    }
}

static void connect_one(struct connection *c, double now) {
    int type = front == HDL_UDP ? SOCK_DGRAM : SOCK_STREAM;
    c->socket = socket(address.ss_family, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->socket < 0) die("socket: %s", strerror(errno));
    int one = 1, large = 4 << 20;
    if (type == SOCK_DGRAM)
        setsockopt(c->socket, SOL_SOCKET, SO_RCVBUF, &large, sizeof large);
    else if (address.ss_family != AF_UNIX)
        setsockopt(c->socket, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    c->state = CONNECTING;
    if (connect(c->socket, (struct sockaddr *)&address, address_size) == 0) {
        watch(c, EPOLLIN, EPOLL_CTL_ADD);
        begin(c, now);
    } else if (errno == EINPROGRESS) {
        watch(c, EPOLLIN | EPOLLOUT, EPOLL_CTL_ADD);
        c->writing = true;
    } else {
        snprintf(fault_text, sizeof fault_text, "%s", strerror(errno));
        drop(c, "lost", now);
    }
}

#endif
