/* How messages of each protocol are found in a stream, told apart and judged.
 *
 * Nothing here allocates or blocks. `frame_octets` looks only at what has come: it says 0 while
 * it cannot know the end yet, and -1 when the stream cannot be followed any more. */
#ifndef FRAMES_H
#define FRAMES_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/types.h>

#define FRAME_OCTETS_MAX (8u << 20)

enum frame { NATIVE, HANDLE, HTTP, REDIS, DNS, FRAMES };

static const char *const frame_names[FRAMES] = {"native", "handle", "http", "redis", "dns"};

static inline enum frame frame_named(const char *name) {
    for (int frame = 0; frame < FRAMES; frame++)
        if (strcmp(name, frame_names[frame]) == 0) return (enum frame)frame;
    return FRAMES;
}

static inline uint32_t get_u32(const uint8_t *at) {
    return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

static inline void put_u32(uint8_t *at, uint32_t number) {
    at[0] = (uint8_t)(number >> 24);
    at[1] = (uint8_t)(number >> 16);
    at[2] = (uint8_t)(number >> 8);
    at[3] = (uint8_t)number;
}

/* Whether messages carry the id of their request; where not, replies come in order. */
static inline int frame_has_id(enum frame frame) {
    return frame == NATIVE || frame == HANDLE || frame == DNS;
}

static inline size_t frame_head_octets(enum frame frame) {
    return frame == NATIVE ? 9 : frame == HANDLE ? 44 : frame == DNS ? 12 : 1;
}

static inline uint32_t frame_id(enum frame frame, const uint8_t *at) {
    if (frame == DNS) return (uint32_t)at[0] << 8 | at[1];
    return get_u32(at + (frame == NATIVE ? 4 : 8));
}

static inline void frame_set_id(enum frame frame, uint8_t *at, uint32_t id) {
    if (frame == DNS) {
        at[0] = (uint8_t)(id >> 8);
        at[1] = (uint8_t)id;
    } else {
        put_u32(at + (frame == NATIVE ? 4 : 8), id);
    }
}

/* The octets of an HTTP message: its head, and its body where Content-Length names one. A reply
 * without Content-Length is not followed. */
static inline ssize_t http_octets(const uint8_t *at, size_t size) {
    const uint8_t *end = memmem(at, size, "\r\n\r\n", 4);
    if (end == NULL) return size > 65536 ? -1 : 0;
    size_t head = (size_t)(end - at) + 4;
    int is_reply = memcmp(at, "HTTP/", 5) == 0;
    const uint8_t *line = at;
    while ((line = memchr(line, '\n', (size_t)(end - line))) != NULL) {
        line++;
        if ((line[0] | 32) == 'c' && end - line > 15 &&
            strncasecmp((const char *)line, "content-length:", 15) == 0)
            return (ssize_t)(head + strtoul((const char *)line + 15, NULL, 10));
    }
    return is_reply ? -1 : (ssize_t)head;
}

/* "$12\r\n" and that many octets more, or one line. */
static inline ssize_t redis_octets(const uint8_t *at, size_t size) {
    const uint8_t *end = memchr(at, '\n', size);
    if (end == NULL) return size > 65536 ? -1 : 0;
    size_t line = (size_t)(end - at) + 1;
    if (at[0] != '$') return (ssize_t)line;
    long octets = strtol((const char *)at + 1, NULL, 10);
    return octets < 0 ? (ssize_t)line : (ssize_t)(line + (size_t)octets + 2);
}

static inline ssize_t frame_octets(enum frame frame, const uint8_t *at, size_t size) {
    if (size < frame_head_octets(frame)) return 0;
    ssize_t octets = -1;
    if (frame == NATIVE) octets = 4 + (ssize_t)get_u32(at);
    if (frame == HANDLE) octets = 20 + (ssize_t)get_u32(at + 16);
    if (frame == HTTP) octets = http_octets(at, size);
    if (frame == REDIS) octets = redis_octets(at, size);
    if (octets <= 0) return octets;
    if ((size_t)octets > FRAME_OCTETS_MAX || (size_t)octets < frame_head_octets(frame)) return -1;
    return (size_t)octets <= size ? octets : 0;
}

/* Whether a whole reply says that the request succeeded. */
static inline int frame_succeeded(enum frame frame, const uint8_t *at, size_t size) {
    if (size < frame_head_octets(frame)) return 0;
    switch (frame) {
    case NATIVE: return at[8] == 0x81;
    case HANDLE: return get_u32(at + 24) == 1;
    case HTTP: return size > 12 && (at[9] == '2' || at[9] == '3'); /* a resolver may redirect */
    case REDIS: return at[0] == '+' || (at[0] == '$' && at[1] != '-');
    default: return (at[2] & 0x82) == 0x80 && (at[3] & 15) == 0 && (at[6] | at[7]) != 0;
    }
}

/* A reply of `octets` with nothing in it that costs anything: what a limit answers. Returns 0
 * if the frame has no place for so few octets. */
static inline int frame_fill(enum frame frame, uint8_t *at, size_t octets) {
    if (octets < frame_head_octets(frame)) return 0;
    memset(at, 0, octets);
    if (frame == NATIVE) {
        put_u32(at, (uint32_t)octets - 4);
        at[8] = 0x81;
        for (size_t i = 9; i < octets; i++) at[i] = 'x';
        return 1;
    }
    if (frame == HANDLE) {
        at[0] = 2, at[1] = 11;
        put_u32(at + 16, (uint32_t)octets - 20);
        put_u32(at + 20, 1);
        put_u32(at + 24, 1);
        return 1;
    }
    return 0;
}

#endif
