/* Which server a driver asks: an IPv4 address, this machine unless told otherwise. */
#ifndef SERVER_H
#define SERVER_H

#include <arpa/inet.h>
#include <netinet/in.h>

#include "measure.h"

static inline struct sockaddr_in server_address(int argc, char **argv) {
    struct sockaddr_in server = {.sin_family = AF_INET};
    server.sin_port = htons((uint16_t)number(argc, argv, "--port", NULL, 1, 65535));
    if (inet_pton(AF_INET, option(argc, argv, "--host", "127.0.0.1"), &server.sin_addr) != 1)
        die("--host: an IPv4 address");
    return server;
}

#endif
