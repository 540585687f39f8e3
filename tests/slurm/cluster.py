"""A real SLURM of one node, started in a temporary folder as root and stopped at the end; or the one that is there.

`Cluster` knows its commands' environment. munge is the only daemon that may be shared: SLURM finds it by its socket.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PATIENCE = 120.0  # seconds that anything may take on a busy machine
_NEEDS = ("munged", "munge", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel", "sinfo", "srun")
_HOW = "run .ci/run as root, or: apt-get install slurm-wlm munge libpmix-dev"
_ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}

_CONF = """\
ClusterName=mlindex
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld}
SlurmdPort={slurmd}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={munge}
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/builtin
# the queue is looked at after every change, and not only each minute
SchedulerParameters=sched_interval=2,sched_min_interval=0,batch_sched_delay=0
ReturnToService=2
JobRequeue=1
KillWait=5
MinJobAge=600
# more CPUs than the machine has, so that all tasks of an array run at once: they mostly sleep
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=16 RealMemory=4000
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP OverTimeLimit=0
"""


def missing() -> str:
    """A sentence that says what of SLURM is not installed and how to install it; empty where all is."""
    path = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
    absent = [name for name in _NEEDS if shutil.which(name, path=path) is None]
    return f"SLURM is not installed (no {', '.join(absent)}): {_HOW}" if absent else ""


def wait_for(condition: Callable[[], bool], what: str, patience: float = PATIENCE) -> None:
    """Wait until something is so."""
    until = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < until, f"waited too long: {what}"
        time.sleep(0.1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Cluster:
    """Where the cluster's settings are (None: those of the machine), and its commands."""

    folder: Path | None = None

    @property
    def variables(self) -> dict[str, str]:
        """What a process needs in its environment to find this cluster."""
        return {} if self.folder is None else {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def run(self, *words: str) -> str:
        """The output of a command of SLURM, which must succeed."""
        done = subprocess.run(words, env={**os.environ, **self.variables}, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout

    def jobs(self, job: str) -> dict[str, str]:
        """The state of each task of a job that the controller remembers: "12_0" (or "12") -> "COMPLETED"."""
        told: dict[str, str] = {}
        for line in self.run("squeue", "--array", "--states=all", "--noheader", "--format=%i %F %T").splitlines():
            name, array, state = line.split()
            if array == job:
                told[name] = state
        return told

    def details(self, job: str) -> dict[str, str]:
        """What `scontrol show job` says of one job."""
        words = self.run("scontrol", "--oneliner", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def start_now(self, job: str) -> None:
        """Let the tasks of an array that were requeued start without the two minutes that SLURM makes them wait.

        Not at once: within the second of its end slurmd takes the new round for the old one, and refuses it.
        """
        for task in self.jobs(job):
            self.run("scontrol", "update", f"JobId={task}", "StartTime=now+3")

    def wait(self, job: str, *states: str, patience: float = PATIENCE) -> dict[str, str]:
        """Wait until every task of a job is in one of `states`; the states."""

        def there() -> bool:
            found = set(self.jobs(job).values())
            assert found <= set(states) or not found <= _ENDED, f"job {job} is {found} and not {states}"
            return bool(found) and found <= set(states)

        wait_for(there, f"{job} to be {states}", patience)
        return self.jobs(job)


def answers(conf: Path | None = None) -> bool:
    """A cluster answers `sinfo` within a few seconds."""
    env = os.environ if conf is None else {**os.environ, "SLURM_CONF": str(conf)}
    words = ["sinfo", "--noheader", "--format=%t"]
    try:
        done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and any(state in ("idle", "mix", "alloc") for state in done.stdout.split())


def _munge(folder: Path, started: list[subprocess.Popen[bytes]]) -> Path:
    """The socket of a munged of our own: as user munge where there is one, with a key of its own."""
    place = folder / "munge"
    place.mkdir()
    names = {entry.pw_name for entry in pwd.getpwall()}
    owner = "munge" if "munge" in names and os.geteuid() == 0 else None
    key = place / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    if owner:
        for path in (place, key):
            shutil.chown(path, owner, owner)
    place.chmod(0o711)
    words = ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={place}/socket"]
    words += [f"--pid-file={place}/pid", f"--seed-file={place}/seed", f"--log-file={place}/log"]
    _start(words, folder, started, user=owner)
    wait_for(lambda: (place / "socket").exists(), f"munged; see {place}/log")
    return place / "socket"


def _start(words: Sequence[str], folder: Path, started: list[subprocess.Popen[bytes]], user: str | None = None) -> None:
    env = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin", "SLURM_CONF": f"{folder}/slurm.conf"}
    with open(folder / f"{words[0]}.out", "ab") as out:
        started.append(subprocess.Popen(words, stdout=out, stderr=out, env=env, user=user, group=user, cwd="/"))


def _stop(started: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in reversed(started):
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def running() -> Iterator[Cluster]:
    """A cluster that answers: the one of this machine, or one in a temporary folder that is stopped at the end."""
    assert not missing(), missing()
    if answers():
        yield Cluster()
        return
    assert os.geteuid() == 0, "no SLURM answers here, and starting one takes root: run the tests as root"
    folder = Path(tempfile.mkdtemp(prefix="mlindex-slurm-"))
    folder.chmod(0o711)  # user munge must reach its socket
    started: list[subprocess.Popen[bytes]] = []
    host = socket.gethostname().split(".")[0]
    conf = folder / "slurm.conf"
    cluster = Cluster(folder)
    try:
        munge = _munge(folder, started)
        for name in ("state", "spool"):
            (folder / name).mkdir()
        conf.write_text(_CONF.format(host=host, folder=folder, munge=munge, ctld=_free_port(), slurmd=_free_port()))
        _start(["slurmctld", "-D", "-f", str(conf)], folder, started)
        _start(["slurmd", "-D", "-f", str(conf)], folder, started)
        try:
            wait_for(lambda: answers(conf), "the node to be idle")
        except AssertionError as error:
            logs = [(folder / f"{name}.log") for name in ("slurmctld", "slurmd")]
            told = "\n".join(log.read_text()[-2000:] for log in logs if log.exists())
            raise AssertionError(f"the cluster did not start: {error}\n{told}") from None
        yield cluster
        cluster.run("scancel", "--user=root")
        wait_for(lambda: not cluster.run("squeue", "--noheader").strip(), "the queue to be empty")
    finally:
        _stop(started)
        shutil.rmtree(folder, ignore_errors=True)
