"""The line list of a measured pattern: K alpha 1 positions with their uncertainties, without the tube's other lines."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from mlindex.formats.pattern import Pattern
from mlindex.formats.wavelength import W_L_ALPHA, k_alpha, k_beta, unresolved_anode
from mlindex.powder.found import FoundLines
from mlindex.powder.pattern.decompose import Peaks, decompose
from mlindex.powder.pattern.noise import noise_of_pattern
from mlindex.powder.pattern.profile import Doublet
from mlindex.records import InputError

# Of the highest line: natural minerals have as much of others in them, and a search that must index their lines fails
WEAKEST = 0.01
FEWEST = 6  # lines that an index search needs
_NEAR = 0.03  # degrees of 2theta between a satellite and where it should be
_WEAK = {"K beta": 0.05, "W L alpha": 0.02}  # of the line that they belong to


def lines_of_pattern(
    pattern: Pattern, *, anode: str | None = None, cut: float = 5.0, weakest: float = WEAKEST
) -> FoundLines:
    """The lines of a pattern.

    With `anode` ("Cu"), or with a wavelength that is the mean of a K alpha doublet, each line is fitted as the doublet,
    and weak lines where K beta or tungsten's L alpha of a strong one would be are left out. `cut`: standard deviations
    that a line must have; `weakest`: its least height, as a share of the highest. Raises `InputError` where there is no
    line or the anode is unknown.
    """
    wavelength = pattern.wavelength
    if anode is None and wavelength is not None:
        anode = unresolved_anode(wavelength)
    doublet = None
    if anode is not None and pattern.scan == "tth":
        pair = k_alpha(anode)
        if pair is None:
            raise InputError(f"{pattern.source}: the anode {anode!r} is unknown; give --wavelength instead")
        doublet = Doublet(*pair)
        wavelength = doublet.first
    noise = noise_of_pattern(pattern.y, pattern.sigma)
    try:
        found = decompose(pattern.x, pattern.y, noise=noise, doublet=doublet, cut=cut)
    except ValueError as error:
        raise InputError(f"{pattern.source}: {error}") from None
    peaks, notes = found.peaks, []
    if anode is not None and doublet is None:
        notes.append(f"over q, so fitted as of one wavelength: {anode}'s doublet cannot be placed")
    if doublet is not None and anode is not None:
        other = satellites(peaks, doublet.first, k_beta(anode))
        if np.any(other):
            at = ", ".join(f"{x:.2f}" for x in peaks.position[other])
            notes.append(f"left out as K beta or W L alpha of strong lines: 2theta = {at}")
        peaks = _chosen(peaks, ~other)
    weak = peaks.height < weakest * np.max(peaks.height, initial=0.0)
    if np.any(weak):
        some = f"{np.count_nonzero(weak)} line{'s' if np.count_nonzero(weak) > 1 else ''}"
        notes.append(f"{some} under {100 * weakest:g} % of the highest left out (--weakest 0 keeps them)")
        peaks = _chosen(peaks, ~weak)
    if not len(peaks):
        raise InputError(
            f"{pattern.source}: has no line beyond {cut:g} standard deviations; lower that with "
            "`mlindex peaks --significance`"
        )
    if len(peaks) < FEWEST:
        notes.append(f"indexing needs at least {FEWEST} lines, and these are {len(peaks)}")
    if pattern.scan == "tth":
        assert wavelength is not None
        theta = np.radians(peaks.position) / 2
        q = 2 * np.sin(theta) / wavelength
        esd = np.cos(theta) / wavelength * np.radians(peaks.position_esd)
    else:
        q, esd = peaks.position, peaks.position_esd
    beside = {
        "radiation": f"{anode} K alpha 1 and 2" if doublet is not None else "one wavelength",
        "noise": "given" if pattern.sigma is not None and noise.variance is not None else "estimated",
        "reduced_deviance": float(f"{found.reduced:.4g}"),
    }
    return FoundLines(
        id=pattern.id,
        kind="pattern",
        sources=(pattern.source,),
        q2=q**2,
        q2_esd=2 * q * esd,
        intensity=peaks.area,
        intensity_esd=peaks.area_esd,
        height=peaks.height,
        width=peaks.width,
        significance=peaks.significance,
        wavelength=wavelength,
        angles=pattern.scan == "tth",
        notes=tuple(notes),
        beside=beside,
    )


def _chosen(peaks: Peaks, these: Bool[np.ndarray, " n"]) -> Peaks:
    return Peaks(*(getattr(peaks, name)[these] for name in Peaks.__dataclass_fields__))


def satellites(peaks: Peaks, wavelength: float, beta: float | None) -> Bool[np.ndarray, " n"]:
    """Which peaks (2theta in degrees) lie, weak enough, where another line of the tube would put a strong one.

    `wavelength` and that of K `beta` in angstrom. A satellite of wavelength s is at sin(theta) s / wavelength.
    """
    sine = np.sin(np.radians(peaks.position) / 2)
    out = np.zeros(len(peaks), bool)
    for name, other in (("K beta", beta), ("W L alpha", W_L_ALPHA if wavelength > W_L_ALPHA else None)):
        if other is None:
            continue
        at: Float[np.ndarray, " n"] = 2 * np.degrees(np.arcsin(sine * other / wavelength))
        near = np.abs(peaks.position[:, None] - at) < _NEAR + 3 * peaks.position_esd[:, None]
        weak = peaks.area[:, None] < _WEAK[name] * peaks.area
        out |= np.any(near & weak, axis=1)
    return out
