/* Open-loop load over TCP, Unix sockets and UDP: questions leave by a schedule read from a file,
 * whatever the server does, and count from the time they were due.
 *
 *   driver --front http|native|hdl-tcp|hdl-udp (--host ADDRESS --port P | --socket PATH)
 *          --questions FILE --schedule FILE [--greeting FILE] --connections C --pipeline D
 *          --warmup S --duration S --timeout S [--patience S]
 *
 * It speaks on its standard streams as worker.py does: `{"ready": true}` out, `{"start": T}` in
 * (CLOCK_MONOTONIC seconds), progress twice a second, one line with the key "book" at the end;
 * histograms are pairs of microseconds and counts. Every reply is checked: it answers a question
 * that is outstanding, says what was to be said, and holds the octets of that question's needle.
 *
 * With --patience a question that found no connection free for so long is not asked any more
 * ("unplaced"); without it, it waits until its time is up.
 *
 * Files, in the machine's own byte order. Questions: count u32, then for each: octets u32, octets
 * of the needle u32, kind u32, then both. Schedule: count u32, 0 u32, period f64, then for each:
 * offset f64, question u32, 0 u32. After the last arrival it begins anew, one period later. */
#include "driver_answers.h"

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
        if (patience_s > 0 && ASK(unsent).due + patience_s < now) {
            lose(unsent++, "unplaced", now, false);
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

/* Rung a nanosecond late, so that the clock has surely reached what is due. */
static void ring_at(double when) {
    static double set;
    if (when == set) return;
    set = when;
    time_t whole = (time_t)when;
    long ns = (long)((when - (double)whole) * 1e9) + 1;
    if (ns > 999999999) ns = 999999999;
    struct itimerspec spec = {.it_value = {whole, ns}};
    timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &spec, NULL);
}

static void events(int wait_ms) {
    struct epoll_event found[256];
    int count = epoll_wait(poll_fd, found, 256, wait_ms);
    for (int i = 0; i < count; i++) {
        if (found[i].data.u32 == UINT32_MAX) continue; /* it rings once, and is set anew */
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
    const char *patience = option(argc, argv, "--patience");
    if (patience) patience_s = atof(patience);
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
    struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.u32 = UINT32_MAX};
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
