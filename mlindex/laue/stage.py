"""Laue indexing as a stage: spot lists or images in, the orientation and strain of every grain out.

A spot list brings its calibration in its footer; an image has none. A file of many frames (HDF5) becomes one item a
frame, which is read when it is worked on and not before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from mlindex.config import LaueSettings
from mlindex.crystal.scattering import intensities
from mlindex.formats import lauetools
from mlindex.formats.images import count_frames, read_image
from mlindex.formats.lauetools import Calibration
from mlindex.laue.frame import Spots, brightest, crowded, with_spots
from mlindex.laue.geometry import (
    Detector,
    detector_from_calibration,
    direction_from_pixel,
    energy_from_q,
    q_from_kf,
)
from mlindex.laue.maps.neighbours import Neighbours
from mlindex.laue.materials import MAX_ORDER, Material, material, rays
from mlindex.laue.record import laue_record, strain_norm
from mlindex.laue.search import LEAST_SPOTS, Grain, index_frame
from mlindex.laue.simulate import spots_of
from mlindex.laue.spots import SMALLEST
from mlindex.laue.votes import agreed
from mlindex.records import Column, InputError, Item, Result, Schema, Status

_FRAMES = (
    Column("n_spots", "i8", long_name="spots in the frame"),
    Column("n_indexed", "i8", long_name="spots that belong to a grain"),
    Column("n_grains", "i8", long_name="grains found"),
    Column("material", "str", long_name="material of the best grain, empty where there is none"),
    Column("score", "f8", (), "nat", "score of the best grain"),
    Column("match_rate", "f8", long_name="match rate of the best grain"),
    Column("rms_px", "f8", (), "pixel", "rms of one coordinate of the best grain"),
    Column("strain_norm", "f8", long_name="Frobenius norm of the deviatoric strain of the best grain"),
    Column("strain_norm_esd", "f8", long_name="standard uncertainty of it"),
    Column("calibration", "f8", (5,), "mm, pixel, pixel, degrees, degrees", "distance, xcen, ycen, xbet, xgam"),
    Column("pixel", "f8", (), "mm", "edge of a pixel"),
    Column("shape", "i8", (2,), "pixel", "rows and columns of the image"),
    Column("kf_direction", "str", long_name="where the detector stands, as Lauetools names it"),
    Column("energy", "f8", (2,), "keV", "lowest and highest energy that was allowed for"),
)
_GRAINS = (
    Column("material", "str", long_name="name of the material"),
    Column("u", "f8", (3, 3), "", "rotation from Cartesian crystal axes (a* along x) to the LT frame"),
    Column("ub", "f8", (3, 3), "1/angstrom", "matrix that takes hkl to q in the LT frame"),
    Column("strain", "f8", (3, 3), "", "deviatoric strain in the direct crystal axes (x along a)"),
    Column("strain_esd", "f8", (3, 3), "", "standard uncertainties of the strain"),
    Column("n_matched", "i8", long_name="spots of the grain"),
    Column("n_predicted", "i8", long_name="spots that it should have on the detector"),
    Column("match_rate", "f8", long_name="spots of the grain over those it should have"),
    Column("score", "f8", (), "nat", "log-likelihood ratio against chance"),
    Column("rms_px", "f8", (), "pixel", "rms of one coordinate, observed minus predicted"),
    Column("cell", "f8", (6,), "angstrom, degrees", "unstrained cell of the material"),
    Column("laue_group", "str", long_name="Laue class of the material"),
    Column("space_group", "i8", long_name="number of the space group of the material"),
)
_SPOTS = (
    Column("x", "f8", (), "pixel", "column, the centre of the first pixel is 1"),
    Column("y", "f8", (), "pixel", "row, the centre of the first pixel is 1"),
    Column("intensity", "f8", long_name="intensity above the background"),
    Column("grain", "i8", long_name="rank of its grain, from 0; -1 for none"),
    Column("hkl", "i8", (3,), "", "primitive Miller indices as they diffract; 0 0 0 for none"),
    Column("energy", "f8", (), "keV", "energy of the lowest order in the band; 0 for none"),
)
_IMAGES = (b"{", b"###CBF")  # how images begin that have a text for a header
_CONTROL = bytes({*range(9), *range(14, 32)})  # no text has these


def is_image(source: str) -> bool:
    """Whether a file is an image and not a spot list, by its first bytes; raises `InputError` where it has none."""
    path = source.partition("::")[0]
    try:
        with open(path, "rb") as file:
            head = file.read(4096)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{path}: cannot be read ({reason}); check the name") from None
    if not head:
        raise InputError(f"{path}: is empty; give a spot list (.cor, .dat, .fit) or an image")
    return head.startswith(_IMAGES) or len(head.translate(None, _CONTROL)) < len(head)


def read_spots(path: str) -> lauetools.SpotList:
    """The spots in a .cor, .dat or .fit (of a .fit those of all its grains); raises `InputError`."""
    with open(path, encoding="utf-8", errors="replace") as file:
        is_fit = any(line.lstrip("# ").startswith("Number of indexed spots") for line in file)
    if not is_fit:
        return lauetools.read_cor(path)
    grains = lauetools.read_fit(path)
    x, y, bright = (np.concatenate([getattr(g, name) for g in grains]) for name in ("x", "y", "intensity"))
    calibration = next((g.calibration for g in grains if g.calibration is not None), None)
    return lauetools.SpotList(path, x, y, bright, calibration=calibration)


def read_calibration(path: str) -> Calibration:
    """The calibration in a .det, or in the footer of a .cor or .fit; raises `InputError`."""
    first = ""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            first = file.readline()
    except OSError as error:
        raise InputError(f"{path}: the calibration cannot be read ({error.strerror}); check its name") from None
    if any(c.isalpha() and c not in "eE" for c in first):  # names of columns
        found = read_spots(path).calibration
        if found is None:
            raise InputError(f"{path}: has no calibration below its spots; give a .det or a .cor that has one")
        return found
    return lauetools.read_det(path).calibration


def _materials(settings: LaueSettings) -> tuple[Material, ...]:
    if not settings.materials:
        raise InputError('no material to look for; name one with --material, or materials = ["Cu"] in a campaign')
    found = []
    for text in settings.materials:
        is_path = text.lower().endswith((".cif", ".mcif"))
        found.append(material(settings.located(text) if is_path else text))
    names = [m.name for m in found]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two materials are called {name}; give one of them once, or another name")
    return tuple(found)


_KEYS = ("distance", "xcen", "ycen", "xbet", "xgam", "pixel")


def _attributes(detector: Detector) -> dict[str, float | int | str]:
    ny, nx = detector.shape
    return {k: getattr(detector, k) for k in _KEYS} | {"ny": ny, "nx": nx, "kf_direction": detector.kf_direction}


def _detector(attrs: Mapping[str, Any]) -> Detector:
    shape = (int(attrs["ny"]), int(attrs["nx"]))
    numbers = {k: float(attrs[k]) for k in _KEYS}
    return Detector(**numbers, shape=shape, kf_direction=str(attrs["kf_direction"]))


def energies_of(
    grain: Grain, detector: Detector, energy: tuple[float, float]
) -> tuple[Int[np.ndarray, "m 3"], Float[np.ndarray, " m"]]:
    """The hkl of a grain's spots with the sign that diffracts, and the energy (keV) of their lowest order in the band.

    Orders that are extinct do not count. Of a spot that is just beyond the band or the detector, as both move with the
    refinement, it is the order nearest to the band.
    """
    q = grain.hkl @ grain.ub.T
    hkl = np.where(q[:, :1] < 0, grain.hkl, -grain.hkl)
    seen = spots_of(grain.ub, rays(grain.material, energy[1], detector), detector, energy)
    known = {tuple(index): value for index, value in zip(seen.hkl.tolist(), seen.energy.tolist(), strict=True)}
    first = energy_from_q(hkl @ grain.ub.T)
    found = [known.get(tuple(i)) for i in hkl.tolist()]
    near = [
        _energy_near(i, e, grain.material, energy) if v is None else v
        for i, e, v in zip(hkl, first, found, strict=True)
    ]
    return hkl, np.array(near)


def _energy_near(hkl: NDArray[np.int64], first: float, material: Material, energy: tuple[float, float]) -> float:
    """The energy (keV) of the allowed order of a primitive hkl that is nearest to the band, or lowest in it.

    `first`: that of its first order.
    """
    number = np.arange(1, MAX_ORDER + 1)
    orders = number[:, None] * hkl
    allowed = ~material.group.absent(orders)
    if material.structure is not None:
        allowed &= intensities(material.structure, material.cell, orders) > 0
    every = first * number
    beyond = np.maximum(np.maximum(energy[0] - every, every - energy[1]), 0.0)
    return float(every[np.argmin(np.where(allowed, beyond, np.inf))])


class LaueStage:
    """Every grain of the chosen materials in each frame (see `search`).

    In scans and stacks the grains of the frames solved last are tried first. This is the one thing that is kept between
    frames: it saves time, and moves an answer by no more than its rounding.
    """

    name: ClassVar[str] = "laue"
    schema: ClassVar[Schema] = Schema({"frames": _FRAMES, "grains": _GRAINS, "spots": _SPOTS})

    def __init__(self, settings: LaueSettings | None = None) -> None:
        self.settings = settings or LaueSettings()
        self.materials = _materials(self.settings)
        self.calibration: Calibration | None = None
        if self.settings.detector is not None:
            self.calibration = read_calibration(self.settings.located(self.settings.detector))
        self._networks: dict[Path, Any] = {}  # as read from the cache
        scan = self.settings.scan
        self._neighbours: Neighbours | None = None
        if self.settings.neighbours is not False:
            wanted = scan is None and self.settings.neighbours  # every frame is thought to follow the one before
            columns = 1 if wanted else None if scan is None else scan[1]
            self._neighbours = Neighbours(columns, [m.rotations for m in self.materials])

    def _detector(self, source: str, own: Calibration | None, shape: tuple[int, int] | None) -> Detector:
        """The detector that the user named, else that of the file, for an image of `shape` if it is known."""
        if self.calibration is not None:
            origin = f"{source}: calibration {self.settings.detector}"
            return detector_from_calibration(self.calibration, shape or (own.shape if own else None), origin=origin)
        if own is None:
            raise InputError(
                f"{source}: has no calibration; give one with --detector CALIB.det "
                '(detector = "CALIB.det" in a campaign)'
            )
        return detector_from_calibration(own, shape, origin=source)

    def read(self, source: str) -> list[Item]:
        """The frames in a spot list, an image, or an HDF5 file of images; raises `InputError` with one sentence."""
        name = Path(source).stem
        if not is_image(source):
            spots = read_spots(source)
            detector = self._detector(source, spots.calibration, None)
            arrays = {"x": spots.x, "y": spots.y, "intensity": spots.intensity}
            return [Item(name, source, arrays, _attributes(detector))]
        if self.calibration is None:
            self._detector(source, None, None)
        if self.settings.dataset is not None and "::" not in source:
            source = f"{source}::{self.settings.dataset}"
        frames = count_frames(source)
        if frames == 1:
            image = read_image(source)
            self._detector(source, None, _shape(image.data))
            return [Item(name, source, {"image": image.data}, {"saturation": image.saturation})]
        stack = source if "::" in source else f"{source}::"
        return [Item(f"{name}:{n}", source, {}, {"frame": f"{stack}#{n}"}) for n in range(frames)]

    def prepare(self, items: Sequence[Item]) -> list[Spots]:
        """The spots or the image of each item, and its detector; raises `InputError` for what cannot be used."""
        return [self._prepared(item) for item in items]

    def _prepared(self, item: Item) -> Spots:
        nothing = np.empty(0)
        if "frame" in item.attrs or "image" in item.arrays:
            if "frame" in item.attrs:
                read = read_image(str(item.attrs["frame"]))
                data, full = read.data, read.saturation
            else:
                data, stated = np.asarray(item.arrays["image"], np.float32), item.attrs.get("saturation")
                full = None if stated is None else float(stated)
            if min(data.shape) < SMALLEST:
                raise InputError(
                    f"{item.source}: an image of {data.shape[0]} x {data.shape[1]} pixels is too small for spots to be "
                    f"found in it; give one of {SMALLEST} or more a side"
                )
            detector = self._detector(item.source, None, _shape(data))
            name = str(item.attrs.get("frame", item.source))
            return Spots(item.source, detector, nothing, nothing, nothing, data, full, name)
        if not {"x", "y", "intensity"} <= set(item.arrays):
            raise InputError(f"{item.source}: has neither spots nor an image; give a spot list or an image")
        x, y, bright = (np.asarray(item.arrays[key], np.float64) for key in ("x", "y", "intensity"))
        return brightest(Spots(item.source, _detector(item.attrs), x, y, bright), self.settings.max_spots)

    def kernel(self, prepared: list[Spots]) -> list[tuple[Spots, list[Grain]]]:
        """The spots and the grains of each frame. One frame fills the device, so frames go one by one."""
        return [self._indexed(frame) for frame in prepared]

    def _indexed(self, frame: Spots) -> tuple[Spots, list[Grain]]:
        frame = with_spots(frame, self.settings)
        if len(frame.x) < LEAST_SPOTS:
            return frame, []
        try:
            grains = index_frame(
                frame.x,
                frame.y,
                frame.intensity,
                frame.detector,
                self.materials,
                energy=self.settings.energy,
                grains=self.settings.grains,
                guesses=self._guesses(frame),
            )
        except InputError as error:
            raise InputError(f"{frame.source}: {error}") from None
        if self._neighbours is not None:
            numbers = {id(one): number for number, one in enumerate(self.materials)}
            known = [(numbers[id(g.material)], g.ub) for g in grains if id(g.material) in numbers]
            self._neighbours.remember(frame.name or frame.source, known)
        return frame, grains

    def _guesses(self, frame: Spots) -> Sequence[tuple[int, NDArray[np.float64]]]:
        """Orientations to try first: those of neighbouring frames, and what the networks recognise."""
        near = [] if self._neighbours is None else self._neighbours.guesses(frame.name or frame.source)
        recognised = self._recognised(frame) if self.settings.network else []
        return (*near, *recognised)

    def _recognised(self, frame: Spots) -> list[tuple[int, NDArray[np.float64]]]:
        """Orientations from the networks: the number of the material, and ub."""
        from mlindex.laue import recognise  # and with it the neural network's library

        q = q_from_kf(direction_from_pixel(frame.x, frame.y, frame.detector))
        guesses: list[tuple[int, NDArray[np.float64]]] = []
        for number, one in enumerate(self.materials):
            path = recognise.network_path(one, frame.detector, self.settings.energy)
            if path not in self._networks:
                found = recognise.cached(one, frame.detector, self.settings.energy)
                if found is None:
                    raise InputError(
                        f"no network is trained for {one.name} with this detector and these energies; "
                        "make one with mlindex train laue, or index without a network"
                    )
                self._networks[path] = found
            network = self._networks[path]
            told = recognise.candidates(network, recognise.recognise(network, q, frame.intensity), q)
            guesses += [(number, u @ one.b) for u in agreed(told.u, told.probability, one.rotations)]
        return guesses

    def finish(self, items: Sequence[Item], out: list[tuple[Spots, list[Grain]]]) -> list[Result]:
        """One result an item, its grains best first."""
        results = []
        for item, (frame, grains) in zip(items, out, strict=True):
            told = ("" if grains else self._why(len(frame.x)), crowded(frame, self.settings))
            reason = "; ".join(part for part in told if part)
            status = Status.SOLVED if grains else Status.UNSOLVED
            results.append(Result(item.id, item.source, status, reason, tables=self._tables(frame, grains)))
        return results

    def _why(self, n: int) -> str:
        if n < LEAST_SPOTS:
            return f"{n} spots are too few, a grain needs {LEAST_SPOTS}"
        names, (low, high) = " or ".join(m.name for m in self.materials), self.settings.energy
        return f"no crystal of {names} explains the {n} spots better than chance between {low:g} and {high:g} keV"

    def _tables(self, frame: Spots, grains: Sequence[Grain]) -> dict[str, dict[str, np.ndarray]]:
        n, energy, detector = len(frame.x), self.settings.energy, frame.detector
        owner, hkl, kev = np.full(n, -1, np.int64), np.zeros((n, 3), np.int64), np.zeros(n)
        for number, grain in enumerate(grains):
            owner[grain.spots] = number
            hkl[grain.spots], kev[grain.spots] = energies_of(grain, detector, energy)
        best = grains[0] if grains else None
        norm = (np.nan, np.nan) if best is None else strain_norm(best.strain, best.strain_esd)
        frames: dict[str, Any] = {
            "n_spots": n,
            "n_indexed": int((owner >= 0).sum()),
            "n_grains": len(grains),
            "material": "" if best is None else best.material.name,
            **{k: np.nan if best is None else getattr(best, k) for k in ("score", "match_rate", "rms_px")},
            "strain_norm": norm[0],
            "strain_norm_esd": norm[1],
            "calibration": detector.parameters,
            "pixel": detector.pixel,
            "shape": detector.shape,
            "kf_direction": detector.kf_direction,
            "energy": energy,
        }
        rows = [
            {
                "material": g.material.name,
                "cell": g.material.cell,
                "laue_group": g.material.laue_group,
                "space_group": g.material.group.number,
                **{c.name: getattr(g, c.name) for c in _GRAINS[1:10]},
            }
            for g in grains
        ]
        spots = {"x": frame.x, "y": frame.y, "intensity": frame.intensity, "grain": owner, "hkl": hkl, "energy": kev}
        return {"frames": _table(_FRAMES, [frames]), "grains": _table(_GRAINS, rows), "spots": spots}

    def record(self, result: Result) -> dict[str, Any]:
        """The JSON object of one result."""
        return laue_record(result)


def _shape(image: np.ndarray) -> tuple[int, int]:
    return int(image.shape[0]), int(image.shape[1])


def _table(columns: Sequence[Column], rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    table = {}
    for column in columns:
        values = np.array([row[column.name] for row in rows], object if column.dtype == "str" else column.dtype)
        table[column.name] = values.reshape(len(rows), *column.shape)
    return table
