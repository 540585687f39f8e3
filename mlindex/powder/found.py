"""The lines found in a pattern or in the spots of stills, ready to be written, printed and indexed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from mlindex.records import PeakList


@dataclass(frozen=True)
class FoundLines:
    """Lines, ascending; arrays (n,).

    `q2` and its standard uncertainty `q2_esd` in 1/angstrom^2; `intensity` and `intensity_esd` integrated (of stills:
    spots); `height` in the unit of the input (of stills: spots a bin); `width` at half maximum, in degrees of 2theta
    where `angles`, else in 1/angstrom of q; `significance` in standard deviations. `sources`: the files they come from.
    `notes`: sentences for the user. `beside`: what else the record of it says.
    """

    id: str
    kind: str
    sources: tuple[str, ...]
    q2: Float[np.ndarray, " n"]
    q2_esd: Float[np.ndarray, " n"]
    intensity: Float[np.ndarray, " n"]
    intensity_esd: Float[np.ndarray, " n"]
    height: Float[np.ndarray, " n"]
    width: Float[np.ndarray, " n"]
    significance: Float[np.ndarray, " n"]
    wavelength: float | None
    angles: bool
    notes: tuple[str, ...] = ()
    beside: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.q2)

    @property
    def two_theta(self) -> Float[np.ndarray, " n"]:
        """2theta in degrees; only where there is a wavelength."""
        return 2 * np.degrees(np.arcsin(np.sqrt(self.q2) * float(self.wavelength or np.nan) / 2))

    def columns(self) -> dict[str, Float[np.ndarray, " n"]]:
        """What a list has beside position and intensity, by the names it has in files."""
        width = "fwhm_2theta" if self.angles else "fwhm_q"
        return {
            "q2_esd": self.q2_esd,
            "intensity_esd": self.intensity_esd,
            "height": self.height,
            width: self.width,
            "significance": self.significance,
        }

    def peak_list(self) -> PeakList:
        """The lines as an index search takes them; those of stills without a wavelength: no zero shift.

        A pattern over q was measured over angles too, so where its wavelength is known its errors are those of angles.
        """
        wavelength = None if self.kind == "stills" else self.wavelength
        return PeakList(self.id, self.sources[0], self.q2, wavelength, self.intensity)

    def record(self) -> dict[str, Any]:
        """The JSON object: q2 in 1/angstrom^2, d in angstrom, 2theta in degrees."""
        rows: dict[str, Float[np.ndarray, " n"]] = {"q2": self.q2, "d": self.q2**-0.5, "intensity": self.intensity}
        if self.angles:
            rows = {"two_theta": self.two_theta, **rows}
        rows |= self.columns()
        lines = [
            {name: float(f"{value:.8g}") for name, value in zip(rows, row, strict=True)}
            for row in zip(*rows.values(), strict=True)
        ]
        return {
            "id": self.id,
            "source": self.sources[0],
            "sources": list(self.sources),
            "status": "found",
            "kind": self.kind,
            "wavelength": self.wavelength,
            **self.beside,
            "notes": list(self.notes),
            "lines": lines,
        }
