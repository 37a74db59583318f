"""The bare loop over c10d that `ranks.py` compares with: all-reduces of torch.distributed over gloo, and nothing else.

    RANK=.. WORLD_SIZE=.. MASTER_ADDR=.. MASTER_PORT=.. ranks_peer.py BYTES... ROUNDS

Rank 0 prints, as JSON, the median seconds of ROUNDS all-reduces for each size: of floats, and of 64 bytes of 8 whole numbers, as a vote
has them.
"""

import json
import os
import statistics
import sys
import time

import torch
import torch.distributed as dist

torch.set_num_threads(1)
dist.init_process_group("gloo")
*sizes, rounds = [int(text) for text in sys.argv[1:]]
found = []
for _ in range(400):  # the first seconds of a process are slow
    dist.all_reduce(torch.ones(1))
for size in sizes:
    values = torch.zeros(8, dtype=torch.int64) if size == 64 else torch.ones(size // 4)
    seconds = []
    for number in range(rounds + 2):
        dist.barrier()
        started = time.perf_counter()
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
        if number >= 2:
            seconds.append(time.perf_counter() - started)
    found.append([size, statistics.median(seconds)])
if os.environ["RANK"] == "0":
    print(json.dumps({"torch": torch.__version__, "found": found}))
dist.destroy_process_group()
