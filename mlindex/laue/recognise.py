"""Which reflection a spot is, from the angles it makes with all others: a network, and candidates from what it says.

The angles between the scattering vector of a spot and those of the other spots of its grain are those of its hkl, in
any orientation; spots of other grains add a background that is smooth. So the histogram of the angles, one for each
tier of brightness of the other spot (the bright ones are of low index, in fewer places), goes through a classifier
whose classes are the sets of hkl that angles cannot tell apart, and one more for everything else. Two spots that are
recognised with confidence and whose angle fits give an orientation. A network proposes; `assign` and `judge` decide.

Source: R. R. P. Purushottam Raj Purohit et al., J. Appl. Cryst. 55 (2022) 737 (LaueNN).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float
from numpy.typing import NDArray

from mlindex.laue.classes import Classes
from mlindex.laue.geometry import Detector, direction_from_pixel, q_from_kf
from mlindex.laue.materials import Material
from mlindex.laue.propose import LEAST_ANGLE, pair_frames
from mlindex.learn import checkpoint
from mlindex.learn.layers import CountClassifier
from mlindex.records import InputError

VERSION = 1  # of what a network is given and answers; part of the name under which it is kept
SIDE = 2  # inputs beside the histogram
_ROWS = 512  # spots that are recognised together
_LEAST_SPOTS = 4
# arccos of 0 to 1 over sqrt(1 - x), error 2e-8: Abramowitz & Stegun 4.4.46; XLA's own is fifty times slower on a CPU
_ARCCOS = (
    -0.0012624911,
    0.0066700901,
    -0.0170881256,
    0.0308918810,
    -0.0501743046,
    0.0889789874,
    -0.2145988016,
    np.pi / 2,
)


class Layout(NamedTuple):
    """The bins of a histogram: `bins` of `width` degrees from `first`, for each tier of brightness of the other spot.

    `tiers`: the shares of a frame's spots, counted from the brightest, at which the tiers meet.
    """

    first: float
    width: float
    bins: int
    tiers: tuple[float, ...]

    @property
    def size(self) -> int:
        """All bins of all tiers."""
        return self.bins * (len(self.tiers) + 1)


def layout_of(detector: Detector, *, width: float, tiers: tuple[float, ...], first: float = 1.0) -> Layout:
    """Bins up to the largest angle between two scattering vectors that the detector sees."""
    ny, nx = detector.shape
    across, down = np.linspace(0.5, nx + 0.5, 33), np.linspace(0.5, ny + 0.5, 33)
    x, y = (a.ravel() for a in np.meshgrid(across, down))
    kf = direction_from_pixel(x, y, detector)
    q = q_from_kf(kf[kf[:, 0] < 1 - 1e-9])
    largest = float(np.degrees(np.arccos(np.clip((q @ q.T).min(), -1, 1))))
    return Layout(first, width, max(int(np.ceil((largest - first) / width)), 1), tuple(tiers))


def arccos(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """The arc cosine (radians) of numbers from -1 to 1, accurate to 5e-7."""
    a = jnp.abs(x)
    series = jnp.zeros_like(a)
    for c in _ARCCOS:
        series = series * a + c
    value = jnp.sqrt(jnp.maximum(1 - a, 0)) * series
    return jnp.where(x < 0, np.pi - value, value)


def angle_histograms(
    rows: Float[Array, "t 3"],
    q: Float[Array, "p 3"],
    rank: Float[Array, " p"],
    counted: Bool[Array, "t p"],
    layout: Layout,
) -> Float[Array, "t b"]:
    """How many of the spots `q` (unit vectors) lie at each angle from each of `rows`, tier by tier.

    `rank` (p,) is the share of the spots of the frame that are brighter; `counted` says which spots count for which
    row. Angles below the first bin are left out, and so is the spot itself.
    """
    angle = arccos(jnp.clip(rows @ q.T, -1, 1)) * (180 / np.pi)
    place = ((angle - layout.first) * (1 / layout.width)).astype(jnp.int32)
    inside = counted & (angle >= layout.first) & (place < layout.bins)
    tier = jnp.zeros(rank.shape, jnp.int32)
    for edge in layout.tiers:
        tier += rank >= edge
    n, size = rows.shape[0], layout.size
    at = jnp.arange(n)[:, None] * size + tier * layout.bins + place
    flat = jnp.zeros(n * size).at[jnp.where(inside, at, n * size).ravel()].add(1.0, mode="drop")
    return flat.reshape(n, size)


def side_inputs(rank: Float[Array, " t"]) -> Float[Array, "t 2"]:
    """What the network knows of a spot beside its angles: how bright it is among the spots of the frame."""
    return jnp.stack([rank, jnp.sqrt(rank)], -1)


def rank_from_intensity(intensity: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """The share of the other spots that are brighter; equally bright spots share theirs."""
    ascending = np.sort(-intensity)
    low, high = (np.searchsorted(ascending, -intensity, side) for side in ("left", "right"))
    return (low + high - 1) / (2 * max(len(intensity), 1))


@dataclass(frozen=True, eq=False)
class Recogniser:
    """A trained network: for which material, energies (keV) and detector, its classes, bins and `card`.

    `b` is the Busing-Levy B of the material; the last output of `model` is "none of the classes".
    """

    material: str
    digest: str
    b: NDArray[np.float64]
    energy: tuple[float, float]
    detector: Detector
    classes: Classes
    layout: Layout
    model: CountClassifier
    card: Mapping[str, Any]


class Recognition(NamedTuple):
    """For each spot the most probable class `label`, its `probability`, and that of being in no class, `none`.

    A spot that was not looked at has label -1 and probability 0.
    """

    label: NDArray[np.int64]
    probability: NDArray[np.float64]
    none: NDArray[np.float64]


@partial(jax.jit, static_argnames=("definition", "layout"))
def _probabilities(
    definition: Any, state: Any, layout: Layout, rows: Any, q: Any, rank: Any, valid: Any
) -> tuple[Any, Any, Any]:
    model = nnx.merge(definition, state)
    counted = jnp.broadcast_to(valid, (rows.shape[0], valid.shape[0]))
    histogram = angle_histograms(q[rows], q, rank, counted, layout)
    chance = jax.nn.softmax(model(histogram, side_inputs(rank[rows])), 1)
    return jnp.argmax(chance[:, :-1], 1), jnp.max(chance[:, :-1], 1), chance[:, -1]


def recognise(
    recogniser: Recogniser,
    q: Float[np.ndarray, "n 3"],
    intensity: Float[np.ndarray, " n"],
    *,
    brightest: int = 10_000,
) -> Recognition:
    """What each spot of a frame is; `q` are unit scattering vectors. Only the `brightest` of the spots are looked at.

    Raises `InputError` for fewer than four spots, and for values that are not finite.
    """
    n = len(q)
    if n < _LEAST_SPOTS:
        raise InputError(f"a frame of {n} spots is too small to recognise reflections in; give four spots at least")
    if not (np.isfinite(q).all() and np.isfinite(intensity).all()):
        raise InputError("some spots have a place or an intensity that is not a number; leave them out")
    rank = rank_from_intensity(np.asarray(intensity, np.float64))
    chosen = np.argsort(rank, kind="stable")[:brightest]
    kept = len(chosen)
    # Few shapes, so that few programs are compiled
    padded = -(-kept // _ROWS) * _ROWS
    directions = np.zeros((padded, 3), np.float32)
    directions[:kept] = q[chosen]
    ranks = np.zeros(padded, np.float32)
    ranks[:kept] = rank[chosen] * n / kept
    valid = np.arange(padded) < kept
    definition, state = nnx.split(recogniser.model)
    parts = []
    for start in range(0, padded, _ROWS):
        rows = np.arange(start, start + _ROWS, dtype=np.int32)
        parts.append(_probabilities(definition, state, recogniser.layout, rows, directions, ranks, valid))
    label, probability, none = np.full(n, -1), np.zeros(n), np.zeros(n)
    for column, found in zip((label, probability, none), zip(*parts, strict=True), strict=True):
        column[chosen] = np.concatenate([np.asarray(part) for part in found])[:kept]
    return Recognition(label, probability, none)


class Candidates(NamedTuple):
    """Orientations `u` (k, 3, 3) float64, the spots `first` and `second` (k,) that each is made from, and the
    `probability` (k,) that both are what they are taken for; most probable pair first."""

    u: NDArray[np.float64]
    first: NDArray[np.int64]
    second: NDArray[np.int64]
    probability: NDArray[np.float64]


def _directions(classes: Classes, b: NDArray[np.float64], which: NDArray[np.bool_]) -> tuple[NDArray, NDArray]:
    """Unit vectors (c, m, 3) of the members of each class that `which` marks, and which of them are there (c, m)."""
    hkl, of = classes.hkl[which], classes.of[which]
    count = np.bincount(of, minlength=classes.number)
    table = np.zeros((classes.number, count.max(initial=1), 3))
    within = np.arange(len(of)) - np.repeat(np.cumsum(count) - count, count)
    q = hkl @ b.T
    table[of, within] = q / np.linalg.norm(q, axis=1, keepdims=True)
    return table, np.arange(table.shape[1]) < count[:, None]


def candidates(
    recogniser: Recogniser,
    recognition: Recognition,
    q: Float[np.ndarray, "n 3"],
    *,
    least: float = 0.2,
    tolerance: float = 0.15,
    greatest: float = 80.0,
    spots: int = 150,
    most: int = 100_000,
) -> Candidates:
    """Orientations from pairs of spots that are recognised with a probability of `least` or more.

    At most the `spots` surest are paired; on crowded frames they are right more often than sure, hence the low `least`.
    The angle of a pair (between 8 and `greatest` degrees) and that of the two reflections differ by `tolerance` degrees
    at most. The first reflection of a pair is one of each set that rotations of the crystal make equivalent: the others
    give the same orientation. `most` pairs are kept.
    """
    sure = np.flatnonzero((recognition.label >= 0) & (recognition.probability >= least))
    sure = sure[np.argsort(-recognition.probability[sure], kind="stable")][:spots]
    cosine = np.clip(q[sure] @ q[sure].T, -1, 1)
    usable = (cosine < np.cos(np.radians(LEAST_ANGLE))) & (cosine > np.cos(np.radians(greatest)))
    i, j = np.nonzero(np.triu(usable, 1))
    if not len(i):
        return Candidates(np.zeros((0, 3, 3)), np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    classes = recogniser.classes
    firsts, is_first = _directions(classes, recogniser.b, classes.representative)
    others, is_other = _directions(classes, recogniser.b, np.ones(len(classes.of), bool))
    label = recognition.label[sure]
    a, b = label[i], label[j]
    angle = np.arccos(np.clip(np.einsum("kri,kmi->krm", firsts[a], others[b]), -1, 1))
    fits = np.abs(angle - np.arccos(cosine[i, j])[:, None, None]) <= np.radians(tolerance)
    fits &= is_first[a][:, :, None] & is_other[b][:, None, :]
    pair, r, m = np.nonzero(fits)
    chance = (recognition.probability[sure[i]] * recognition.probability[sure[j]])[pair]
    order = np.argsort(-chance, kind="stable")[:most]
    pair, r, m, chance = pair[order], r[order], m[order], chance[order]
    one, two = sure[i[pair]], sure[j[pair]]
    seen = pair_frames(q[one], q[two])
    known = pair_frames(firsts[a[pair], r], others[b[pair], m])
    return Candidates(seen @ np.swapaxes(known, 1, 2), one, two, chance)


def cache_folder(env: Mapping[str, str] = os.environ) -> Path:
    """Where trained networks are kept: in `MLINDEX_CACHE` or the user's cache folder for mlindex, there `networks`."""
    if env.get("MLINDEX_CACHE"):
        return Path(env["MLINDEX_CACHE"]).expanduser() / "networks"
    home = (
        Path(env["XDG_CACHE_HOME"]) if env.get("XDG_CACHE_HOME") else Path(env.get("HOME", "~")).expanduser() / ".cache"
    )
    return home / "mlindex" / "networks"


def network_path(
    material: Material, detector: Detector, energy: tuple[float, float], folder: Path | None = None
) -> Path:
    """Where the network of a material, an energy band and a geometry is kept.

    The geometry is rounded (a twentieth of the distance, 50 pixels, 2 degrees): angles between scattering vectors do
    not depend on it, only which of them are seen, and a new calibration of a camera needs no new network.
    """
    coarse = [
        round(np.log(detector.distance) / 0.05),
        *(round(v / 50) for v in (detector.xcen, detector.ycen)),
        *(round(v / 2) for v in (detector.xbet, detector.xgam)),
    ]
    parts = [VERSION, material.digest, [round(e, 3) for e in energy], coarse, detector.pixel, detector.shape]
    name = hashlib.sha256(json.dumps([*parts, detector.kf_direction]).encode()).hexdigest()[:16]
    return (cache_folder() if folder is None else folder) / f"laue-{material.name}-{name}.safetensors"


def save(recogniser: Recogniser, path: str | Path) -> None:
    """Write a network with its card."""
    arrays = {f"net.{name}": array for name, array in checkpoint.arrays_of(recogniser.model).items()}
    arrays |= {f"classes.{name}": array for name, array in recogniser.classes._asdict().items()}
    arrays["b"] = recogniser.b
    card = {
        "kind": "laue",
        "version": VERSION,
        "material": recogniser.material,
        "digest": recogniser.digest,
        "energy": list(recogniser.energy),
        "detector": asdict(recogniser.detector),
        "layout": recogniser.layout._asdict(),
        "training": dict(recogniser.card),
    }
    checkpoint.save(path, arrays, card)


def load(path: str | Path) -> Recogniser:
    """Read a network that `save` wrote. Raises `InputError`."""
    arrays, card = checkpoint.load(path)
    if card.get("kind") != "laue" or card.get("version") != VERSION:
        raise InputError(
            f"{path}: a network of kind {card.get('kind')!r}, version {card.get('version')!r}, where kind 'laue', "
            f"version {VERSION} is needed; train it again by mlindex train laue"
        )
    try:
        layout = Layout(**{**card["layout"], "tiers": tuple(card["layout"]["tiers"])})
        detector = Detector(**{**card["detector"], "shape": tuple(card["detector"]["shape"])})
        classes = Classes(*(arrays[f"classes.{name}"] for name in Classes._fields))
        weights = {name[4:]: array for name, array in arrays.items() if name.startswith("net.")}
        model = CountClassifier(
            layout.size, SIDE, classes.number + 1, hidden=weights["inner.bias"].size, rngs=nnx.Rngs(0)
        )
        checkpoint.put_arrays(model, weights)
        low, high = card["energy"]
        return Recogniser(
            card["material"],
            card["digest"],
            arrays["b"],
            (low, high),
            detector,
            classes,
            layout,
            model,
            card["training"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: this network is damaged ({error}); train it again by mlindex train laue") from None


def cached(
    material: Material, detector: Detector, energy: tuple[float, float], folder: Path | None = None
) -> Recogniser | None:
    """The trained network of a material, an energy band and a geometry, or None where there is none."""
    path = network_path(material, detector, energy, folder)
    return load(path) if path.is_file() else None
