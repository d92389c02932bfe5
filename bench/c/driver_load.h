/* Of driver.c: histograms, and what is asked and when, read from files. */
#ifndef DRIVER_LOAD_H
#define DRIVER_LOAD_H

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

#endif
