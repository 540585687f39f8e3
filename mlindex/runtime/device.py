"""Which device, how many threads and which compilation cache a rank uses; decided before JAX is imported.

`settings` is a pure function of the launcher's environment; `apply` writes its answer into this process. A process on
its own keeps everything it finds: all GPUs, all threads. Of many ranks, each worker gets one GPU, in the order of the
workers of its node; more workers than GPUs is an error unless `MLINDEX_SHARE_GPU=1` says that they shall share.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import math
import os
import re
import socket
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mlindex.records import InputError

_RANK = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "PALS_RANKID")
_SIZE = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
_LOCAL_RANK = ("OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "PALS_LOCAL_RANKID", "PMI_LOCAL_RANK")
_LOCAL_SIZE = ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "PALS_LOCAL_SIZE", "PMI_LOCAL_SIZE")
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_GPU_LISTS = ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS")  # "0" is GPU number 0
_GPU_COUNTS = ("SLURM_GPUS_ON_NODE", "SLURM_GPUS", "SLURM_GPUS_PER_NODE", "SLURM_GPUS_PER_TASK")  # "0" is none
_SHARE = "MLINDEX_SHARE_GPU"
_FRACTIONS = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")
_USED = 0.9  # of the memory of a GPU; JAX takes 0.75 a process, whoever else is there
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
    """What `apply` puts in force: variables to set, the CPUs to run on (None: as they are), the JAX cache folder.

    `gpu_expected`: the work is to be done on a GPU; `warning` is a sentence that says why it is not, else empty.
    """

    environment: Mapping[str, str] = field(default_factory=dict)
    cpus: frozenset[int] | None = None
    cache: Path | None = None
    gpu_expected: bool = False
    warning: str = ""


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


def _visible(env: Mapping[str, str], n_gpus: int) -> list[str]:
    """The names of the GPUs that CUDA would show this process; CUDA stops at the first that is none."""
    if "CUDA_VISIBLE_DEVICES" not in env:
        return [str(i) for i in range(n_gpus)]
    names = [name.strip() for name in env["CUDA_VISIBLE_DEVICES"].split(",")]
    none = (k for k, name in enumerate(names) if name in ("", "-1", "NoDevFiles", "none", "void"))
    return names[: next(none, len(names))]


def _bound(env: Mapping[str, str]) -> bool:
    """SLURM gave each task its own GPUs, whose numbers may be the same in every task: not ours to change."""
    bind = env.get("SLURM_GPU_BIND", "none").split(",")
    return (
        "SLURM_GPUS_PER_TASK" in env
        or "gpu" in env.get("SLURM_TRES_PER_TASK", "")  # it also tells of cpu=4
        or not set(bind) <= {"none", "verbose", "quiet", "v", "q"}
    )


def _gpu(
    env: Mapping[str, str], worker: int, workers: int, devices: list[str], share: bool, host: str
) -> dict[str, str]:
    """The one GPU of a worker, and how much of its memory JAX may take."""
    if not devices:
        return {}
    chosen, sharing = {}, 1
    if not _bound(env):
        sharing = math.ceil(workers / len(devices))
        chosen["CUDA_VISIBLE_DEVICES"] = devices[worker % len(devices)]
    elif single := re.search(r"single:(\d+)", env.get("SLURM_GPU_BIND", "")):
        sharing, share = int(single.group(1)), True  # so many tasks a GPU were asked for, of SLURM
    if sharing > 1 and not share:
        gpus = "one GPU" if len(devices) == 1 else f"{len(devices)} GPUs"
        raise InputError(
            f"{host}: {workers} workers would share {gpus}, which is slower than one worker a GPU; start no more "
            f"workers on a node than it has GPUs, or set {_SHARE}=1 to let them share"
        )
    if not set(_FRACTIONS) & set(env):
        chosen["XLA_CLIENT_MEM_FRACTION"] = f"{_USED / sharing:.3f}"
    return chosen


def gpu_wanted(env: Mapping[str, str], n_gpus: int, cuda: bool) -> tuple[bool, str]:
    """Whether JAX is to work on a GPU, and a sentence where one was to be expected and cannot be had.

    One is expected where the CUDA build of JAX is installed (`cuda`) or SLURM gave GPUs, unless the user chose the CPU
    (`JAX_PLATFORMS` without cuda or gpu, or a `CUDA_VISIBLE_DEVICES` that is empty or -1).
    """
    platforms = {name.strip() for name in env.get("JAX_PLATFORMS", "").split(",")} - {""}
    given = any(env.get(name) for name in _GPU_LISTS) or any(
        env.get(name, "0") not in ("", "0") for name in _GPU_COUNTS
    )
    hidden = env.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")
    if (platforms and not platforms & {"cuda", "gpu"}) or hidden or not (cuda or given):
        return False, ""
    if not cuda:
        return False, "SLURM gave GPUs, but JAX is installed without CUDA (pip install 'mlindex-hpc[cuda]')"
    if not _visible(env, n_gpus):
        return False, "JAX is installed with CUDA, but there is no GPU that this process may use"
    return True, ""


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
    env: Mapping[str, str],
    masks: Mapping[int, frozenset[int]],
    *,
    n_gpus: int = 0,
    cuda: bool = True,
    share_gpu: bool = False,
    host: str = "localhost",
) -> Settings:
    """The settings of one rank.

    `masks`: the CPUs that the workers of this node may use, by local rank (the dispatcher left out); `n_gpus`: GPUs
    of the node; `cuda`: JAX is installed with CUDA; `share_gpu`: workers may share a GPU, as `MLINDEX_SHARE_GPU=1` says
    too. Raises `InputError` where they would have to and may not. JAX writes a cache entry in place, so a neighbour
    could read half of one (jax issue 22718), and a program compiled for one CPU may not run on another: hence one cache
    folder a host and worker.
    """
    here = place(env)
    # the masks tell the dispatcher's node for any order of ranks, the ranks alone only where nodes are filled in turn
    known = here.size > 1 and here.local_rank in masks
    worker = sorted(masks).index(here.local_rank) if known else here.worker
    workers = len(masks) if known else here.workers
    cache = cache_root(env) / host / str(worker)
    chosen = {
        "JAX_COMPILATION_CACHE_DIR": env.get("JAX_COMPILATION_CACHE_DIR", str(cache)),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": env.get("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0"),
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": env.get("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1"),
    }
    cpus = None
    wanted, missing = gpu_wanted(env, n_gpus, cuda)
    if known:
        share = share_gpu or env.get(_SHARE, "0") not in ("", "0")
        cpus = share_of_cpus(masks, here.local_rank)
        chosen |= _gpu(env, worker, workers, _visible(env, n_gpus) if wanted else [], share, host)
        chosen |= _threads(env, len(cpus or masks[here.local_rank]))
    own = cache if "JAX_COMPILATION_CACHE_DIR" not in env else None
    # one line a node will do
    return Settings(chosen, cpus, own, wanted, _on_the_cpu(host, missing) if missing and worker == 0 else "")


def _on_the_cpu(host: str, why: str) -> str:
    return f"{host}: no GPU is used, working on the CPU: {why}"


def available_cpus() -> frozenset[int]:
    """The CPUs this process may run on."""
    return frozenset(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1))


def _count_gpus() -> int:
    return sum(re.fullmatch(r"nvidia\d+", entry.name) is not None for entry in Path("/dev").iterdir())


def _cuda_installed() -> bool:
    """The CUDA plug-in of JAX is installed; found without importing it."""
    return any(importlib.util.find_spec(f"jax_cuda{version}_plugin") is not None for version in (12, 13))


def _adopt(cache: Path) -> None:
    """Link what the other workers of this host have compiled before; a link appears whole or not at all."""
    old = time.time() - _SETTLED
    for entry in cache.parent.glob("*/*-cache"):
        with contextlib.suppress(OSError):
            if entry.parent != cache and entry.stat().st_mtime < old and not (cache / entry.name).exists():
                os.link(entry, cache / entry.name)


def _failed_start() -> str:
    """Start JAX; why it has no GPU, or an empty text."""
    import jax

    try:
        platform = jax.default_backend()
    except RuntimeError as error:  # JAX_PLATFORMS allows the GPU alone
        raise InputError(f"JAX cannot use the GPU ({str(error).splitlines()[0]}); correct the driver") from None
    return "JAX could not start on the GPU (its messages say why)" if platform == "cpu" else ""


def apply(masks: Mapping[int, frozenset[int]] | None = None, share_gpu: bool = False) -> Settings:
    """Put the settings of this process in force; call it once, after MPI and before JAX starts a backend.

    `masks` and `share_gpu` as in `settings`; without masks this process is taken to be alone on its CPUs. Where a GPU
    is expected JAX is started, and where it then works on the CPU, one warning a node is logged. Raises `InputError`
    where workers would share a GPU and nobody asked for that.
    """
    here = place(os.environ)
    chosen = settings(
        os.environ,
        {here.local_rank: available_cpus()} if masks is None else masks,
        n_gpus=_count_gpus(),
        cuda=_cuda_installed(),
        share_gpu=share_gpu,
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
    warning = chosen.warning
    if chosen.gpu_expected and (why := _failed_start()):
        warning = _on_the_cpu(socket.gethostname(), why)
    if warning:
        logging.getLogger("mlindex").warning(warning)
    return Settings(environment, chosen.cpus, chosen.cache, chosen.gpu_expected, warning)
