/* What every driver needs: the messages to send, the clock, latencies, the server's processor
 * time, and the one line of JSON at the end.
 *
 * A file of messages is, for each: octets u32 big-endian, then so many octets. It is read whole
 * at the start; a driver does nothing but ask while it measures. */
#ifndef MEASURE_H
#define MEASURE_H

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "frames.h"

#define NS 1000000000ull

static inline void die(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));
static inline void die(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(2);
}

static inline uint64_t now_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * NS + (uint64_t)time.tv_nsec;
}

/* The value of `--name value`, or what it is when not given; NULL: it must be. */
static inline const char *option(int argc, char **argv, const char *name, const char *otherwise) {
    for (int i = 1; i + 1 < argc; i += 2)
        if (strcmp(argv[i], name) == 0) return argv[i + 1];
    if (otherwise == NULL) die("%s is missing", name);
    return otherwise;
}

static inline long number(int argc, char **argv, const char *name, const char *otherwise,
                          long least, long most) {
    const char *text = option(argc, argv, name, otherwise);
    char *end;
    long value = strtol(text, &end, 10);
    if (*end || value < least || value > most) die("%s: from %ld to %ld", name, least, most);
    return value;
}

struct octets {
    const uint8_t *at;
    size_t size;
};

struct messages {
    struct octets *each;
    size_t count;
};

static inline struct messages read_messages(const char *path) {
    struct messages read = {NULL, 0};
    if (*path == 0) return read;
    FILE *file = fopen(path, "rb");
    struct stat status;
    if (file == NULL || fstat(fileno(file), &status) < 0) die("%s cannot be opened", path);
    size_t size = (size_t)status.st_size, room = 0;
    uint8_t *all = malloc(size + 1);
    if (all == NULL || fread(all, 1, size, file) != size) die("%s cannot be read", path);
    fclose(file);
    for (size_t at = 0; at < size;) {
        if (size - at < 4 || size - at - 4 < get_u32(all + at)) die("%s is cut off", path);
        if (read.count == room) {
            room = room ? 2 * room : 1024;
            read.each = realloc(read.each, room * sizeof *read.each);
            if (read.each == NULL) die("no memory");
        }
        read.each[read.count++] = (struct octets){all + at + 4, get_u32(all + at)};
        at += 4 + get_u32(all + at);
    }
    return read;
}

/* Which message next: any, each as likely; or one after the other, once, to the end. */
struct order {
    size_t count, next;
    int once;
    uint64_t state;
};

#define NO_MORE ((size_t)-1)

static inline size_t next_message(struct order *order) {
    if (order->once) return order->next < order->count ? order->next++ : NO_MORE;
    order->state ^= order->state << 13;
    order->state ^= order->state >> 7;
    order->state ^= order->state << 17;
    return (size_t)(((unsigned __int128)order->state * order->count) >> 64);
}

/* Latencies: 64 steps to each power of two of nanoseconds, so that a percentile is right to 1.6 %. */
#define STEPS 64

struct latencies {
    uint64_t counts[58 * STEPS + 2 * STEPS], count, most;
};

static inline void note_latency(struct latencies *noted, uint64_t ns) {
    int shift = ns < 2 * STEPS ? 0 : 57 - __builtin_clzll(ns);
    noted->counts[(size_t)shift * STEPS + (ns >> shift)]++;
    noted->count++;
    if (ns > noted->most) noted->most = ns;
}

static inline double percentile_us(const struct latencies *noted, double share) {
    uint64_t wanted = (uint64_t)(share * (double)noted->count), seen = 0;
    for (size_t i = 0; i < sizeof noted->counts / sizeof *noted->counts; i++) {
        seen += noted->counts[i];
        if (seen > wanted) {
            size_t shift = i < 2 * STEPS ? 0 : i / STEPS - 1;
            double us = (double)((i - shift * STEPS) << shift) / 1e3;
            return us < (double)noted->most / 1e3 ? us : (double)noted->most / 1e3;
        }
    }
    return (double)noted->most / 1e3;
}

/* The next of numbers with commas between; 0 at their end. */
static inline long next_pid(const char **at) {
    if (**at == 0) return 0;
    char *end;
    long pid = strtol(*at, &end, 10);
    if (end == *at || pid <= 0) die("--server-pids: numbers with commas between");
    *at = *end == ',' ? end + 1 : end;
    return pid;
}

/* Processor time, user and system, that processes have used: `pids` are numbers with commas. */
static inline double processor_s(const char *pids) {
    double ticks = 0;
    for (long pid; (pid = next_pid(&pids)) != 0;) {
        char path[64], line[1024];
        snprintf(path, sizeof path, "/proc/%ld/stat", pid);
        FILE *file = fopen(path, "r");
        if (file == NULL) continue; /* it has ended: it uses no more */
        size_t size = fread(line, 1, sizeof line - 1, file);
        fclose(file);
        line[size] = 0;
        unsigned long user, system;
        char *name = strrchr(line, ')'); /* the name may hold spaces */
        if (name && sscanf(name + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user,
                           &system) == 2)
            ticks += (double)(user + system);
    }
    return ticks / (double)sysconf(_SC_CLK_TCK);
}

/* How long the main threads of processes have been ready to run and kept from it, by whatever else
 * the machine did: the second figure of schedstat. */
static inline double kept_waiting_s(const char *pids) {
    double ns = 0;
    for (long pid; (pid = next_pid(&pids)) != 0;) {
        char path[64];
        snprintf(path, sizeof path, "/proc/%ld/schedstat", pid);
        FILE *file = fopen(path, "r");
        if (file == NULL) continue;
        unsigned long long waited;
        if (fscanf(file, "%*u %llu", &waited) == 1) ns += (double)waited;
        fclose(file);
    }
    return ns / 1e9;
}

static inline double own_processor_s(void) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    return (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
           (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
}

/* One run: asked for a while without counting, then counted for `seconds`, then let run out. */
struct run {
    const char *server_pids;
    uint64_t warm_ns, measure_ns;
    uint64_t counted_from, counted_to;
    uint64_t replies, errors, wrong, lost;
    double server_s, driver_s, server_waited_s;
    uint64_t stalled_ns; /* time in which the driver itself did not get to run */
    uint64_t cut;        /* outstanding on a connection that the server ended */
    int counting, ended;
    struct latencies latencies;
};

static inline void start_run(struct run *run, int argc, char **argv) {
    memset(run, 0, sizeof *run);
    run->server_pids = option(argc, argv, "--server-pids", "");
    run->warm_ns = (uint64_t)number(argc, argv, "--warm-ms", "200", 0, 600000) * 1000000u;
    run->measure_ns = (uint64_t)number(argc, argv, "--ms", "3000", 1, 3600000) * 1000000u;
    run->counted_from = now_ns() + run->warm_ns;
    run->counted_to = run->counted_from + run->measure_ns;
}

static inline void begin_counting(struct run *run, uint64_t now) {
    run->counting = 1;
    run->counted_from = now;
    run->counted_to = now + run->measure_ns;
    run->server_s = processor_s(run->server_pids);
    run->server_waited_s = kept_waiting_s(run->server_pids);
    run->driver_s = own_processor_s();
}

static inline void end_counting(struct run *run, uint64_t now) {
    run->counting = 0;
    run->ended = 1;
    run->counted_to = now;
    run->server_s = processor_s(run->server_pids) - run->server_s;
    run->server_waited_s = kept_waiting_s(run->server_pids) - run->server_waited_s;
    run->driver_s = own_processor_s() - run->driver_s;
}

static inline void print_run(const struct run *run) {
    const struct latencies *noted = &run->latencies;
    printf("{\"replies\": %llu, \"seconds\": %.6f, \"errors\": %llu, \"wrong\": %llu, \"lost\": %llu,"
           " \"cut\": %llu,"
           " \"server_cpu_s\": %.3f, \"driver_cpu_s\": %.3f, \"stalled_s\": %.3f,"
           " \"server_waited_s\": %.3f,"
           " \"p50_us\": %.1f, \"p90_us\": %.1f,"
           " \"p99_us\": %.1f, \"p999_us\": %.1f, \"max_us\": %.1f}\n",
           (unsigned long long)run->replies, (double)(run->counted_to - run->counted_from) / 1e9,
           (unsigned long long)run->errors, (unsigned long long)run->wrong,
           (unsigned long long)run->lost, (unsigned long long)run->cut, run->server_s, run->driver_s, (double)run->stalled_ns / 1e9,
           run->server_waited_s,
           percentile_us(noted, 0.50), percentile_us(noted, 0.90), percentile_us(noted, 0.99),
           percentile_us(noted, 0.999), (double)noted->most / 1e3);
}

/* A right reply to what was asked, or in an open loop was due, at `since`. Those that come after the
 * end are no part of the rate, but their latencies count: else the slowest would be missing. */
static inline void note_reply(struct run *run, uint64_t since, uint64_t now) {
    if (run->counting) run->replies++;
    if (run->counting || (run->ended && since >= run->counted_from && since <= run->counted_to))
        note_latency(&run->latencies, now - since);
}

/* Say on standard error what a reply was that should not have been; the first one is enough. */
static inline void show(const char *what, const uint8_t *reply, size_t size) {
    fprintf(stderr, "%s: ", what);
    for (size_t i = 0; i < size && i < 300; i++)
        fputc(reply[i] >= 32 && reply[i] < 127 ? reply[i] : '.', stderr);
    fputc('\n', stderr);
}

/* Whether the octets that this answer must hold are in the reply. They are looked for first where
 * they were found the last time; an empty needle is in every reply. */
static inline int holds(const uint8_t *reply, size_t size, struct octets needle, size_t *last) {
    if (needle.size == 0) return 1;
    if (*last + needle.size <= size && memcmp(reply + *last, needle.at, needle.size) == 0) return 1;
    const uint8_t *found = memmem(reply, size, needle.at, needle.size);
    if (found == NULL) return 0;
    *last = (size_t)(found - reply);
    return 1;
}

#endif
