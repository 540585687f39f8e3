"""What the report says of powder indexing and no other method: figures of merit, unit cells, like lattices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mlindex.crystal.lattice import BRAVAIS
from mlindex.formats.cif import number_with_esd
from mlindex.report.canvas import (
    INK,
    STATUS_COLOURS,
    Picture,
    bar_edges,
    legend_above,
    log_edges,
    logarithmic,
    note,
    stacked,
    whole_numbers,
)
from mlindex.report.census import SOLVED, STATUSES, Census
from mlindex.report.clusters import Cluster, clusters_from_cells
from mlindex.report.markup import Markup, element, join, table
from mlindex.report.quantities import count, percent, plural
from mlindex.report.section import Section

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TABLE = "solutions"
COLUMNS = ("bravais", "cell", "volume", "m20", "score", "probability", "n_indexed", "n_lines", "zero_shift")
SHOWN = 20  # clusters in the table
_ENLARGED, _ENOUGH = 3, 8  # clusters that get a picture, and the members that one needs
_CENTRINGS = {"P": "P", "S": "C (base)", "C": "C (base)", "I": "I", "F": "F", "R": "R"}
_COLOURS = {"P": "#0072b2", "C (base)": "#e69f00", "I": "#009e73", "F": "#cc79a7", "R": "#56b4e9"}
_CELL = ("a", "b", "c", "α", "β", "γ")
_BINS = 50
_LOGARITHMIC = {"m20", "volume"}
_LIMITS = {"probability": (0.0, 1.0)}


def _quantities(best: Mapping[str, NDArray]) -> dict[str, tuple[str, NDArray[np.float64]]]:
    """Each figure of merit that there is: its name on an axis, and a value an item."""
    found: dict[str, tuple[str, NDArray[np.float64]]] = {}
    for name, label in (
        ("m20", "M20 (de Wolff)"),
        ("score", "score (log evidence over chance)"),
        ("probability", "probability among the solutions"),
    ):
        if name in best:
            found[name] = label, np.asarray(best[name], float)
    if {"n_indexed", "n_lines"} <= set(best):
        lines = np.maximum(np.asarray(best["n_lines"], float), 1)
        found["indexed"] = "lines indexed (%)", 100 * np.asarray(best["n_indexed"], float) / lines
    for name, label in (("zero_shift", "zero shift in 2θ (°)"), ("volume", "volume (Å³)")):
        if name in best:
            found[name] = label, np.asarray(best[name], float)
    return found


def _merit_picture(census: Census) -> Picture:
    quantities = _quantities(census.best)
    status = census.status[census.best_of]

    def draw(figure: Figure) -> None:
        panels = figure.subplots(2, 3).ravel()
        for axes, name in zip(panels, quantities, strict=False):
            label, values = quantities[name]
            fit = np.isfinite(values) & ((values > 0) if name in _LOGARITHMIC else True)
            if not fit.any():
                note(axes, f"no {label}")
                continue
            if name in _LOGARITHMIC and values[fit].max() > 5 * values[fit].min():  # else there would be no ticks
                edges = log_edges(values[fit], 40)
                logarithmic(axes, edges)
            else:
                edges = bar_edges(values[fit], 40, *_LIMITS.get(name, (None, None)))
            counts = {s: np.histogram(values[fit & (status == k)], edges)[0] for k, s in enumerate(STATUSES)}
            stacked(axes, edges, counts, STATUS_COLOURS)
            axes.set(xlabel=label, ylabel="items")
        for axes in panels[len(quantities) :]:
            axes.set_axis_off()
        legend_above(figure, STATUSES[:2], STATUS_COLOURS)

    caption = "The best solution of each item. Zero shift: only where the wavelength is known and the shift is fitted."
    return Picture("merit", "Figures of merit", caption, draw, (10.8, 4.6), _merit_numbers(census))


def _merit_numbers(census: Census) -> Markup:
    solved = census.status[census.best_of] == SOLVED
    rows = []
    for name, (label, values) in _quantities(census.best).items():
        mine = values[solved & np.isfinite(values)]
        spread = [f"{x:.4g}" for x in np.percentile(mine, (5, 25, 50, 75, 95))] if mine.size else [""] * 5
        rows.append([element("span", label, id=f"merit-{name}"), mine.size, *spread])
    head = ["Solved items", "Values", "5th percentile", "25th", "Median", "75th", "95th"]
    return table(head, rows, id="merit-numbers")


def _cells(census: Census) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.object_]]:
    """Of the solved items: their rows, cells (angstrom, degrees) and Bravais lattices."""
    mine = census.status[census.best_of] == SOLVED
    bravais = np.asarray(census.best["bravais"], object)[mine]
    return census.best_of[mine], np.asarray(census.best["cell"], float)[mine], bravais


def _panel(axes: Axes, values: NDArray, centring: NDArray, name: str) -> None:
    length = name in _CELL[:3]
    unit = "Å" if length else "°"
    low, high = np.percentile(values, (0.5, 99.5))
    margin = 0.02 * (high - low) or (0.05 if length else 1.0)
    low, high = max(low - margin, values.min()), min(high + margin, values.max())
    edges = bar_edges(values, _BINS, float(low), float(high))
    outside = int(((values < edges[0]) | (values > edges[-1])).sum())
    counts = {c: np.histogram(values[centring == c], edges)[0] for c in _COLOURS}
    stacked(axes, edges, counts, _COLOURS)
    axes.set(xlabel=f"{name} ({unit})" + (f", {outside} beyond" if outside else ""), ylabel="items")


def _cell_picture(cells: NDArray, bravais: NDArray) -> Picture:
    centring = np.array([_CENTRINGS.get(str(b)[1:], "P") for b in bravais], object)

    def draw(figure: Figure) -> None:
        for column, (axes, name) in enumerate(zip(figure.subplots(2, 3).ravel(), _CELL, strict=True)):
            _panel(axes, cells[:, column], centring, name)
        legend_above(figure, [c for c in _COLOURS if (centring == c).any()], _COLOURS)

    caption = (
        "The best cell of each solved item in the conventional setting (monoclinic b unique, rhombohedral in hexagonal "
        "axes), coloured by centring."
    )
    return Picture("cells", "Unit cells", caption, draw, (10.8, 4.6))


def _cluster_picture(number: int, cluster: Cluster, cells: NDArray) -> Picture:
    mine = cells[cluster.alike]

    def draw(figure: Figure) -> None:
        for column, (axes, name) in enumerate(zip(figure.subplots(1, 6), _CELL, strict=True)):
            values, middle, width = mine[:, column], cluster.cell[column], cluster.spread[column]
            unit = "Å" if column < 3 else "°"
            if np.ptp(values) < 1e-6:
                note(axes, f"{name} = {middle:g}{unit if column > 2 else chr(32) + unit}")
                continue
            low, high = values.min(), values.max()
            if width > 0:
                low, high = max(low, middle - 5 * width), min(high, middle + 5 * width)
            edges = bar_edges(values, max(8, min(30, len(mine) // 2)), float(low), float(high))
            counts = np.histogram(values, edges)[0]
            stacked(axes, edges, {"like": counts}, {"like": "#9fb3c8"})
            if width > 0:
                x = np.linspace(edges[0], edges[-1], 120)
                area = len(values) * (edges[1] - edges[0])
                y = area * np.exp(-0.5 * ((x - middle) / width) ** 2) / (width * np.sqrt(2 * np.pi))
                axes.plot(x, y, color=INK, linewidth=1.2)
                axes.set_ylim(0, 1.08 * max(float(counts.max()), float(y.max())))
            axes.set(xlabel=f"{name} ({unit})")
            axes.locator_params(axis="x", nbins=3)
            axes.ticklabel_format(axis="x", useOffset=False)
        figure.supylabel("items", fontsize=9)

    lattice = cluster.bravais[0][0]
    title = f"Cluster {number}: {lattice}, {plural(len(cluster), 'item')}"
    caption = (
        f"{plural(len(cluster.alike), 'cell')} in the same setting; the line is a normal distribution (see the text)."
    )
    return Picture(f"cluster-{number}", title, caption, draw, (10.8, 1.9))


def _cell_texts(cluster: Cluster) -> list[str]:
    return [
        number_with_esd(value, spread if spread > 1e-6 else 0.0, 3 if column < 3 else 2)
        for column, (value, spread) in enumerate(zip(cluster.cell, cluster.spread, strict=True))
    ]


def _cluster_table(clusters: list[Cluster], census: Census, rows: NDArray, solved: int) -> Markup:
    m20 = np.full(len(census), np.nan)
    if "m20" in census.best:
        m20[census.best_of] = census.best["m20"]
    body = []
    for number, cluster in enumerate(clusters, 1):
        members = rows[cluster.members]
        merits = m20[members][np.isfinite(m20[members])]
        kinds = ", ".join(f"{name} {n}" for name, n in cluster.bravais) if len(cluster.bravais) > 1 else ""
        body.append(
            [
                number,
                count(len(cluster)),
                percent(len(cluster), solved),
                element("span", cluster.bravais[0][0], title=kinds or None),
                *_cell_texts(cluster),
                f"{cluster.volume:.1f}",
                f"{merits.mean():.1f}" if merits.size else "",
                ", ".join(census.id[members[:2]].tolist()) + (", …" if len(members) > 2 else ""),
            ]
        )
    head = ["#", "Items", "Share", "Lattice", *(f"{n} (Å)" for n in "abc"), *(f"{n} (°)" for n in "αβγ")]
    return table([*head, "V (Å³)", "Mean M20", "For instance"], body, left=(3, 12), id="clusters")


def _lattices(bravais: NDArray) -> Picture:
    names = list(reversed(BRAVAIS))
    counts = [int((bravais == name).sum()) for name in names]
    colours = [_COLOURS[_CENTRINGS[name[1]]] for name in names]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        bars = axes.bar(names, counts, color=colours, width=0.72)
        axes.bar_label(bars, [count(n) if n else "" for n in counts], fontsize=8.5, padding=2)
        axes.set(ylabel="items", xlabel="Bravais lattice", xlim=(-0.6, len(names) - 0.4), ylim=(0, 1.15 * max(counts)))
        whole_numbers(axes)

    rows = [
        [name, BRAVAIS[name].system, count(n), percent(n, len(bravais))]
        for name, n in zip(names, counts, strict=True)
        if n
    ]
    numbers = table(["Lattice", "System", "Items", "Share"], rows, left=(0, 1), id="lattices-numbers")
    caption = "Of the best solution of each solved item, coloured by centring as above."
    return Picture("lattices", "Bravais lattices", caption, draw, (10.8, 1.9), numbers)


def powder_sections(census: Census, tolerance: float) -> list[Section]:
    """Figures of merit, unit cells and clusters of like lattices; nothing where no item has a solution."""
    if not {"bravais", "cell"} <= set(census.best) or not census.best_of.size:
        return []
    sections = [Section("merit-section", "Figures of merit", [_merit_picture(census)])]
    rows, cells, bravais = _cells(census)
    if not rows.size:
        return sections
    clusters = clusters_from_cells(cells, bravais.tolist(), tolerance)
    several = [cluster for cluster in clusters if len(cluster) > 1]
    single = len(clusters) - len(several)
    shown = (several or clusters)[:SHOWN]
    told = [
        f"{plural(len(several), 'cluster')} of two or more like lattices ({plural(sum(map(len, several)), 'item')}), "
        f"{plural(single, 'lattice')} found once."
    ]
    if len(several or clusters) > len(shown):
        told.append(f"The {len(shown)} largest are listed.")
    told.append(
        f"Lattices are alike when the lengths of their Voronoi vectors agree within {100 * tolerance:g} %, whatever "
        "their setting. Cells are medians over the members with the lattice named, in its usual setting; the spread in "
        "parentheses, in units of the last digits, is 1.4826 median absolute deviations (the standard deviation of a "
        "normal distribution)."
    )
    parts: list[Markup | Picture] = [
        _cell_picture(cells, bravais),
        _lattices(bravais),
        element("h3", "Clusters of like lattices"),
        element("p", " ".join(told), id="clusters-text"),
        _cluster_table(shown, census, rows, len(rows)),
    ]
    enlarged = [c for c in several[:_ENLARGED] if len(c.alike) >= _ENOUGH]
    parts += [_cluster_picture(number, cluster, cells) for number, cluster in enumerate(enlarged, 1)]
    return [*sections, Section("cells-section", "Unit cells", parts, glance=_glance(several, single))]


def _glance(several: list[Cluster], single: int) -> list[Markup]:
    if not several:
        return [join([plural(single, "lattice"), " found, each once."])]
    first = several[0]
    cell = " ".join(_cell_texts(first)[:3])
    angles = [f"{name} {x}" for name, x in zip("αβγ", _cell_texts(first)[3:], strict=True) if x != "90"]
    more = f", {', '.join(angles)}°" if angles else ""
    rest = f"; {plural(len(several) - 1, 'more cluster')} and {plural(single, 'lattice')} found once"
    return [
        join(
            [
                "Most frequent lattice: ",
                element("b", first.bravais[0][0]),
                f" {cell} Å{more} ({plural(len(first), 'item')}){rest}.",
            ]
        )
    ]
