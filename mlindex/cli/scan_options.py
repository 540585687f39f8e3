"""The command `map`, and the options that other commands share with it; light, as `main` imports it at its start."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ScanOption = Annotated[
    str | None,
    typer.Option(
        "--scan", help="Rows and columns of a scan of Laue frames. Default: as in the campaign.", metavar="ROWS,COLUMNS"
    ),
]
StepOption = Annotated[
    str | None,
    typer.Option(
        "--step",
        help="Micrometres between its rows and between its columns. Default: as in the campaign, or 1.",
        metavar="DY,DX",
    ),
]
SampleScan = Annotated[
    str | None,
    typer.Option(
        "--scan",
        help="In place of --frames: a scan over a polycrystal, whose layers are as many as --grains.",
        metavar="ROWS,COLUMNS",
    ),
]
SampleStep = Annotated[str, typer.Option("--step", help="Of the scan, in micrometres.", metavar="DY,DX")]


def map_scan(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's directory, or a results file (.h5).")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Folder for the maps.")],
    scan: ScanOption = None,
    step: StepOption = None,
    tilt: Annotated[
        float, typer.Option(help="Degrees about y from the laboratory frame (LT) to the sample.", metavar="DEGREES")
    ] = 40.0,
    limit: Annotated[
        float,
        typer.Option(
            min=0.0, help="Frames side by side are of one grain below this misorientation.", metavar="DEGREES"
        ),
    ] = 1.0,
    grains: Annotated[int, typer.Option(min=0, help="So many of the largest grains also have maps of their own.")] = 10,
) -> None:
    """Maps of a scan of Laue frames: grains, orientations (IPF), phases, misorientation and strain, as HDF5 and PNG.

    The frames are in raster order, along a row first, as the inputs of the campaign are named.
    """
    from mlindex.cli import maps

    chosen = maps.chosen_scan(scan, step)
    raise typer.Exit(maps.map_run(run, output, *chosen, tilt=tilt, limit=limit, grains=grains))
