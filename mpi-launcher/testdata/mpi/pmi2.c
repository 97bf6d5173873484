/* What a PMI-2 client (Slurm's libpmi2) must be able to do; says the same as probe.c. Modes: none, and `exit N`. */
#include <slurm/pmi2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    int spawned, size, rank, app, found, length, right = 1;
    char job[256], key[64], value[256], host[256], mapping[1024] = "", shared[64] = "";
    gethostname(host, sizeof host);
    if (PMI2_Init(&spawned, &size, &rank, &app) || PMI2_Job_GetId(job, sizeof job))
        return 99;
    PMI2_Info_GetJobAttr("PMI_process_mapping", mapping, sizeof mapping, &found);
    for (int round = 0; round < 2; round++) {
        snprintf(key, sizeof key, "key-%d-%d", round, rank);
        snprintf(value, sizeof value, "v;%d=", rank * rank + round);
        if (PMI2_KVS_Put(key, value) || PMI2_KVS_Fence())
            return 98;
        for (int other = 0; other < size; other++) {
            char expected[256];
            snprintf(key, sizeof key, "key-%d-%d", round, other);
            snprintf(expected, sizeof expected, "v;%d=", other * other + round);
            right &= !PMI2_KVS_Get(job, PMI2_ID_NULL, key, value, sizeof value, &length) && !strcmp(value, expected);
        }
    }
    const char *local = getenv("MPI_LOCALRANKID"), *locals = getenv("MPI_LOCALNRANKS");
    if (atoi(local) == 0)
        PMI2_Info_PutNodeAttr("shared", host);
    PMI2_Info_GetNodeAttr("shared", shared, sizeof shared, &found, 1);
    printf("rank %d of %d, local %s of %s, on %s %s\n", rank, size, local, locals, host, mapping);
    printf("rank %d allreduce %s\n", rank, right ? "right" : "WRONG");
    printf("rank %d allgather %s\n", rank, found && !strcmp(shared, host) ? "right" : "WRONG");
    PMI2_Finalize();
    return argc > 2 && rank == size - 1 ? atoi(argv[2]) : 0;
}
