"""The command line. Standard output carries results, standard error progress and messages.

Exit status: 0 all items processed, 1 some failed (each named with its reason), 2 bad usage or configuration. What a
command needs is imported when it runs, so that `--help`, `--version` and completion answer at once.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn, get_args

import typer

import mlindex
from mlindex.cli.larbed import invert_larbed, simulate_larbed
from mlindex.cli.laue_options import (
    CalibrationOption,
    Dataset,
    Energy,
    Material,
    Threshold,
    band,
    calibrate_laue,
    laue_settings,
)
from mlindex.cli.options import finite
from mlindex.cli.peaks import make_peaks
from mlindex.cli.scan_options import SampleScan, SampleStep, ScanOption, StepOption, map_scan
from mlindex.cli.train import train_powder

app = typer.Typer(
    name="mlindex",
    help="Distributed indexing of diffraction data: from peak lists to ranked unit cells.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
index = typer.Typer(no_args_is_help=True, help="Index files in this process and print the solutions.")
app.add_typer(index, name="index")
simulate = typer.Typer(no_args_is_help=True, help="Write synthetic data with its truth.")
app.add_typer(simulate, name="simulate")
train = typer.Typer(no_args_is_help=True, help="Train what proposes solutions.")
app.add_typer(train, name="train")
invert = typer.Typer(no_args_is_help=True, help="From intensities to structure factors.")
app.add_typer(invert, name="invert")
calibrate = typer.Typer(no_args_is_help=True, help="Refine an instrument on a reference crystal.")
app.add_typer(calibrate, name="calibrate")


def _version(wanted: bool) -> bool:
    if wanted:
        print(f"mlindex {mlindex.__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def _choices(values: Sequence[str]) -> Any:
    return lambda incomplete: [value for value in values if value.startswith(incomplete)]


def _bravais(incomplete: str) -> list[str]:
    from mlindex.config import Bravais

    return [value for value in get_args(Bravais) if value.startswith(incomplete)]


def _angstrom(text: str) -> float:
    from mlindex.formats.wavelength import wavelength_from_text
    from mlindex.records import InputError

    value = wavelength_from_text(text)
    if value is None:
        raise InputError(f"--wavelength: {text!r} is no wavelength; give angstrom (1.5406) or a line such as CuKa1")
    return value


@index.command("powder")
def index_powder(
    files: Annotated[list[str], typer.Argument(metavar="FILE", help="Peak lists, directories of them, or globs.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write the results to this HDF5 file.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object a list instead of tables.")] = False,
    quantity: Annotated[
        str | None,
        typer.Option(
            help="What the positions are: q2 = 1/d^2, q = 1/d (not 2 pi/d), d in angstrom, or tth = 2theta in degrees. "
            "Default: what the file says.",
            metavar="q2|q|d|tth",
            autocompletion=_choices(("q2", "q", "d", "tth")),
        ),
    ] = None,
    wavelength: Annotated[
        str | None,
        typer.Option(help="In angstrom, or a line such as CuKa1. Default: what the file says.", metavar="ANGSTROM"),
    ] = None,
    geometry: Annotated[
        str | None,
        typer.Option(help="Stills: CrystFEL geometry. Default: that in the stream.", metavar="FILE.geom"),
    ] = None,
    effort: Annotated[
        str | None,
        typer.Option(
            help="How long to search; default normal.",
            metavar="quick|normal|thorough",
            autocompletion=_choices(("quick", "normal", "thorough")),
        ),
    ] = None,
    lattice: Annotated[
        list[str] | None,
        typer.Option(
            help="Bravais lattices to try, as cP or mP,mC; may be repeated. Default: all fourteen.",
            metavar="LATTICE",
            autocompletion=_bravais,
        ),
    ] = None,
    max_volume: Annotated[
        float | None,
        typer.Option(help="Largest conventional cell in cubic angstrom. Default: from the density of lines."),
    ] = None,
    impurities: Annotated[
        int | None,
        typer.Option(help="Lines that a smaller cell may leave unexplained and be judged, 0 to 6; default 3."),
    ] = None,
    zero_shift: Annotated[
        bool | None,
        typer.Option(
            "--zero-shift/--no-zero-shift",
            help="Fit a zero shift of 2theta where the wavelength is known; default: fit it.",
            show_default=False,
        ),
    ] = None,
    solutions: Annotated[int | None, typer.Option(help="Solutions reported for each list; default 10.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the random search; default 0.")] = None,
) -> None:
    """Index peak lists: ranked unit cells, without saying which lattice system to try.

    A list is text or CSV columns, .npy, JSON or GSAS-II .pkslst; in it, a line '# q2' (or q, d, tth) says what
    its positions are, and '# wavelength 1.5406' the wavelength. A measured pattern, or the spots of stills, will do.
    """
    from mlindex.config import PowderSettings, validated

    given = {
        "effort": effort,
        "lattice": [name for entry in lattice or () for name in entry.replace(",", " ").split()] or None,
        "max_volume": max_volume,
        "impurities": impurities,
        "zero_shift": zero_shift,
        "solutions": solutions,
        "quantity": quantity,
        "wavelength": None if wavelength is None else _angstrom(wavelength),
        "geometry": geometry,
        "seed": seed,
    }
    chosen = {key: value for key, value in given.items() if value is not None}
    settings = validated(PowderSettings, chosen, "command line")

    from mlindex.cli.index import index_files

    raise typer.Exit(index_files("powder", settings, files, output, json))


@index.command("laue")
def index_laue(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE",
            help="Spot lists (.cor, .dat, .fit), images (TIFF, MarCCD, EDF, CBF, HDF5), directories of them, or globs.",
        ),
    ],
    material: Material,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write the results to this HDF5 file.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object a frame instead of tables.")] = False,
    detector: CalibrationOption = None,
    energy: Energy = "5,23",
    grains: Annotated[
        int | None, typer.Option(help="At most so many grains a frame. Default: all that are beyond chance.")
    ] = None,
    network: Annotated[
        bool, typer.Option("--network", help="Let a network made by `mlindex train laue` propose orientations too.")
    ] = False,
    threshold: Threshold = None,
    dataset: Dataset = None,
) -> None:
    """Index Laue frames: orientation, strain and spots of every grain of the materials, and no grain where none is.

    An HDF5 file is one frame an image in it; one alone is FILE::/entry/data/data#3, counted from 0.
    """
    given = {
        "materials": material,
        "detector": detector,
        "energy": band(energy),
        "grains": grains,
        "network": network,
        "threshold": threshold,
        "dataset": dataset,
    }
    settings = laue_settings(given)

    from mlindex.cli.laue import index_laue

    raise typer.Exit(index_laue(settings, files, output, json))


@simulate.command("laue")
def simulate_laue(
    material: Material,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Folder for the frames.")],
    grains: Annotated[
        int, typer.Option(min=0, help="Grains a frame, of the materials in turn, in any orientation.")
    ] = 1,
    frames: Annotated[int | None, typer.Option(min=1, help="How many. Default: 1.")] = None,
    image: Annotated[bool, typer.Option("--image", help="Also write a 16-bit TIFF of each frame.")] = False,
    detector: Annotated[
        str | None,
        typer.Option(help="Calibration (.det, or .cor with a footer). Default: as at BM32.", metavar="CALIB.det"),
    ] = None,
    energy: Energy = "5,23",
    noise: Annotated[
        float, typer.Option(min=0.0, callback=finite, help="Standard deviation of x and y in pixels.")
    ] = 0.2,
    dropped: Annotated[
        float, typer.Option(min=0.0, max=1.0, callback=finite, help="Fraction of the spots that is missing.")
    ] = 0.15,
    spurious: Annotated[
        float, typer.Option(min=0.0, max=1.0, callback=finite, help="Spots of no grain, of the others.")
    ] = 0.1,
    strain: Annotated[
        float,
        typer.Option(
            min=0.0, max=0.05, callback=finite, help="Standard deviation of the elements of the deviatoric strain."
        ),
    ] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Of everything that is random.")] = 0,
    scan: SampleScan = None,
    step: SampleStep = "1,1",
) -> None:
    """Write simulated Laue frames as spot lists (.cor) with their calibration, and what they hold as truth.json."""
    from mlindex.cli import laue

    recipe = laue.Recipe(
        laue.materials_from_options(material),
        laue.detector_from_option(detector),
        band(energy),
        grains=grains,
        noise=noise,
        dropped=dropped,
        spurious=spurious,
        strain=strain,
        seed=seed,
    )
    if scan is not None:
        from mlindex.cli import maps
        from mlindex.records import InputError

        if frames is not None:
            raise InputError("simulate laue: --scan says how many frames there are; leave out --frames")
        chosen = maps.shape_from_text(scan), maps.step_from_text(step)
        raise typer.Exit(maps.simulate_scan(recipe, *chosen, output, image))
    raise typer.Exit(laue.simulate_laue(recipe, 1 if frames is None else frames, output, image))


simulate.command("larbed")(simulate_larbed)


@train.command("laue")
def train_laue(
    material: Material,
    detector: Annotated[
        str | None,
        typer.Option(
            help="Calibration (.det, or .cor with a footer) of the frames to come. Default: as at BM32.",
            metavar="CALIB.det",
        ),
    ] = None,
    energy: Energy = "5,23",
    minutes: Annotated[float, typer.Option(min=0.01, callback=finite, help="At most so long a material.")] = 3.0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="DIR", help="Folder for the networks. Default: where index laue --network looks."
        ),
    ] = None,
) -> None:
    """Train a network that recognises the reflections of a material, for `index laue --network`."""
    from mlindex.cli import laue

    chosen = laue.materials_from_options(material), laue.detector_from_option(detector), band(energy)
    raise typer.Exit(laue.train_laue(*chosen, seed, minutes, output))


train.command("powder")(train_powder)
app.command("peaks")(make_peaks)
calibrate.command("laue")(calibrate_laue)
invert.command("larbed")(invert_larbed)


@app.command("run")
def run(
    campaign: Annotated[Path, typer.Argument(metavar="CAMPAIGN.toml", help="The campaign: inputs, stage, settings.")],
    ranks: Annotated[
        int | None,
        typer.Option(
            min=1, help="Worker processes to start with mpiexec. Default: this process, or the ranks it is among."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where an earlier run of this campaign stopped.")
    ] = False,
    part: Annotated[
        str | None,
        typer.Option(metavar="K/N", help="Do only part K of N, from 0 to N-1, as a task of an array does."),
    ] = None,
) -> None:
    """Run a campaign in one process, on many ranks, or as one of the ranks of mpiexec or srun.

    SIGUSR1 lets it finish the batches in hand, commit them, and end with status 75: run it again with --resume.
    """
    from mlindex.cli.campaign import run_and_report

    raise typer.Exit(run_and_report(campaign, ranks, resume, part))


@app.command("submit")
def submit(
    campaign: Annotated[Path, typer.Argument(metavar="CAMPAIGN.toml", help="The campaign, with a table [slurm].")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the batch scripts; write nothing, submit nothing.")
    ] = False,
) -> None:
    """Submit a campaign to SLURM: an array job for what is left to do, and a job that merges and reports after it."""
    from mlindex.cli.submit import submit as submit_campaign

    raise typer.Exit(submit_campaign(campaign, dry_run))


@app.command("status")
def status(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The directory that a run writes.")],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Again and again, until the run is complete.")] = False,
    seconds: Annotated[float, typer.Option(min=1.0, help="Between two looks of --watch.")] = 10.0,
) -> None:
    """Say where a run stands, also while it is running, from its files alone."""
    from mlindex.cli.campaign import print_status, watch_status

    if watch and not json:
        watch_status(run, seconds)
    else:
        print_status(run, json)


@app.command("merge")
def merge(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The directory that a run writes.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Where to; default merged.h5 in the run's directory.")
    ] = None,
) -> None:
    """Copy the results of a run into one ordinary HDF5 file, also while it is running."""
    from mlindex.cli.results import merge_run

    raise typer.Exit(merge_run(run, output))


app.command("map")(map_scan)


@app.command("export")
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's directory, or a results file (.h5).")],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="json|csv|cif|fit|cor|ctf",
            autocompletion=_choices(("json", "csv", "cif", "fit", "cor", "ctf")),
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="A file instead of standard output; a folder for fit and cor.")
    ] = None,
    scan: ScanOption = None,
    step: StepOption = None,
) -> None:
    """Hand results on.

    JSON lines; CSV with one row a solution or grain; CIF with the best cell of each list. Of Laue frames also: a folder
    of .fit or .cor, one a frame, or a .ctf map of the best grains, at the coordinates of the scan if there is one.
    """
    if to == "ctf":
        from mlindex.cli import maps

        maps.export_ctf(run, output, *maps.chosen_scan(scan, step))
        return
    if to in ("fit", "cor"):
        from mlindex.cli.laue import export_frames

        export_frames(run, to, output)
        return
    from mlindex.cli.campaign import export_results

    export_results(run, to, output)


@app.command("report")
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's directory, or a results file (.h5).")],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="PAGE.html", help="Where to; default report.html in the run's directory."
        ),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(metavar="PERCENT", help="How far lengths may differ in a cluster of like lattices.")
    ] = 1.0,
) -> None:
    """Write one HTML page about a run, also while it is running; its pictures lie beside it as PNG."""
    from mlindex.cli.report import report as write

    raise typer.Exit(write(run, output, tolerance))


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit; a problem with the input or the configuration is one sentence and status 2."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    try:
        app(args=None if arguments is None else list(arguments), prog_name="mlindex")
    except Exception as error:
        from mlindex.records import InputError

        if not isinstance(error, InputError):
            raise
        print(f"mlindex: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    raise SystemExit(0)


if __name__ == "__main__":
    main()
