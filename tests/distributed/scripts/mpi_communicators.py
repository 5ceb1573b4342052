# ruff: noqa: E402  (the imports come after what stands for an installation without TensorFlow)
"""Control over mpi4py on three ranks: any communicator, no TensorFlow, and an end to waiting."""

import os
import sys

sys.modules.update(dict.fromkeys(("tensorflow", "keras", "horovod")))  # as where none of them is installed

from mpi4py import MPI

from distlr.communicators import connect, detect
from distlr.communicators.mpi import MpiCommunicator
from distlr.errors import CollectiveTimeoutError
from distlr.plateau.policy import PlateauPolicy

world = connect("mpi", detect(os.environ))
assert (world.size, world.local_size) == (3, 3)

single = MpiCommunicator(MPI.COMM_SELF)
assert (single.rank, single.size) == (0, 1)
assert single.allreduce(world.rank, tag="self").item() == world.rank

# Ranks 0 and 2 in one part, 1 in the other; in the first one the order is turned round.
part = MpiCommunicator(MPI.COMM_WORLD.Split(color=world.rank % 2, key=-world.rank))
expected = [2, 0] if world.rank != 1 else [1]
assert part.gather_json(world.rank, tag="part") == expected
assert part.rank == expected.index(world.rank)

# A decision of rank 0, as a plateau makes it.
policy = PlateauPolicy("val_loss")
state, decision = policy.step(policy.initial_state(), 1.0, rate=0.1, in_warmup=False)
reply = world.broadcast_json(decision.to_dict() if world.is_root else None, tag="decision")
assert reply == decision.to_dict()

# Messages of another library on the same communicator do not get in between.
other = MPI.COMM_WORLD.isend("not distlr's", dest=(world.rank + 1) % 3)
assert world.allreduce(1, tag="between").item() == 3
MPI.COMM_WORLD.recv()
other.wait()
print(f"[rank {world.rank}] all right", flush=True)

impatient = MpiCommunicator(timeout=2)
if world.rank != 1:
    try:
        impatient.barrier(tag="without rank 1")
    except CollectiveTimeoutError as error:
        print(f"[rank {world.rank}] {error}", flush=True)
        sys.exit(4)
else:
    world.barrier(tag="for ever")  # ended by the others
