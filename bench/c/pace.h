/* When to ask, in an open loop: by a clock that does not wait for the server.
 *
 * Arrivals are random and independent at a mean rate. A request counts from when it was due: one
 * that had to wait for room, because the server was slow, has that in its latency. */
#ifndef PACE_H
#define PACE_H

#include <math.h>

#include "measure.h"

struct pace {
    double mean_ns, due_ns; /* mean 0: a closed loop */
    uint64_t state, unsent; /* unsent: due when the time was up, and still waiting */
};

static inline struct pace start_pace(int argc, char **argv, uint64_t now) {
    long rate = number(argc, argv, "--rate", "0", 0, 100000000);
    return (struct pace){rate ? 1e9 / (double)rate : 0, (double)now, 0x2545f4914f6cdd1dull ^ now, 0};
}

static inline int is_due(const struct pace *pace, uint64_t now) {
    return pace->due_ns <= (double)now;
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

/* What was due before `now` and had no room. */
static inline void end_pace(struct pace *pace, uint64_t now) {
    while (pace->mean_ns > 0 && is_due(pace, now)) {
        take_due(pace);
        pace->unsent++;
    }
}

#endif
