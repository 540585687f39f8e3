"""Scans on the command line: their maps as HDF5 and PNG, a .ctf with their coordinates, simulated ones."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlindex.cli import laue
from mlindex.cli.campaign import end_export
from mlindex.cli.results import read_run
from mlindex.laue.maps import fields
from mlindex.laue.maps.polycrystal import Polycrystal, polycrystal
from mlindex.laue.maps.scan import Scan, frame_numbers
from mlindex.laue.simulate import Frame, simulate_frame
from mlindex.records import InputError, Status
from mlindex.report import canvas, laue_maps_colour
from mlindex.report.laue_export import ctf_file
from mlindex.report.laue_maps import grain_picture, ipf_columns, map_pictures, map_sections
from mlindex.report.laue_maps_file import write_maps
from mlindex.report.leading import leading_rows
from mlindex.report.section import Section
from mlindex.report.tables import say
from mlindex.runtime import shards
from mlindex.runtime.shards import ShardData
from mlindex.runtime.status import left_out

NAME = "maps.h5"
_STATE = {str(Status.FAILED): fields.FAILED, str(Status.UNSOLVED): fields.UNSOLVED, str(Status.SOLVED): fields.SOLVED}


def shape_from_text(text: str) -> tuple[int, int]:
    """The rows and columns of "ROWS,COLUMNS"; raises `InputError` for anything else."""
    try:
        rows, columns = (int(v) for v in text.lower().replace("x", ",").split(","))
    except ValueError:
        rows = columns = 0
    if min(rows, columns) < 1:
        raise InputError(f"--scan {text}: is no scan; give its rows and columns, as 20,30")
    return rows, columns


def step_from_text(text: str) -> tuple[float, float]:
    """The steps (dy, dx) of "DY,DX", or of one number for both; raises `InputError` for anything else."""
    try:
        steps = [float(v) for v in text.split(",")]
    except ValueError:
        steps = []
    if len(steps) not in (1, 2) or not all(0 < s < math.inf for s in steps):
        raise InputError(f"--step {text}: is no step; give the micrometres between rows and columns, as 1,0.5")
    return steps[0], steps[-1]


def _paths(run: Path) -> list[Path]:
    """The files that hold the results of a run directory, or the results file itself."""
    if not run.exists():
        raise InputError(f"{run}: there is no such run or results file; check the name")
    if not run.is_dir():
        return [run]
    found = sorted((run / "shards").glob("*.h5"))
    if not found:
        raise InputError(f"{run}: there are no results here; run the campaign first")
    return found


def _settings(attributes: Mapping[str, Any]) -> dict[str, Any]:
    settings = json.loads(str(attributes.get("settings", "{}")))
    return dict(settings.get("laue") or {})


def scan_of(
    settings: Mapping[str, Any], shape: tuple[int, int] | None = None, step: tuple[float, float] | None = None
) -> Scan | None:
    """The scan that settings of the stage (or `shape` and `step`, before them) tell of; None where there is none."""
    chosen = shape or settings.get("scan")
    steps = step or settings.get("step") or (1.0, 1.0)
    return None if chosen is None else Scan(int(chosen[0]), int(chosen[1]), (float(steps[0]), float(steps[1])))


def _grain_rows(data: ShardData) -> tuple[NDArray[np.int64], dict[str, NDArray]]:
    """How many grains each item of a file has, and the columns of all of them, item by item."""
    count = np.asarray(data.items["grains_count"], np.int64)
    start = np.asarray(data.items["grains_offset"], np.int64)
    rows = np.arange(count.sum()) + np.repeat(start - (np.cumsum(count) - count), count)
    return count, leading_rows(data.path, data.stage, "grains", fields.NEEDED, rows)


def _checked(data: ShardData) -> ShardData:
    if "grains_count" not in data.items:
        raise InputError(f"{data.path}: has no results of Laue frames; maps are made of these")
    return data


def read_maps(
    run: Path,
    shape: tuple[int, int] | None = None,
    step: tuple[float, float] | None = None,
    *,
    tilt: float = fields.TILT,
    limit: float = fields.LIMIT,
) -> tuple[fields.ScanMaps | None, list[str], str]:
    """The maps of a run directory as it is now, or of one results file; a sentence on each shard that is not in them;
    the settings as JSON.

    None where neither the settings nor `shape` tell of a scan. Raises `InputError` for what the user has to change.
    """
    problems: list[str] = []
    found: list[ShardData] = []
    for path in _paths(run):
        try:
            found.append(shards.read_shard(path, tables=False))
        except InputError as error:
            if not run.is_dir():
                raise
            problems.append(str(error))
    problems = left_out(run, problems) if run.is_dir() else problems
    filled = [data for data in found if len(data.items["id"])]
    # files without a table of grains hold failed items alone, as rank 0 writes them
    held = [data for data in filled if len(data.columns) > 1]
    bare = [data for data in filled if len(data.columns) == 1]
    if not held:
        raise InputError(f"{run}: no frame has a result yet; run the campaign first")
    settings = _settings(held[0].attributes)
    scan = scan_of(settings, shape, step)
    if scan is None:
        return None, problems, json.dumps(settings)
    counts, parts = zip(*(_grain_rows(_checked(data)) for data in held), strict=True)
    items = {
        name: np.concatenate([np.asarray(data.items[name]) for data in (*held, *bare)])
        for name in ("input", "index", "of", "status")
    }
    count = np.concatenate([*counts, *(np.zeros(len(data.items["id"]), np.int64) for data in bare)])
    grains = {name: np.concatenate([part[name] for part in parts]) for name in fields.NEEDED}
    state = np.array([_STATE[str(s)] for s in items["status"]], np.int8)
    number = frame_numbers(items["input"], items["index"], items["of"], state == fields.FAILED)
    _, kept = np.unique(number, return_index=True)  # of an item that is in two files, the first counts
    keep = np.zeros(len(number), bool)
    keep[kept] = True
    owner = np.repeat(np.arange(len(number)), count)
    grains = {name: values[keep[owner]] for name, values in grains.items()}
    number, state, count = number[keep], state[keep], count[keep]
    maps = fields.maps_of(scan, scan.checked(number, str(run)), state, count, grains, tilt=tilt, limit=limit)
    return maps, problems, json.dumps(settings)


def report_sections(run: Path, problems: list[str]) -> list[Section]:
    """The maps of a run's scan for its report; nothing where there is no scan. What stands in the way of them is added
    to `problems`: a report without maps is better than none."""
    try:
        maps, _, _ = read_maps(run)
        if maps is None:
            return []
        laue_maps_colour.check()
        return map_sections(maps)
    except InputError as error:
        problems.append(f"no maps: {error}")
        return []


def map_run(
    run: Path,
    output: Path,
    shape: tuple[int, int] | None,
    step: tuple[float, float] | None,
    *,
    tilt: float,
    limit: float,
    grains: int,
) -> int:
    """Write `maps.h5` and the pictures of a scan into the folder `output`, and print the file's name; the exit status:
    0, or 1 where a shard is missing from them.

    `grains`: so many of the largest grains have pictures and maps of their own. Raises `InputError`.
    """
    for option, value in (("--tilt", tilt), ("--limit", limit)):
        if not math.isfinite(value):
            raise InputError(f"{option} {value}: is no angle; give it in degrees")
    canvas.check()
    laue_maps_colour.check()
    maps, problems, settings = read_maps(run, shape, step, tilt=tilt, limit=limit)
    if maps is None:
        raise InputError(f"{run}: its settings do not tell of a scan; give its rows and columns, as --scan 20,30")
    colours = ipf_columns(maps)
    pictures = map_pictures(maps, colours)
    pictures += [grain_picture(maps, n, colours) for n in range(1, min(grains, len(maps.pixels)) + 1)]
    try:
        output.mkdir(parents=True, exist_ok=True)
        write_maps(output / NAME, maps, colours, origin=str(run), grains=grains, settings=settings)
        for picture in pictures:
            (output / f"{picture.name}.png").write_bytes(canvas.render(picture)[1])
    except OSError as error:
        raise InputError(f"{output}: cannot be written to ({error.strerror}); give another folder with -o") from None
    for sentence in problems:
        say(f"problem: {sentence}")
    solved = int((maps.state == fields.SOLVED).sum())
    found = f"{len(maps.pixels)} grains in {solved} of {maps.scan.size} frames"
    print(f"{found}: {output / NAME} and {len(pictures)} pictures")
    return int(bool(problems))


def export_ctf(
    run: Path, output: Path | None, shape: tuple[int, int] | None = None, step: tuple[float, float] | None = None
) -> None:
    """Write the best grain of each frame of a run as a .ctf, over the scan if there is one; print its name.

    Ends with status 1 where a shard is missing from it. Raises `InputError` for what the user has to change.
    """
    found = read_run(run)
    if found.stage != "laue":
        raise InputError(f"{run}: has no results of Laue frames; maps are made of these")
    scan, number = scan_of(_settings(found.attributes), shape, step), None
    if scan is not None:
        failed = np.array([result.status is Status.FAILED for result in found.results], bool)
        number = frame_numbers(found.input, found.index, found.of, failed)
        scan.checked(number, str(run))
    try:
        for written in ctf_file(found.results, output, scan, number):
            print(written)
    except OSError as error:
        raise InputError(f"{output}: cannot be written ({error.strerror}); give another name") from None
    end_export(found.problems)


@dataclasses.dataclass(frozen=True)
class ScanRecipe(laue.Recipe):
    """A recipe for the frames of a scan over a polycrystal: `grains` is the number of its layers."""

    sample: Polycrystal | None = None

    def frame(self, number: int) -> tuple[Frame, np.random.Generator]:
        """The frame with this number, and the generator to go on with."""
        assert self.sample is not None
        rng = np.random.default_rng([self.seed, number, 1])
        frame = simulate_frame(
            rng,
            self.sample.at(number),
            self.detector,
            self.energy,
            noise=self.noise,
            dropped=self.dropped,
            spurious=self.spurious,
            volumes=self.sample.volumes,
        )
        return frame, rng


def simulate_scan(
    recipe: laue.Recipe, shape: tuple[int, int], step: tuple[float, float], output: Path, image: bool
) -> int:
    """Write the frames of a scan over a random polycrystal (see `cli.laue.simulate_laue`), and its truth.

    truth.json also has `scan` and `step`, and of each frame `row`, `column`, and the number of each of its grains in
    the polycrystal as `grain`.
    """
    if recipe.grains < 1:
        raise InputError("--grains 0: a scan has one grain a frame at least; give --grains 1 or more")
    scan = Scan(*shape, step)
    rng = np.random.default_rng([recipe.seed, scan.rows, scan.columns, 2])
    sample = polycrystal(rng, recipe.materials, scan, layers=recipe.grains, strain=recipe.strain)
    chosen = {f.name: getattr(recipe, f.name) for f in dataclasses.fields(recipe)}
    status = laue.simulate_laue(ScanRecipe(**chosen, sample=sample), scan.size, output, image)
    path = output / "truth.json"
    told = json.loads(path.read_text())
    for number, frame in enumerate(told["frames"]):
        row, column = divmod(number, scan.columns)
        frame |= {"row": row, "column": column}
        for layer, grain in enumerate(frame["grains"]):
            grain["grain"] = int(sample.owner[layer, row, column])
    told |= {"scan": list(shape), "step": list(step)}
    try:
        path.write_text(json.dumps(told) + "\n")
    except OSError as error:
        raise InputError(f"{output}: cannot be written to ({error.strerror}); give another folder with -o") from None
    return status


def chosen_scan(scan: str | None, step: str | None) -> tuple[tuple[int, int] | None, tuple[float, float] | None]:
    """What the options --scan and --step say."""
    return None if scan is None else shape_from_text(scan), None if step is None else step_from_text(step)
