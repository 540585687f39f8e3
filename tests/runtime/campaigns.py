"""Campaigns of the toy stage in a temporary folder, and their processes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from mlindex.records import Item, Result
from mlindex.runtime import journal
from mlindex.runtime.master import survey
from mlindex.runtime.shards import read_results, read_shard
from tests.runtime.toy import ToyStage

ROOT = Path(__file__).parents[2]
PATIENCE = 120.0  # seconds that anything may take on a busy machine


def make(folder: Path, files: dict[str, str], batch: int = 2, extra: str = "") -> Path:
    """A campaign file in `folder` over `in/*.txt`, which get the text in `files`."""
    for name, text in files.items():
        path = folder / "in" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    campaign = folder / "campaign.toml"
    campaign.write_text(
        f'[campaign]\nstage = "tests.runtime.toy:ToyStage"\ninputs = ["in/**/*.txt"]\nbatch = {batch}\n{extra}'
    )
    return campaign


def values(n: int, what: str = "") -> dict[str, str]:
    """`n` files of one item each."""
    return {f"f{i:03d}": f"value {i} {what}" for i in range(n)}


@contextlib.contextmanager
def running(campaign: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """The runtime as a process; at the end, whatever is left of the run is killed."""
    words = [sys.executable, "-m", "mlindex.runtime.run", str(campaign), *arguments]
    with open(campaign.with_suffix(".out"), "wb") as out, open(campaign.with_suffix(".err"), "wb") as err:
        process = subprocess.Popen(words, cwd=ROOT, stdout=out, stderr=err)
        try:
            yield process
        finally:
            kill_all(campaign)
            process.wait()


def told(campaign: Path) -> tuple[str, str]:
    """Standard output and error of the last process."""
    return campaign.with_suffix(".out").read_text(), campaign.with_suffix(".err").read_text()


def run(campaign: Path, *arguments: str) -> tuple[int, str, str]:
    """The runtime from start to end: exit status, standard output and error."""
    with running(campaign, *arguments) as process:
        status = process.wait(PATIENCE)
    return status, *told(campaign)


def pids(campaign: Path, ranks_only: bool = False) -> dict[int, dict[str, str]]:
    """The living processes of a run, known by the campaign's path in their command line, with their environment."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().decode().split("\0")
                block = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            env = dict(pair.split("=", 1) for pair in block if "=" in pair)
            rank = "mpiexec" not in words[0] and "OMPI_COMM_WORLD_RANK" in env
            if str(campaign) in words and int(entry.name) != os.getpid() and (rank or not ranks_only):
                found[int(entry.name)] = env
    return found


def rank_pid(campaign: Path, rank: int) -> int:
    """The process of one rank."""
    return next(pid for pid, env in pids(campaign, True).items() if env["OMPI_COMM_WORLD_RANK"] == str(rank))


def kill_all(campaign: Path) -> None:
    """kill -9 of every process of a run."""
    while found := pids(campaign):
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.02)


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until something is so."""
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.02)


def expected(campaign: Path) -> list[Result]:
    """What the stage says of each file, one after another, without the runtime; for files of one item."""
    stage, results = ToyStage(None), []
    for path in sorted((campaign.parent / "in").glob("*.txt")):
        words = path.read_text().split()
        item = Item(path.stem, f"in/{path.name}")
        results += stage.finish([item], [int(words[words.index("value") + 1])])
    return results


def journaled(run: Path) -> list[dict]:
    """The whole lines of all journals."""
    lines = []
    for path in sorted((run / "journal").glob("*.jsonl")):
        lines += [json.loads(text) for text in path.read_text().split("\n")[:-1]]
    return lines


def shard_keys(run: Path) -> Counter[tuple[int, int]]:
    """How many times each item is in the shards; all of them can be read."""
    seen = survey(run)
    assert not seen.unreadable
    return Counter(key for shard in seen.shards for key in shard.places())


def shard_sizes(run: Path) -> dict[Path, int]:
    """How many items each shard holds; a shard without any is left out."""
    return {shard.path: len(shard.items["id"]) for shard in map(read_shard, shards(run)) if len(shard.items["id"])}


def shards(run: Path) -> list[Path]:
    """The shards of a run."""
    return sorted((run / "shards").glob("*.h5"))


def done_so_far(run: Path) -> int:
    """How many items the journals say are done."""
    return sum(line["items"] for line in journaled(run) if line["event"] == "batch")


def once(run: Path, n: int) -> None:
    """Each of `n` items is in the shards and in the master exactly once, and counted in the journal once."""
    keys = shard_keys(run)
    assert len(keys) == n and set(keys.values()) == {1}
    results = read_results(run / "results.h5")
    assert len(results) == n and len({r.id for r in results}) == n
    there = {path.name: count for path, count in shard_sizes(run).items()}
    told = journal.promised(run)
    assert {name: n for name, n in told.items() if n} == there


def same(one: Sequence[Result], other: Sequence[Result]) -> None:
    """Equal in everything but the time they took."""
    assert [(r.id, r.source, r.status, r.reason) for r in one] == [(r.id, r.source, r.status, r.reason) for r in other]
    for a, b in zip(one, other, strict=True):
        assert set(a.tables) == set(b.tables)
        for table in a.tables:
            assert set(a.tables[table]) == set(b.tables[table])
            for name in a.tables[table]:
                left, right = np.asarray(a.tables[table][name]), np.asarray(b.tables[table][name])
                assert left.dtype.kind == right.dtype.kind and left.shape == right.shape
                np.testing.assert_array_equal(left, right)
