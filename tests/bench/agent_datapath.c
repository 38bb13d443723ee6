/* Traffic between two pods along several ways, block by block, from one process.
 *
 * "agent_datapath ROUNDS BLOCK_MS LIMIT KINDS WAY=NETNS:ADDRESS,NETNS:ADDRESS …": in each round every way gets one
 * block of every kind (1, 4: TCP streams, bytes that arrived; r: one-byte requests; u: 64-byte packets that arrived;
 * w: the same, where the sender waits while WINDOW are under way, as any sender does that cares what arrives).
 * The sender keeps to the first CPU and the receiver to the last, as two hosts would. A block in which other
 * programs took more than LIMIT per cent of the CPUs is repeated, up to REPEATS times. Prints for each block:
 * round, way, kind, figure, CPU time per unit in microseconds (rtt: 0), others' share, repetitions.
 * Figures: Gbit/s, microseconds, packets/s; units: KiB, packets. CPU time is that of this process and of the soft
 * interrupts, which are the traffic's own; whether the kernel counts them in the time of the process that they
 * interrupt (without CONFIG_IRQ_TIME_ACCOUNTING) or apart is found out at the start.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum { WAYS = 12, STREAMS = 4, REPEATS = 3, BATCH = 32, SMALL = 64, CHUNK = 65536, TRIPS = 4096, WINDOW = 256 };
struct way {
    char name[32];
    int out[STREAMS], in[STREAMS], udp_out, udp_in, ask, answer; /* sockets of the sending and the receiving pod */
};
static struct way ways[WAYS];
static int count;
static atomic_long bytes, packets;
static atomic_int over;
static int arrival; /* an eventfd: packets have arrived */

static void die(const char *what) {
    perror(what);
    exit(1);
}
static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}
static void enter(const char *name) {
    char path[64];
    snprintf(path, sizeof path, "/run/netns/%s", name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || setns(fd, CLONE_NEWNET)) die(path);
    close(fd);
}
static int first = -1, last; /* the CPUs of the two ends */
static void look_for_cpus(void) {
    cpu_set_t all;
    if (sched_getaffinity(0, sizeof all, &all)) die("sched_getaffinity");
    for (int i = 0; i < CPU_SETSIZE; i++)
        if (CPU_ISSET(i, &all)) {
            if (first < 0) first = i;
            last = i;
        }
}
static void keep_to(int cpu) {
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    errno = pthread_setaffinity_np(pthread_self(), sizeof one, &one);
    if (errno) die("pthread_setaffinity_np");
}
static struct sockaddr_in at(const char *text, int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    inet_pton(AF_INET, text, &address.sin_addr);
    return address;
}
static int made(int type, const char *address, int port) {
    struct sockaddr_in here = at(address, port);
    struct timeval limit = {.tv_usec = 200000};
    int sock = socket(AF_INET, type, 0), on = 1, size = 4 << 20;
    setsockopt(sock, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    setsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    if (type == SOCK_DGRAM) setsockopt(sock, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size);
    /* Named, because a machine's default may be BBR, which halves every way. */
    if (type == SOCK_STREAM && setsockopt(sock, IPPROTO_TCP, TCP_CONGESTION, "cubic", 5)) die("cubic");
    if (bind(sock, (void *)&here, sizeof here)) die("bind");
    return sock;
}
static void joined(int sock, const char *address, int port) {
    struct sockaddr_in there = at(address, port);
    if (connect(sock, (void *)&there, sizeof there)) die("connect");
}
static void prepare(struct way *way, char *text) {
    char *ns[2], *address[2];
    strncpy(way->name, strsep(&text, "="), sizeof way->name - 1);
    for (int i = 0; i < 2; i++) {
        ns[i] = strsep(&text, ":");
        address[i] = strsep(&text, ",");
    }
    enter(ns[1]);
    int listener = made(SOCK_STREAM, address[1], 7000);
    if (listen(listener, STREAMS)) die("listen");
    way->udp_in = made(SOCK_DGRAM, address[1], 7001);
    way->answer = made(SOCK_DGRAM, address[1], 7002);
    enter(ns[0]);
    for (int i = 0; i < STREAMS; i++) {
        way->out[i] = made(SOCK_STREAM, address[0], 0);
        joined(way->out[i], address[1], 7000);
        if ((way->in[i] = accept(listener, NULL, NULL)) < 0) die("accept");
        fcntl(way->out[i], F_SETFL, O_NONBLOCK);
        fcntl(way->in[i], F_SETFL, O_NONBLOCK);
    }
    close(listener);
    way->udp_out = made(SOCK_DGRAM, address[0], 7001);
    joined(way->udp_out, address[1], 7001);
    way->ask = made(SOCK_DGRAM, address[0], 7002);
    joined(way->ask, address[1], 7002);
    joined(way->answer, address[0], 7002); /* both directions of a flow, as in any conversation */
}

/* ---- the receiving end */
static struct { struct way *way; int kind; } task;
static pthread_barrier_t start, end;
static void swallow(struct way *way, int streams) {
    static char sink[1 << 18];
    struct pollfd fds[STREAMS];
    for (int i = 0; i < streams; i++) fds[i] = (struct pollfd){way->in[i], POLLIN, 0};
    while (poll(fds, streams, 20) > 0 || !atomic_load(&over))
        for (int i = 0; i < streams; i++)
            if (fds[i].revents & POLLIN) {
                long got = recv(fds[i].fd, sink, sizeof sink, 0);
                if (got > 0) atomic_fetch_add(&bytes, got);
            }
}
static void take(struct way *way, int tell) {
    static char room[BATCH][2048];
    struct mmsghdr messages[BATCH];
    struct iovec parts[BATCH];
    for (int i = 0; i < BATCH; i++) {
        parts[i] = (struct iovec){room[i], sizeof room[i]};
        messages[i].msg_hdr = (struct msghdr){.msg_iov = &parts[i], .msg_iovlen = 1};
    }
    struct timeval limit = {.tv_usec = 20000};
    setsockopt(way->udp_in, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    for (;;) {
        int got = recvmmsg(way->udp_in, messages, BATCH, MSG_WAITFORONE, NULL);
        if (got > 0) {
            atomic_fetch_add(&packets, got);
            if (tell && eventfd_write(arrival, 1)) die("eventfd_write");
        } else if (atomic_load(&over)) return;
    }
}
static void *receiver(void *unused) {
    keep_to(last);
    for (;;) {
        pthread_barrier_wait(&start);
        if (task.kind < 2) swallow(task.way, task.kind ? STREAMS : 1);
        else if (task.kind > 2) take(task.way, task.kind == 4);
        else {
            char byte;
            struct timeval limit = {.tv_usec = 20000};
            setsockopt(task.way->answer, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
            while (!atomic_load(&over))
                if (recv(task.way->answer, &byte, 1, 0) == 1) send(task.way->answer, &byte, 1, 0);
        }
        pthread_barrier_wait(&end);
    }
    return unused;
}

/* ---- the sending end */
static void pour(struct way *way, int streams, double until) {
    static char chunk[CHUNK];
    struct pollfd fds[STREAMS];
    for (int i = 0; i < streams; i++) fds[i] = (struct pollfd){way->out[i], POLLOUT, 0};
    while (now() < until)
        if (poll(fds, streams, 10) > 0)
            for (int i = 0; i < streams; i++)
                if (fds[i].revents & POLLOUT) send(fds[i].fd, chunk, sizeof chunk, MSG_NOSIGNAL);
}
static void fire(struct way *way, double until) {
    static char small[SMALL];
    struct mmsghdr messages[BATCH];
    struct iovec part = {small, sizeof small};
    for (int i = 0; i < BATCH; i++) messages[i].msg_hdr = (struct msghdr){.msg_iov = &part, .msg_iovlen = 1};
    while (now() < until)
        if (sendmmsg(way->udp_out, messages, BATCH, 0) < 0 && errno != ENOBUFS && errno != EAGAIN) die("sendmmsg");
}
/* What has not come LOST_MS after the last one that did will not come. */
static void fire_and_wait(struct way *way, double until) {
    enum { LOST_MS = 5 };
    static char small[SMALL];
    struct mmsghdr messages[BATCH];
    struct iovec part = {small, sizeof small};
    struct pollfd news = {arrival, POLLIN, 0};
    eventfd_t unused;
    long sent = 0;
    for (int i = 0; i < BATCH; i++) messages[i].msg_hdr = (struct msghdr){.msg_iov = &part, .msg_iovlen = 1};
    while (now() < until) {
        if (sent - atomic_load(&packets) <= WINDOW - BATCH) {
            int gone = sendmmsg(way->udp_out, messages, BATCH, 0);
            if (gone > 0) sent += gone;
            else if (errno != ENOBUFS && errno != EAGAIN) die("sendmmsg");
        } else if (poll(&news, 1, LOST_MS) > 0) eventfd_read(arrival, &unused);
        else sent = atomic_load(&packets);
    }
}
static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}
static double question(struct way *way, double until) {
    static double took[TRIPS];
    int good = 0;
    char byte = 1;
    while (good < TRIPS && now() < until) {
        double asked = now();
        send(way->ask, &byte, 1, 0);
        if (recv(way->ask, &byte, 1, 0) == 1) took[good++] = now() - asked;
    }
    qsort(took, good, sizeof *took, ascending);
    return good ? took[good / 2] * 1e6 : 0;
}

/* Seconds: of this process with its soft interrupts, and of everybody together; or of soft interrupts on one CPU. */
struct spent { double own, all; };
static int apart; /* whether soft interrupts are missing in the time of the process that they interrupt */
static struct spent ticks(int cpu) {
    char line[256], name[16];
    double user = 0, low = 0, system = 0, idle, wait, irq = 0, soft = 0, tick = sysconf(_SC_CLK_TCK);
    snprintf(name, sizeof name, cpu < 0 ? "cpu " : "cpu%d ", cpu);
    FILE *file = fopen("/proc/stat", "r");
    if (!file) die("/proc/stat");
    while (fgets(line, sizeof line, file))
        if (!strncmp(line, name, strlen(name)))
            sscanf(line, "%*s %lf %lf %lf %lf %lf %lf %lf", &user, &low, &system, &idle, &wait, &irq, &soft);
    fclose(file);
    return (struct spent){(irq + soft) / tick, (user + low + system + irq + soft) / tick};
}
static double used(int who) {
    struct rusage usage;
    getrusage(who, &usage);
    return usage.ru_utime.tv_sec + usage.ru_stime.tv_sec + (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6;
}
static struct spent spent(void) {
    struct spent all = ticks(-1);
    return (struct spent){used(RUSAGE_SELF) + (apart ? all.own : 0), all.all};
}
/* Sends to itself: where its own time and that of soft interrupts on its CPU are together more than has passed, the
 * one holds the other. One such moment is proof; it takes others who disturb each of them to have none. */
static void find_out(void) {
    enum { MOMENTS = 5 };
    struct sockaddr_in nobody = at("127.0.0.1", 9);
    int sock = socket(AF_INET, SOCK_DGRAM, 0);
    apart = 1;
    for (int i = 0; i < MOMENTS && apart; i++) {
        double began = now(), own = used(RUSAGE_THREAD), soft = ticks(first).own;
        while (now() - began < 0.1)
            for (int k = 0; k < BATCH; k++) sendto(sock, "", 1, 0, (void *)&nobody, sizeof nobody);
        apart = used(RUSAGE_THREAD) - own + ticks(first).own - soft < 1.15 * (now() - began);
    }
    close(sock);
}
static void block(int round, struct way *way, int kind, double seconds, double limit) {
    static const char *names[] = {"tcp1", "tcp4", "rtt", "udp", "window"};
    double figure = 0, cpu_us = 0, others = 0, best = 1e9;
    int tries = 0;
    do {
        atomic_store(&bytes, 0);
        atomic_store(&packets, 0);
        atomic_store(&over, 0);
        task.way = way;
        task.kind = kind;
        pthread_barrier_wait(&start);
        struct spent before = spent();
        double began = now(), until = began + seconds, trip = 0;
        if (kind < 2) pour(way, kind ? STREAMS : 1, until);
        else if (kind == 2) trip = question(way, until);
        else if (kind == 3) fire(way, until);
        else fire_and_wait(way, until);
        long got = kind < 2 ? atomic_load(&bytes) : atomic_load(&packets);
        double took = now() - began;
        struct spent after = spent();
        atomic_store(&over, 1);
        pthread_barrier_wait(&end);
        double own = after.own - before.own, busy = after.all - before.all - own;
        others = busy > 0 ? 100 * busy / took / sysconf(_SC_NPROCESSORS_ONLN) : 0;
        if (others < best) {
            best = others;
            figure = kind < 2 ? got * 8e-9 / took : kind == 2 ? trip : got / took;
            double units = kind < 2 ? got / 1024.0 : got;
            cpu_us = kind == 2 || units == 0 ? 0 : 1e6 * own / units;
        }
    } while (others > limit && ++tries < REPEATS);
    printf("%d %s %s %.6g %.6g %.0f %d\n", round, way->name, names[kind], figure, cpu_us, best, tries);
    fflush(stdout);
}
int main(int argc, char **argv) {
    if (argc < 6) return 2;
    int rounds = atoi(argv[1]);
    double seconds = atoi(argv[2]) * 1e-3, limit = atof(argv[3]);
    look_for_cpus();
    keep_to(first);
    find_out();
    if ((arrival = eventfd(0, EFD_NONBLOCK)) < 0) die("eventfd");
    for (int i = 5; i < argc && count < WAYS; i++) prepare(&ways[count++], argv[i]);
    pthread_t thread;
    pthread_barrier_init(&start, NULL, 2);
    pthread_barrier_init(&end, NULL, 2);
    pthread_create(&thread, NULL, receiver, NULL);
    for (int round = -1; round < rounds; round++) /* round -1 warms up connections, caches and flows */
        for (int kind = 0; kind < 5; kind++) {
            if (!strchr(argv[4], "14ruw"[kind])) continue;
            for (int i = 0; i < count; i++) block(round, &ways[round & 1 ? count - 1 - i : i], kind, seconds, limit);
        }
    return 0;
}
