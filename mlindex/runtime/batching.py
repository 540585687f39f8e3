"""How many items a batch should have: a model of rank 0 and its workers (`benchmarks/speed/scaling.py` runs it).

A batch costs rank 0 the time `DISPATCH` and its worker the time `COMMIT`, whatever its size. With R workers and
batches of T seconds, rank 0 is busy for the fraction R DISPATCH / T of the time, and a worker waits for it for about
DISPATCH / (1 - R DISPATCH / T) (a queue with random arrivals, M/D/1 to first order). The batch has to be long enough
for both to be negligible, and short enough that little is lost with a worker and that all end together.
"""

from __future__ import annotations

import math

DISPATCH = 150e-6  # seconds of rank 0 a batch (benchmarks/speed/dispatch.py)
COMMIT = 10e-3  # seconds a batch for the file system to take the results, twice synchronised
BUSY = 0.5  # largest fraction of the time that rank 0 should be busy
OVERHEAD = 0.02  # largest fraction of a worker's time for what a batch costs it
BRIEF = 2.0  # seconds: a worker gets another batch before it has done one that is shorter, and need not wait for it
LONGEST = 10.0  # seconds of work that may be lost with a worker
MOST = 4096  # items


def batch_seconds(workers: int) -> float:
    """How long a batch should take, at least, on so many workers."""
    return min(max(workers * DISPATCH / BUSY, (COMMIT + 2 * DISPATCH) / OVERHEAD), LONGEST)


def batch_size(item_seconds: float, workers: int) -> int:
    """Items a batch, where an item takes so many seconds: a power of two, so that compiled batch sizes are few."""
    wanted = min(max(batch_seconds(workers) / max(item_seconds, 1e-9), 1.0), MOST)
    return 1 << (math.ceil(wanted) - 1).bit_length()
