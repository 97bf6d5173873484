/* What a wired-up job must be able to do, as one MPI program. Prints one line per rank and fact.
 *   probe                 rank, size, local rank; all-reduce and all-gather checked for the right answer
 *   probe bandwidth       1 MiB ping-pong between ranks 0 and 1, too
 *   probe abort N         the last rank calls MPI_Abort(N), the others wait for it
 *   probe exit N          all finalize, the last rank exits with N
 *   probe die SIGNAL      the last rank is killed by a signal, the others wait for it
 *   probe no-finalize     the last rank exits with 0 without MPI_Finalize, the others wait for it
 */
#include <mpi.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define COUNT 1000

static int check_reduce(int rank, int size)
{
    long sum = 0, mine = rank + 1, expected = (long)size * (size + 1) / 2;
    double in[COUNT], out[COUNT];
    for (int i = 0; i < COUNT; i++)
        in[i] = rank + i;
    MPI_Allreduce(&mine, &sum, 1, MPI_LONG, MPI_SUM, MPI_COMM_WORLD);
    MPI_Allreduce(in, out, COUNT, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
    for (int i = 0; i < COUNT; i++)
        if (out[i] != (double)size * i + (double)size * (size - 1) / 2)
            return 0;
    return sum == expected;
}

static int check_gather(int rank, int size)
{
    int *all = malloc(sizeof(int) * size), mine = rank * rank, right = 1;
    MPI_Allgather(&mine, 1, MPI_INT, all, 1, MPI_INT, MPI_COMM_WORLD);
    for (int i = 0; i < size; i++)
        right &= all[i] == i * i;
    free(all);
    return right;
}

static void bandwidth(int rank)
{
    enum { BYTES = 1 << 20, ROUNDS = 50 };
    char *buffer = malloc(BYTES);
    memset(buffer, rank, BYTES);
    double start = 0;
    for (int i = -5; i < ROUNDS; i++) {
        if (i == 0)
            start = MPI_Wtime();
        if (rank == 0) {
            MPI_Send(buffer, BYTES, MPI_CHAR, 1, 0, MPI_COMM_WORLD);
            MPI_Recv(buffer, BYTES, MPI_CHAR, 1, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        } else if (rank == 1) {
            MPI_Recv(buffer, BYTES, MPI_CHAR, 0, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
            MPI_Send(buffer, BYTES, MPI_CHAR, 0, 0, MPI_COMM_WORLD);
        }
    }
    if (rank == 0)
        printf("bandwidth MB/s %.0f\n", 2.0 * ROUNDS * BYTES / (MPI_Wtime() - start) / 1e6);
    free(buffer);
}

int main(int argc, char **argv)
{
    const char *mode = argc > 1 ? argv[1] : "";
    int number = argc > 2 ? atoi(argv[2]) : 1;
    int rank, size, local_rank, local_size, length;
    char host[MPI_MAX_PROCESSOR_NAME];
    MPI_Comm node;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank, MPI_INFO_NULL, &node);
    MPI_Comm_rank(node, &local_rank);
    MPI_Comm_size(node, &local_size);
    MPI_Get_processor_name(host, &length);
    printf("rank %d of %d, local %d of %d, on %s\n", rank, size, local_rank, local_size, host);
    printf("rank %d allreduce %s\n", rank, check_reduce(rank, size) ? "right" : "WRONG");
    printf("rank %d allgather %s\n", rank, check_gather(rank, size) ? "right" : "WRONG");
    fflush(stdout);
    MPI_Barrier(MPI_COMM_WORLD); /* all have said it before anybody fails */
    int last = rank == size - 1;
    if (!strcmp(mode, "bandwidth") && size > 1)
        bandwidth(rank);
    if (!strcmp(mode, "abort") && last)
        MPI_Abort(MPI_COMM_WORLD, number);
    if (!strcmp(mode, "die") && last)
        raise(number);
    if (!strcmp(mode, "no-finalize") && last)
        _exit(0);
    MPI_Barrier(MPI_COMM_WORLD);
    MPI_Comm_free(&node);
    MPI_Finalize();
    return !strcmp(mode, "exit") && last ? number : 0;
}
