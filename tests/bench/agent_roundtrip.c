/* Request and response of one byte over UDP, one under way at a time: what a remote call waits for.
 *
 * "roundtrip" answers for ever on port 7001, from the address that was asked.
 * "roundtrip BLOCKS COUNT FROM TO [FROM TO]…" asks along each way in turn, COUNT times, BLOCKS times over, so
 * that whatever else the machine does meets all ways alike. Prints one line for each block: the median of
 * each way in microseconds.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e6 + t.tv_nsec * 1e-3;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static struct sockaddr_in at(const char *text, int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    inet_pton(AF_INET, text, &address.sin_addr);
    return address;
}

static int answer(void) {
    int sock = socket(AF_INET, SOCK_DGRAM, 0), on = 1;
    struct sockaddr_in any = at("0.0.0.0", 7001);
    setsockopt(sock, IPPROTO_IP, IP_PKTINFO, &on, sizeof on);
    if (bind(sock, (void *)&any, sizeof any) < 0) { perror("bind"); return 1; }
    for (;;) {
        char byte, control[128];
        struct sockaddr_in peer;
        struct iovec part = {&byte, 1};
        struct msghdr message = {&peer, sizeof peer, &part, 1, control, sizeof control, 0};
        if (recvmsg(sock, &message, 0) <= 0) continue;
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        struct in_pktinfo *where = (void *)CMSG_DATA(header);
        where->ipi_spec_dst = where->ipi_addr; /* answer from the address that was asked, by any route */
        where->ipi_ifindex = 0;
        sendmsg(sock, &message, 0);
    }
}

int main(int argc, char **argv) {
    if (argc < 5) return answer();
    int blocks = atoi(argv[1]), count = atoi(argv[2]), ways = (argc - 3) / 2;
    int socks[8];
    double *took = calloc(count, sizeof *took);
    for (int way = 0; way < ways && way < 8; way++) {
        struct sockaddr_in from = at(argv[3 + 2 * way], 0), to = at(argv[4 + 2 * way], 7001);
        struct timeval limit = {.tv_usec = 200000};
        socks[way] = socket(AF_INET, SOCK_DGRAM, 0);
        setsockopt(socks[way], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
        if (bind(socks[way], (void *)&from, sizeof from) < 0) { perror("bind"); return 1; }
        if (connect(socks[way], (void *)&to, sizeof to) < 0) { perror("connect"); return 1; }
    }
    for (int block = 0; block < blocks; block++)
        for (int way = 0; way < ways; way++) {
            int good = 0;
            char byte = 1;
            for (int i = 0; i < count; i++) {
                double start = now();
                send(socks[way], &byte, 1, 0);
                if (recv(socks[way], &byte, 1, 0) == 1) took[good++] = now() - start;
            }
            if (good < count * 9 / 10) { fprintf(stderr, "%d of %d answered\n", good, count); return 1; }
            qsort(took, good, sizeof *took, ascending);
            printf("%.3f%c", took[good / 2], way + 1 < ways ? ' ' : '\n');
        }
    return 0;
}
