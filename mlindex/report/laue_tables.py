"""Tables of Laue frames for people: the grains of one frame, and a line about many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mlindex.formats.cif import number_with_esd
from mlindex.laue.record import laue_record, strain_is_real, strain_norm, strain_size
from mlindex.records import Result, Status

_COLUMNS = ("material", "matched", "rate", "score", "rms (px)", "strain (1e-3)")


def frame_table(result: Result) -> RenderableType:
    """The grains of one frame, best first; one line if there is none.

    matched: spots of the grain over those that it should have on the detector; rate: their ratio; strain: the
    Frobenius norm of the deviatoric strain less what errors add to it (`strain_size`), its standard uncertainty in
    parentheses. Of a strain that is not significant, by the F test that also decides whether `ub` has it, what it is
    below: the norm and twice its uncertainty.
    """
    record = laue_record(result)
    if result.status is Status.FAILED:
        return Text.assemble((record["id"], "bold"), "  failed: ", record.get("reason", ""))
    grains, spots = record["grains"], record["spots"]
    if not grains:
        return Text.assemble((record["id"], "bold"), "  unsolved: ", record.get("reason", ""))
    indexed = sum(spot["grain"] >= 0 for spot in spots)
    title = f"{record['id']}: {len(grains)} grain{'s' * (len(grains) > 1)}, {indexed} of {len(spots)} spots"
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 1), pad_edge=False)
    table.add_column("grain", justify="right")
    for name in _COLUMNS:
        table.add_column(name, justify="left" if name == "material" else "right", overflow="fold")
    for rank, grain in enumerate(grains):
        table.add_row(
            str(rank),
            grain["material"],
            f"{grain['n_matched']}/{grain['n_predicted']}",
            f"{grain['match_rate']:.0%}",
            f"{grain['score']:.0f}",
            f"{grain['rms_px']:.3f}",
            _strain(grain, result.tables["grains"]["cell"][rank]),
        )
    return Group(table, *([Text(f"   {record['reason']}")] if "reason" in record else []))


def _strain(grain: Mapping[str, Any], cell: NDArray[np.float64]) -> str:
    strain, errors = (1e3 * np.array(grain[name], float) for name in ("strain", "strain_esd"))
    norm, esd = strain_norm(strain, errors)
    if not np.isfinite(esd):
        return number_with_esd(norm, 0.0, 2)
    if not strain_is_real(np.array(grain["ub"]), cell):
        return f"<{norm + 2 * esd:.2g}"
    return number_with_esd(float(strain_size(strain, errors)), esd)


def frame_tally(results: Sequence[Result]) -> str:
    """ "12 frames: 10 solved, 1 unsolved, 1 failed; 31 grains"."""
    counts = {status: sum(r.status is status for r in results) for status in Status}
    parts = ", ".join(f"{n} {status}" for status, n in counts.items() if n)
    grains = sum(len(r.tables.get("grains", {}).get("score", ())) for r in results)
    return f"{len(results)} frame{'s' * (len(results) != 1)}: {parts or 'nothing to do'}; {grains} grains"
