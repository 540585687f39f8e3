"""Tables of LARBED patterns for people: the structure factors of one pattern, and a line about many."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mlindex.bloch.record import weakest_hkl
from mlindex.formats.cif import number_with_esd
from mlindex.records import Result, Status

SHOWN = 24  # structure factors that get a row


def _with_esd(value: float, sigma: float) -> str:
    return number_with_esd(value, sigma, 5) if np.isfinite(sigma) and sigma >= 1e-8 else f"{value:.5f}"


def solution_line(result: Result, rank: int) -> str:
    """ "R = 0.0157, thickness 30.000(3) nm, symmetry p4m"."""
    row = {name: values[rank] for name, values in result.tables["solutions"].items()}
    depth, sigma = float(row["thickness"]) / 10, float(row["thickness_sigma"]) / 10
    told = f"R = {row['r_factor']:.3g}, thickness {_with_esd(depth, sigma)} nm"
    return told if row["symmetry"] == "p1" else f"{told}, symmetry {row['symmetry']}"


def pattern_table(result: Result) -> RenderableType:
    """The strongest structure factors of the best solution, one of each g and -g, and the alternatives."""
    if result.status is Status.FAILED or "factors" not in result.tables:
        return Text.assemble((result.id, "bold"), "  failed: ", result.reason)
    factors, pattern = result.tables["factors"], result.tables["patterns"]
    verdict = "" if result.status is Status.SOLVED else " unsolved:"
    title = f"{result.id}:{verdict} {solution_line(result, 0)}; {pattern['n_beams'][0]} beams, "
    title += f"{pattern['n_tilts'][0]} tilts, noise explains R = {pattern['noise_r'][0]:.3g}"
    best = np.flatnonzero(np.asarray(factors["solution"]) == 0)
    half = best[len(best) // 2 + 1 :]  # the others are their conjugates, and the middle is the mean
    u = np.asarray(factors["re"])[half] + 1j * np.asarray(factors["im"])[half]
    order = np.argsort(-np.abs(u), kind="stable")[:SHOWN]
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    for name in ("h k l", "Re U (1/Å²)", "Im U", "|U|", "phase (°)"):
        table.add_column(name, justify="right", overflow="fold")
    for row, value in zip(half[order], u[order], strict=True):
        sigma = float(factors["sigma"][row])
        table.add_row(
            " ".join(str(int(i)) for i in factors["hkl"][row]),
            _with_esd(value.real, sigma),
            _with_esd(value.imag, sigma),
            f"{abs(value):.5f}",
            f"{np.degrees(np.angle(value)):.1f}",
        )
    notes = [result.reason] if result.reason else []
    if len(half) > SHOWN:
        notes.append(f"and {len(half) - SHOWN} weaker ones; --json has all")
    if float(pattern["scale"][0]) != 1.0:
        notes.append(f"the intensities were divided by {pattern['scale'][0]:.6g} to be fractions of the incident beam")
    if (scale := float(pattern["fitted_scale"][0])) != 1.0:
        notes.append(f"the fitted scale is {scale:.5g}")
    if (background := float(pattern["background"][0])) != 0.0:
        notes.append(f"the fitted background is {background:.3g} of the incident beam")
    weakest = weakest_hkl(np.asarray(factors["hkl"])[best], np.asarray(factors["weakest"])[best])
    of = ", ".join(" ".join(map(str, hkl)) for hkl in weakest)
    if undetermined := int(pattern["undetermined"][0]):
        verb = "combinations of these are" if undetermined > 1 else "combination of these is"
        notes.append(f"{undetermined} {verb} not determined by the pattern" + (f", mostly of {of}" if of else ""))
    elif of and np.isfinite(sigma := float(pattern["weakest_sigma"][0])):
        notes.append(f"the least determined combination is mostly of {of}: uncertain by {sigma:.2g} 1/Å²")
    for rank in range(1, len(result.tables["solutions"]["r_factor"])):
        agreement = int(result.tables["solutions"]["agreement"][rank])
        starts = f"{agreement} start{'s' * (agreement != 1)}"
        notes.append(f"alternative {rank}: {solution_line(result, rank)}; {starts}")
    return Group(Text(title, "bold"), table, *(Text(f"   {note}") for note in notes))


def pattern_tally(results: Sequence[Result]) -> str:
    """ "12 patterns: 10 solved, 1 unsolved, 1 failed"."""
    counts = {status: sum(r.status is status for r in results) for status in Status}
    parts = ", ".join(f"{n} {status}" for status, n in counts.items() if n)
    return f"{len(results)} pattern{'s' * (len(results) != 1)}: {parts or 'nothing to do'}"
