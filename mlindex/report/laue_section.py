"""What the report says of Laue indexing and no other method: grains a frame, what they explain, materials, strain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mlindex.report.canvas import (
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
from mlindex.report.quantities import count, percent, plural
from mlindex.report.section import Section

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TABLE = "frames"
COLUMNS = (
    *("n_spots", "n_indexed", "n_grains", "material", "score", "match_rate"),
    *("rms_px", "strain_norm", "strain_norm_esd"),
)
_BINS = 40
_MOST = 25  # grains a frame that have a bar each
_LOGARITHMIC = {"score", "strain"}


def _quantities(best: Mapping[str, NDArray]) -> dict[str, tuple[str, NDArray[np.float64]]]:
    """Each number of a frame that there is: its name on an axis, and a value a frame (nan where there is none)."""
    columns = {name: np.asarray(values, float) for name, values in best.items() if name != "material"}
    spots = np.maximum(columns["n_spots"], 1)
    found = {
        "grains": ("grains in the frame", columns["n_grains"]),
        "indexed": ("spots that belong to a grain (%)", 100 * columns["n_indexed"] / spots),
        "rate": ("match rate of the best grain (%)", 100 * columns["match_rate"]),
        "score": ("score of the best grain (nat)", columns["score"]),
        "rms": ("rms of the best grain (px)", columns["rms_px"]),
        "strain": ("strain of the best grain, with its errors (1e-3)", 1e3 * columns["strain_norm"]),
    }
    found["indexed"][1][columns["n_spots"] == 0] = np.nan
    return found


def _picture(census: Census) -> Picture:
    quantities = _quantities(census.best)
    status = census.status[census.best_of]

    def draw(figure: Figure) -> None:
        for axes, (name, (label, values)) in zip(figure.subplots(2, 3).ravel(), quantities.items(), strict=True):
            fit = np.isfinite(values) & ((values > 0) if name in _LOGARITHMIC else True)
            if not fit.any():
                note(axes, f"no {label}")
                continue
            if name in _LOGARITHMIC and values[fit].max() > 5 * values[fit].min():  # else there would be no ticks
                edges = log_edges(values[fit], _BINS)
                logarithmic(axes, edges)
            elif name == "grains" and values.max() <= _MOST:
                edges = np.arange(-0.5, values.max() + 1)
            else:
                edges = bar_edges(values[fit], _BINS, *((0.0, 100.0) if name in ("indexed", "rate") else (None, None)))
            counts = {s: np.histogram(values[fit & (status == k)], edges)[0] for k, s in enumerate(STATUSES)}
            stacked(axes, edges, counts, STATUS_COLOURS)
            axes.set(xlabel=label, ylabel="frames")
        legend_above(figure, STATUSES[:2], STATUS_COLOURS)

    caption = (
        "The frames, and the best grain of each. The strain is the Frobenius norm of the deviatoric tensor as it was "
        "measured: the errors of its components add to it, so that without any strain it is about twice its "
        "uncertainty; the maps of a scan have it without them."
    )
    return Picture("grains", "Grains", caption, draw, (10.8, 4.6), _numbers(census))


def _numbers(census: Census) -> Markup:
    rows = []
    for name, (label, values) in _quantities(census.best).items():
        mine = values[np.isfinite(values)]
        spread = [f"{x:.4g}" for x in np.percentile(mine, (5, 25, 50, 75, 95))] if mine.size else [""] * 5
        rows.append([element("span", label, id=f"grains-{name}"), mine.size, *spread])
    head = ["Frames", "Values", "5th percentile", "25th", "Median", "75th", "95th"]
    return table(head, rows, id="grains-numbers")


def _materials(census: Census) -> Markup:
    """The frames by the material of their best grain."""
    names = np.asarray(census.best["material"], object)
    rows = []
    for name in sorted({str(n) for n in names if n}):
        mine = names == name
        rms = np.asarray(census.best["rms_px"], float)[mine]
        strain, esd = (1e3 * np.asarray(census.best[k], float)[mine] for k in ("strain_norm", "strain_norm_esd"))
        middle = [f"{np.median(v):.3g}" for v in (rms, strain, esd)]
        rows.append([name, count(int(mine.sum())), percent(int(mine.sum()), len(names)), *middle])
    head = ["Material of the best grain", "Frames", "Share", "Median rms (px)"]
    return table([*head, "Median strain, with its errors (1e-3)", "Median uncertainty (1e-3)"], rows, id="materials")


def laue_sections(census: Census, tolerance: float) -> list[Section]:
    """Grains a frame, what they explain, and the materials; nothing where no frame was worked on."""
    if not set(COLUMNS) <= set(census.best) or not census.best_of.size:
        return []
    grains, spots, indexed = (int(np.sum(census.best[k])) for k in ("n_grains", "n_spots", "n_indexed"))
    frames = plural(len(census.best_of), "frame")
    share = f" in {frames}; {percent(indexed, spots)} of the spots are theirs."
    glance = [join([element("b", plural(grains, "grain")), share])]
    parts: list[Markup | Picture] = [_picture(census)]
    if grains:
        parts += [element("h3", "Materials"), _materials(census)]
    return [Section("grains-section", "Grains", parts, glance=glance)]
