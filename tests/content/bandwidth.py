"""What mpi4py sees: a checked allreduce over all ranks, then ping-pong between ranks 0 and 1."""

from array import array

from mpi4py import MPI

world = MPI.COMM_WORLD
rank, size = world.rank, world.size

total = world.allreduce(rank + 1)
if total != size * (size + 1) // 2:
    raise SystemExit(f"rank {rank}: allreduce gave {total}")
names = world.gather(MPI.Get_processor_name())
if rank == 0:
    print(MPI.Get_library_version().splitlines()[0].strip(), flush=True)
    print(f"allreduce over {size} ranks on {', '.join(sorted(set(names)))}: right", flush=True)

if rank == 0 and size > 1:
    print(f"{'bytes':>10} {'us':>10} {'MB/s':>10}")
for exponent in range(0, 23, 2):
    if rank > 1 or size < 2:
        break
    count = 1 << exponent
    data = array("b", bytes(count))
    rounds = max(20, min(1000, (1 << 24) // count))
    for lap in range(-rounds // 10, rounds):
        if lap == 0:
            start = MPI.Wtime()
        if rank == 0:
            world.Send(data, dest=1)
            world.Recv(data, source=1)
        else:
            world.Recv(data, source=0)
            world.Send(data, dest=0)
    one_way = (MPI.Wtime() - start) / rounds / 2
    if rank == 0:
        print(f"{count:>10} {one_way * 1e6:>10.2f} {count / one_way / 1e6:>10.1f}", flush=True)
world.Barrier()
