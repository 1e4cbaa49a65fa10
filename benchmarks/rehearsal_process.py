"""One of several processes of a tool on CPUs; release 0.6's launcher starts them on GPUs only.

python -m benchmarks.rehearsal_process RANK WORLD STORE TOOL [ARGUMENT ...]
"""

from __future__ import annotations

import datetime
import importlib
import sys

from detectron2.utils import comm
from torch import distributed

from lvis_tde import cli

if __name__ == "__main__":
    rank, world, store, tool, *arguments = sys.argv[1:]
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=int(rank),
        world_size=int(world),
        timeout=datetime.timedelta(minutes=20),
    )
    if hasattr(comm, "create_local_process_group"):
        comm.create_local_process_group(int(world))
    else:
        comm._LOCAL_PROCESS_GROUP = distributed.new_group(list(range(int(world))))
    cli.run(importlib.import_module(f"tools.{tool}").main, arguments)
