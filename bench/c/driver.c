/* Open-loop load over TCP, Unix sockets and UDP: questions leave by a schedule read from a file,
 * whatever the server does, and count from the time they were due.
 *
 *   driver --front http|native|hdl-tcp|hdl-udp (--host ADDRESS --port P | --socket PATH)
 *          --questions FILE --schedule FILE [--greeting FILE] --connections C --pipeline D
 *          --warmup S --duration S --timeout S
 *
 * It speaks on its standard streams as worker.py does: `{"ready": true}` out, `{"start": T}` in
 * (CLOCK_MONOTONIC seconds), progress twice a second, one line with the key "book" at the end;
 * histograms are pairs of microseconds and counts. Every reply is checked: it answers a question
 * that is outstanding, says what was to be said, and holds the octets of that question's needle.
 *
 * Files, in the machine's own byte order. Questions: count u32, then for each: octets u32, octets
 * of the needle u32, kind u32, then both. Schedule: count u32, 0 u32, period f64, then for each:
 * offset f64, question u32, 0 u32. After the last arrival it begins anew, one period later. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define KINDS 4
#define KIND_UNKNOWN 2
#define SWEEP_S 0.02
#define PROGRESS_S 0.5
#define RETRY_S 0.05
#define CONNECT_S 15.0
#define IN_FIRST 65536
#define IN_MAX (16u << 20)
#define SLOT_BITS 12
#define CODES_MAX 32
#define CODE_OCTETS 48
#define WRONG_KEPT 20
#define DATAGRAM_MAX 2048
#define BATCH 32

enum front { HTTP, NATIVE, HDL_TCP, HDL_UDP };
enum state { CLOSED, CONNECTING, GREETING, OPEN };

static const char *kind_names[KINDS] = {"hit", "miss", "unknown", "auth"};

static void die(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    char text[512];
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    for (char *at = text; *at; at++)
        if (*at == '"' || *at == '\\' || (unsigned char)*at < 32) *at = ' ';
    printf("{\"fault\": \"%s\"}\n", text);
    fflush(stdout);
    exit(0);
}

static void *room(size_t octets) {
    void *found = calloc(1, octets ? octets : 1);
    if (!found) die("no memory");
    return found;
}

static double now_s(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static double cpu_s(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           1e-6 * (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
}

/* Histograms: three significant digits, microseconds to a minute ------------------------- */

#define SUB 2048u
#define HALF 1024u
#define HIGHEST_US 60000000u
#define CELLS (HALF * 18)

struct histogram {
    uint64_t cells[CELLS];
};

static void add_us(struct histogram *h, double seconds) {
    double us = seconds * 1e6;
    uint32_t value = us < 1 ? 1 : us > HIGHEST_US ? HIGHEST_US : (uint32_t)us;
    unsigned shift = value < SUB ? 0 : 32 - (unsigned)__builtin_clz(value) - 11;
    h->cells[value < SUB ? value : HALF * shift + (value >> shift)]++;
}

static void print_histogram(const char *name, const struct histogram *h) {
    printf("\"%s\": [", name);
    bool first = true;
    for (uint32_t cell = 0; cell < CELLS; cell++) {
        if (!h->cells[cell]) continue;
        uint64_t value = cell;
        if (cell >= SUB) {
            unsigned shift = cell / HALF - 1;
            value = (uint64_t)(cell - HALF * shift) << shift;
        }
        printf("%s[%llu, %llu]", first ? "" : ", ", (unsigned long long)value,
               (unsigned long long)h->cells[cell]);
        first = false;
    }
    printf("]");
}

/* What is asked, and when ----------------------------------------------------------------- */

struct question {
    const uint8_t *octets, *needle;
    uint32_t size, needle_size, kind;
};

struct arrival {
    double offset;
    uint32_t question, unused;
};

static struct question *questions;
static uint32_t question_count;
static struct arrival *arrivals;
static uint32_t arrival_count;
static double period;

static uint8_t *read_file(const char *path, size_t *size) {
    int file = open(path, O_RDONLY);
    struct stat facts;
    if (file < 0 || fstat(file, &facts)) die("%s: %s", path, strerror(errno));
    uint8_t *all = room((size_t)facts.st_size + 1);
    size_t got = 0;
    while (got < (size_t)facts.st_size) {
        ssize_t more = read(file, all + got, (size_t)facts.st_size - got);
        if (more <= 0) die("%s: cannot be read", path);
        got += (size_t)more;
    }
    close(file);
    *size = got;
    return all;
}

static void read_questions(const char *path) {
    size_t size, at = 4;
    uint8_t *all = read_file(path, &size);
    if (size < 4) die("%s: no questions", path);
    memcpy(&question_count, all, 4);
    questions = room((size_t)question_count * sizeof *questions);
    for (uint32_t i = 0; i < question_count; i++) {
        struct question *q = &questions[i];
        if (size - at < 12) die("%s: cut off", path);
        memcpy(&q->size, all + at, 4);
        memcpy(&q->needle_size, all + at + 4, 4);
        memcpy(&q->kind, all + at + 8, 4);
        at += 12;
        if (q->kind >= KINDS || size - at < (size_t)q->size + q->needle_size)
            die("%s: cut off", path);
        q->octets = all + at;
        q->needle = all + at + q->size;
        at += (size_t)q->size + q->needle_size;
    }
}

static void read_schedule(const char *path) {
    size_t size;
    uint8_t *all = read_file(path, &size);
    if (size < 16) die("%s: no schedule", path);
    memcpy(&arrival_count, all, 4);
    memcpy(&period, all + 8, 8);
    if (!arrival_count || size != 16 + (size_t)arrival_count * sizeof *arrivals)
        die("%s: cut off", path);
    arrivals = (struct arrival *)(all + 16);
    for (uint32_t i = 0; i < arrival_count; i++)
        if (arrivals[i].question >= question_count) die("%s: no such question", path);
}

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
static double start_at, measured, end_at, timeout_s;

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

/* Answers ------------------------------------------------------------------------------------ */

static uint32_t u32_at(const uint8_t *at) {
    return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

static void set_u32(uint8_t *at, uint32_t value) {
    at[0] = (uint8_t)(value >> 24);
    at[1] = (uint8_t)(value >> 16);
    at[2] = (uint8_t)(value >> 8);
    at[3] = (uint8_t)value;
}

static void copy_code(char *code, const uint8_t *from, size_t size) {
    size_t at = 0;
    while (at < size && at < CODE_OCTETS - 1 &&
           ((from[at] >= 'a' && from[at] <= 'z') || (from[at] >= '0' && from[at] <= '9') ||
            from[at] == '-')) {
        code[at] = (char)from[at];
        at++;
    }
    code[at] = 0;
    if (!at) strcpy(code, "unreadable");
}

static void by_id(struct connection *c, uint32_t id, const char *code, const uint8_t *body,
                  size_t size, int source, double now) {
    uint32_t slot = id & ((1u << SLOT_BITS) - 1);
    if (slot >= pipeline || !c->slots[slot].taken || c->slots[slot].id != id) return; /* late */
    uint64_t number = c->slots[slot].ask;
    release(c, slot);
    settle(number, code, body, size, source, now);
}

static bool handle_message(struct connection *c, const uint8_t *at, size_t size, double now) {
    char code[CODE_OCTETS] = "";
    uint32_t answer = u32_at(at + 24);
    if (front == HDL_UDP && u32_at(at + 16) != size - 20)
        return true; /* a fragment: answers that long are asked for over TCP */
    if (front == HDL_UDP && at[2] & 0x20)
        strcpy(code, "cut");
    else if (answer == 100)
        strcpy(code, "identifier-not-found");
    else if (answer == 3)
        strcpy(code, "over-capacity");
    else if (answer != 1)
        snprintf(code, sizeof code, "handle-%u", answer);
    by_id(c, u32_at(at + 8), code, at + 44, size - 44, -1, now);
    return true;
}

static size_t take_handle(struct connection *c, double now) {
    size_t at = 0;
    while (c->in_size - at >= 44) {
        size_t size = 20 + (size_t)u32_at(c->in + at + 16);
        if (size < 44 || size > IN_MAX) return SIZE_MAX;
        if (c->in_size - at < size) break;
        handle_message(c, c->in + at, size, now);
        if (c->state == CLOSED) return 0;
        at += size;
    }
    return at;
}

static size_t take_native(struct connection *c, double now) {
    size_t at = 0;
    while (c->in_size - at >= 9) {
        const uint8_t *frame = c->in + at;
        size_t size = 4 + (size_t)u32_at(frame);
        if (size < 10 || size > IN_MAX) return SIZE_MAX;
        if (c->in_size - at < size) break;
        uint32_t id = u32_at(frame + 4);
        const uint8_t *body = frame + 9;
        size_t body_size = size - 9;
        char code[CODE_OCTETS] = "";
        if (frame[8] != 0x81) {
            /* An error is an array whose first element is the code, a string. */
            if (body_size > 3 && (body[1] & 0xe0) == 0xa0)
                copy_code(code, body + 2, body[1] & 0x1f);
            else if (body_size > 3 && body[1] == 0xd9)
                copy_code(code, body + 3, body[2] < body_size - 3 ? body[2] : 0);
            else
                strcpy(code, "unreadable");
        }
        if (c->state == GREETING) {
            if (*code) {
                snprintf(fault_text, sizeof fault_text, "%s", code);
                return SIZE_MAX;
            }
            c->state = OPEN;
            opened_count++;
            push_ready((uint32_t)(c - connections));
        } else {
            by_id(c, id, code, body, body_size, !*code && body_size > 11 ? body[11] : -1, now);
        }
        if (c->state == CLOSED) return 0;
        at += size;
    }
    return at;
}

static size_t take_http(struct connection *c, double now) {
    size_t at = 0;
    while (at < c->in_size) {
        const uint8_t *start = c->in + at;
        const uint8_t *end = memmem(start, c->in_size - at, "\r\n\r\n", 4);
        if (!end) break;
        if (end - start < 13 || memcmp(start, "HTTP/1.1 ", 9)) return SIZE_MAX;
        size_t head = (size_t)(end - start);
        const uint8_t *length = NULL;
        int source = -1;
        for (const uint8_t *line = start; line && line < end;) {
            if (!strncasecmp((const char *)line, "content-length: ", 16)) length = line + 16;
            if (!strncasecmp((const char *)line, "biaojie-source: ", 16))
                source = !memcmp(line + 16, "cac", 3) ? 0 : !memcmp(line + 16, "sto", 3) ? 1 : 2;
            line = memchr(line, '\n', (size_t)(end - line));
            if (line) line++;
        }
        if (!length) return SIZE_MAX;
        unsigned long body_size = strtoul((const char *)length, NULL, 10);
        if (body_size > IN_MAX) return SIZE_MAX;
        if (c->in_size - at < head + 4 + body_size) break;
        const uint8_t *body = end + 4;
        char code[CODE_OCTETS] = "";
        if (memcmp(start + 9, "200", 3)) {
            const uint8_t *named = memmem(body, body_size, "\"code\":\"", 8);
            if (named)
                copy_code(code, named + 8, body_size - (size_t)(named + 8 - body));
            else
                strcpy(code, "unreadable");
        }
        if (!c->line_count) return SIZE_MAX;
        uint64_t number = c->line[c->line_at];
        c->line_at = (c->line_at + 1) % pipeline;
        c->line_count--;
        release(c, ASK(number).slot);
        settle(number, code, body, body_size, source, now);
        at += head + 4 + body_size;
    }
    return at;
}

static void readable_stream(struct connection *c) {
    for (;;) {
        if (c->in_room - c->in_size < 4096) {
            if (c->in_room >= IN_MAX) {
                drop(c, "unreadable", now_s());
                return;
            }
            c->in_room *= 2;
            c->in = realloc(c->in, c->in_room + 1);
            if (!c->in) die("no memory");
        }
        size_t asked = c->in_room - c->in_size;
        ssize_t got = recv(c->socket, c->in + c->in_size, asked, 0);
        double now = now_s();
        if (got < 0 && errno == EAGAIN) return;
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) {
            drop(c, "lost", now);
            return;
        }
        c->in_size += (size_t)got;
        c->in[c->in_size] = 0;
        size_t taken = front == HTTP     ? take_http(c, now)
                       : front == NATIVE ? take_native(c, now)
                                         : take_handle(c, now);
        if (taken == SIZE_MAX) {
            drop(c, "unreadable", now);
            return;
        }
        if (c->state == CLOSED) return;
        memmove(c->in, c->in + taken, c->in_size - taken);
        c->in_size -= taken;
        if ((size_t)got < asked) return;
    }
}

static void readable_datagrams(struct connection *c) {
    static uint8_t packets[BATCH][DATAGRAM_MAX];
    static struct iovec vectors[BATCH];
    static struct mmsghdr messages[BATCH];
    for (int i = 0; i < BATCH; i++) {
        vectors[i] = (struct iovec){packets[i], DATAGRAM_MAX};
        messages[i].msg_hdr = (struct msghdr){.msg_iov = &vectors[i], .msg_iovlen = 1};
    }
    for (;;) {
        int got = recvmmsg(c->socket, messages, BATCH, MSG_DONTWAIT, NULL);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return; /* also when nobody listens there: the questions run out of time */
        double now = now_s();
        for (int i = 0; i < got; i++)
            if (messages[i].msg_len >= 44)
                handle_message(c, packets[i], messages[i].msg_len, now);
        if (got < BATCH) return;
    }
}

/* Asking ------------------------------------------------------------------------------------- */

static void put(struct connection *c, uint64_t number, double now) {
    struct ask *ask = &ASK(number);
    const struct question *q = &questions[ask->question];
    uint32_t slot = c->free_slots[--c->free_count];
    uint32_t id = (c->next_id++ % 0x7ffffu + 1) << SLOT_BITS | slot;
    id &= 0x7fffffffu;
    c->slots[slot] = (struct slot){.ask = number, .id = id, .taken = true};
    ask->connection = (int32_t)(c - connections);
    ask->slot = slot;
    ask->sent = now;
    if (front == HDL_UDP) {
        uint8_t packet[DATAGRAM_MAX];
        memcpy(packet, q->octets, q->size);
        set_u32(packet + 8, id);
        /* What the socket does not take is lost, and found to be so. */
        if (send(c->socket, packet, q->size, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 && errno == EBADF)
            die("send: %s", strerror(errno));
        return;
    }
    queue_out(c, q->octets, q->size);
    uint8_t *copy = c->out + c->out_size - q->size;
    if (front == HDL_TCP)
        set_u32(copy + 8, id);
    else if (front == NATIVE)
        set_u32(copy + 4, id);
    else
        c->line[(c->line_at + c->line_count++) % pipeline] = number;
    if (!c->dirty) {
        c->dirty = true;
        dirty_list[dirty_count++] = (uint32_t)(c - connections);
    }
}

static void place(double now) {
    while (unsent < tail && ready_count) {
        if (ASK(unsent).done) {
            unsent++;
            continue;
        }
        uint32_t which = ready_ring[ready_at];
        ready_at = (ready_at + 1) % connection_count;
        ready_count--;
        struct connection *c = &connections[which];
        c->queued = false;
        if (c->state != OPEN || !c->free_count) continue;
        put(c, unsent++, now);
        push_ready(which);
    }
    for (uint32_t i = 0; i < dirty_count; i++) {
        struct connection *c = &connections[dirty_list[i]];
        c->dirty = false;
        if (c->state == OPEN && !c->writing) flush(c, now);
    }
    dirty_count = 0;
}

static void give_up(uint64_t number, double now) {
    struct ask *ask = &ASK(number);
    struct connection *c = ask->connection < 0 ? NULL : &connections[ask->connection];
    lose(number, "lost", now, true);
    if (!c || c->state != OPEN || !c->slots[ask->slot].taken || c->slots[ask->slot].ask != number)
        return;
    if (front == HTTP)
        drop(c, "lost", now); /* what came next would be taken for another's answer */
    else
        release(c, ask->slot);
}

static void ring_at(double when) {
    struct itimerspec spec = {.it_value = {(time_t)when, (long)((when - (double)(time_t)when) * 1e9)}};
    if (!spec.it_value.tv_nsec) spec.it_value.tv_nsec = 1;
    timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &spec, NULL);
}

static void events(int wait_ms) {
    struct epoll_event found[256];
    int count = epoll_wait(poll_fd, found, 256, wait_ms);
    for (int i = 0; i < count; i++) {
        if (found[i].data.u32 == UINT32_MAX) {
            uint64_t rang;
            if (read(timer_fd, &rang, 8) < 0 && errno != EAGAIN) die("timer");
            continue;
        }
        struct connection *c = &connections[found[i].data.u32];
        if (c->state == CLOSED) continue;
        if (c->state == CONNECTING) {
            int error = 0;
            socklen_t size = sizeof error;
            getsockopt(c->socket, SOL_SOCKET, SO_ERROR, &error, &size);
            if (error) {
                snprintf(fault_text, sizeof fault_text, "%s", strerror(error));
                drop(c, "lost", now_s());
            } else if (found[i].events & EPOLLOUT) {
                watch(c, EPOLLIN, EPOLL_CTL_MOD);
                begin(c, now_s());
            }
            continue;
        }
        if (found[i].events & EPOLLOUT && c->writing) flush(c, now_s());
        if (c->state != CLOSED && found[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
            if (front == HDL_UDP)
                readable_datagrams(c);
            else
                readable_stream(c);
        }
    }
}

static void progress(void) {
    uint64_t all = right[0] + right[1] + right[2] + right[3], most = 0;
    for (uint32_t i = seconds_used > 2 ? seconds_used - 2 : 0; i < seconds_used; i++)
        if (seconds[i][4] > most) most = seconds[i][4];
    printf("{\"scheduled\": %llu, \"right\": %llu, \"refused\": %llu, \"failed\": %llu, "
           "\"wrong\": %llu, \"max_us\": %llu}\n",
           (unsigned long long)scheduled, (unsigned long long)all, (unsigned long long)refused,
           (unsigned long long)failed, (unsigned long long)wrong, (unsigned long long)most);
    fflush(stdout);
}

static double run(void) {
    double base = 0, next_sweep = start_at, next_progress = start_at + PROGRESS_S;
    double cpu_from = 0, wall_from = 0, busy = 0;
    bool counting = false, over = false, ended = false;
    uint32_t position = 0;
    ring_at(start_at + arrivals[0].offset);
    for (;;) {
        events(20);
        double now = now_s();
        while (!over) {
            double due = start_at + base + arrivals[position].offset;
            if (due >= end_at) {
                over = true;
                break;
            }
            if (due > now) {
                ring_at(due);
                break;
            }
            if (due >= measured) {
                scheduled++;
                add_us(&lateness, now - due);
            }
            make_ask(due, arrivals[position].question);
            if (++position == arrival_count) {
                position = 0;
                base += period;
            }
        }
        place(now);
        if (!counting && now >= measured) {
            counting = true;
            cpu_from = cpu_s();
            wall_from = now;
        }
        if (counting && !ended && now >= end_at) {
            ended = true;
            busy = (cpu_s() - cpu_from) / (now - wall_from);
        }
        while (head < tail && (ASK(head).done || ASK(head).due + timeout_s <= now)) {
            if (!ASK(head).done) give_up(head, now);
            if (unsent == head) unsent++;
            head++;
        }
        if (now >= next_sweep) {
            next_sweep = now + SWEEP_S;
            for (uint32_t i = 0; i < connection_count; i++)
                if (connections[i].state == CLOSED && connections[i].retry_at <= now)
                    connect_one(&connections[i], now);
        }
        if (now >= next_progress) {
            next_progress = now + PROGRESS_S;
            progress();
        }
        if (over && ended && head == tail) return busy;
    }
}

static void report(double busy) {
    printf("{\"book\": {\"right\": {");
    for (int k = 0; k < KINDS; k++)
        printf("%s\"%s\": %llu", k ? ", " : "", kind_names[k], (unsigned long long)right[k]);
    printf("}, \"failed\": {");
    for (int i = 0; i < CODES_MAX && codes[i].count; i++)
        printf("%s\"%s\": %llu", i ? ", " : "", codes[i].code, (unsigned long long)codes[i].count);
    printf("}, \"sources\": {");
    bool first = true;
    for (int k = 0; k < KINDS; k++)
        for (int s = 0; s < 3; s++)
            if (from_source[k][s]) {
                printf("%s\"%s %s\": %llu", first ? "" : ", ", kind_names[k], source_names[s],
                       (unsigned long long)from_source[k][s]);
                first = false;
            }
    printf("}, \"refused\": %llu, \"wrong\": %llu, \"first_wrong\": [", (unsigned long long)refused,
           (unsigned long long)wrong);
    for (uint32_t i = 0; i < wrong_kept; i++)
        printf("%s\"%s\"", i ? ", " : "", first_wrong[i]);
    printf("], \"scheduled\": %llu, \"reconnects\": %llu, \"octets\": %llu, \"latencies\": {",
           (unsigned long long)scheduled, (unsigned long long)reconnects,
           (unsigned long long)octets);
    for (int k = 0; k < KINDS; k++) {
        if (k) printf(", ");
        print_histogram(kind_names[k], &latencies[k]);
    }
    printf("}, ");
    print_histogram("refusals", &refusals);
    printf(", ");
    print_histogram("lateness", &lateness);
    printf(", \"seconds\": [");
    for (uint32_t i = 0; i < seconds_used; i++)
        printf("%s[%llu, %llu, %llu, %llu, %llu]", i ? ", " : "",
               (unsigned long long)seconds[i][0], (unsigned long long)seconds[i][1],
               (unsigned long long)seconds[i][2], (unsigned long long)seconds[i][3],
               (unsigned long long)seconds[i][4]);
    printf("]}, \"busy\": %.4f, \"decoded\": 0}\n", busy);
    fflush(stdout);
}

static const char *option(int argc, char **argv, const char *name) {
    for (int i = 1; i + 1 < argc; i += 2)
        if (!strcmp(argv[i], name)) return argv[i + 1];
    return NULL;
}

static const char *needed(int argc, char **argv, const char *name) {
    const char *text = option(argc, argv, name);
    if (!text) die("%s is missing", name);
    return text;
}

static void find_address(int argc, char **argv) {
    const char *path = option(argc, argv, "--socket");
    if (path) {
        struct sockaddr_un *local = (struct sockaddr_un *)&address;
        if (strlen(path) >= sizeof local->sun_path) die("%s: too long", path);
        local->sun_family = AF_UNIX;
        strcpy(local->sun_path, path);
        address_size = sizeof *local;
        return;
    }
    struct addrinfo hints = {.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV}, *found;
    int error = getaddrinfo(needed(argc, argv, "--host"), needed(argc, argv, "--port"), &hints,
                            &found);
    if (error) die("address: %s", gai_strerror(error));
    memcpy(&address, found->ai_addr, found->ai_addrlen);
    address_size = found->ai_addrlen;
    freeaddrinfo(found);
}

int main(int argc, char **argv) {
    const char *name = needed(argc, argv, "--front");
    front = !strcmp(name, "http")      ? HTTP
            : !strcmp(name, "native")  ? NATIVE
            : !strcmp(name, "hdl-tcp") ? HDL_TCP
                                       : HDL_UDP;
    find_address(argc, argv);
    read_questions(needed(argc, argv, "--questions"));
    read_schedule(needed(argc, argv, "--schedule"));
    if (option(argc, argv, "--greeting"))
        greeting = read_file(option(argc, argv, "--greeting"), &greeting_size);
    connection_count = (uint32_t)atoi(needed(argc, argv, "--connections"));
    pipeline = (uint32_t)atoi(needed(argc, argv, "--pipeline"));
    double warmup = atof(needed(argc, argv, "--warmup"));
    double duration = atof(needed(argc, argv, "--duration"));
    timeout_s = atof(needed(argc, argv, "--timeout"));
    if (!connection_count || !pipeline || pipeline > 1u << SLOT_BITS || duration <= 0)
        die("connections, pipeline or duration out of range");
    connections = room(connection_count * sizeof *connections);
    ready_ring = room(connection_count * sizeof *ready_ring);
    dirty_list = room(connection_count * sizeof *dirty_list);
    ask_room = 1 << 16;
    asks = room(ask_room * sizeof *asks);
    seconds_room = (uint32_t)(duration + timeout_s) + 8;
    seconds = room(seconds_room * sizeof *seconds);
    poll_fd = epoll_create1(EPOLL_CLOEXEC);
    timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = UINT32_MAX};
    if (poll_fd < 0 || timer_fd < 0 || epoll_ctl(poll_fd, EPOLL_CTL_ADD, timer_fd, &event))
        die("epoll: %s", strerror(errno));
    double begun = now_s();
    measured = begun + 1e9; /* nothing counts yet */
    for (uint32_t i = 0; i < connection_count; i++) {
        struct connection *c = &connections[i];
        c->in_room = IN_FIRST;
        c->in = room(IN_FIRST + 1);
        c->slots = room(pipeline * sizeof *c->slots);
        c->free_slots = room(pipeline * sizeof *c->free_slots);
        c->line = room(pipeline * sizeof *c->line);
        connect_one(c, begun);
    }
    while (opened_count < connection_count) {
        events(20);
        double now = now_s();
        if (now - begun > CONNECT_S) die("%s", fault_text);
        for (uint32_t i = 0; i < connection_count; i++)
            if (connections[i].state == CLOSED && connections[i].retry_at <= now)
                connect_one(&connections[i], now);
    }
    reconnects = 0;
    printf("{\"ready\": true}\n");
    fflush(stdout);
    char line[256];
    const char *told = fgets(line, sizeof line, stdin) ? strstr(line, "\"start\":") : NULL;
    if (!told) die("not told to start");
    start_at = atof(told + 8);
    measured = start_at + warmup;
    end_at = measured + duration;
    report(run());
    return 0;
}
