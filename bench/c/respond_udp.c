/* The limit of a UDP server on one core: recvmmsg, one fixed reply each, sendmmsg.
 *
 *   respond_udp --frame handle --reply-octets N [--port P]
 *
 * Echoes the request's id; nothing is looked up. Listens on 127.0.0.1; prints its port. Ends with
 * its parent. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>

#include "measure.h"

#define BATCH 64
#define DATAGRAM_OCTETS 2048

static uint8_t in[BATCH][DATAGRAM_OCTETS], out[BATCH][DATAGRAM_OCTETS];
static struct sockaddr_storage from[BATCH];
static struct iovec reads[BATCH], writes[BATCH];
static struct mmsghdr asked[BATCH], told[BATCH];

int main(int argc, char **argv) {
    enum frame frame = frame_named(option(argc, argv, "--frame", NULL));
    size_t octets = (size_t)number(argc, argv, "--reply-octets", NULL, 1, DATAGRAM_OCTETS);
    if (frame != HANDLE) die("--frame: handle");
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    int udp = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), room = 4 << 20;
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((uint16_t)number(argc, argv, "--port", "0", 0, 65535)),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    setsockopt(udp, SOL_SOCKET, SO_RCVBUF, &room, sizeof room);
    if (bind(udp, (struct sockaddr *)&address, size) < 0) die("cannot listen: %s", strerror(errno));
    getsockname(udp, (struct sockaddr *)&address, &size);
    printf("{\"port\": %d}\n", ntohs(address.sin_port));
    fflush(stdout);
    for (int i = 0; i < BATCH; i++) {
        if (!frame_fill(frame, out[i], octets)) die("--reply-octets is too small");
        reads[i] = (struct iovec){in[i], DATAGRAM_OCTETS};
        writes[i] = (struct iovec){out[i], octets};
        asked[i].msg_hdr = (struct msghdr){.msg_iov = &reads[i], .msg_iovlen = 1, .msg_name = &from[i]};
        told[i].msg_hdr = (struct msghdr){.msg_iov = &writes[i], .msg_iovlen = 1};
    }
    for (;;) {
        for (int i = 0; i < BATCH; i++) asked[i].msg_hdr.msg_namelen = sizeof from[i];
        int count = recvmmsg(udp, asked, BATCH, MSG_WAITFORONE, NULL), replies = 0;
        for (int i = 0; i < count; i++) {
            if (asked[i].msg_len < frame_head_octets(frame)) continue;
            frame_set_id(frame, out[replies], frame_id(frame, in[i]));
            told[replies].msg_hdr.msg_name = &from[i];
            told[replies].msg_hdr.msg_namelen = asked[i].msg_hdr.msg_namelen;
            replies++;
        }
        for (int sent = 0; sent < replies;) {
            int some = sendmmsg(udp, told + sent, (unsigned)(replies - sent), 0);
            if (some < 0 && errno == EINTR) continue;
            sent += some > 0 ? some : 1; /* a reply that cannot leave is dropped, as UDP does */
        }
    }
}
