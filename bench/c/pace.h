/* When to ask, in an open loop: by a clock that does not wait for the server.
 *
 * Arrivals are random and independent at a mean rate. A request counts from when it was due: one
 * that had to wait for room, because the server was slow, has that in its latency. */
#ifndef PACE_H
#define PACE_H

#include <errno.h>
#include <math.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#include "measure.h"

struct pace {
    double mean_ns, due_ns; /* mean 0: a closed loop */
    uint64_t state, until_ns; /* nothing is due that would be after this; 0: no end yet */
};

static inline struct pace start_pace(int argc, char **argv, uint64_t now) {
    long rate = number(argc, argv, "--rate", "0", 0, 100000000);
    prctl(PR_SET_TIMERSLACK, 1); /* wake when it is time, not fifty microseconds later */
    /* Who measures latency comes first on his core, where he may: what else the machine does there
     * would count as the server's. Not in real time: who is busy all the time is throttled then. */
    if (number(argc, argv, "--first", "0", 0, 1) && setpriority(PRIO_PROCESS, 0, -20)) errno = 0;
    return (struct pace){rate ? 1e9 / (double)rate : 0, (double)now, 0x2545f4914f6cdd1dull ^ now, 0};
}

static inline int is_due(const struct pace *pace, uint64_t now) {
    uint64_t until = pace->until_ns && pace->until_ns < now ? pace->until_ns : now;
    return pace->mean_ns > 0 && pace->due_ns <= (double)until;
}

/* When the request that is due was due; the next one is set. */
static inline uint64_t take_due(struct pace *pace) {
    uint64_t due = (uint64_t)pace->due_ns;
    pace->state ^= pace->state << 13;
    pace->state ^= pace->state >> 7;
    pace->state ^= pace->state << 17;
    double share = ((double)(pace->state >> 11) + 1) / 9007199254740993.0;
    pace->due_ns -= log(share) * pace->mean_ns;
    return due;
}

/* Wait for `fd` until the next request is due, at most 10 ms; returns the time. Coming back more
 * than a millisecond after that is the machine's doing, and no latency of an open loop can be
 * trusted that has much of it. */
static inline void wait_until_due(struct pace *pace, struct run *run, int fd, uint64_t now) {
    double left = pace->due_ns - (double)now;
    uint64_t wait = left <= 0 ? 0 : left > 1e7 ? 10000000 : (uint64_t)left;
    struct pollfd wanted = {.fd = fd, .events = POLLIN};
    struct timespec timeout = {.tv_nsec = (long)wait};
    if (wait) ppoll(&wanted, 1, &timeout, NULL);
    uint64_t late = now_ns() - now;
    if (run->counting && late > wait + NS / 1000) run->stalled_ns += late - wait;
}

/* How much was due before the end and has not been asked. */
static inline uint64_t count_unsent(struct pace *pace) {
    uint64_t unsent = 0;
    while (is_due(pace, pace->until_ns)) {
        take_due(pace);
        unsent++;
    }
    return unsent;
}

#endif
