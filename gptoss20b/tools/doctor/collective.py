"""One rank of the collectives check: ``python -m gptoss20b.tools.doctor.collective BACKEND STORE_FILE LIMIT_S [JSON]``.

RANK, LOCAL_RANK and WORLD_SIZE are as torchrun sets them. The process prints each of `PROGRESS` that it reaches on a
line. With transfers as JSON it measures them, too, and rank 0 prints the result as JSON. An error is one line on
stderr and exit status 1.
"""

from __future__ import annotations

import sys
from datetime import timedelta

from system_info.files import one_line

from ...config.environment import read_launch
from ...stopping import die_with_parent, hard_exit
from .bandwidth import TRANSFERS, measure
from .ranks import PROGRESS

# 4 MiB of fp32: large enough that NCCL uses the channels that it uses in training.
_ELEMENTS = 1 << 20


def main(backend: str, store_file: str, limit_s: float, transfers: str = "") -> None:
    """Join the other ranks through the file, sum a tensor over all ranks, and check every element."""
    die_with_parent()
    launch = read_launch()
    print(PROGRESS[0], flush=True)
    import torch
    import torch.distributed as dist
    from torch._C._distributed_c10d import FileStore

    device = torch.device("cuda", launch.local_rank) if backend == "nccl" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store = FileStore(store_file, launch.world_size)
    limit = timedelta(seconds=limit_s)
    dist.init_process_group(backend, store=store, rank=launch.rank, world_size=launch.world_size, timeout=limit)
    print(PROGRESS[1], flush=True)
    tensor = torch.full((_ELEMENTS,), float(launch.rank + 1), device=device)
    dist.all_reduce(tensor)
    expected = launch.world_size * (launch.world_size + 1) / 2
    wrong = int((tensor != expected).sum())
    if wrong:
        raise ValueError(f"wrong sum in {wrong} of {_ELEMENTS} elements: got {tensor.max()}, expected {expected}")
    print(PROGRESS[2], flush=True)
    if transfers:
        measured = measure(TRANSFERS.validate_json(transfers), device)
        if launch.rank == 0:
            print(measured.model_dump_json(), flush=True)


if __name__ == "__main__":
    try:
        main(sys.argv[1], sys.argv[2], float(sys.argv[3]), *sys.argv[4:])
    except Exception as error:
        print(one_line(f"{type(error).__name__}: {error}"), file=sys.stderr)
        hard_exit(1)
    # Without the interpreter's shutdown: destroying communicators may wait for a rank that failed.
    hard_exit(0)
