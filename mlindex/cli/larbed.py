"""`mlindex simulate larbed`, patterns from structure factors, and `mlindex invert larbed`, the way back."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from mlindex.cli.options import finite

_LARGEST_INDEX = 1e6  # of a zone axis


def _numbers(text: str, count: int, option: str, example: str) -> list[float]:
    from mlindex.records import InputError

    try:
        values = [float(v) for v in text.replace(",", " ").split()]
    except ValueError:
        values = []
    if len(values) != count:
        raise InputError(f"{option}: {text!r} is not {count} numbers; give them as {example}")
    return values


def simulate_larbed(
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE.h5", help="Where to.")],
    cif: Annotated[Path | None, typer.Option(help="Structure factors of this crystal.", metavar="FILE.cif")] = None,
    given: Annotated[
        Path | None, typer.Option("--u", help="Structure factors given as lines 'h k l re im'.", metavar="FILE")
    ] = None,
    random: Annotated[
        float | None,
        typer.Option(
            help="Random structure factors, real and imaginary part within +-LARGEST (1/A^2).",
            metavar="LARGEST",
            callback=finite,
        ),
    ] = None,
    cell: Annotated[str | None, typer.Option(help="Needed without a CIF.", metavar="a,b,c,alpha,beta,gamma")] = None,
    zone: Annotated[str, typer.Option(help="Zone axis.", metavar="u,v,w")] = "0,0,1",
    beams: Annotated[
        int,
        typer.Option(min=1, help="Beams: full shells of the zero-order zone; of a CIF those that its centring allows."),
    ] = 13,
    steps: Annotated[
        int, typer.Option(min=0, help="Tilts i, j with i^2 + j^2 <= STEPS^2; 12, 16, 18 give 441, 797, 1009.")
    ] = 12,
    angle: Annotated[float, typer.Option("--range", help="Largest tilt.", metavar="MRAD", callback=finite)] = 70.0,
    thickness: Annotated[float, typer.Option(min=0.0, help="In nanometres.", metavar="NM", callback=finite)] = 30.0,
    voltage: Annotated[float, typer.Option(help="Accelerating voltage.", metavar="KV")] = 120.0,
    absorption: Annotated[
        float,
        typer.Option(
            min=0.0, callback=finite, help="Absorptive potential as a proportion of the elastic one; of a CIF only."
        ),
    ] = 0.0,
    higher: Annotated[
        str | None,
        typer.Option(
            "--higher-zones",
            help="Also beams of higher zones with |g| up to G whose excitation error falls to S at some tilt, as "
            "2.5,0.01 (1/A).",
            metavar="G,S",
        ),
    ] = None,
    counts: Annotated[
        float | None,
        typer.Option(callback=finite, help="Poisson noise: electrons in the brightest place. Default: none."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of everything that is random.")] = 0,
) -> None:
    """Write a simulated LARBED pattern, from a CIF, given or random structure factors, with its truth.

    The pattern is in the group /larbed of an HDF5 file; what it was made from is in /truth.
    """
    from mlindex.records import InputError

    if [cif is not None, given is not None, random is not None].count(True) != 1:
        raise InputError(
            "simulate larbed: give one of --cif, --u and --random, to say where structure factors come from"
        )
    if cif is None and cell is None:
        raise InputError("simulate larbed: without --cif the cell must be given; add --cell a,b,c,alpha,beta,gamma")
    if absorption and cif is None:
        raise InputError("simulate larbed: --absorption needs --cif; given structure factors are taken as they are")
    if random is not None and not random > 0:
        raise InputError(f"--random: {random} must be positive (1/A^2); the thesis has 0.2")
    axis = _numbers(zone, 3, "--zone", "0,0,1")
    if not all(abs(v) < _LARGEST_INDEX and v == int(v) for v in axis):  # nan among those that are not
        raise InputError(f"--zone: {zone!r} are not three whole numbers; give them as 0,0,1")
    lattice = None if cell is None else _numbers(cell, 6, "--cell", "3.905,3.905,3.905,90,90,90")
    zones = None if higher is None else _numbers(higher, 2, "--higher-zones", "2.5,0.01")
    if zones is not None and not all(0 < z < math.inf for z in zones):
        raise InputError(f"--higher-zones: {higher!r} takes no beam; give two positive numbers (1/A), as 2.5,0.01")
    options = {
        "cif": cif,
        "given": given,
        "random": random,
        "lattice": lattice,
        "axis": [int(v) for v in axis],
        "beams": beams,
    }
    options |= {"steps": steps, "angle": angle, "thickness": 10 * thickness, "voltage": voltage}
    options |= {"absorption": absorption, "higher": zones, "counts": counts, "seed": seed}
    try:
        _write(output, **options)
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"simulate larbed: {error}") from None
    raise typer.Exit(0)


def _write(output: Path, *, cif: Any, given: Any, random: Any, lattice: Any, axis: Any, **options: Any) -> None:
    import numpy as np

    import mlindex
    from mlindex.bloch import beams, simulate
    from mlindex.crystal.scattering import crystal_from_cif
    from mlindex.formats.larbed import checked_edges, checked_voltage, read_u, write_larbed
    from mlindex.runtime import device

    checked_voltage(options["voltage"], origin="--voltage")
    if lattice is not None:
        checked_edges(lattice, origin="--cell")
    device.apply()
    rng = np.random.default_rng(options["seed"])
    try:
        crystal = None if cif is None else crystal_from_cif(cif)
    except ValueError as error:
        raise ValueError(f"{cif}: {error}") from None
    cell = np.array(lattice if crystal is None or lattice is not None else crystal.cell, float)
    if crystal is not None and lattice is not None and not np.allclose(cell, crystal.cell, rtol=0.05):
        raise ValueError("--cell differs from that of the CIF by more than 5 %; leave one of them out")
    tilt, _ = beams.tilt_disc(options["steps"], options["angle"])
    at: dict[str, Any] = {"cell": cell, "zone": axis, "voltage_kv": options["voltage"]}
    centring = None if crystal is None else simulate.centring(crystal)
    hkl = beams.shell_beams(cell, axis, options["beams"], centring)
    if options["higher"] is not None:
        g_max, s_max = options["higher"]
        limits = {"voltage_kv": options["voltage"], "g_max": g_max, "s_max": s_max}
        hkl = np.vstack([hkl, beams.higher_zone_beams(cell, axis, tilt, **limits, centring=centring)])
    geometry = beams.geometry(hkl, tilt, **at)
    if crystal is not None:
        u = simulate.crystal_u(crystal, geometry, options["voltage"], options["absorption"])
    elif given is not None:
        u = simulate.given_u(*read_u(given), geometry.dhkl)
    else:
        u = simulate.random_u(rng, geometry.dhkl, random)
    pattern, truth = simulate.simulate_pattern(
        output.stem, u, geometry, options["thickness"], counts=options["counts"], rng=rng, **at
    )
    write_larbed(output, pattern, truth, f"mlindex {mlindex.__version__}")
    m, n = geometry.shape
    print(f"{n} beams at {m} tilts and their truth in {output}")


def invert_larbed(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE", help="LARBED patterns (HDF5), directories of them, or globs.")
    ],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write the results to this HDF5 file.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object a pattern instead of tables.")] = False,
    start: Annotated[
        str | None,
        typer.Option(
            help="Structure factors to begin with: a CIF, or lines 'h k l re im' (1/A^2). Default: the CIF that the "
            "pattern names; blind: none.",
            metavar="CIF|U|blind",
        ),
    ] = None,
    thickness: Annotated[
        str | None, typer.Option(help="Least and greatest thickness in nanometres; default 5,100.", metavar="MIN,MAX")
    ] = None,
    real: Annotated[
        bool, typer.Option("--real", help="Search only crystals that have a centre, in projection: every U is real.")
    ] = False,
    symmetry: Annotated[
        bool,
        typer.Option("--symmetry/--no-symmetry", help="Tie structure factors by the symmetry that the pattern has."),
    ] = True,
    cutoff: Annotated[
        float | None,
        typer.Option(
            help="U of longer g (1/A) stay as in the start, or zero without one. Default: all are fitted.",
            metavar="G",
        ),
    ] = None,
    fit_scale: Annotated[
        bool,
        typer.Option(
            "--fit-scale",
            help="Fit the scale of the intensities; for patterns that are no fractions of the incident beam, or lack a "
            "part of it.",
        ),
    ] = False,
    fit_background: Annotated[
        bool, typer.Option("--fit-background", help="Fit a background, the same at all tilts and beams.")
    ] = False,
    weights: Annotated[
        str | None,
        typer.Option(
            help="poisson: of counting noise; uniform: all intensities alike. Default: poisson.",
            metavar="poisson|uniform",
        ),
    ] = None,
    seconds: Annotated[float | None, typer.Option(help="No new start for a pattern after these; default 1200.")] = None,
    alternatives: Annotated[
        int | None, typer.Option(help="Other solutions that explain a pattern nearly as well, at most; default 3.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the random starts; default 0.")] = None,
) -> None:
    """Invert LARBED patterns: structure factors and thickness, from the intensities alone or from a start."""
    from mlindex.config import BlochSettings, validated

    given = {
        "thickness_nm": None if thickness is None else _numbers(thickness, 2, "--thickness", "5,100"),
        "start": start,
        "real": real,
        "symmetry": symmetry,
        "cutoff": cutoff,
        "fit_scale": fit_scale,
        "fit_background": fit_background,
        "weights": weights,
        "seconds": seconds,
        "alternatives": alternatives,
        "seed": seed,
    }
    chosen = {key: value for key, value in given.items() if value is not None}
    settings = validated(BlochSettings, chosen, "command line")

    from mlindex.cli.index import index_files
    from mlindex.report.bloch_tables import pattern_table, pattern_tally

    raise typer.Exit(index_files("bloch", settings, files, output, json, table=pattern_table, tally=pattern_tally))
