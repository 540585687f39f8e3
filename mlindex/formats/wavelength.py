"""Wavelengths by number or by the name of an X-ray tube's line.

Source of the lines: Deslattes et al. (2003), Rev. Mod. Phys. 75, 35 and Hoelzer et al. (1997), Phys. Rev. A 56, 4554,
as tabulated in International Tables for Crystallography C, table 4.2.2.4.
"""

from __future__ import annotations

import math
import re

_K_ALPHA = {  # angstrom: K alpha 1, K alpha 2
    "cr": (2.289726, 2.293651),
    "fe": (1.936041, 1.939973),
    "co": (1.788996, 1.792835),
    "cu": (1.5405929, 1.5444274),
    "mo": (0.70931715, 0.713607),
    "ag": (0.55942178, 0.5638131),
}
_K_BETA = {  # angstrom: K beta 1, or the blend of K beta 1 and 3
    "cr": 2.08487,
    "fe": 1.756604,
    "co": 1.620826,
    "cu": 1.392234,
    "mo": 0.632303,
    "ag": 0.497082,
}
W_L_ALPHA = 1.476311  # angstrom: tungsten's L alpha 1, of the cathode's metal on the anodes of old tubes
ANODES = tuple(name.capitalize() for name in _K_ALPHA)
_NUMBER = re.compile(r"[-+]?(?:\d+[.,]?\d*|[.,]\d+)(?:[eE][-+]?\d+)?")
_LINE = re.compile(r"(cr|fe|co|cu|mo|ag)(?:k(?:alpha|a|α)([12]?))?")


def wavelength_from_text(text: str) -> float | None:
    """The wavelength in angstrom that `text` gives, or None where it gives none.

    A number ("1.5406", "1.5406 A", "1,5406") or a line ("CuKa1", "Cu K-alpha 1", "MoKa"). K alpha without a number, or
    the element alone, is the mean of the doublet weighted 2:1. The value of a number is not checked.
    """
    text = text.strip()
    number = _NUMBER.match(text)
    if number:
        rest = text[number.end() :].strip(" ,;.")
        if rest == "" or re.match(r"(?i)(a|å|ang)", rest):
            return float(number.group().replace(",", "."))
        return None
    words = re.sub(r"[\s_\-]", "", text.lower())
    line = _LINE.match(words)
    if not line or words[line.end() :][:1].isalnum():
        return None
    first, second = _K_ALPHA[line.group(1)]
    return {"1": first, "2": second}.get(line.group(2) or "", (2 * first + second) / 3)


def is_wavelength(value: float) -> bool:
    """Whether a number can be a wavelength in angstrom: finite and positive."""
    return math.isfinite(value) and value > 0


def k_alpha(anode: str) -> tuple[float, float] | None:
    """K alpha 1 and K alpha 2 in angstrom of a tube's anode ("Cu"), or None for one that is not in the table."""
    return _K_ALPHA.get(anode.strip().lower())


def unresolved_anode(wavelength: float) -> str | None:
    """The anode whose weighted mean of K alpha 1 and 2 a wavelength is, within 3e-4 angstrom; None for all others."""
    for anode, (first, second) in _K_ALPHA.items():
        if abs((2 * first + second) / 3 - wavelength) < 3e-4:
            return anode.capitalize()
    return None


def k_beta(anode: str) -> float | None:
    """K beta 1,3 in angstrom of a tube's anode, or None for one that is not in the table."""
    return _K_BETA.get(anode.strip().lower())
