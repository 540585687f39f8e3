"""Channel Text Files (.ctf) of orientation maps, as MTEX and the EBSD programs of Oxford Instruments read them.

Orientations are Bunge angles of the crystal in the sample frame, in degrees, with x of the crystal along a* and z along
c. Source: MTEX, loadEBSD_ctf; Bunge, Texture Analysis in Materials Science (1982), section 2.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

_LAUE = ("-1", "2/m", "mmm", "4/m", "4/mmm", "-3", "-3m", "6/m", "6/mmm", "m-3", "m-3m")


@dataclass(frozen=True, eq=False)
class Phase:
    """One material of a map: its name, cell (angstrom, degrees), Laue class and space-group number (0: unknown)."""

    name: str
    cell: NDArray[np.float64]
    laue_group: str
    number: int = 0


def bunge_angles(u: Float[np.ndarray, "*n 3 3"]) -> Float[np.ndarray, "*n 3"]:
    """(phi1, Phi, phi2) in degrees, in [0, 360), [0, 180], [0, 360), of rotations from crystal to sample axes.

    With Phi = 0 or 180 only a combination of the others has a meaning, and phi2 is zero.
    """
    g = np.swapaxes(np.asarray(u, np.float64), -1, -2)  # Bunge's matrix leads from the sample to the crystal
    sine = np.hypot(g[..., 2, 0], g[..., 2, 1])
    straight = sine < 1e-9
    first = np.where(straight, np.arctan2(g[..., 0, 1], g[..., 0, 0]), np.arctan2(g[..., 2, 0], -g[..., 2, 1]))
    last = np.where(straight, 0.0, np.arctan2(g[..., 0, 2], g[..., 1, 2]))
    middle = np.arctan2(sine, g[..., 2, 2])
    return np.degrees(np.stack([first % (2 * np.pi), middle, last % (2 * np.pi)], -1))


def write_ctf(
    path: str | Path,
    phases: Sequence[Phase],
    phase: Int[np.ndarray, " n"],
    u: Float[np.ndarray, "n 3 3"],
    x: Float[np.ndarray, " n"],
    y: Float[np.ndarray, " n"],
    *,
    matched: Int[np.ndarray, " n"],
    deviation: Float[np.ndarray, " n"],
    project: str = "mlindex",
) -> None:
    """A map of n points in rows of equal y: `phase` 1, 2, ... of `phases` (0: not indexed), `u` from crystal to sample
    axes, `x` and `y` in the unit of the scan, the number of spots `matched`, and the mean deviation of their places
    (px).

    The points are written in the order of y, then x. Raises `ValueError` for an unknown Laue class.
    """
    for entry in phases:
        if entry.laue_group not in _LAUE:
            raise ValueError(
                f"unknown Laue class {entry.laue_group!r} of {entry.name}; it is one of {', '.join(_LAUE)}"
            )
    columns, rows = np.unique(x), np.unique(y)
    step = [float(np.diff(v).min()) if len(v) > 1 else 0.0 for v in (columns, rows)]
    lines = ["Channel Text File", f"Prj\t{project}", "Author\t", "JobMode\tGrid"]
    lines += [f"XCells\t{len(columns)}", f"YCells\t{len(rows)}", f"XStep\t{step[0]:g}", f"YStep\t{step[1]:g}"]
    lines += ["AcqE1\t0", "AcqE2\t0", "AcqE3\t0"]
    lines.append(
        "Euler angles refer to Sample Coordinate system (CS0)!\tMag\t1\tCoverage\t100\tDevice\t0\tKV\t0\tTiltAngle\t0"
        "\tTiltAxis\t0"
    )
    lines.append(f"Phases\t{len(phases)}")
    for entry in phases:
        edges, angles = (";".join(f"{v:.6g}" for v in part) for part in (entry.cell[:3], entry.cell[3:]))
        lines.append(f"{edges}\t{angles}\t{entry.name}\t{_LAUE.index(entry.laue_group) + 1}\t{entry.number}")
    lines.append("Phase\tX\tY\tBands\tError\tEuler1\tEuler2\tEuler3\tMAD\tBC\tBS")
    euler = np.where(np.asarray(phase)[:, None] > 0, bunge_angles(np.asarray(u)), 0.0)
    for i in np.lexsort((x, y)):
        angles = "\t".join(f"{v:.4f}" for v in euler[i])
        error = 0 if phase[i] > 0 else 3
        lines.append(f"{phase[i]}\t{x[i]:.4f}\t{y[i]:.4f}\t{matched[i]}\t{error}\t{angles}\t{deviation[i]:.4f}\t0\t0")
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")
