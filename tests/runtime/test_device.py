"""Where ranks run: the environments of launchers, faked, and what follows for GPUs, cores and caches."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlindex.records import InputError
from mlindex.runtime import device
from mlindex.runtime.device import Place, gpu_wanted, place, settings, share_of_cpus
from tests.runtime.campaigns import ROOT, make, run, values

CPUS = frozenset(range(16))


def openmpi(rank: int, local: int, size: int = 8, here: int = 4) -> dict[str, str]:
    names = ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")
    return {f"OMPI_COMM_WORLD_{n}": str(v) for n, v in zip(names, (rank, size, local, here), strict=True)}


def mpich(rank: int, local: int, size: int = 8, here: int = 4) -> dict[str, str]:
    names = ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")
    return {n: str(v) for n, v in zip(names, (rank, size, local, here), strict=True)}


def srun(rank: int, local: int, size: int = 8, here: int = 4) -> dict[str, str]:
    return {
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": str(size),
        "SLURM_STEP_TASKS_PER_NODE": f"{here}(x{size // here})",
        "SLURM_NTASKS": str(size),
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(local),
        "SLURM_NODEID": str(rank // here),
        "PMIX_RANK": str(rank),
    }


def two_nodes(launcher) -> list[dict[str, str]]:
    return [launcher(rank, rank % 4) for rank in range(8)]


@pytest.mark.parametrize("launcher", [openmpi, mpich, srun])
def test_eight_ranks_on_two_nodes(launcher):
    """Four GPUs and 16 cores a node: no GPU and no core is shared, and the dispatcher takes none."""
    places = [place(env) for env in two_nodes(launcher)]
    assert [(p.rank, p.local_rank, p.local_size, p.size) for p in places] == [(r, r % 4, 4, 8) for r in range(8)]
    assert [p.worker for p in places[1:]] == [0, 1, 2, 0, 1, 2, 3]
    assert [p.workers for p in places] == [3] * 4 + [4] * 4
    for node in (range(1, 4), range(4, 8)):
        masks = dict.fromkeys([r % 4 for r in node], CPUS)
        got = [settings(launcher(r, r % 4), masks, n_gpus=4, host="n") for r in node]
        assert [s.environment["CUDA_VISIBLE_DEVICES"] for s in got] == [str(i) for i in range(len(node))]
        assert all(s.environment["XLA_CLIENT_MEM_FRACTION"] == "0.900" for s in got)
        assert all(s.gpu_expected and not s.warning for s in got)
        assert len({s.cache for s in got}) == len(node)
        assert sum(len(s.cpus) for s in got) == 16 and frozenset().union(*(s.cpus for s in got)) == CPUS
        assert [int(s.environment["OMP_NUM_THREADS"]) for s in got] == [len(s.cpus) for s in got]


@pytest.mark.parametrize("launcher", [openmpi, mpich, srun])
def test_ranks_laid_out_in_turn(launcher):
    """Even ranks on one node and odd ones on the other (--distribution=cyclic): still a GPU for each worker."""
    for node in (range(2, 8, 2), range(1, 8, 2)):
        masks = dict.fromkeys([r // 2 for r in node], CPUS)
        got = [settings(launcher(r, r // 2), masks, n_gpus=4, host="n").environment for r in node]
        assert [g["CUDA_VISIBLE_DEVICES"] for g in got] == [str(i) for i in range(len(node))]
        assert len({g["JAX_COMPILATION_CACHE_DIR"] for g in got}) == len(node)


@pytest.mark.parametrize("launcher", [openmpi, srun])
def test_workers_share_a_gpu_only_when_asked(launcher):
    masks = dict.fromkeys(range(4), CPUS)
    for rank in range(4, 8):  # every one of them says so, and not only the one that found its GPU taken
        with pytest.raises(InputError, match=r"n: 4 workers would share 2 GPUs.*MLINDEX_SHARE_GPU=1"):
            settings(launcher(rank, rank % 4), masks, n_gpus=2, host="n")
    with pytest.raises(InputError, match="4 workers would share one GPU"):
        settings(launcher(5, 1) | {"MLINDEX_SHARE_GPU": "0"}, masks, n_gpus=1)
    by_variable = settings(launcher(5, 1) | {"MLINDEX_SHARE_GPU": "1"}, masks, n_gpus=2).environment
    by_setting = settings(launcher(5, 1), masks, n_gpus=2, share_gpu=True).environment
    assert by_variable == by_setting
    assert by_variable["CUDA_VISIBLE_DEVICES"] == "1" and by_variable["XLA_CLIENT_MEM_FRACTION"] == "0.450"
    own = launcher(5, 1) | {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.2", "MLINDEX_SHARE_GPU": "1"}
    assert "XLA_CLIENT_MEM_FRACTION" not in settings(own, masks, n_gpus=2).environment


@pytest.mark.parametrize(
    "cpu", [{"JAX_PLATFORMS": "cpu"}, {"CUDA_VISIBLE_DEVICES": ""}, {"CUDA_VISIBLE_DEVICES": "-1"}]
)
def test_more_workers_than_gpus_is_no_error_on_the_cpu(cpu):
    """The user chose the CPU; or JAX has no CUDA, and the GPUs of the machine are none of its business."""
    masks = dict.fromkeys(range(4), CPUS)
    chosen = settings(openmpi(5, 1) | cpu, masks, n_gpus=2)
    plain = settings(openmpi(5, 1), masks, n_gpus=2, cuda=False)
    for got in (chosen, plain):
        assert not {"CUDA_VISIBLE_DEVICES", "XLA_CLIENT_MEM_FRACTION"} & set(got.environment)
        assert not got.gpu_expected and got.warning == ""


def test_gpus_that_the_user_or_slurm_chose_stay():
    masks = dict.fromkeys(range(2), CPUS)
    some = settings(openmpi(5, 1) | {"CUDA_VISIBLE_DEVICES": "6,7"}, masks, n_gpus=8)
    assert some.environment["CUDA_VISIBLE_DEVICES"] == "7"
    masks = dict.fromkeys(range(4), CPUS)
    for bound in (
        {"SLURM_GPUS_PER_TASK": "1"},
        {"SLURM_TRES_PER_TASK": "cpu=4,gres/gpu=1"},
        {"SLURM_GPU_BIND": "closest"},
    ):
        got = settings(srun(5, 1) | bound | {"CUDA_VISIBLE_DEVICES": "0"}, masks, n_gpus=1).environment
        assert "CUDA_VISIBLE_DEVICES" not in got and got["XLA_CLIENT_MEM_FRACTION"] == "0.900"
    single = srun(5, 1) | {"SLURM_GPU_BIND": "verbose,single:2", "CUDA_VISIBLE_DEVICES": "0"}
    assert settings(single, masks).environment["XLA_CLIENT_MEM_FRACTION"] == "0.450"
    for unbound in ({"SLURM_TRES_PER_TASK": "cpu=4"}, {"SLURM_GPU_BIND": "none"}):
        assert settings(srun(5, 1) | unbound, masks, n_gpus=4).environment["CUDA_VISIBLE_DEVICES"] == "1"


@pytest.mark.parametrize(
    ("env", "n_gpus", "cuda", "wanted", "says"),
    [
        ({}, 4, True, True, ""),
        ({}, 0, True, False, "JAX is installed with CUDA"),
        ({}, 4, False, False, ""),
        ({}, 0, False, False, ""),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, 4, True, False, "no GPU that this process may use"),
        ({"JAX_PLATFORMS": "cuda,cpu"}, 4, True, True, ""),
        ({"JAX_PLATFORMS": "cpu", "SLURM_JOB_GPUS": "0"}, 4, True, False, ""),
        ({"SLURM_JOB_GPUS": "0"}, 1, False, False, "without CUDA"),
        ({"SLURM_GPUS_ON_NODE": "2"}, 2, False, False, "without CUDA"),
        ({"SLURM_GPUS_ON_NODE": "0"}, 2, False, False, ""),
        ({"SLURM_STEP_GPUS": "1", "CUDA_VISIBLE_DEVICES": "0"}, 0, True, True, ""),
    ],
)
def test_working_on_the_cpu_is_said_where_a_gpu_was_expected(env, n_gpus, cuda, wanted, says):
    found, sentence = gpu_wanted(env, n_gpus, cuda)
    assert found is wanted and says in sentence and bool(says) is bool(sentence)


def test_the_cpu_is_announced_once_a_node():
    for node in (range(1, 4), range(4, 8)):
        masks = dict.fromkeys([r % 4 for r in node], CPUS)
        got = [
            settings(srun(r, r % 4) | {"SLURM_JOB_GPUS": "0,1"}, masks, n_gpus=2, cuda=False, host="n") for r in node
        ]
        assert got[0].warning.startswith("n: no GPU is used, working on the CPU: SLURM gave GPUs")
        assert not any(s.warning for s in got[1:]) and not any("CUDA_VISIBLE_DEVICES" in s.environment for s in got)


@pytest.mark.parametrize("env", [{}, {"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, openmpi(0, 0, 1, 1), srun(0, 0, 1, 1)])
def test_a_process_on_its_own_keeps_its_threads_and_gpus(env):
    """Also the script of a SLURM batch job, which has SLURM_NTASKS and is no task."""
    assert place(env) == Place()
    got = settings({**env, "HOME": "/h"}, {0: CPUS}, n_gpus=4, host="n")
    assert got.cpus is None
    assert set(got.environment) == {
        "JAX_COMPILATION_CACHE_DIR",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES",
    }
    assert str(got.cache) == "/h/.cache/mlindex/jax/n/0"


def test_cache_folder_is_the_users_choice():
    assert str(device.cache_root({"HOME": "/h", "XDG_CACHE_HOME": "/x"})) == "/x/mlindex/jax"
    assert str(device.cache_root({"HOME": "/h", "XDG_CACHE_HOME": "/x", "MLINDEX_CACHE": "/c"})) == "/c/jax"
    own = settings({"JAX_COMPILATION_CACHE_DIR": "/mine", "HOME": "/h"}, {0: CPUS})
    assert own.cache is None and own.environment["JAX_COMPILATION_CACHE_DIR"] == "/mine"


def test_thread_limits_of_the_user_stay():
    env = openmpi(5, 1) | {"OMP_NUM_THREADS": "3", "XLA_FLAGS": "--xla_dump_to=/d"}
    got = settings(env, {i: frozenset({0}) for i in range(4)}).environment
    assert "OMP_NUM_THREADS" not in got and got["OPENBLAS_NUM_THREADS"] == "1"
    assert got["XLA_FLAGS"] == "--xla_dump_to=/d --xla_cpu_multi_thread_eigen=false"


FAKED = """
import json, os, sys
from mlindex.runtime import device
device._count_gpus, device._cuda_installed = lambda: 4, lambda: True
masks = dict.fromkeys(range(1, 4), device.available_cpus())
real = device._failed_start
def failed_start():
    seen.append([os.environ["CUDA_VISIBLE_DEVICES"], os.environ["XLA_CLIENT_MEM_FRACTION"], "jax" in sys.modules])
    return real()
seen = []
device._failed_start = failed_start
device.apply(masks)
print(json.dumps(seen))
"""


def test_device_is_chosen_before_jax_starts_and_a_start_without_gpu_is_said():
    """A worker of the first node, with 4 GPUs that are none: the variables are set, then JAX starts, and falls back."""
    env = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    command = [sys.executable, "-c", FAKED]
    done = subprocess.run(command, cwd=ROOT, env={**env, **openmpi(3, 3)}, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [["2", "0.900", False]]
    assert done.stderr.count("working on the CPU: JAX could not start on the GPU") == 1


def test_uneven_nodes_of_slurm():
    env = srun(6, 1, 7, 1) | {"SLURM_STEP_TASKS_PER_NODE": "3,2(x2)", "SLURM_NODEID": "2"}
    assert place(env).local_size == 2


@given(st.sets(st.integers(0, 200), min_size=1, max_size=40), st.integers(1, 50))
def test_unbound_ranks_divide_the_cores(cpus, ranks):
    masks = {rank: frozenset(cpus) for rank in range(ranks)}
    shares = [share_of_cpus(masks, rank) for rank in range(ranks)]
    if ranks == 1:
        assert shares == [None]
        return
    assert frozenset().union(*shares) == (frozenset(cpus) if ranks <= len(cpus) else frozenset().union(*shares))
    assert all(share and share <= cpus for share in shares)
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1
    if ranks <= len(cpus):
        assert sum(sizes) == len(cpus)


def test_ranks_bound_by_the_launcher_stay_where_they_are():
    masks = {0: frozenset({0, 1}), 1: frozenset({2, 3})}
    assert [share_of_cpus(masks, rank) for rank in masks] == [None, None]


APPLY = """
import json, os, sys
from mlindex.runtime import device
got = device.apply({0: device.available_cpus(), 1: device.available_cpus()})
before = "jax" in sys.modules
import jax, jax.numpy as jnp
jax.jit(lambda x: x @ x)(jnp.ones((64, 64))).block_until_ready()
names = [open(f"/proc/self/task/{t}/comm").read().strip() for t in os.listdir("/proc/self/task")]
cache = jax.config.jax_compilation_cache_dir
print(json.dumps([sorted(os.sched_getaffinity(0)), before, names.count("tf_XLAEigen"), cache]))
"""


def test_apply_limits_xla_and_fills_the_cache(tmp_path):
    """What the variables and the affinity are for: XLA's own threads are as many as the rank's cores."""
    outcomes = []
    for local in range(2):
        env = {**os.environ, **openmpi(local + 2, local, 4, 2), "MLINDEX_CACHE": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-c", APPLY], cwd=ROOT, env=env, capture_output=True, text=True, check=True
        )
        outcomes.append(json.loads(done.stdout))
    for cpus, early, threads, cache in outcomes:
        assert not early and threads <= len(cpus)
        assert os.listdir(cache)
    assert outcomes[0][3] != outcomes[1][3]
    everything = sorted(os.sched_getaffinity(0))
    if len(everything) > 1:
        assert sorted(outcomes[0][0] + outcomes[1][0]) == everything


ONE_GPU = """
from mlindex.runtime import device
device._count_gpus, device._cuda_installed = lambda: 1, lambda: True
"""


def test_sharing_a_gpu_is_refused_with_one_sentence_and_allowed_when_asked(tmp_path, monkeypatch):
    """Two real workers on a machine that seems to have one GPU."""
    (tmp_path / "sitecustomize.py").write_text(ONE_GPU)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    campaign = make(tmp_path, values(4))
    status, _, err = run(campaign, "--ranks", "2")
    assert status == 2 and "2 workers would share one GPU" in err and err.count("\n") == 1
    monkeypatch.setenv("MLINDEX_SHARE_GPU", "1")
    status, _, err = run(campaign, "--ranks", "2", "--resume")
    assert status == 0, err
    log = "".join(path.read_text() for path in (tmp_path / "run" / "log").glob("*.log"))
    assert "working on the CPU: JAX could not start on the GPU" in log, "there is none to start on"
