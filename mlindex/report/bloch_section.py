"""What the report says of LARBED inversion and no other method: how well patterns are explained, and how thick."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mlindex.report.canvas import (
    FAINT,
    STATUS_COLOURS,
    Picture,
    bar_edges,
    legend_above,
    log_edges,
    logarithmic,
    note,
    stacked,
)
from mlindex.report.census import STATUSES, Census
from mlindex.report.markup import Markup, element, join, table
from mlindex.report.quantities import plural
from mlindex.report.section import Section

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TABLE = "patterns"
COLUMNS = (
    *("r_factor", "noise_r", "weighted_r", "thickness", "thickness_sigma"),
    *("n_beams", "n_tilts", "n_solutions", "undetermined", "agreement", "symmetry", "condition"),
)
_BINS = 40
_LISTED = 50  # patterns that get a row
_LOWEST = 1e-16  # R on a logarithmic axis


def _quantities(census: Census) -> dict[str, tuple[str, NDArray[np.float64]]]:
    """Each number of a pattern: its name on an axis, and a value a pattern."""
    best = {name: np.asarray(census.best[name], float) for name in ("r_factor", "thickness", "thickness_sigma")}
    return {
        "r": ("R factor", np.maximum(best["r_factor"], _LOWEST)),
        "thickness": ("thickness (nm)", best["thickness"] / 10),
        "sigma": ("standard uncertainty of the thickness (nm)", best["thickness_sigma"] / 10),
    }


def _picture(census: Census) -> Picture:
    quantities = _quantities(census)
    status = census.status[census.best_of]
    noise, reached = (np.asarray(census.best[name], float) for name in ("noise_r", "r_factor"))

    def draw(figure: Figure) -> None:
        panels = figure.subplots(1, 4)
        for axes, (name, (label, values)) in zip(panels, quantities.items(), strict=False):
            fit = np.isfinite(values) & ((values > 0) if name != "thickness" else True)
            if not fit.any():
                note(axes, f"no {label}")
                continue
            if name != "thickness" and values[fit].max() > 5 * values[fit].min():
                edges = log_edges(values[fit], _BINS)
                logarithmic(axes, edges)
            else:
                edges = bar_edges(values[fit], _BINS)
            counts = {s: np.histogram(values[fit & (status == k)], edges)[0] for k, s in enumerate(STATUSES)}
            stacked(axes, edges, counts, STATUS_COLOURS)
            axes.set(xlabel=label, ylabel="patterns")
        last = panels[-1]
        top = 1.1 * max(float(np.nanmax(noise)), float(np.nanmax(reached)), 1e-3)
        last.plot([0, top], [0, top], color=FAINT, linewidth=0.8)
        for k, name in enumerate(STATUSES[:2]):
            mine = status == k
            last.plot(noise[mine], reached[mine], "o", markersize=4, color=STATUS_COLOURS[name], alpha=0.8)
        last.set(xlabel="R that noise explains", ylabel="R of the fit", xlim=(0, top), ylim=(0, top))
        legend_above(figure, STATUSES[:2], STATUS_COLOURS)

    caption = "The best solution of each pattern. A fit on the line leaves no more than counting noise does."
    return Picture("inversion", "Structure factors", caption, draw, (12.0, 3.0), _numbers(census))


def _numbers(census: Census) -> Markup:
    rows = []
    for name, (label, values) in _quantities(census).items():
        mine = values[np.isfinite(values)]
        spread = [f"{x:.4g}" for x in np.percentile(mine, (5, 25, 50, 75, 95))] if mine.size else [""] * 5
        rows.append([element("span", label, id=f"inversion-{name}"), mine.size, *spread])
    head = ["Patterns", "Values", "5th percentile", "25th", "Median", "75th", "95th"]
    return table(head, rows, id="inversion-numbers")


def _list(census: Census) -> Markup:
    rows = []
    best = {name: np.asarray(values) for name, values in census.best.items()}
    for k, row in enumerate(census.best_of[:_LISTED]):
        rows.append(
            [
                census.id[row],
                STATUSES[census.status[row]],
                f"{best['r_factor'][k]:.3g}",
                f"{best['noise_r'][k]:.3g}",
                f"{best['thickness'][k] / 10:.4f}",
                f"{best['thickness_sigma'][k] / 10:.2g}",
                str(best["symmetry"][k]),
                int(best["n_beams"][k]),
                int(best["n_tilts"][k]),
                int(best["n_solutions"][k]) - 1,
                int(best["agreement"][k]),
                int(best["undetermined"][k]),
                f"{best['condition'][k]:.2g}" if np.isfinite(best["condition"][k]) else "",
            ]
        )
    head = ["Pattern", "Status", "R", "R of noise", "Thickness (nm)", "Uncertainty (nm)", "Symmetry", "Beams", "Tilts"]
    head += ["Alternatives", "Starts that agree", "Not determined", "Condition"]
    return table(head, rows, left=(0, 1), id="patterns-table")


def bloch_sections(census: Census, tolerance: float) -> list[Section]:
    """How well the patterns are explained; nothing where no pattern was inverted."""
    if not set(COLUMNS) <= set(census.best) or not census.best_of.size:
        return []
    middle = float(np.median(np.asarray(census.best["r_factor"], float)))
    patterns = plural(len(census.best_of), "pattern")
    glance = [join([element("b", patterns), f" inverted; the median R factor is {middle:.3g}."])]
    return [Section("inversion-section", "Structure factors", [_picture(census), _list(census)], glance=glance)]
