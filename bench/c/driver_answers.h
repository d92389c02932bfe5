/* Of driver.c: answers taken from streams and datagrams, each to its question. */
#ifndef DRIVER_ANSWERS_H
#define DRIVER_ANSWERS_H

#include "driver_links.h"

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

static size_t least(size_t one, size_t other) {
    return one < other ? one : other;
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
                copy_code(code, body + 2, least(body[1] & 0x1f, body_size - 2));
            else if (body_size > 3 && body[1] == 0xd9)
                copy_code(code, body + 3, least(body[2], body_size - 3));
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
    if (!messages[0].msg_hdr.msg_iov)
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

#endif
