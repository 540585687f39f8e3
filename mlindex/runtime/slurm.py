"""A campaign as jobs of SLURM: the text of its batch scripts, which is a pure function of the settings, and sbatch.

An array job works on the campaign, one part a task; a merge job that depends on it puts the results together. SLURM
sends the batch script SIGUSR1 some time before the limit (`--signal=B:USR1@90`); the script passes it on, the ranks
finish the batch in hand and end with status 75, and the script puts its task back into the queue. This is the way of
submitit (github.com/facebookincubator/submitit), with the work in a run directory in place of a pickle.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlindex.config import Campaign, SlurmResources
from mlindex.records import InputError

REQUEUE = 75  # exit status of a part that was told to end with work left
_STARTS = 10  # how often a task is started again whose program the signal found before it was ready
_PLACEHOLDER = "ARRAY_JOB_ID"


def _quoted(value: str | Path) -> str:
    """A value in a `#SBATCH` line, whose parser knows double quotes and, in them too, the backslash."""
    text = str(value)
    if text and all(c.isalnum() or c in "-_=+./:,%@" for c in text) and text.isascii():
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _line(path: Path) -> str:
    """A path that can stand in a batch script; raises `InputError` for one that sbatch cannot write to."""
    text = str(path)
    if not text.isprintable() or "\\" in text:
        raise InputError(f"{text!r}: SLURM takes no path with a backslash or an unprintable character; rename it")
    return text


def job_name(campaign: Campaign) -> str:
    """The name of the array job: that of the campaign, as one printable word."""
    name = "".join(c if (c.isascii() and c.isalnum()) or c in "-_." else "-" for c in campaign.campaign.name)
    return f"mlindex-{name}"


def resources(campaign: Campaign, path: Path) -> SlurmResources:
    """What an array task of the campaign in the file `path` gets; raises `InputError` for what cannot go together."""
    chosen = campaign.slurm.for_stage(campaign.campaign.stage)
    if problem := chosen.misfit():
        raise InputError(f"{path}: [slurm]: {problem}")
    return chosen


def short_notice(campaign: Campaign) -> str:
    """A sentence where an item may take longer than SLURM's signal leaves it; empty where none may."""
    chosen, stage = campaign.slurm.for_stage(campaign.campaign.stage), campaign.campaign.stage
    seconds = getattr(campaign.stage_settings(), "seconds", 0.0)
    if min(seconds, campaign.campaign.item_seconds or seconds) <= chosen.signal_seconds:
        return ""
    return (
        f"[slurm]: signal_seconds = {chosen.signal_seconds} is less than the time that an item may take, [{stage}] "
        f"seconds = {seconds:g}: one that is at work when the time is up is lost, and begins anew in the next round; "
        "raise the one or lower the other"
    )


def _where(chosen: SlurmResources) -> list[str]:
    named = {"partition": chosen.partition, "account": chosen.account, "qos": chosen.qos}
    named |= {"constraint": chosen.constraint, "time": chosen.time, "mem": chosen.memory}
    options = [f"--{name}={_quoted(value)}" for name, value in named.items() if value is not None]
    if chosen.gpus_per_node:
        options.append(f"--gpus-per-node={chosen.gpus_per_node}")
    return options


def _head(chosen: SlurmResources, comment: str, options: Sequence[str]) -> str:
    # a login shell, because that is where many clusters define `module`
    shell = "#!/bin/bash -l" if chosen.modules else "#!/bin/bash"
    lines = [shell, *(f"# {line}" for line in comment.splitlines())]
    return "\n".join([*lines, *(f"#SBATCH {option}" for option in (*options, *chosen.extra))]) + "\n"


def _prepare(chosen: SlurmResources) -> str:
    """The shell lines that make the program ready to run: modules, variables, what the user asks for."""
    lines = [f"module load {shlex.quote(name)} || exit 2" for name in chosen.modules]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in chosen.environment.items()]
    lines += list(chosen.setup)
    return "".join(f"{line}\n" for line in ("", *lines)) if lines else ""


def _program(chosen: SlurmResources, base: Path, run: Path, python: str) -> list[str]:
    """The interpreter as the words of a command, in the container where there is one."""
    interpreter = chosen.python or ("python" if chosen.container else python)
    if not chosen.container:
        return [interpreter]
    words = ["apptainer", "exec"]
    if chosen.gpus_per_node:
        words.append("--nv")
    run = Path(os.path.normpath(run))
    folders = [str(base), *([] if run.is_relative_to(base) else [str(run)])]
    if spoiled := [folder for folder in folders if set(folder) & set(",:")]:
        raise InputError(f"{spoiled[0]}: apptainer takes no folder with a comma or a colon in its name; rename it")
    for bind in (*folders, *chosen.binds):
        words += ["--bind", bind]
    return [*words, chosen.container, interpreter]


def compressed(parts: Sequence[int]) -> str:
    """Task numbers as sbatch's --array takes them: (0, 1, 2, 5) -> "0-2,5"."""
    spans: list[list[int]] = []
    for part in sorted(set(parts)):
        if spans and part == spans[-1][1] + 1:
            spans[-1][1] = part
        else:
            spans.append([part, part])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)


def _srun(chosen: SlurmResources) -> list[str]:
    """srun's words for one dispatcher, which sleeps most of the time and gets no CPU of its own, and the workers.

    Overcommitted, blocks of ranks are even: 9 on two nodes are 5 and 4, also where the job has whole nodes (tried with
    SLURM 22.05). They are not bound to CPUs, because the ranks of a node divide them among themselves.
    """
    words = ["srun", f"--ntasks={chosen.workers + 1}", "--distribution=block", "--overcommit", "--cpu-bind=none"]
    return [*words, "--kill-on-bad-exit=0", "--wait=0", *([f"--mpi={chosen.mpi}"] if chosen.mpi else [])]


_BEFORE_SRUN = """\
unset SLURM_NTASKS_PER_NODE # which is that of the allocation: the step has one task more
# A job that starts again counts its steps from 0, and PMIx refuses a number that left a folder behind: so take the next
for _ in $(seq "${SLURM_RESTART_COUNT:-0}"); do srun --ntasks=1 --mpi=none true || true; done
"""


_TRAPS = """
# SLURM tells this script {seconds} s before the time limit; the ranks then finish the batch in hand and end.
child='' told=''
tell() {{
    told=$1
    [ -z "$child" ] || {{ sleep 1; kill -s "$1" -- {group}"$child" 2>/dev/null; }} # 1 s: a child just born may miss it
}}
trap 'tell USR1' USR1
trap 'tell TERM' TERM
"""

_WATCH = """
{before}{command} &
child=$!
[ -z "$told" ] || tell "$told" # the signal came while the lines above were at work
status=127
while :; do # a signal ends `wait` early: wait again
    told=''
    wait "$child"
    now=$?
    [ "$now" -eq 127 ] || status=$now # 127: waited for before
    [ -n "$told" ] || break
done
"""

_REQUEUE = """
# 75: told to end with work left. 138: told before the program was ready, which must not go on for ever.
if [ "$status" -eq {again} ] || {{ [ "$status" -eq 138 ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {starts} ]; }}; then
    echo "mlindex: part $SLURM_ARRAY_TASK_ID of {parts} has work left: back into the queue (SLURM waits two minutes)"
    scontrol requeue "$SLURM_JOB_ID" || echo "mlindex: it cannot be requeued; run mlindex submit again" >&2
fi
exit "$status"
"""

_NO_REQUEUE = """
[ "$status" -ne {again} ] || echo "mlindex: part $SLURM_ARRAY_TASK_ID of {parts} has work left: mlindex submit again"
exit "$status"
"""


def array_script(campaign: Campaign, path: Path, *, parts: Sequence[int] | None = None, python: str = "python") -> str:
    """The batch script of the array job of the campaign that the TOML file `path` (absolute) holds.

    `parts`: the tasks to run, from 0 (None: all); `python`: the interpreter, where the settings name none. Raises
    `InputError` for settings that do not fit together.
    """
    chosen = resources(campaign, path)
    base = path.parent
    run = base / campaign.campaign.output
    numbers = compressed(range(chosen.tasks) if parts is None else parts)
    at_once = "" if chosen.limit is None else f"%{chosen.limit}"
    log = _line(run / "log").replace("%", "%%")
    options = [
        f"--job-name={_quoted(job_name(campaign))}",
        f"--array={numbers}{at_once}",
        f"--output={_quoted(log + '/slurm-%A_%a.out')}",
        "--open-mode=append",
        f"--chdir={_quoted(_line(base))}",
        f"--nodes={chosen.nodes}",
        f"--ntasks-per-node={chosen.workers // chosen.nodes}",
        f"--cpus-per-task={chosen.cpus_per_rank}",
        *_where(chosen),
        f"--signal=B:USR1@{chosen.signal_seconds}",
        "--requeue" if chosen.requeue else "--no-requeue",
    ]
    comment = (
        f"The campaign {campaign.campaign.name!r} as a job array: {chosen.tasks} parts, {chosen.workers} ranks each.\n"
        "Written by `mlindex submit`: change [slurm] in the campaign file, not this."
    )
    part = f'"$SLURM_ARRAY_TASK_ID/{chosen.tasks}"'
    program = _program(chosen, base, run, python)
    if chosen.launcher == "srun":
        words = [*_srun(chosen), *program, "-m", "mpi4py", "-m", "mlindex.runtime.run", _line(path)]
        command, before = f"{shlex.join(words)} --part {part} --resume", _BEFORE_SRUN
    else:
        words = [*program, "-m", "mlindex.cli.main", "run", _line(path)]
        command, before = f"{shlex.join(words)} --part {part} --resume --ranks {chosen.workers}", ""
    # apptainer need not pass signals on: there the whole process group gets them
    grouped = chosen.container is not None and chosen.launcher == "mpiexec"
    traps = _TRAPS.format(seconds=chosen.signal_seconds, group="-" if grouped else "")
    before += "set -m # a process group of its own\n" if grouped else ""
    watch = _WATCH.format(before=before, command=command)
    end = (_REQUEUE if chosen.requeue else _NO_REQUEUE).format(again=REQUEUE, starts=_STARTS, parts=chosen.tasks)
    return _head(chosen, comment, options) + traps + _prepare(chosen) + watch + end


def merge_script(
    campaign: Campaign, path: Path, *, after: Sequence[str] = (_PLACEHOLDER,), python: str = "python"
) -> str:
    """The batch script of the job that merges the results and writes the report when the jobs `after` have ended.

    Arguments as in `array_script`.
    """
    chosen = campaign.slurm.for_merge(campaign.campaign.stage)
    base = path.parent
    run = base / campaign.campaign.output
    log = _line(run / "log").replace("%", "%%")
    options = [
        f"--job-name={_quoted(job_name(campaign) + '-merge')}",
        f"--dependency=afterany:{':'.join(after)}",
        f"--output={_quoted(log + '/slurm-%j-merge.out')}",
        "--open-mode=append",
        f"--chdir={_quoted(_line(base))}",
        f"--nodes={chosen.nodes}",
        "--ntasks=1",
        f"--cpus-per-task={chosen.cpus_per_rank}",
        *_where(chosen),
        "--requeue" if chosen.requeue else "--no-requeue",
    ]
    comment = (
        f"Merge and report the campaign {campaign.campaign.name!r} when its array job has ended, however it ended.\n"
        "Written by `mlindex submit`: change [slurm.merge] in the campaign file, not this."
    )
    program = [*_program(chosen, base, run, python), "-m", "mlindex.cli.main"]
    lines = [f"{shlex.join([*program, name, _line(run)])} || status=$?\n" for name in ("status", "merge", "report")]
    return _head(chosen, comment, options) + _prepare(chosen) + "\nstatus=0\n" + "".join(lines) + 'exit "$status"\n'


def installed() -> bool:
    """There is an sbatch on the PATH."""
    return shutil.which("sbatch") is not None


def _call(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(words, capture_output=True, text=True, check=False)
    except OSError as error:
        raise InputError(
            f"{words[0]} cannot be run ({error.strerror}); submit from a login node of a cluster"
        ) from None


def sbatch(script: Path) -> str:
    """Submit a batch script; the job's number. Raises `InputError` with what sbatch said where it refuses."""
    done = _call(["sbatch", "--parsable", str(script)])
    if done.returncode:
        said = " ".join(line.removeprefix("sbatch: ").removeprefix("error: ") for line in done.stderr.splitlines())
        raise InputError(f"sbatch refuses {script}: {said}; correct [slurm] in the campaign file")
    return done.stdout.strip().split(";")[0]  # "job;cluster" where there are many


@dataclass(frozen=True)
class Queued:
    """One job, or one task of an array, that is in the queue or running; `task` is None for a job without an array."""

    job: str
    task: int | None
    state: str


def queued(jobs: Sequence[str]) -> list[Queued]:
    """Which of the jobs, by number, are in the queue or running, from one call of squeue.

    Raises `InputError` where the scheduler does not answer.
    """
    if not jobs:
        return []
    done = _call(["squeue", "--array", "--noheader", f"--jobs={','.join(jobs)}", "--format=%F %K %T"])
    if done.returncode:
        if "invalid job id" in done.stderr.lower():  # it has forgotten the only one asked for
            return []
        said = " ".join(done.stderr.split())
        raise InputError(f"squeue does not tell which jobs are running ({said}); try again when the scheduler answers")
    found = []
    for line in done.stdout.splitlines():
        job, task, state = line.split(maxsplit=2)
        found.append(Queued(job, int(task) if task.isdigit() else None, state))
    return found
