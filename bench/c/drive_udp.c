/* Load over UDP: up to D requests outstanding on one socket, by recvmmsg and sendmmsg.
 *
 *   drive_udp --frame handle|dns --port P [--host IPV4] --requests FILE [--needles FILE] [--depth D] [--once 1]
 *             [--rate R] [--timeout-ms N] [--warm-ms N] [--ms N] [--server-pids N,N]
 *
 * Closed and open loop as drive_tcp. Every reply is checked as there. A request without a reply within the timeout is lost:
 * it is counted, never sent again, and its id is not used again for as long as ids last. Prints
 * one line of JSON; exit code 1 when a reply was wrong or failed. */
#include <errno.h>
#include <netinet/in.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "measure.h"
#include "pace.h"
#include "server.h"

#define DEPTH_MAX 1024
#define DATAGRAM_OCTETS 2048

struct asked {
    size_t which;
    uint32_t id;
    uint64_t sent_ns;
};

static struct asked slots[DEPTH_MAX];
static uint8_t in[DEPTH_MAX][DATAGRAM_OCTETS], out[DEPTH_MAX][DATAGRAM_OCTETS];
static struct iovec reads[DEPTH_MAX], writes[DEPTH_MAX];
static struct mmsghdr heard[DEPTH_MAX], said[DEPTH_MAX];
static struct messages requests, needles;
static struct order order;
static struct run run;
static enum frame frame;
static long depth, outstanding;
static size_t needle_at;
static uint32_t ids;
static struct pace pace;
static size_t rooms[DEPTH_MAX], rooms_free; /* slots free for requests, in an open loop */

/* Ready a request for slot `slot` as the `n`th of the next batch; 0 when there is no more. */
static int ask(size_t slot, int n, uint64_t now) {
    size_t which = next_message(&order);
    slots[slot].which = which;
    if (which == NO_MORE) return 0;
    struct octets request = requests.each[which];
    if (request.size > DATAGRAM_OCTETS) die("a request of %zu octets", request.size);
    memcpy(out[n], request.at, request.size);
    /* The slot is in the low part of the id; what is above counts up, so that a late reply to a
     * request given up is told from the one to its successor. 0 is no id. */
    ids++;
    uint32_t id = (ids * (uint32_t)depth + (uint32_t)slot) & (frame == DNS ? 0xffff : 0x7fffffff);
    if (id == 0) id = (uint32_t)depth;
    frame_set_id(frame, out[n], id);
    slots[slot].id = id;
    slots[slot].sent_ns = now;
    writes[n] = (struct iovec){out[n], request.size};
    outstanding++;
    return 1;
}

static size_t take(const uint8_t *reply, size_t size, uint64_t now) {
    if (size < frame_head_octets(frame)) {
        run.wrong++;
        return NO_MORE;
    }
    size_t slot = frame_id(frame, reply) % (size_t)depth;
    if (slots[slot].which == NO_MORE || slots[slot].id != frame_id(frame, reply)) return NO_MORE; /* late */
    size_t which = slots[slot].which;
    slots[slot].which = NO_MORE;
    outstanding--;
    if (!frame_succeeded(frame, reply, size)) {
        if (run.errors++ == 0) show("failed", reply, size);
    } else if (needles.count && !holds(reply, size, needles.each[which], &needle_at)) {
        if (run.wrong++ == 0) show("wrong", reply, size);
    } else {
        note_reply(&run, slots[slot].sent_ns, now);
    }
    return slot;
}

static void send_all(int udp, int count) {
    for (int sent = 0; sent < count;) {
        int some = sendmmsg(udp, said + sent, (unsigned)(count - sent), 0);
        if (some < 0 && errno == EINTR) continue;
        if (some < 0 && errno == ECONNREFUSED) die("nobody listens");
        sent += some > 0 ? some : 1;
    }
}

int main(int argc, char **argv) {
    frame = frame_named(option(argc, argv, "--frame", NULL));
    if (frame != HANDLE && frame != DNS) die("--frame: handle or dns");
    requests = read_messages(option(argc, argv, "--requests", NULL));
    needles = read_messages(option(argc, argv, "--needles", ""));
    depth = number(argc, argv, "--depth", "64", 1, DEPTH_MAX);
    if (depth & (depth - 1)) die("--depth: a power of two"); /* so that ids wrap to the same slot */
    order = (struct order){requests.count, 0, (int)number(argc, argv, "--once", "0", 0, 1),
                           0x9e3779b97f4a7c15ull ^ now_ns()};
    uint64_t timeout = (uint64_t)number(argc, argv, "--timeout-ms", "250", 1, 60000) * 1000000u;
    if (requests.count == 0) die("there is nothing to ask");
    if (needles.count && needles.count != requests.count) die("as many needles as requests");
    struct sockaddr_in server = server_address(argc, argv);
    int udp = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), room = 4 << 20;
    setsockopt(udp, SOL_SOCKET, SO_RCVBUF, &room, sizeof room);
    if (connect(udp, (struct sockaddr *)&server, sizeof server) < 0) die("%s", strerror(errno));
    int poll_fd = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN};
    epoll_ctl(poll_fd, EPOLL_CTL_ADD, udp, &event);
    for (long i = 0; i < depth; i++) {
        reads[i] = (struct iovec){in[i], DATAGRAM_OCTETS};
        heard[i].msg_hdr = (struct msghdr){.msg_iov = &reads[i], .msg_iovlen = 1};
        said[i].msg_hdr = (struct msghdr){.msg_iov = &writes[i], .msg_iovlen = 1};
    }

    start_run(&run, argc, argv);
    uint64_t now = now_ns(), looked = now, last = 0;
    if (run.warm_ns == 0) begin_counting(&run, now);
    int count = 0, over = 0;
    pace = start_pace(argc, argv, now);
    if (pace.mean_ns > 0 && order.once) die("--rate: not with --once");
    for (long slot = 0; slot < depth; slot++) {
        slots[slot].which = NO_MORE;
        if (pace.mean_ns > 0)
            rooms[rooms_free++] = (size_t)slot;
        else
            count += ask((size_t)slot, count, now);
    }
    send_all(udp, count);
    while (!over || ((outstanding || is_due(&pace, now)) && now < last + timeout)) {
        int ready = recvmmsg(udp, heard, (unsigned)depth, 0, NULL);
        if (ready < 0 && errno == ECONNREFUSED) die("nobody listens");
        if (ready <= 0 && pace.mean_ns > 0 && !over && rooms_free)
            wait_until_due(&pace, &run, udp, now);
        else if (ready <= 0)
            epoll_wait(poll_fd, &event, 1, 10);
        now = now_ns();
        if (!over && !run.counting && now >= run.counted_from) begin_counting(&run, now);
        if (!over && run.counting &&
            (now >= run.counted_to || (order.once && order.next == order.count && outstanding == 0))) {
            end_counting(&run, now);
            pace.until_ns = now;
            over = 1;
            last = now;
        }
        count = 0;
        for (int i = 0; i < ready; i++) {
            size_t slot = take(in[i], heard[i].msg_len, now);
            if (slot == NO_MORE || (over && pace.mean_ns == 0)) continue;
            if (pace.mean_ns > 0)
                rooms[rooms_free++] = slot;
            else
                count += ask(slot, count, now);
        }
        if (!over && now > looked + timeout / 4) {
            looked = now;
            for (long slot = 0; slot < depth; slot++)
                if (slots[slot].which != NO_MORE && now > slots[slot].sent_ns + timeout && count < depth) {
                    if (run.counting) run.lost++;
                    outstanding--;
                    if (pace.mean_ns > 0) {
                        slots[slot].which = NO_MORE;
                        rooms[rooms_free++] = (size_t)slot;
                    } else {
                        count += ask((size_t)slot, count, now);
                    }
                }
        }
        while (rooms_free && count < depth && is_due(&pace, now))
            count += ask(rooms[--rooms_free], count, take_due(&pace));
        send_all(udp, count);
    }
    run.lost += (uint64_t)outstanding + count_unsent(&pace);
    print_run(&run);
    return run.errors || run.wrong ? 1 : 0;
}
