/* What a network carries, and what that costs: one static program, both ends of every question.
 *
 *   nettool serve PORT                    TCP and UDP on this port, IPv4 and IPv6, until it is killed; says "ready"
 *   nettool ping HOST                     ICMP echo by an unprivileged socket, or a raw one: "OK ping"
 *   nettool tcp|udp HOST PORT             one exchange: "OK tcp"
 *   nettool mtu HOST PORT                 path MTU as the kernel found it with DF set: "mtu 1500"
 *   nettool join GROUP PORT [IF]          waits for one multicast datagram: "OK multicast"
 *   nettool send GROUP PORT [IF]          sends ten of them, a second apart at most
 *   nettool bench KIND HOST PORT SECONDS SIZE [CONNECTIONS]
 *       KIND stream: bytes one way; rr: request and response over TCP; urr: the same over UDP; pps: datagrams one way
 *       prints: KIND SIZE CONNECTIONS rate p50_us p99_us packets cpu_us_per_unit
 *   nettool burn N                        N processes that only compute, until killed
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/icmp6.h>
#include <netinet/in.h>
#include <netinet/ip_icmp.h>
#include <linux/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef IP_MTU
#define IP_MTU 14
#endif

enum { STREAM = 's', REQUEST = 'r', SINK = 'k' };

struct head {
    char kind;
    uint32_t size;
} __attribute__((packed));

static void die(const char *what) {
    fprintf(stderr, "nettool: %s: %s\n", what, strerror(errno));
    exit(1);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static socklen_t resolve(const char *host, const char *port, int type, struct sockaddr_storage *to) {
    struct addrinfo hints = {.ai_socktype = type, .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV}, *found;
    if (getaddrinfo(host, port, &hints, &found)) {
        fprintf(stderr, "nettool: `%s` is no address\n", host);
        exit(1);
    }
    socklen_t length = found->ai_addrlen;
    memcpy(to, found->ai_addr, length);
    freeaddrinfo(found);
    return length;
}

static void patience(int fd, int seconds) {
    struct timeval limit = {seconds, 0};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
}

static int dial(const char *host, const char *port, int type) {
    struct sockaddr_storage to;
    socklen_t length = resolve(host, port, type, &to);
    int one = 1, fd = socket(to.ss_family, type, 0);
    if (fd < 0) die("socket");
    patience(fd, 10);
    if (connect(fd, (void *)&to, length)) die("connect");
    if (type == SOCK_STREAM) setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return fd;
}

static int all(int fd, void *at, size_t size, int out) {
    for (char *p = at; size;) {
        ssize_t n = out ? send(fd, p, size, MSG_NOSIGNAL) : recv(fd, p, size, 0);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return -1;
        p += n, size -= n;
    }
    return 0;
}

/* ---- the serving end ---- */

static char buffer[1 << 20];

static void serve_tcp(int fd) {
    struct head head;
    int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (all(fd, &head, sizeof head, 0)) exit(0);
    uint32_t size = ntohl(head.size);
    if (size > sizeof buffer) exit(1);
    if (head.kind == STREAM) {
        while (recv(fd, buffer, sizeof buffer, 0) > 0) {
        }
        exit(0);
    }
    while (!all(fd, buffer, size, 0) && !all(fd, buffer, size, 1)) {
    }
    exit(0);
}

static void serve(const char *port) {
    struct sockaddr_in6 any = {.sin6_family = AF_INET6, .sin6_port = htons(atoi(port))};
    int one = 1, zero = 0, tcp = socket(AF_INET6, SOCK_STREAM, 0), udp = socket(AF_INET6, SOCK_DGRAM, 0);
    if (tcp < 0 || udp < 0) die("socket");
    signal(SIGCHLD, SIG_IGN);
    setsockopt(tcp, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    setsockopt(tcp, IPPROTO_IPV6, IPV6_V6ONLY, &zero, sizeof zero);
    setsockopt(udp, IPPROTO_IPV6, IPV6_V6ONLY, &zero, sizeof zero);
    int room = 8 << 20;
    setsockopt(udp, SOL_SOCKET, SO_RCVBUF, &room, sizeof room);
    if (bind(tcp, (void *)&any, sizeof any) || bind(udp, (void *)&any, sizeof any) || listen(tcp, 64)) die("bind");
    if (fork() == 0) {
        uint64_t sunk = 0;
        for (;;) {
            struct sockaddr_storage from;
            socklen_t length = sizeof from;
            ssize_t n = recvfrom(udp, buffer, sizeof buffer, 0, (void *)&from, &length);
            if (n < 1) continue;
            if (buffer[0] == SINK) { /* counted; the count is asked for by a datagram of one byte */
                if (n > 1) {
                    sunk++;
                    continue;
                }
                sendto(udp, &sunk, sizeof sunk, 0, (void *)&from, length);
                sunk = 0;
            } else {
                sendto(udp, buffer, n, 0, (void *)&from, length);
            }
        }
    }
    puts("ready");
    fflush(stdout);
    for (;;) {
        int fd = accept(tcp, NULL, NULL);
        if (fd < 0) continue;
        if (fork() == 0) {
            close(tcp);
            serve_tcp(fd);
        }
        close(fd);
    }
}

/* ---- questions ---- */

static unsigned short checksum(const unsigned short *at, int words) {
    unsigned sum = 0;
    while (words--) sum += *at++;
    sum = (sum >> 16) + (sum & 0xffff);
    return ~(sum + (sum >> 16));
}

static int ping(const char *host) {
    struct sockaddr_storage to;
    socklen_t length = resolve(host, NULL, SOCK_DGRAM, &to);
    int v6 = to.ss_family == AF_INET6, protocol = v6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP;
    int raw = 0, fd = socket(to.ss_family, SOCK_DGRAM, protocol);
    if (fd < 0) raw = 1, fd = socket(to.ss_family, SOCK_RAW, protocol);
    if (fd < 0) die("ICMP socket");
    patience(fd, 1);
    unsigned short packet[4] = {v6 ? ICMP6_ECHO_REQUEST : ICMP_ECHO, 0, htons(getpid() & 0xffff), 0};
    for (int try = 1; try <= 5; try++) {
        packet[3] = htons(try), packet[1] = 0;
        if (!v6) packet[1] = checksum(packet, 4);
        if (sendto(fd, packet, sizeof packet, 0, (void *)&to, length) < 0 && try == 5) die("send");
        unsigned char answer[256];
        ssize_t n = recv(fd, answer, sizeof answer, 0);
        int type = raw && !v6 && n > 20 ? answer[(answer[0] & 15) * 4] : n > 0 ? answer[0] : -1;
        if (type == (v6 ? ICMP6_ECHO_REPLY : ICMP_ECHOREPLY)) return puts("OK ping"), 0;
    }
    fputs("nettool: no echo\n", stderr);
    return 1;
}

static int exchange(const char *kind, const char *host, const char *port) {
    char text[] = "qthe quick brown fox", back[sizeof text];
    int tcp = !strcmp(kind, "tcp");
    for (int try = 0; try < 5; try++) {
        int fd = dial(host, port, tcp ? SOCK_STREAM : SOCK_DGRAM);
        struct head head = {REQUEST, htonl(sizeof text)};
        if (!tcp) patience(fd, 1);
        if (tcp && all(fd, &head, sizeof head, 1)) die("send");
        if (all(fd, text, sizeof text, 1)) die("send");
        if (!all(fd, back, sizeof back, 0) && !memcmp(text, back, sizeof text)) return printf("OK %s\n", kind), 0;
        close(fd);
    }
    die("receive");
    return 1;
}

static int mtu(const char *host, const char *port) {
    int fd = dial(host, port, SOCK_DGRAM), v6 = strchr(host, ':') != NULL, found = 0;
    int probe = IP_PMTUDISC_DO;
    setsockopt(fd, v6 ? IPPROTO_IPV6 : IPPROTO_IP, v6 ? IPV6_MTU_DISCOVER : IP_MTU_DISCOVER, &probe, sizeof probe);
    for (int try = 0; try < 20; try++) {
        socklen_t length = sizeof found;
        if (getsockopt(fd, v6 ? IPPROTO_IPV6 : IPPROTO_IP, v6 ? IPV6_MTU : IP_MTU, &found, &length)) die("IP_MTU");
        int size = found - (v6 ? 48 : 28);
        memset(buffer, 'q', size);
        patience(fd, 1);
        if (send(fd, buffer, size, 0) == size && recv(fd, buffer, sizeof buffer, 0) == size) return printf("mtu %d\n", found), 0;
    }
    fprintf(stderr, "nettool: no datagram of %d bytes came back\n", found);
    return 1;
}

static int multicast(int join, const char *group, const char *port, const char *interface) {
    struct sockaddr_storage to;
    socklen_t length = resolve(group, port, SOCK_DGRAM, &to);
    int v6 = to.ss_family == AF_INET6, index = interface ? if_nametoindex(interface) : 0, one = 1;
    int fd = socket(to.ss_family, SOCK_DGRAM, 0);
    if (fd < 0) die("socket");
    struct ip_mreqn v4 = {.imr_multiaddr = ((struct sockaddr_in *)&to)->sin_addr, .imr_ifindex = index};
    struct ipv6_mreq six = {.ipv6mr_multiaddr = ((struct sockaddr_in6 *)&to)->sin6_addr, .ipv6mr_interface = index};
    if (join) {
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
        if (bind(fd, (void *)&to, length)) die("bind");
        if (v6 ? setsockopt(fd, IPPROTO_IPV6, IPV6_JOIN_GROUP, &six, sizeof six)
               : setsockopt(fd, IPPROTO_IP, IP_ADD_MEMBERSHIP, &v4, sizeof v4))
            die("join");
        patience(fd, 15);
        puts("joined");
        fflush(stdout);
        if (recv(fd, buffer, sizeof buffer, 0) < 1) die("receive");
        return puts("OK multicast"), 0;
    }
    if (v6 ? setsockopt(fd, IPPROTO_IPV6, IPV6_MULTICAST_IF, &index, sizeof index)
           : setsockopt(fd, IPPROTO_IP, IP_MULTICAST_IF, &v4, sizeof v4))
        die("interface");
    for (int i = 0; i < 40; i++) {
        if (sendto(fd, "hello", 5, 0, (void *)&to, length) < 0) die("send");
        poll(NULL, 0, 250);
    }
    return puts("sent"), 0;
}

/* ---- cost ---- */

static int ascending(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* All CPU time of the machine that was not idle, in seconds: softirq work belongs to no process. */
static double busy(void) {
    FILE *file = fopen("/proc/stat", "r");
    unsigned long long user, nice, system, idle, wait, irq, softirq, steal;
    if (!file || fscanf(file, "cpu %llu %llu %llu %llu %llu %llu %llu %llu", &user, &nice, &system, &idle, &wait, &irq,
                        &softirq, &steal) != 8)
        return 0;
    fclose(file);
    return (double)(user + nice + system + irq + softirq) / sysconf(_SC_CLK_TCK);
}

static int bench(char **arg, int count) {
    const char *kind = arg[0], *host = arg[1], *port = arg[2];
    double seconds = atof(arg[3]);
    uint32_t size = atoi(arg[4]), connections = count > 5 ? atoi(arg[5]) : 1;
    if (size < 1 || size > sizeof buffer || connections < 1 || connections > 64) return 2;
    int datagrams = !strcmp(kind, "urr") || !strcmp(kind, "pps"), stream = !strcmp(kind, "stream"), fds[64];
    memset(buffer, 'q', sizeof buffer);
    for (uint32_t i = 0; i < connections; i++) {
        fds[i] = dial(host, port, datagrams ? SOCK_DGRAM : SOCK_STREAM);
        struct head head = {stream ? STREAM : REQUEST, htonl(size)};
        if (!datagrams && all(fds[i], &head, sizeof head, 1)) die("send");
    }
    static float times[1 << 22];
    uint64_t done = 0, received = 0;
    double before = busy(), start = now(), end = start + seconds, last = start;
    if (stream) {
        for (uint32_t i = 0; i < connections; i++) {
            if (fork() == 0) {
                while (now() < end)
                    if (all(fds[i], buffer, size, 1)) die("send");
                _exit(0);
            }
        }
        while (wait(NULL) > 0) {
        }
        for (uint32_t i = 0; i < connections; i++) {
            struct tcp_info info;
            socklen_t length = sizeof info;
            memset(&info, 0, sizeof info);
            getsockopt(fds[i], IPPROTO_TCP, TCP_INFO, &info, &length);
            done += info.tcpi_bytes_acked;
        }
    } else if (!strcmp(kind, "pps")) {
        buffer[0] = SINK;
        send(fds[0], buffer, 1, 0); /* sets the count to zero */
        recv(fds[0], &received, sizeof received, 0);
        for (; last < end; last = now())
            for (int i = 0; i < 64; i++) done += send(fds[0], buffer, size < 2 ? 2 : size, 0) > 0;
        patience(fds[0], 1);
        for (int try = 0; try < 5; try++) {
            send(fds[0], buffer, 1, 0);
            if (recv(fds[0], &received, sizeof received, 0) == sizeof received) break;
        }
    } else {
        if (datagrams) patience(fds[0], 1);
        for (; last < end;) {
            if (all(fds[0], buffer, size, 1)) die("send");
            if (datagrams ? recv(fds[0], buffer, size, 0) < 1 : all(fds[0], buffer, size, 0)) continue;
            double t = now();
            if (done < sizeof times / sizeof *times) times[done] = (t - last) * 1e6;
            done++, last = t;
        }
    }
    double spent = now() - start, cpu = busy() - before, p50 = 0, p99 = 0;
    uint64_t units = stream ? done >> 20 : received ? received : done;
    if (!stream && !received && done) {
        uint64_t n = done < sizeof times / sizeof *times ? done : sizeof times / sizeof *times;
        qsort(times, n, sizeof *times, ascending);
        p50 = times[n / 2], p99 = times[n * 99 / 100];
    }
    printf("%s %u %u %.1f %.2f %.2f %llu %.3f\n", kind, size, connections, stream ? done / spent / 1e6 : units / spent, p50, p99,
           (unsigned long long)done, units ? cpu * 1e6 / units : 0);
    return 0;
}

static void burn(int n) {
    while (n-- > 1)
        if (fork() == 0) break;
    for (volatile unsigned long i = 0;; i++) {
    }
}

int main(int argc, char **argv) {
    if (argc == 3 && !strcmp(argv[1], "serve")) serve(argv[2]);
    if (argc == 3 && !strcmp(argv[1], "ping")) return ping(argv[2]);
    if (argc == 3 && !strcmp(argv[1], "burn")) burn(atoi(argv[2]));
    if (argc == 4 && (!strcmp(argv[1], "tcp") || !strcmp(argv[1], "udp"))) return exchange(argv[1], argv[2], argv[3]);
    if (argc == 4 && !strcmp(argv[1], "mtu")) return mtu(argv[2], argv[3]);
    if (argc >= 4 && !strcmp(argv[1], "join")) return multicast(1, argv[2], argv[3], argv[4]);
    if (argc >= 4 && !strcmp(argv[1], "send")) return multicast(0, argv[2], argv[3], argv[4]);
    if (argc >= 7 && !strcmp(argv[1], "bench")) return bench(argv + 2, argc - 2);
    fputs("nettool: see the beginning of nettool.c\n", stderr);
    return 2;
}
