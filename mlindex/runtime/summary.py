"""How a job of a campaign ended, counted from what is on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mlindex.runtime.disk import disk_problem
from mlindex.runtime.master import build_master, survey
from mlindex.runtime.queue import Part

AGAIN = 75  # exit status: stopped by a signal with work left (EX_TEMPFAIL of sysexits.h)
LISTED = 1000  # failures that a summary names


@dataclass(frozen=True)
class Summary:
    """How a job ended. Counts are of its part of the run directory; `skipped` of them were done before this job.

    `stopped`: "" at the end of the work, or what ended it early: "signal", "stop_after", "max_failures", or (never of a
    whole job) "relaunch".
    `failures` has (id, source, reason); `problems` has a sentence for anything that kept the campaign from its end;
    `notes` for what was found and mended. Only rank 0 of many has the counts: the others have `rank` > 0, zeros, and
    nothing to print.
    """

    run: str = ""
    total: int = 0
    solved: int = 0
    unsolved: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    stopped: str = ""
    failures: list[tuple[str, str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    lost: int = 0
    rank: int = 0

    @property
    def done(self) -> int:
        """Items with a result, be it a failure."""
        return self.solved + self.unsolved + self.failed

    @property
    def exit_status(self) -> int:
        """0 all items processed or as many as were wanted, 1 some failed or are missing, 75 to be run again."""
        if self.stopped == "signal" and not self.problems:
            return AGAIN
        return int(self.failed > 0 or bool(self.problems))

    def lines(self) -> list[str]:
        """Everything in sentences."""
        counts = ", ".join(f"{getattr(self, name)} {name}" for name in ("solved", "unsolved", "failed"))
        lines = [f"{self.run}: {self.done} of {self.total} items: {counts}; {self.seconds:.1f} s"]
        lines += [f"{name} ({source}): {reason}" for name, source, reason in self.failures]
        if self.failed > len(self.failures):
            lines.append(f"and {self.failed - len(self.failures)} more that failed")
        if self.stopped == "signal" and not self.problems:
            lines.append("stopped as asked, with work left; --resume goes on")
        return [*self.notes, *lines, *self.problems]


def counted(run: Path, part: Part, total: int, problems: Sequence[str] = ()) -> Summary:
    """Count what a run directory holds of a part; of the whole campaign, build the master file too."""
    seen = survey(run)
    told = [*problems, *(sentence for _, sentence in seen.unreadable)]
    if part.whole and len(seen):
        try:
            build_master(run)
        except (OSError, RuntimeError) as error:
            if (problem := disk_problem(run, error)) is None:
                raise
            if str(problem) not in told:
                told.append(str(problem))
    own = seen
    if not part.whole:
        own = seen.only(part.numbers(seen.input, seen.index, seen.column("of")) == part.number)
    failures = own.failures()[:LISTED] if len(own) else []
    counts = own.counts()
    return Summary(
        run=str(run),
        total=total,
        solved=counts["solved"],
        unsolved=counts["unsolved"],
        failed=counts["failed"],
        failures=failures,
        problems=told,
    )
