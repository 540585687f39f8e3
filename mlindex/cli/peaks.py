"""`mlindex peaks`: line lists from measured patterns, and from the spots of many stills."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import numpy as np

    from mlindex.formats.crystfel import Geometry
    from mlindex.powder.found import FoundLines
    from mlindex.powder.stills.lines import StillsOptions

_CELL = "5.4310 | a,b,c,alpha,beta,gamma | GROUP:a,b,c,... | FILE.cif"


def make_peaks(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE",
            help="Patterns (.xy, .xye, .csv); spots of stills (CXI, CrystFEL .stream, tables as of DIALS in HDF5); "
            "directories of them, or globs.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="DIR", help="Write each list to this folder, as index powder reads it."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object a list instead of tables.")] = False,
    wavelength: Annotated[
        str | None,
        typer.Option(help="In angstrom, or a line such as CuKa1. Default: what the file says.", metavar="ANGSTROM"),
    ] = None,
    anode: Annotated[
        str | None,
        typer.Option(help="Patterns: fit each line as the K alpha doublet of this tube.", metavar="Cu|Co|..."),
    ] = None,
    quantity: Annotated[
        str | None,
        typer.Option(
            help="Patterns: what they are over, 2theta in degrees, q = 1/d or 2 pi/d in 1/angstrom. Default: what the "
            "file says, else 2theta.",
            metavar="tth|q|2pi/d",
        ),
    ] = None,
    significance: Annotated[
        float, typer.Option(min=2.0, help="Standard deviations that a line must have.", metavar="SIGMA")
    ] = 5.0,
    weakest: Annotated[
        float,
        typer.Option(min=0.0, max=99.0, help="Patterns: least height of a line, of the highest.", metavar="PERCENT"),
    ] = 1.0,
    geometry: Annotated[
        Path | None,
        typer.Option(help="Stills: CrystFEL geometry. Default: that in the stream.", metavar="FILE.geom"),
    ] = None,
    distance: Annotated[
        float | None, typer.Option(help="Stills on one flat detector: its distance.", metavar="MM")
    ] = None,
    beam: Annotated[
        str | None, typer.Option(help="Likewise: the beam, in pixels from the corner of the first.", metavar="X,Y")
    ] = None,
    pixel: Annotated[float | None, typer.Option(help="Likewise: the size of a pixel.", metavar="UM")] = None,
    each: Annotated[bool, typer.Option("--each", help="Stills: a list a file, not one list of all.")] = False,
    weight: Annotated[str, typer.Option(help="Stills: what a spot counts.", metavar="one|intensity")] = "one",
    cell: Annotated[
        str | None, typer.Option(help="Stills: a known crystal, by which the distance is checked.", metavar=_CELL)
    ] = None,
    refine_centre: Annotated[
        bool, typer.Option("--refine-centre", help="Stills: correct the beam centre by the rings.")
    ] = False,
    refine_distance: Annotated[
        bool, typer.Option("--refine-distance", help="Stills: correct the distance by the lines of --cell.")
    ] = False,
) -> None:
    """Find the lines of powder patterns, and of the spots of many serial stills, for `index powder`.

    Every pattern gives a list; all stills together give one. Positions have standard uncertainties. Of stills the beam
    centre is checked, and with --cell the distance.
    """
    from mlindex.formats.wavelength import ANODES, k_alpha, wavelength_from_text
    from mlindex.records import InputError

    length = None
    if wavelength is not None and (length := wavelength_from_text(wavelength)) is None:
        raise InputError(f"--wavelength: {wavelength!r} is no wavelength; give angstrom (1.5406) or a line (CuKa1)")
    if anode is not None:
        if k_alpha(anode) is None:
            raise InputError(f"--anode: {anode!r} is none of {', '.join(ANODES)}; give --wavelength instead")
        if length is not None:
            raise InputError("--anode and --wavelength say the same thing; give one of them")
    if weight not in ("one", "intensity"):
        raise InputError(f"--weight: {weight!r} is neither one nor intensity; give one of them")
    if refine_distance and cell is None:
        raise InputError("--refine-distance needs a known crystal; add --cell")
    options = _options(geometry, distance, beam, pixel, length, cell)
    raise typer.Exit(
        find_peaks(
            files,
            output,
            json,
            options
            | {"by_intensity": weight == "intensity", "refine_centre": refine_centre}
            | {"refine_distance": refine_distance, "cut": significance},
            {"scan": quantity, "wavelength": length, "anode": anode, "cut": significance, "weakest": weakest / 100},
            each,
        )
    )


def _options(
    file: Path | None,
    distance: float | None,
    beam: str | None,
    pixel: float | None,
    wavelength: float | None,
    cell: str | None,
) -> dict[str, Any]:
    from mlindex.formats.crystfel import read_geometry
    from mlindex.records import InputError

    flat = [distance is not None, beam is not None, pixel is not None]
    if file is not None and any(flat):
        raise InputError("--geometry says distance, beam and pixel; give it alone, or the three without it")
    if any(flat) and not all(flat):
        raise InputError("--distance, --beam and --pixel belong together; give all three")
    found: Geometry | None = None
    if file is not None:
        found = read_geometry(file)
    elif distance is not None and beam is not None and pixel is not None:
        found = _flat(distance, beam, pixel)
    known = None if cell is None else lines_of_cell(cell)
    return {"geometry": found, "wavelength": wavelength, "known": known}


def _flat(distance: float, beam: str, pixel: float) -> Geometry:
    from mlindex.formats.crystfel import flat_geometry
    from mlindex.records import InputError

    try:
        x, y = (float(v) for v in beam.split(","))
    except ValueError:
        raise InputError(f"--beam: {beam!r} is not two numbers; give them as 512.3,498.7") from None
    if not (distance > 0 and pixel > 0):
        raise InputError("--distance and --pixel must be positive; give millimetres and micrometres")
    return flat_geometry(distance * 1e-3, (x, y), pixel * 1e-6)


def lines_of_cell(text: str, q_max: float = 0.6) -> np.ndarray:
    """q = 1/d (1/angstrom, ascending, to `q_max`) of the lines of a known crystal: an edge of a cube, or six numbers,
    either after `GROUP:` for its absences, or a CIF. Raises `InputError` for a text that is none of these.
    """
    import numpy as np

    from mlindex.crystal.metric import checked_cell, q2_from_hkl, reciprocal_metric_from_cell
    from mlindex.crystal.reflections import hkl_within
    from mlindex.crystal.scattering import crystal_from_cif
    from mlindex.crystal.spacegroup import space_group
    from mlindex.records import InputError

    group = None
    try:
        if Path(text).suffix.lower() == ".cif" or Path(text).is_file():
            crystal = crystal_from_cif(text)
            values, group = crystal.cell, crystal.group
        else:
            name, colon, numbers = text.rpartition(":")
            parts = [float(v) for v in numbers.split(",")]
            values = np.array(parts * 3 + [90.0] * 3 if len(parts) == 1 else parts)
            values = checked_cell(values)
            group = space_group(name, float(values[3]), float(values[5])) if colon else None
    except ValueError as error:
        raise InputError(f"--cell: {text!r} is no crystal ({error}); give it as {_CELL}") from None
    metric = reciprocal_metric_from_cell(values)
    hkl = hkl_within(metric, "aP", q_max**2)
    if group is not None:
        hkl = hkl[~group.absent(hkl)]
    q = np.sqrt(q2_from_hkl(metric, hkl))
    return q[np.diff(q, prepend=-np.inf) > 1e-6 * q]


def _one(name: str, label: str, stills: dict[str, Any], pattern: dict[str, Any]) -> FoundLines:
    """The lines of one pattern."""
    from dataclasses import replace

    from mlindex.formats.pattern import read_pattern
    from mlindex.formats.wavelength import k_alpha
    from mlindex.powder.pattern.lines import lines_of_pattern

    pair = None if pattern["anode"] is None else k_alpha(pattern["anode"])
    length = pattern["wavelength"] if pair is None else pair[0]
    found = read_pattern(name, scan=pattern["scan"], wavelength=length)
    lines = lines_of_pattern(found, anode=pattern["anode"], cut=pattern["cut"], weakest=pattern["weakest"])
    return replace(lines, id=label)


def _still_groups(labels: dict[str, str], options: StillsOptions, each: bool, fail: Any) -> list[tuple[str, list[Any]]]:
    """The spots of all files that can be used, under one name or under one each; `fail` is told of the others."""
    from mlindex.powder.stills.lines import usable_spots

    usable = []
    for name, label in labels.items():
        try:
            usable.append((label, usable_spots(name, options)))
        except Exception as error:  # one bad file must not take the others with it
            fail(name, label, error)
    if each or len(usable) == 1:
        return [(label, [spots]) for label, spots in usable]
    return [("stills", [spots for _, spots in usable])] if usable else []


def find_peaks(
    names: list[str],
    output: Path | None,
    as_json: bool,
    stills: dict[str, Any],
    pattern: dict[str, Any],
    each: bool,
) -> int:
    """Find, print and write the lists of the files; the exit status: 0, or 1 where something failed.

    `stills`: fields of `StillsOptions`; `pattern`: `scan`, `wavelength`, `anode`, `cut` and `weakest` of patterns.
    Lists go to standard output as tables or JSON lines, failures to standard error.
    """
    import json

    from mlindex.cli.index import files_from
    from mlindex.formats.spots import holds_spots
    from mlindex.powder.stills.lines import StillsOptions, lines_of_stills
    from mlindex.records import InputError
    from mlindex.report.peak_tables import found_table
    from mlindex.report.tables import printer, say
    from mlindex.runtime import inputs

    files = files_from(names)
    folder = _folder(output)
    options = StillsOptions(**stills)
    labels = {entry.source: entry.label for entry in inputs.label(files)}
    failures = 0

    def fail(source: str, label: str, error: Exception) -> None:
        nonlocal failures
        failures += 1
        reason = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        if as_json:
            record = {"id": label, "source": source, "status": "failed", "reason": reason, "lines": []}
            print(json.dumps(record, ensure_ascii=False), flush=True)
        say(f"failed: {label}: {reason}")

    def show(found: FoundLines) -> None:
        if as_json:
            print(json.dumps(found.record(), allow_nan=False, ensure_ascii=False), flush=True)
            for note in found.notes:
                say(f"{found.id}: {note}")
        else:
            printer().print(found_table(found))
        if folder is not None:
            say(f"{_write(folder, found)}: {len(found)} lines")

    spots = {name: label for name, label in labels.items() if holds_spots(name)}
    for name, label in labels.items():
        if name in spots:
            continue
        try:
            show(_one(name, label, stills, pattern))
        except Exception as error:  # likewise
            fail(name, label, error)
    for label, group in _still_groups(spots, options, each, fail):
        try:
            show(lines_of_stills(group, label, options))
        except Exception as error:  # likewise
            fail(group[0].source, label, error)
    return int(failures > 0)


def _folder(output: Path | None) -> Path | None:
    from mlindex.records import InputError

    if output is None:
        return None
    try:
        output.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{output}: is no folder to write to ({error.strerror}); give one, or a new one's name"
        ) from None
    return output


def _write(folder: Path, found: FoundLines) -> Path:
    """Write a list under its name, as 2theta where it was measured so, else as q2."""
    from mlindex.formats import peaks

    path = folder / f"{found.id.replace('/', '_')}.txt"
    peaks.write(path, found.peak_list(), quantity="tth" if found.angles else "q2", more=found.columns())
    return path
