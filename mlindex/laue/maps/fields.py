"""The maps of a scan: from the grains of its frames to numbers a pixel.

A point is one grain of one frame. Everything is a column over the points; a map takes, for each frame, the point with
the highest score, or that of one chosen grain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int
from numpy.typing import NDArray

from mlindex.crystal.metric import b_matrix_from_cell
from mlindex.formats.ctf import Phase
from mlindex.laue.geometry import sample_from_lab
from mlindex.laue.maps import grains as linking
from mlindex.laue.maps import tensors
from mlindex.laue.maps.phases import orientation, reciprocal_from_direct, rotations_of
from mlindex.laue.maps.scan import Scan
from mlindex.records import Column

LIMIT = 1.0  # degrees between neighbouring frames within one grain
TILT = 40.0  # degrees about y from the LT frame to the sample
STATES = ("missing", "failed", "unsolved", "solved")  # of a frame
MISSING, FAILED, UNSOLVED, SOLVED = range(4)


def _strains(kind: str, axes: str) -> tuple[Column, ...]:
    values = [
        Column(f"strain_{kind}_{c}", "f8", (), "", f"deviatoric strain {c} in {axes}") for c in tensors.COMPONENTS
    ]
    return (*values, *(Column(f"{c.name}_esd", "f8", (), "", f"standard uncertainty of {c.name}") for c in values))


POINTS = (
    Column("grain", "i8", (), "", "number of the grain, from 1, largest first"),
    Column("phase", "i8", (), "", "number of the phase, from 1"),
    Column("misorientation", "f8", (), "degrees", "angle to the mean orientation of the grain"),
    Column("kam", "f8", (), "degrees", "kernel average misorientation, over the frames beside, above and below"),
    *_strains("sample", "the axes of the sample"),
    *_strains("crystal", "the direct crystal axes (x along a), in one setting over a grain"),
    Column(
        "equivalent_strain",
        "f8",
        (),
        "",
        "equivalent (von Mises) strain, sqrt(2/3 (e:e - s:s)), s the standard uncertainties of e; 0 where s is larger",
    ),
    Column("equivalent_strain_esd", "f8", (), "", "standard uncertainty of equivalent_strain"),
    Column("match_rate", "f8", (), "", "spots of the grain over those it should have"),
    Column("score", "f8", (), "nat", "log-likelihood ratio against chance"),
    Column("n_matched", "i8", (), "", "spots of the grain"),
    Column("rms_px", "f8", (), "pixel", "rms of one coordinate, observed minus predicted"),
    Column("orientation", "f8", (3, 3), "", "rotation from Cartesian crystal axes (a* along x) to the sample axes"),
)
NEEDED = (  # of the results' table of grains
    *("material", "cell", "laue_group", "space_group", "ub", "strain", "strain_esd"),
    *("match_rate", "score", "n_matched", "rms_px"),
)


@dataclass(frozen=True, eq=False)
class ScanMaps:
    """A scan with its grains.

    `state` (rows, columns): a row of `STATES` for each frame; `n_grains` of it. `frame` (n,) is the number of each
    point's frame, `rank` (n,) the place of its score in the frame, `points` has the columns `POINTS`. `u` (k, 3, 3) is
    the mean orientation of each grain in the sample frame, `phase` (k,) the index of its phase, `pixels` (k,) in how
    many frames it is.
    """

    scan: Scan
    tilt: float
    limit: float
    phases: tuple[Phase, ...]
    state: NDArray[np.int8]
    n_grains: NDArray[np.int64]
    frame: NDArray[np.int64]
    rank: NDArray[np.int64]
    points: Mapping[str, NDArray]
    u: NDArray[np.float64]
    phase: NDArray[np.int64]
    pixels: NDArray[np.int64]

    def _spread(self, values: NDArray, rows: NDArray) -> NDArray[Any]:
        empty: Any = np.nan if values.dtype.kind == "f" else 0
        plane = np.full((self.scan.size, *values.shape[1:]), empty, values.dtype)
        plane[self.frame[rows]] = values[rows]
        return plane.reshape(self.scan.rows, self.scan.columns, *values.shape[1:])

    def strongest(self, values: NDArray) -> NDArray[Any]:
        """A column (n, ...) as a map (rows, columns, ...) of the likeliest grain of each frame; nan or 0 elsewhere."""
        return self._spread(values, np.flatnonzero(self.rank == 0))

    def of_grain(self, values: NDArray, number: int) -> NDArray[Any]:
        """A column (n, ...) as a map (rows, columns, ...) of one grain; nan or 0 where it is not."""
        mine = np.flatnonzero(self.points["grain"] == number)
        return self._spread(values, mine[::-1])  # of two points in one frame, the likelier


def _phases(grains: Mapping[str, NDArray]) -> tuple[tuple[Phase, ...], NDArray[np.int64]]:
    """The phases of the grains, in the order of their names, and the number of each grain's from 0."""
    names = np.array([str(name) for name in grains["material"]], object)
    found, first, which = np.unique(names.astype(str), return_index=True, return_inverse=True)
    cells = np.asarray(grains["cell"], np.float64).reshape(-1, 6)
    phases = tuple(
        Phase(str(name), cells[i], str(grains["laue_group"][i]), int(grains["space_group"][i]))
        for name, i in zip(found, first, strict=True)
    )
    return phases, which.reshape(-1).astype(np.int64)


def maps_of(
    scan: Scan,
    number: Int[np.ndarray, " f"],
    state: Int[np.ndarray, " f"],
    count: Int[np.ndarray, " f"],
    grains: Mapping[str, NDArray],
    *,
    tilt: float = TILT,
    limit: float = LIMIT,
) -> ScanMaps:
    """The maps of frames with the place `number` in the scan, a `state` and `count` grains each.

    `grains` has the columns `NEEDED`, the grains of the first frame first, likeliest first. `tilt` and `limit` in
    degrees.
    """
    states = np.zeros(scan.size, np.int8)
    states[number] = state
    n_grains = np.zeros(scan.size, np.int64)
    n_grains[number] = count
    frame = np.repeat(number, count)
    rank = np.arange(len(frame)) - np.repeat(np.cumsum(count) - count, count)
    order = np.lexsort((rank, frame))
    frame, rank = frame[order], rank[order]
    columns = {name: np.asarray(grains[name])[order] for name in NEEDED}
    phases, phase = _phases(columns)
    rotations = [rotations_of(p) for p in phases]
    b0 = np.array([b_matrix_from_cell(p.cell) for p in phases]).reshape(-1, 3, 3)[phase]
    u, score = orientation(columns["ub"].astype(np.float64).reshape(-1, 3, 3), b0), columns["score"].astype(np.float64)
    known = (states >= UNSOLVED).reshape(scan.rows, scan.columns)
    pairs = linking.neighbouring_pairs(frame, phase, u, rotations, scan, known)
    grain = linking.linked(frame, pairs, score, limit)
    mean = linking.means(grain, phase, u, score, rotations)
    to_sample = sample_from_lab(tilt)
    direct = np.array([reciprocal_from_direct(p.cell) for p in phases]).reshape(-1, 3, 3)[phase]
    strain, esd = (columns[name].astype(np.float64).reshape(-1, 3, 3) for name in ("strain", "strain_esd"))
    in_sample = to_sample @ u @ direct
    in_crystal = np.swapaxes(mean.turn @ direct, -1, -2) @ direct
    points: dict[str, NDArray] = {
        "grain": grain,
        "phase": phase + 1,
        "misorientation": mean.angle,
        "kam": linking.average_misorientation(grain, pairs),
        **_components("sample", strain, esd, in_sample),
        **_components("crystal", strain, esd, in_crystal),
        "equivalent_strain": tensors.equivalent(strain, esd),
        "equivalent_strain_esd": tensors.equivalent_esd(strain, esd),
        **{name: columns[name] for name in ("match_rate", "score", "n_matched", "rms_px")},
        "orientation": to_sample @ u @ mean.turn,
    }
    first = np.unique(grain, return_index=True)[1]
    seen = np.unique(np.stack([grain, frame], 1), axis=0)[:, 0]
    return ScanMaps(
        scan,
        tilt,
        limit,
        phases,
        states.reshape(scan.rows, scan.columns),
        n_grains.reshape(scan.rows, scan.columns),
        frame,
        rank,
        points,
        to_sample @ mean.u,
        phase[first],
        np.bincount(seen, minlength=len(first) + 1)[1:],
    )


def _components(kind: str, strain: NDArray, esd: NDArray, rotation: NDArray) -> dict[str, NDArray[np.float64]]:
    values = tensors.six(tensors.turned(strain, rotation))
    spread = tensors.six(tensors.turned_esd(esd, rotation))
    names = [f"strain_{kind}_{c}" for c in tensors.COMPONENTS]
    found = {name: values[..., i] for i, name in enumerate(names)}
    return found | {f"{name}_esd": spread[..., i] for i, name in enumerate(names)}


def numbered_names(phases: Sequence[Phase]) -> dict[int, str]:
    """The names of phases by the numbers that maps have."""
    return {i + 1: phase.name for i, phase in enumerate(phases)}
