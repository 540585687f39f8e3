"""One LARBED pattern as pictures: as recorded, as fitted, the difference, and the potential of the unit cell.

Each beam is drawn as the disc of its tilts, at its place in the reciprocal plane.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from mlindex.bloch.beams import zone_frame
from mlindex.bloch.potential import projected_cell, projected_potential
from mlindex.bloch.record import weakest_hkl
from mlindex.report.canvas import INK, Picture, note
from mlindex.report.markup import Markup, table
from mlindex.report.section import Section

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STRONGEST = 12  # structure factors in the table below
_FINE = 64  # points of the potential along each edge of the cell
_CELLS = 2  # that are drawn, along each edge


@dataclass(frozen=True, eq=False)
class Shown:
    """A pattern with its best solution: the tables of its result by name, in the columns of the stage's schema."""

    id: str
    status: str
    tables: Mapping[str, Mapping[str, NDArray]]

    def first(self, name: str) -> Any:
        """A column of the one row about the pattern."""
        return np.asarray(self.tables["patterns"][name])[0]


def _grid_places(tilt: Float[np.ndarray, "m 2"]) -> tuple[NDArray[np.int64], tuple[int, int]]:
    """Row and column (m, 2) of each tilt on a grid, and its size; tilts on none are put into bins."""
    places, sizes = [], []
    bins = max(1, int(np.ceil(np.sqrt(len(tilt)))))
    for values in tilt.T[::-1]:
        kinds, place = np.unique(values.round(6), return_inverse=True)
        if len(kinds) > 2 * bins:
            low, width = values.min(), np.ptp(values) or 1.0
            place = np.minimum(((values - low) / width * bins).astype(np.int64), bins - 1)
            kinds = np.arange(bins)
        places.append(place)
        sizes.append(len(kinds))
    return np.stack(places, 1), (sizes[0], sizes[1])


def mosaic(
    values: Float[np.ndarray, "m n"], tilt: Float[np.ndarray, "m 2"], g: Float[np.ndarray, "n 2"]
) -> Float[np.ndarray, "rows columns"]:
    """An image with the disc of tilts of each beam at its place `g` (1/A), y upwards with the first row below.

    Beams at one place (of higher zones) lie over each other, the last on top; where nothing is, there is nan.
    """
    place, size = _grid_places(tilt)
    apart = np.linalg.norm(g[:, None] - g[None], axis=-1)
    apart = apart[apart > 1e-9 * apart.max(initial=0.0)] if len(g) > 1 else np.ones(1)
    pitch = (max(size) + 1) / float(apart.min()) if len(apart) else 1.0
    corner = np.rint((g[:, ::-1] - g[:, ::-1].min(0)) * pitch).astype(np.int64)
    image = np.full(corner.max(0) + size, np.nan)
    for beam, at in enumerate(corner):
        image[tuple((at + place).T)] = values[:, beam]
    return image


def _maps(shown: Shown) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.float64]]:
    """The mosaics, and the intensities of tilts and beams as observed and fitted."""
    hkl, tilt = np.asarray(shown.tables["beams"]["hkl"]), np.asarray(shown.tables["tilts"]["tilt"], float)
    g = (hkl @ zone_frame(shown.first("cell"), shown.first("zone").tolist()).T)[:, :2]
    values = np.array(
        [np.asarray(shown.tables["intensities"][k], float).reshape(len(tilt), -1) for k in ("observed", "fitted")]
    )
    seen = {"Pattern": values[0], "Fit": values[1], "Pattern − fit": values[0] - values[1]}
    return {name: mosaic(one, tilt, g) for name, one in seen.items()}, values


def _best(shown: Shown) -> tuple[NDArray[np.int64], NDArray[np.complex128], NDArray[np.float64]]:
    factors = shown.tables["factors"]
    mine = np.asarray(factors["solution"]) == 0
    u = np.asarray(factors["re"])[mine] + 1j * np.asarray(factors["im"])[mine]
    return np.asarray(factors["hkl"])[mine], u, np.asarray(factors["sigma"])[mine]


def _told(hkl: NDArray[np.int64]) -> str:
    return " ".join(str(int(i)) for i in hkl)


def _beam_rows(shown: Shown, values: NDArray[np.float64]) -> Markup:
    """R of every beam."""
    hkl, r = (np.asarray(shown.tables["beams"][name]) for name in ("hkl", "r_beam"))
    mean = values[0].mean(0)
    rows = [[_told(index), f"{mean[k]:.4g}", f"{r[k]:.3g}" if np.isfinite(r[k]) else ""] for k, index in enumerate(hkl)]
    return table(["Beam", "Mean intensity", "R"], rows)


def pattern_picture(shown: Shown, number: int) -> Picture:
    """Pattern, fit and difference."""
    images, values = _maps(shown)

    def draw(figure: Figure) -> None:
        from matplotlib.colors import PowerNorm

        top = float(np.nanmax(values[0])) or 1.0
        deviation = float(np.nanmax(np.abs(values[0] - values[1]))) or 1e-16
        for axes, (name, image) in zip(figure.subplots(1, 3), images.items(), strict=True):
            difference = name == "Pattern − fit"
            norm = {"vmin": -deviation, "vmax": deviation} if difference else {"norm": PowerNorm(0.5, 0, top)}
            colours = "RdBu_r" if difference else "magma"
            drawn = axes.imshow(image, origin="lower", interpolation="nearest", cmap=colours, **norm)
            axes.set(xticks=[], yticks=[], title=name)
            axes.grid(False)
            axes.set_aspect("equal")
            bar = figure.colorbar(drawn, ax=axes, shrink=0.8, pad=0.02)
            bar.outline.set_visible(False)
            bar.ax.grid(False)

    told = f"R = {shown.first('r_factor'):.3g}, thickness {shown.first('thickness') / 10:.3f} nm"
    if shown.first("symmetry") != "p1":
        told += f", symmetry {shown.first('symmetry')}"
    if (scale := float(shown.first("fitted_scale"))) != 1.0:
        told += f", fitted scale {scale:.5g}"
    if (background := float(shown.first("background"))) != 0.0:
        told += f", background {background:.3g}"
    caption = (
        f"{told}, {shown.status}. A disc of tilts a beam, x along a* to the right; fractions of the incident beam, the "
        "colours of the first two as the root."
    )
    return Picture(f"pattern-{number}", shown.id, caption, draw, (12.0, 3.8), _beam_rows(shown, values))


def _strongest(shown: Shown) -> Markup:
    hkl, u, sigma = _best(shown)
    half = np.arange(len(u) // 2 + 1, len(u))
    order = half[np.argsort(-np.abs(u[half]), kind="stable")][:_STRONGEST]
    rows = [[_told(hkl[k]), *(f"{x:.6f}" for x in (u[k].real, u[k].imag)), f"{sigma[k]:.2g}"] for k in order]
    return table(["hkl", "Re U (1/Å²)", "Im U", "Uncertainty"], rows)


def _least_known(shown: Shown) -> str:
    """What the pattern determines least, as a sentence; empty where that is not known."""
    factors = shown.tables["factors"]
    mine = np.asarray(factors["solution"]) == 0
    weakest = weakest_hkl(np.asarray(factors["hkl"])[mine], np.asarray(factors["weakest"])[mine])
    sigma = float(shown.first("weakest_sigma"))
    if not weakest or np.isnan(sigma):
        return ""
    told = f"is uncertain by {sigma:.2g} 1/Å²" if np.isfinite(sigma) else "is not determined"
    names = ", ".join(" ".join(map(str, hkl)) for hkl in weakest)
    return f" The least determined combination of structure factors, mostly of {names}, {told}."


def potential_picture(shown: Shown, number: int) -> Picture:
    """The potential of the unit cell, along the beam, from the best solution."""
    hkl, u, _ = _best(shown)
    cell, zone, volts = shown.first("cell"), shown.first("zone").tolist(), float(shown.first("voltage"))
    edges = projected_cell(hkl, cell, zone)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        if edges is None:
            note(axes, "the beams span no plane")
            return
        s = np.linspace(0, _CELLS, _CELLS * _FINE + 1)
        points = np.stack(np.meshgrid(s, s, indexing="ij"), -1) @ edges
        potential = projected_potential(u, hkl, points, cell=cell, zone=zone, voltage_kv=volts)
        drawn = axes.pcolormesh(
            points[..., 0], points[..., 1], potential, cmap="viridis", shading="gouraud", rasterized=True
        )
        outline = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]) @ edges
        axes.plot(*outline.T, color="white", linewidth=1.2)
        axes.set(xlabel="x (Å), along a*", ylabel="y (Å)")
        axes.grid(False)
        axes.set_aspect("equal")
        axes.tick_params(colors=INK)
        bar = figure.colorbar(drawn, ax=axes, shrink=0.9, pad=0.02)
        bar.outline.set_visible(False)
        bar.set_label("potential − mean (V)")

    caption = (
        "The potential averaged along the zone axis, from the structure factors of the best solution; the frame is one "
        "cell. Intensities do not tell where the origin is." + _least_known(shown)
    )
    return Picture(f"potential-{number}", f"Potential: {shown.id}", caption, draw, (5.2, 4.2), _strongest(shown))


def pattern_sections(patterns: Sequence[Shown], of: int) -> list[Section]:
    """The pictures of some patterns, of so many there are."""
    if not patterns:
        return []
    parts: list[Markup | Picture] = []
    for number, shown in enumerate(patterns, 1):
        parts += [pattern_picture(shown, number), potential_picture(shown, number)]
    title = "Patterns" if len(patterns) == of else f"The first {len(patterns)} of {of} patterns"
    return [Section("patterns-section", title, parts)]
