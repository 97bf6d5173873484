/* The MPI program of the tests. One mode per question; `mpitest` alone lists them.
 *
 * Exit 0 and "OK <mode>" from rank 0 mean that the answer was right; a wrong answer says what and aborts with 66. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <mpi.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

enum { WRONG = 66 };
static int rank, size, local_rank, local_size;
static MPI_Comm local;

static void wrong(const char *format, ...)
{
    char text[512];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    fprintf(stderr, "WRONG rank %d: %s\n", rank, text);
    MPI_Abort(MPI_COMM_WORLD, WRONG);
}

static void ok(const char *mode)
{
    MPI_Barrier(MPI_COMM_WORLD);
    if (rank == 0)
        printf("OK %s\n", mode);
}

/* Every rank says where it is; then the collectives, each against the answer by arithmetic. */
static void check(void)
{
    char host[256] = "";
    gethostname(host, sizeof host - 1);
    printf("rank %d size %d local %d of %d host %s\n", rank, size, local_rank, local_size, host);
    fflush(stdout);

    enum { N = 1000 };
    double in[N], out[N];
    for (int i = 0; i < N; i++)
        in[i] = (double)(rank + 1) * i;
    MPI_Allreduce(in, out, N, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
    for (int i = 0; i < N; i++)
        if (out[i] != (double)size * (size + 1) / 2 * i)
            wrong("allreduce[%d] = %g", i, out[i]);

    int big = 1 << 20, *data = malloc(big * sizeof *data);
    for (int root = 0; root < size && root < 8; root++) {
        for (int i = 0; i < big; i++)
            data[i] = rank == root ? i ^ root : -1;
        MPI_Bcast(data, big, MPI_INT, root, MPI_COMM_WORLD);
        for (int i = 0; i < big; i++)
            if (data[i] != (i ^ root))
                wrong("bcast from %d [%d] = %d", root, i, data[i]);
    }
    free(data);

    int *send = malloc(size * 3 * sizeof *send), *got = malloc(size * 3 * sizeof *got);
    for (int i = 0; i < 3; i++)
        send[i] = rank * 10 + i;
    MPI_Allgather(send, 3, MPI_INT, got, 3, MPI_INT, MPI_COMM_WORLD);
    for (int i = 0; i < size * 3; i++)
        if (got[i] != i / 3 * 10 + i % 3)
            wrong("allgather[%d] = %d", i, got[i]);
    for (int i = 0; i < size * 3; i++)
        send[i] = rank * 1000 + i;
    MPI_Alltoall(send, 3, MPI_INT, got, 3, MPI_INT, MPI_COMM_WORLD);
    for (int i = 0; i < size * 3; i++)
        if (got[i] != i / 3 * 1000 + rank * 3 + i % 3)
            wrong("alltoall[%d] = %d", i, got[i]);
    free(send);
    free(got);

    int token = rank, next = (rank + 1) % size, before = (rank + size - 1) % size;
    MPI_Sendrecv_replace(&token, 1, MPI_INT, next, 7, before, 7, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    if (token != before)
        wrong("ring gave %d", token);
    ok("check");
}

/* Ping-pong between rank 0 and rank 1; one way, in 10^6 bytes per second; the median of 15 series, so that an interruption of
   one of them is not in the answer. */
enum { series_count = 15 };

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void ping_pong(char *buffer, long bytes, long rounds)
{
    for (long i = 0; i < rounds; i++) {
        if (rank == 0) {
            MPI_Send(buffer, bytes, MPI_BYTE, 1, 1, MPI_COMM_WORLD);
            MPI_Recv(buffer, bytes, MPI_BYTE, 1, 1, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        } else {
            MPI_Recv(buffer, bytes, MPI_BYTE, 0, 1, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
            MPI_Send(buffer, bytes, MPI_BYTE, 0, 1, MPI_COMM_WORLD);
        }
    }
}

static void bandwidth(int count, char **sizes)
{
    if (size < 2)
        wrong("bandwidth needs 2 ranks");
    for (int s = 0; s < count && rank < 2; s++) {
        long bytes = atol(sizes[s]), rounds = 400000000 / series_count / (bytes + 40000) + 1;
        char *buffer = malloc(bytes);
        double seconds[series_count];
        memset(buffer, rank, bytes);
        ping_pong(buffer, bytes, rounds + 1); /* warm */
        for (int i = 0; i < series_count; i++) {
            double start = MPI_Wtime();
            ping_pong(buffer, bytes, rounds);
            seconds[i] = (MPI_Wtime() - start) / rounds / 2;
        }
        qsort(seconds, series_count, sizeof seconds[0], by_value);
        double median = seconds[series_count / 2];
        if (rank == 0)
            printf("bytes %ld MB/s %.1f us %.2f\n", bytes, bytes / median / 1e6, median * 1e6);
        free(buffer);
    }
    ok("bandwidth");
}

/* What shared-memory transports do between ranks of a node: read a peer's memory, and open a peer's descriptor. */
static void cma(void)
{
    struct { int64_t pid, address, fd; } mine, *all = malloc(local_size * sizeof mine);
    uint64_t secret = 0x1234567800000000u + local_rank, seen = 0;
    int fd = memfd_create("mpitest", 0);
    if (fd < 0 || write(fd, &secret, sizeof secret) != sizeof secret)
        wrong("memfd: %s", strerror(errno));
    mine.pid = getpid(), mine.address = (int64_t)(intptr_t)&secret, mine.fd = fd;
    MPI_Allgather(&mine, sizeof mine, MPI_BYTE, all, sizeof mine, MPI_BYTE, local);
    int pairs = 0;
    for (int peer = 0; peer < local_size; peer++) {
        struct iovec to = {&seen, sizeof seen}, from = {(void *)(intptr_t)all[peer].address, sizeof seen};
        seen = 0;
        if (process_vm_readv(all[peer].pid, &to, 1, &from, 1, 0) != sizeof seen)
            wrong("process_vm_readv of local rank %d: %s", peer, strerror(errno));
        if (seen != 0x1234567800000000u + peer)
            wrong("process_vm_readv read %llx", (unsigned long long)seen);
        char path[64];
        snprintf(path, sizeof path, "/proc/%lld/fd/%lld", (long long)all[peer].pid, (long long)all[peer].fd);
        int theirs = open(path, O_RDONLY);
        seen = 0;
        if (theirs < 0 || pread(theirs, &seen, sizeof seen, 0) != sizeof seen)
            wrong("%s: %s", path, strerror(errno));
        if (seen != 0x1234567800000000u + peer)
            wrong("%s holds %llx", path, (unsigned long long)seen);
        close(theirs);
        pairs++;
    }
    MPI_Barrier(local);
    printf("rank %d cma pairs %d\n", rank, pairs);
    ok("cma");
}

/* Numbered lines, BYTES in all from each rank, newline included. */
static void output(long bytes)
{
    char line[81];
    for (long number = 0; bytes > 0; number++) {
        int length = snprintf(line, sizeof line, "rank %06d line %012ld %0*d\n", rank, number, 46, 0);
        if (length > bytes)
            length = bytes, line[length - 1] = '\n';
        fwrite(line, 1, length, stdout);
        bytes -= length;
    }
    fflush(stdout);
}

/* Standard input: how many bytes, and their sum, on each rank. */
static void input(void)
{
    unsigned long long count = 0, sum = 0;
    unsigned char buffer[65536];
    ssize_t got;
    while ((got = read(0, buffer, sizeof buffer)) > 0) {
        count += got;
        for (ssize_t i = 0; i < got; i++)
            sum += buffer[i];
    }
    printf("rank %d input %llu sum %llu\n", rank, count, sum);
    ok("input");
}

/* What the kernel allows this rank: its CPUs and memory nodes. */
static void binding(void)
{
    char line[4096], cpus[4096] = "", mems[4096] = "";
    FILE *status = fopen("/proc/self/status", "r");
    while (status && fgets(line, sizeof line, status)) {
        sscanf(line, "Cpus_allowed_list: %4095s", cpus);
        sscanf(line, "Mems_allowed_list: %4095s", mems);
    }
    if (status)
        fclose(status);
    printf("rank %d cpus %s mems %s\n", rank, cpus, mems);
    fflush(stdout);
    ok("binding");
}

/* Children in sessions of their own until the system refuses, at most LIMIT; they stay when this rank has gone. */
static void forkbomb(long limit)
{
    long made = 0;
    for (; made < limit; made++) {
        pid_t pid = fork();
        if (pid < 0)
            break;
        if (pid == 0) {
            setsid();
            for (;;)
                pause();
        }
    }
    printf("rank %d forked %ld then %s\n", rank, made, made < limit ? strerror(errno) : "stopped by its own limit");
    fflush(stdout);
    _exit(9);
}

/* Fills /dev/shm until it refuses, at most LIMIT megabytes, and leaves the file there. */
static void fillshm(long limit)
{
    static char block[1 << 20];
    char path[64];
    snprintf(path, sizeof path, "/dev/shm/fill.%d", rank);
    int fd = open(path, O_CREAT | O_WRONLY, 0600);
    long wrote = 0;
    memset(block, 1, sizeof block);
    while (fd >= 0 && wrote < limit && write(fd, block, sizeof block) == sizeof block)
        wrote++;
    printf("rank %d filled %ld MB then %s\n", rank, wrote, wrote < limit ? strerror(errno) : "stopped by its own limit");
    fflush(stdout);
}

static int usage(void)
{
    fputs("mpitest check | bandwidth BYTES... | launch | cma | binding | input | output BYTES |\n"
          "        abort CODE | exit CODE RANK | segv RANK | nofinalize RANK | hang |\n"
          "        forkbomb LIMIT | fillshm MEGABYTES\n", stderr);
    return 2;
}

int main(int argc, char **argv)
{
    if (argc < 2)
        return usage();
    const char *mode = argv[1];
    long first = argc > 2 ? atol(argv[2]) : 0, second = argc > 3 ? atol(argv[3]) : 0;

    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    if (strcmp(mode, "launch") == 0) {
        int sum = 0;
        MPI_Allreduce(&rank, &sum, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
        if (sum != size * (size - 1) / 2)
            wrong("allreduce gave %d", sum);
        MPI_Finalize();
        return 0;
    }
    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank, MPI_INFO_NULL, &local);
    MPI_Comm_rank(local, &local_rank);
    MPI_Comm_size(local, &local_size);

    if (strcmp(mode, "check") == 0) {
        check();
    } else if (strcmp(mode, "bandwidth") == 0) {
        bandwidth(argc - 2, argv + 2);
    } else if (strcmp(mode, "cma") == 0) {
        cma();
    } else if (strcmp(mode, "binding") == 0) {
        binding();
    } else if (strcmp(mode, "input") == 0) {
        input();
    } else if (strcmp(mode, "output") == 0) {
        output(first);
    } else if (strcmp(mode, "fillshm") == 0) {
        fillshm(first);
    } else if (strcmp(mode, "abort") == 0) {
        MPI_Barrier(MPI_COMM_WORLD);
        if (rank == size - 1)
            MPI_Abort(MPI_COMM_WORLD, first);
        for (;;)
            pause();
    } else if (strcmp(mode, "exit") == 0) {
        MPI_Barrier(MPI_COMM_WORLD);
        if (rank == second)
            _exit(first);
        for (;;)
            pause();
    } else if (strcmp(mode, "segv") == 0) {
        MPI_Barrier(MPI_COMM_WORLD);
        if (rank == first) {
            signal(SIGSEGV, SIG_DFL);
            raise(SIGSEGV);
        }
        for (;;)
            pause();
    } else if (strcmp(mode, "nofinalize") == 0) {
        MPI_Barrier(MPI_COMM_WORLD);
        if (rank == first)
            _exit(0);
    } else if (strcmp(mode, "hang") == 0) {
        printf("rank %d hangs\n", rank);
        fflush(stdout);
        for (;;)
            pause();
    } else if (strcmp(mode, "forkbomb") == 0) {
        forkbomb(first > 0 ? first : 2000);
    } else {
        MPI_Finalize();
        return usage();
    }
    MPI_Comm_free(&local);
    MPI_Finalize();
    return 0;
}
