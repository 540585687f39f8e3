"""Line lists as tables for people."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mlindex.formats.cif import number_with_esd
from mlindex.powder.found import FoundLines


def found_table(found: FoundLines) -> RenderableType:
    """The lines of one list with standard uncertainties in parentheses, and under it what there is to say of it."""
    title = f"{found.id}  {len(found)} line{'' if len(found) == 1 else 's'}"
    if found.kind == "stills":
        title += f" of {found.beside['spots']} spots on {found.beside['stills']} stills"
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 1))
    table.collapse_padding, table.pad_edge = True, False
    width = "FWHM (°)" if found.angles else "FWHM (1/Å)"
    intensity = "spots" if found.kind == "stills" else "area"
    for name in (
        "#",
        *(["2θ (°)"] if found.angles else []),
        "d (Å)",
        "q² (1/Å²)",
        intensity,
        "height",
        width,
        "signif.",
    ):
        table.add_column(name, justify="right")
    angles = found.two_theta if found.angles else None
    for i in range(len(found)):
        d, error = found.q2[i] ** -0.5, found.q2_esd[i] / found.q2[i] / 2
        q = found.q2[i] ** 0.5
        cells = [str(i + 1)]
        if angles is not None:
            esd = _degrees(
                found.q2_esd[i] / (2 * q), q * float(found.wavelength or 0.0) / 2, float(found.wavelength or 1.0)
            )
            cells.append(number_with_esd(float(angles[i]), esd))
        cells += [
            number_with_esd(float(d), float(d * error), 5),
            number_with_esd(float(found.q2[i]), float(found.q2_esd[i]), 7),
        ]
        cells += [
            number_with_esd(float(found.intensity[i]), float(found.intensity_esd[i]), 1),
            f"{found.height[i]:.4g}",
        ]
        cells += [f"{found.width[i]:.3f}" if found.angles else f"{found.width[i]:.5f}", f"{found.significance[i]:.1f}"]
        table.add_row(*cells)
    return Group(table, *(Text(f"   {note}") for note in found.notes))


def _degrees(q_esd: float, sine: float, wavelength: float) -> float:
    """The uncertainty of 2theta in degrees from that of q."""
    return float(q_esd * wavelength / max(1 - sine**2, 1e-9) ** 0.5 * 57.29577951308232)
