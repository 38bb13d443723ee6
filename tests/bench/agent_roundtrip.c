/* Request and response of one byte over UDP, one under way at a time: what a remote call waits for.
 *
 * "roundtrip ADDRESS" answers for ever on port 7001; "roundtrip ADDRESS COUNT" asks COUNT times and
 * prints the median and the 99th percentile in microseconds.
 */
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e6 + t.tv_nsec * 1e-3;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv) {
    int sock = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(7001)};
    char byte = 1;
    inet_pton(AF_INET, argv[1], &address.sin_addr);
    if (argc == 2) {
        if (bind(sock, (void *)&address, sizeof address) < 0) { perror("bind"); return 1; }
        for (;;) {
            struct sockaddr_in peer;
            socklen_t length = sizeof peer;
            ssize_t size = recvfrom(sock, &byte, 1, 0, (void *)&peer, &length);
            if (size > 0) sendto(sock, &byte, 1, 0, (void *)&peer, length);
        }
    }
    int count = atoi(argv[2]), good = 0;
    struct timeval limit = {.tv_usec = 200000};
    setsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    if (connect(sock, (void *)&address, sizeof address) < 0) { perror("connect"); return 1; }
    double *took = calloc(count, sizeof *took);
    for (int i = 0; i < count; i++) {
        double start = now();
        send(sock, &byte, 1, 0);
        if (recv(sock, &byte, 1, 0) == 1) took[good++] = now() - start;
    }
    if (good < count * 9 / 10) { fprintf(stderr, "only %d of %d answered\n", good, count); return 1; }
    qsort(took, good, sizeof *took, ascending);
    printf("%.2f %.2f\n", took[good / 2], took[good * 99 / 100]);
    return 0;
}
