"""Which device, how many threads and which compilation cache a rank uses; decided before JAX is imported.

`settings` is a pure function of the launcher's environment; `apply` writes its answer into this process. A process on
its own keeps everything it finds: all GPUs, all threads.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import socket
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

_RANK = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "PALS_RANKID")
_SIZE = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
_LOCAL_RANK = ("OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "PALS_LOCAL_RANKID", "PMI_LOCAL_RANK")
_LOCAL_SIZE = ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "PALS_LOCAL_SIZE", "PMI_LOCAL_SIZE")
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
# SLURM gave each task its own GPU, whose number may be 0 in every task: not ours to change
_GPU_BOUND = ("SLURM_GPUS_PER_TASK", "SLURM_GPU_BIND", "SLURM_TRES_PER_TASK")
_SETTLED = 60.0  # seconds after which a cache entry of another rank is surely written to its end


@dataclass(frozen=True)
class Place:
    """Where this process stands among those of its launcher; `size` 1 is a process on its own."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def dispatcher_here(self) -> bool:
        """Rank 0, which only dispatches, is on this node (where ranks are laid out by blocks)."""
        return self.size > 1 and self.rank == self.local_rank

    @property
    def worker(self) -> int:
        """The number of this worker on its node, from 0; rank 0 of many is no worker, and gets 0 too."""
        return max(self.local_rank - self.dispatcher_here, 0)

    @property
    def workers(self) -> int:
        """How many workers share this node, at least 1."""
        return max(self.local_size - self.dispatcher_here, 1)


@dataclass(frozen=True)
class Settings:
    """What `apply` puts in force: variables to set, the CPUs to run on (None: as they are), the JAX cache folder."""

    environment: Mapping[str, str] = field(default_factory=dict)
    cpus: frozenset[int] | None = None
    cache: Path | None = None


def _first(env: Mapping[str, str], names: Iterable[str]) -> int | None:
    return next((int(env[name]) for name in names if env.get(name, "").isdigit()), None)


def _slurm_tasks_here(env: Mapping[str, str]) -> int:
    """Tasks of this step on this node, from SLURM's "4(x2),3" and the node's number."""
    counts: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", env.get("SLURM_STEP_TASKS_PER_NODE", "")):
        counts += [int(count)] * int(times or 1)
    node = int(env.get("SLURM_NODEID", "0"))
    return counts[node] if node < len(counts) else 1


def place(env: Mapping[str, str]) -> Place:
    """Rank and local rank as Open MPI, MPICH, Cray PALS or `srun` tell them; a batch script is no task of a step."""
    step = int(env.get("SLURM_STEP_NUM_TASKS", "1")) if "SLURM_STEP_ID" in env else 1
    size = _first(env, _SIZE) or (step if step > 1 else 1)
    if size == 1:
        return Place()
    rank, local_rank, local_size = (_first(env, names) for names in (_RANK, _LOCAL_RANK, _LOCAL_SIZE))
    if local_rank is None and step == size:
        rank = int(env.get("SLURM_PROCID", "0")) if rank is None else rank
        local_rank = int(env.get("SLURM_LOCALID", "0")) if local_rank is None else local_rank
        local_size = _slurm_tasks_here(env) if local_size is None else local_size
    return Place(rank or 0, size, local_rank or 0, local_size or 1)


def share_of_cpus(masks: Mapping[int, frozenset[int]], local_rank: int) -> frozenset[int] | None:
    """The CPUs of one worker, given those that each local rank may use; None where the launcher has bound it already.

    Ranks with the very same mask were not bound: they divide it evenly, in order; where they are more than the CPUs,
    each gets one, in turn.
    """
    mine = sorted(masks[local_rank])
    group = sorted(rank for rank, mask in masks.items() if mask == masks[local_rank])
    if len(group) == 1:
        return None
    at, n = group.index(local_rank), len(mine)
    if n < len(group):
        return frozenset({mine[at % n]})
    return frozenset(mine[at * n // len(group) : (at + 1) * n // len(group)])


def _gpu(env: Mapping[str, str], here: Place, n_gpus: int) -> dict[str, str]:
    if any(name in env for name in _GPU_BOUND):
        return {}
    named = [name for name in env.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    devices = named if "CUDA_VISIBLE_DEVICES" in env else [str(i) for i in range(n_gpus)]
    if not devices:
        return {}
    chosen = {"CUDA_VISIBLE_DEVICES": devices[here.worker % len(devices)].strip()}
    sharing = math.ceil(here.workers / len(devices))
    if sharing > 1 and not {"XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"} & set(env):
        chosen["XLA_CLIENT_MEM_FRACTION"] = f"{0.9 / sharing:.3f}"  # JAX takes 0.75 a process, whoever else is there
    return chosen


def _threads(env: Mapping[str, str], n: int) -> dict[str, str]:
    # NPROC sets the size of XLA's thread pools where no affinity can (macOS); XLA stops at an unknown flag, so only
    # the one that it has had for years is given
    chosen = {name: str(n) for name in (*_THREADS, "NPROC") if name not in env}
    flags = env.get("XLA_FLAGS", "")
    if n == 1 and "xla_cpu_multi_thread_eigen" not in flags:
        chosen["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()
    return chosen


def cache_root(env: Mapping[str, str]) -> Path:
    """Where compiled programs are kept: `MLINDEX_CACHE`, or `mlindex` in the user's cache folder; then `jax`."""
    if env.get("MLINDEX_CACHE"):
        return Path(env["MLINDEX_CACHE"]).expanduser() / "jax"
    base = (
        Path(env["XDG_CACHE_HOME"]) if env.get("XDG_CACHE_HOME") else Path(env.get("HOME", "~")).expanduser() / ".cache"
    )
    return base / "mlindex" / "jax"


def settings(
    env: Mapping[str, str], masks: Mapping[int, frozenset[int]], *, n_gpus: int = 0, host: str = "localhost"
) -> Settings:
    """The settings of one rank.

    `masks`: the CPUs that the workers of this node may use, by local rank (the dispatcher left out); `n_gpus`: GPUs
    of the node. JAX writes a cache entry in place, so a neighbour could read half of one (jax issue 22718), and a
    program compiled for one CPU may not run on another: hence one cache folder a host and worker.
    """
    here = place(env)
    cache = cache_root(env) / host / str(here.worker)
    chosen = {
        "JAX_COMPILATION_CACHE_DIR": env.get("JAX_COMPILATION_CACHE_DIR", str(cache)),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": env.get("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0"),
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": env.get("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1"),
    }
    cpus = None
    if here.size > 1 and here.local_rank in masks:
        cpus = share_of_cpus(masks, here.local_rank)
        chosen |= _gpu(env, here, n_gpus) | _threads(env, len(cpus or masks[here.local_rank]))
    return Settings(chosen, cpus, cache if "JAX_COMPILATION_CACHE_DIR" not in env else None)


def available_cpus() -> frozenset[int]:
    """The CPUs this process may run on."""
    return frozenset(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1))


def _count_gpus() -> int:
    return sum(re.fullmatch(r"nvidia\d+", entry.name) is not None for entry in Path("/dev").iterdir())


def _adopt(cache: Path) -> None:
    """Link what the other workers of this host have compiled before; a link appears whole or not at all."""
    old = time.time() - _SETTLED
    for entry in cache.parent.glob("*/*-cache"):
        with contextlib.suppress(OSError):
            if entry.parent != cache and entry.stat().st_mtime < old and not (cache / entry.name).exists():
                os.link(entry, cache / entry.name)


def apply(masks: Mapping[int, frozenset[int]] | None = None) -> Settings:
    """Put the settings of this process in force; call it once, after MPI and before JAX starts a backend.

    `masks` as in `settings`; without it this process is taken to be alone on its CPUs.
    """
    here = place(os.environ)
    chosen = settings(
        os.environ,
        {here.local_rank: available_cpus()} if masks is None else masks,
        n_gpus=_count_gpus(),
        host=socket.gethostname(),
    )
    if chosen.cpus is not None and hasattr(os, "sched_setaffinity"):
        for task in os.listdir("/proc/self/task"):  # BLAS may have started its threads already
            with contextlib.suppress(OSError):
                os.sched_setaffinity(int(task), chosen.cpus)
    environment = dict(chosen.environment)
    if chosen.cache is not None:
        try:
            chosen.cache.mkdir(parents=True, exist_ok=True)
            _adopt(chosen.cache)
        except OSError:  # a home that cannot be written costs compile time, not the run
            environment = {name: value for name, value in environment.items() if "CACHE" not in name}
    os.environ.update(environment)
    if "jax" in sys.modules:  # it has read the variables already, its configuration can still change
        jax = sys.modules["jax"]
        if "JAX_COMPILATION_CACHE_DIR" in environment:
            jax.config.update("jax_compilation_cache_dir", environment["JAX_COMPILATION_CACHE_DIR"])
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
            jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return Settings(environment, chosen.cpus, chosen.cache)
