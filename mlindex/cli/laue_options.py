"""The options that Laue commands share, and the command `calibrate laue`; nothing here imports what a command needs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def _materials(incomplete: str) -> list[str]:
    from mlindex.laue.materials import TABLE

    return [name for name in TABLE if name.startswith(incomplete)]


def band(text: str) -> tuple[float, float]:
    from mlindex.records import InputError

    try:
        low, high = (float(v) for v in text.replace("-", ",").split(","))
    except ValueError:
        low = high = 0.0
    if not 0 < low < high <= 200:
        raise InputError(f"--energy {text}: is no band of energies; give the lowest and the highest in keV, as 5,23")
    return low, high


Material = Annotated[
    list[str],
    typer.Option(
        "--material",
        help="A name (Cu, Si, GaN, ZrO2, ...), a CIF, or NAME:SPACEGROUP:a,b,c,alpha,beta,gamma; may be repeated.",
        metavar="MATERIAL",
        autocompletion=_materials,
    ),
]
Energy = Annotated[str, typer.Option(help="Lowest and highest photon energy in keV.", metavar="MIN,MAX")]
CalibrationOption = Annotated[
    str | None,
    typer.Option(
        help="Calibration: a .det, or a .cor with one in its footer. Default: that in each spot list's footer.",
        metavar="CALIB.det",
    ),
]
Threshold = Annotated[float | None, typer.Option(help="Images: spots stand so many times above the noise; default 6.")]
Dataset = Annotated[
    str | None, typer.Option(help="Of HDF5 files: the images, as /entry/data/data. Default: the usual places.")
]


def laue_settings(given: dict[str, Any]) -> Any:
    """The settings that the options stand for, of which those that are None were not given."""
    from mlindex.config import LaueSettings, validated

    chosen = {key: value for key, value in given.items() if value is not None}
    return validated(LaueSettings, chosen, "command line")


def calibrate_laue(
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE", help="Spot lists or images of one camera, directories of them, or globs."),
    ],
    material: Material,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="NEW.det", help="Write the new calibration here.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
    detector: Annotated[
        str | None,
        typer.Option(
            help="Where to start: a .det, or a .cor with a footer. Default: the footer of the first spot list.",
            metavar="START.det",
        ),
    ] = None,
    energy: Energy = "5,23",
    grains: Annotated[int | None, typer.Option(help="At most so many grains a frame. Default: all.")] = None,
    threshold: Threshold = None,
    dataset: Dataset = None,
) -> None:
    """Refine the detector of Laue frames on a reference crystal, as Ge or Si: distance, centre and tilts.

    The crystal must not be strained: its cell is taken as known. The start may be off by 5 % of the distance, 40 pixels
    and 1 degree.
    """
    given = {
        "materials": material,
        "detector": detector,
        "energy": band(energy),
        "grains": grains,
        "threshold": threshold,
        "dataset": dataset,
    }
    settings = laue_settings(given)

    from mlindex.cli.calibrate import calibrate_laue

    raise typer.Exit(calibrate_laue(settings, files, output, json))
