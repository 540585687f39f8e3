"""Unit cells in the Crystallographic Information File, with standard uncertainties in parentheses.

Source: International Tables for Crystallography G (2005), sections 2.2 (syntax) and 4.1 (core dictionary). Names that
begin with _mlindex_ are local to this program.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import gemmi

_CELL = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")


@dataclass(frozen=True)
class Block:
    """One data block: a cell (angstrom, degrees) with uncertainties (0 or NaN: none), and what is known beside it.

    `extra` holds further pairs by full name; `lines` rows (h, k, l, calculated d in angstrom) of the indexed lines.
    """

    name: str
    cell: Sequence[float]
    esd: Sequence[float]
    volume: float
    crystal_system: str = ""
    space_group: str = ""
    extra: Mapping[str, str | float | int] = field(default_factory=dict)
    lines: Sequence[tuple[int, int, int, float]] = ()


def number_with_esd(value: float, esd: float, digits: int = 4) -> str:
    """ "5.4311(2)": `value` rounded to the last digit of its standard uncertainty.

    The uncertainty keeps one digit, or two up to 19 (the rule of the IUCr journals). Without one (0, NaN) the value is
    given to at most `digits` decimals.
    """
    if not (math.isfinite(value) and math.isfinite(esd) and esd > 0):
        text = f"{value:.{digits}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    places = -math.floor(math.log10(esd))
    if esd * 10 ** (places + 1) < 19.5:
        places += 1
    shown = round(esd * 10**places)
    if places > 0:
        return f"{value:.{places}f}({shown})"
    return f"{round(value, places):.0f}({shown * 10**-places})"


def _block_name(name: str, taken: set[str]) -> str:
    base = re.sub(r"[^!-~]|[#'\"]", "_", name)[:70] or "item"
    unique, n = base, 2
    while unique.lower() in taken:  # block names are the same in either case
        unique, n = f"{base}_{n}", n + 1
    taken.add(unique.lower())
    return unique


def text_from_blocks(blocks: Iterable[Block]) -> str:
    """The CIF of some cells, one data block each, with unique names."""
    document = gemmi.cif.Document()
    taken: set[str] = set()
    for block in blocks:
        data = document.add_new_block(_block_name(block.name, taken))
        for name, value, esd in zip(_CELL, block.cell, block.esd, strict=True):
            data.set_pair(f"_cell_{name}", number_with_esd(value, esd, 5))
        data.set_pair("_cell_volume", f"{block.volume:.2f}")
        if block.crystal_system:
            data.set_pair("_symmetry_cell_setting", block.crystal_system)
        data.set_pair(
            "_symmetry_space_group_name_H-M", gemmi.cif.quote(block.space_group) if block.space_group else "?"
        )
        for key, extra in block.extra.items():
            data.set_pair(key, gemmi.cif.quote(extra) if isinstance(extra, str) else f"{extra:.6g}")
        if block.lines:
            loop = data.init_loop("_refln_", ["index_h", "index_k", "index_l", "d_spacing"])
            for h, k, l, d in block.lines:  # noqa: E741
                loop.add_row([str(h), str(k), str(l), f"{d:.5f}"])
    return document.as_string()
