"""Laue frames on the command line: index them, simulate them with their truth, train a network for a material."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress, TaskID

import mlindex
from mlindex.cli.campaign import end_export
from mlindex.cli.index import index_files, progress_bar
from mlindex.cli.results import read_run
from mlindex.config import LaueSettings
from mlindex.formats.lauetools import SpotList, write_cor
from mlindex.laue.geometry import Detector, angles_from_kf, detector_from_calibration, direction_from_pixel
from mlindex.laue.materials import Material, material
from mlindex.laue.simulate import Frame, random_grains, render_image, simulate_frame
from mlindex.laue.stage import read_calibration
from mlindex.records import InputError
from mlindex.report.export import write_files
from mlindex.report.laue_export import calibration_of
from mlindex.report.laue_tables import frame_table, frame_tally
from mlindex.runtime import device

_USUAL = Detector(79.553, 979.32, 932.31, 0.37, 0.447)  # top geometry, as at the beamline BM32 of the ESRF


def index_laue(settings: LaueSettings, names: Sequence[str], output: Path | None, as_json: bool) -> int:
    """Index frames (see `index_files`)."""
    return index_files("laue", settings, names, output, as_json, table=frame_table, tally=frame_tally)


def export_frames(run: Path, to: str, output: Path | None) -> None:
    """Write the Laue results of a run, or of a results file, as files that other programs read; print their names.

    Ends with status 1 where a shard is missing from them.
    """
    found = read_run(run)
    for path in write_files(to, found.results, output, found.stage):
        print(path)
    end_export(found.problems)


def detector_from_option(path: str | None) -> Detector:
    """The detector in a calibration file, or one as at BM32 (the ESRF's Laue beamline) where none is named."""
    return _USUAL if path is None else detector_from_calibration(read_calibration(path), origin=path)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What to simulate: `grains` a frame, of the materials in turn; `noise` in pixels; fractions `dropped` and
    `spurious`; standard deviation of the elements of the `strain`."""

    materials: tuple[Material, ...]
    detector: Detector
    energy: tuple[float, float]
    grains: int = 1
    noise: float = 0.2
    dropped: float = 0.15
    spurious: float = 0.1
    strain: float = 0.0
    seed: int = 0

    def frame(self, number: int) -> tuple[Frame, np.random.Generator]:
        """The frame with this number, whatever others are made, and the generator to go on with."""
        rng = np.random.default_rng([self.seed, number])
        chosen = [self.materials[i % len(self.materials)] for i in range(self.grains)]
        grains = random_grains(rng, chosen, self.strain)
        frame = simulate_frame(
            rng,
            grains,
            self.detector,
            self.energy,
            noise=self.noise,
            dropped=self.dropped,
            spurious=self.spurious,
        )
        return frame, rng


def _truth(name: str, frame: Frame) -> dict[str, Any]:
    """A frame's truth in the words of `index laue --json`; the spots are in the order of the .cor."""
    grains = [
        {
            "material": g.material.name,
            "ub": g.ub.tolist(),
            "u": g.u.tolist(),
            "strain": g.strain.tolist(),
            "n_spots": g.n_spots,
        }
        for g in frame.grains
    ]
    rows = zip(frame.x_true, frame.y_true, frame.grain, frame.hkl, frame.energy, strict=True)
    spots = [
        {
            "x": round(float(x), 4),
            "y": round(float(y), 4),
            "grain": int(grain),
            "hkl": hkl.tolist() if grain >= 0 else None,
            "energy": round(float(kev), 5) if grain >= 0 else None,
        }
        for x, y, grain, hkl, kev in rows
    ]
    return {"id": name, "grains": grains, "spots": spots}


def simulate_laue(recipe: Recipe, frames: int, output: Path, image: bool) -> int:
    """Write the spot lists of simulated frames, with `image` also 16-bit TIFFs, and truth.json; the exit status.

    Raises `InputError` for a folder that cannot be written to.
    """
    truth: list[dict[str, Any]] = []
    try:
        output.mkdir(parents=True, exist_ok=True)
        for number in range(frames):
            name = f"frame_{number:04d}"
            frame, rng = recipe.frame(number)
            angles = angles_from_kf(direction_from_pixel(frame.x, frame.y, frame.detector))
            place = (frame.x, frame.y, frame.intensity, *angles)
            write_cor(output / f"{name}.cor", SpotList(name, *place, calibration_of(frame.detector)))
            if image:
                from fabio.tifimage import TifImage

                TifImage(data=render_image(rng, frame)).write(str(output / f"{name}.tif"))
            truth.append(_truth(name, frame))
        settings = {
            k: getattr(recipe, k) for k in ("energy", "grains", "noise", "dropped", "spurious", "strain", "seed")
        }
        told = {
            "creator": f"mlindex {mlindex.__version__}",
            "materials": [{"name": m.name, "cell": m.cell.tolist(), "group": m.group.name} for m in recipe.materials],
            "detector": dataclasses.asdict(recipe.detector),
            **settings,
            "frames": truth,
        }
        (output / "truth.json").write_text(json.dumps(told) + "\n")
    except OSError as error:
        raise InputError(f"{output}: cannot be written to ({error.strerror}); give another folder with -o") from None
    print(f"{frames} frame{'s' * (frames != 1)} and truth.json in {output}")
    return 0


def materials_from_options(texts: Sequence[str]) -> tuple[Material, ...]:
    """The materials that are named on the command line; raises `InputError` for one that is not known."""
    return tuple(material(text) for text in texts)


def _shown(bar: Progress, task: TaskID) -> Callable[[Any], None]:
    return lambda now: bar.update(task, completed=round(100 * now.done))


def train_laue(
    materials: Sequence[Material],
    detector: Detector,
    energy: tuple[float, float],
    seed: int,
    minutes: float,
    folder: Path | None,
) -> int:
    """Train a network for each material and keep it where `index laue --network` looks; the exit status.

    Prints the files and how well each does on frames that it has not seen. Raises `InputError`.
    """
    device.apply()
    from mlindex.laue import recognise
    from mlindex.laue.train import train

    for one in materials:
        path = recognise.network_path(one, detector, energy, folder)
        bar = progress_bar()
        task = bar.add_task(f"training for {one.name}", total=100)
        with bar:
            made = train(one, detector, energy, seed=seed, minutes=minutes, progress=_shown(bar, task))
        try:
            recognise.save(made, path)
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror}); give another folder with -o") from None
        print(f"{one.name}: {path} ({made.card['classes']} classes, {made.card['seconds']:.0f} s)")
        for what, figures in made.card.get("validation", {}).items():
            told = ", ".join(f"{k.replace('_', ' ')} {v:.3g}" for k, v in figures.items())
            print(f"  {what}: {told}")
    return 0
