"""Training of a network that recognises reflections: patterns made on the device as needed, no spot seen twice.

A slot holds a fixed number of grains, which a random partition shares among frames, so that patterns of one grain and
of many are made by one program of fixed shapes. As in LaueNN (Purushottam Raj Purohit et al., J. Appl. Cryst. 55 (2022)
737) orientations are uniform, some patterns have noise and some have lost their weak spots; beyond it there are
spurious spots, strained grains, grains of unequal volume, and intensities that are not those of the structure.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int
from numpy.typing import NDArray

from mlindex.crystal.rotation import random_rotations, rotation_from_quaternion
from mlindex.laue.classes import Classes, class_of_hkl, classes_of
from mlindex.laue.geometry import KEV_ANGSTROM, Detector, Plane, direction_from_pixel, kf_from_q, q_from_kf
from mlindex.laue.materials import Material, Rays, rays
from mlindex.laue.recognise import (
    SIDE,
    Layout,
    Recogniser,
    angle_histograms,
    layout_of,
    recognise,
    side_inputs,
)
from mlindex.laue.simulate import bending_magnet, predict, random_grains, simulate_frame
from mlindex.learn.fit import Batch, Progress, fit
from mlindex.learn.layers import CountClassifier, log_ratios
from mlindex.records import InputError

_GRID = 256  # energies at which the spectrum is tabulated
_SPOTS = 5200  # in a slot, about
_MOST_GRAINS = 24
_SHRINK = 20.0  # patterns' worth of the overall mean in the mean of each class


@dataclass(frozen=True)
class Settings:
    """What a training does. Ranges of patterns: noise (px), the largest standard deviation of `strain`, the largest
    shares of `dropped` and `spurious` spots, the share of frames that lose their `weak` spots and the least that
    is then left (`weakest`), standard deviations of the logarithm of intensities, by grain (`volume`) and by spot
    (`jitter`).

    `classes`: at most so many (the largest index follows); `rare`: spots a pattern below which a class is left out.
    """

    steps: int = 2500
    rows: int = 448
    hidden: int = 512
    rate: float = 2e-3
    width: float = 0.08
    tiers: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4)
    classes: int = 320
    largest: int | None = None
    rare: float = 0.02
    means: int = 60  # slots from which the mean histograms of the classes are taken
    noise: float = 0.3
    strain: float = 1.5e-3
    dropped: float = 0.25
    spurious: float = 0.2
    weak: float = 0.6
    weakest: float = 0.05
    volume: float = 1.0
    jitter: float = 0.5


class Scene(NamedTuple):
    """A material on a detector, for the device: `rays`, the `label` (n,) of each (the number of classes for none),
    `b`, `plane`, `energy` (2,), and the `spectrum` at `_GRID` energies from the lowest to the highest."""

    rays: Rays
    label: Any
    b: Any
    plane: Plane
    energy: Any
    spectrum: Any


class Slot(NamedTuple):
    """Patterns in one array, brightest spot first: `q` (p, 3), the `frame` of each spot, its `rank` among the spots of
    that frame, its `label`, and whether it is there (`valid`)."""

    q: Any
    frame: Any
    rank: Any
    label: Any
    valid: Any


class Shape(NamedTuple):
    """Static sizes of a slot: `grains`, `spots`, and the number of classes."""

    grains: int
    spots: int
    classes: int


def seen_of(
    material: Material, table: Rays, detector: Detector, energy: tuple[float, float], rng: Any
) -> NDArray[np.float64]:
    """How often each ray of a table is in the pattern of a grain (n,), from 400 orientations."""
    u = random_rotations(rng, 400).reshape(20, 20, 3, 3)
    look = jax.jit(lambda ub, table, plane, energy: jnp.sum(predict(ub, table, plane, energy).visible, 0))
    held = Rays(*(jnp.asarray(column) for column in table))
    counts = [look(jnp.asarray(part @ material.b, jnp.float32), held, detector.plane, jnp.array(energy)) for part in u]
    return np.sum([np.asarray(count) for count in counts], 0) / 400


def intensities_of(q: Float[Array, "p 3"], strength: Float[Array, "p m"], scene: Scene) -> Float[Array, " p"]:
    """The intensity of each ray as `simulate.spots_of` has it: all orders inside the band together."""
    square = jnp.sum(q * q, 1)
    first = KEV_ANGSTROM / 2 * square / jnp.maximum(jnp.abs(q[:, 0]), 1e-9)
    each = first[:, None] * np.arange(1, strength.shape[1] + 1)
    place = (each - scene.energy[0]) / (scene.energy[1] - scene.energy[0]) * (_GRID - 1)
    inside = (place >= 0) & (place <= _GRID - 1)
    photons = jnp.where(inside, scene.spectrum[jnp.clip(place, 0, _GRID - 1).astype(jnp.int32)], 0)
    parts = photons * strength * (KEV_ANGSTROM / each) ** 2
    return jnp.sum(parts, 1) * (1 - kf_from_q(q)[:, 1] ** 2) * square / jnp.maximum(q[:, 0] ** 2, 1e-12)


def drawn(key: Any, scene: Scene, shape: Shape, settings: Settings, alone: bool) -> Slot:
    """Random patterns. With `alone` each grain has its own frame, and nothing is spurious, weak or of other volume."""
    keys = iter(jax.random.split(key, 16))
    grains, spots = shape.grains, shape.spots
    u = rotation_from_quaternion(jax.random.normal(next(keys), (grains, 4)))
    draw = jax.random.normal(next(keys), (grains, 3, 3))
    size = settings.strain * jnp.maximum(jax.random.uniform(next(keys), (grains, 1, 1), minval=-1), 0)  # half have none
    bent = size * (draw + jnp.swapaxes(draw, 1, 2)) / 2
    ub = u @ (scene.b - bent @ scene.b)  # to first order in the strain
    seen = predict(ub, scene.rays, scene.plane, scene.energy)
    lost = jax.random.uniform(next(keys)) * settings.dropped
    keep = seen.visible & (jax.random.uniform(next(keys), seen.visible.shape) >= lost)
    (at,) = jnp.nonzero(keep.ravel(), size=spots, fill_value=-1)
    valid, at = at >= 0, jnp.maximum(at, 0)
    grain, ray = at // keep.shape[1], at % keep.shape[1]
    xy = jnp.stack([seen.x.ravel()[at], seen.y.ravel()[at]], 1)
    q = jnp.einsum("pij,pj->pi", ub[grain], jnp.asarray(scene.rays.hkl, jnp.float32)[ray])
    bright = jnp.log(intensities_of(q, scene.rays.strength[ray], scene) + 1e-20)
    bright += settings.jitter * jax.random.normal(next(keys), (spots,))
    label = scene.label[ray]
    noise = settings.noise * jax.random.uniform(next(keys)) * jax.random.normal(next(keys), (spots, 2))
    if alone:
        frame = jnp.arange(grains)[grain]
        xy += noise
    else:
        cut = jax.random.bernoulli(next(keys), jax.random.uniform(next(keys)), (grains,))
        frame = jnp.cumsum(cut.at[0].set(False).astype(jnp.int32))[grain]
        bright += settings.volume * jax.random.normal(next(keys), (grains,))[grain]
        share = jax.random.uniform(next(keys)) * settings.spurious
        stray = jax.random.bernoulli(next(keys), share / (1 + share), (spots,))
        anywhere = 0.5 + jax.random.uniform(next(keys), (spots, 2)) * jnp.asarray(scene.plane.size, jnp.float32)
        xy = jnp.where(stray[:, None], anywhere, xy + noise)
        label = jnp.where(stray, shape.classes, label)
    order = jnp.argsort(jnp.where(valid, -bright, jnp.inf))
    xy, frame, label, valid = (column[order] for column in (xy, frame, label, valid))
    member = (frame[:, None] == np.arange(grains)) & valid[:, None]
    count = jnp.cumsum(member, 0)
    brighter = jnp.take_along_axis(count, frame[:, None], 1)[:, 0] - 1
    rank = brighter / jnp.maximum(count[-1][frame], 1)
    if not alone:
        chosen, left = jax.random.split(next(keys))
        left = settings.weakest ** jax.random.uniform(left, (grains,))  # evenly over magnitudes
        left = jnp.where(jax.random.bernoulli(chosen, settings.weak, (grains,)), left, 1.0)[frame]
        valid, rank = valid & (rank < left), rank / left
    return Slot(q_from_kf(direction_from_pixel(xy[:, 0], xy[:, 1], scene.plane)), frame, rank, label, valid)


def _rows_of(key: Any, slot: Slot, rows: int, classes: int) -> Int[Array, " t"]:
    """Spots to learn from, at random: three quarters of the rows are of a class and one of none, as far as there are
    such spots."""
    first, second = jax.random.split(key)
    known = slot.valid & (slot.label < classes)
    chance = jax.random.uniform(first, known.shape) + slot.valid
    # Those of no class that come before the others, so that none are left out where nearly all spots are of a class
    quota = jax.lax.top_k(jnp.where(known, 0.0, chance), rows // 4)[1]
    ahead = jnp.zeros_like(known).at[quota].set(True)
    order = (
        jax.random.uniform(second, known.shape)
        + jnp.where(known, 2.0, 1.0) * slot.valid
        + 2.0 * (ahead & slot.valid & ~known)
    )
    return jax.lax.top_k(order, rows)[1]


def _weights(slot: Slot, rows: Int[Array, " t"], classes: int) -> Float[Array, " t"]:
    """Each row stands for as many spots as it was drawn from, or "in no class" would be thought rarer than it is."""
    none = slot.label >= classes
    there, drawn = slot.valid, slot.valid[rows]
    share = [(jnp.sum(there & kind) / jnp.maximum(jnp.sum(drawn & kind[rows]), 1)) for kind in (~none, none)]
    return jnp.where(none[rows], share[1], share[0]) * drawn


def _histograms(slot: Slot, rows: Int[Array, " t"], layout: Layout) -> Float[Array, "t b"]:
    counted = slot.valid & (slot.frame[rows][:, None] == slot.frame)
    return angle_histograms(slot.q[rows], slot.q, slot.rank, counted, layout)


def _batch(key: Any, scene: Scene, shape: Shape, settings: Settings, layout: Layout) -> Batch:
    first, second = jax.random.split(key)
    slot = drawn(first, scene, shape, settings, alone=False)
    rows = _rows_of(second, slot, settings.rows, shape.classes)
    inputs = (_histograms(slot, rows, layout), side_inputs(slot.rank[rows]))
    return Batch(inputs, slot.label[rows], _weights(slot, rows, shape.classes))


def mean_histograms(
    scene: Scene, shape: Shape, settings: Settings, layout: Layout, key: Any
) -> tuple[Float[np.ndarray, "c b"], Float[np.ndarray, " b"]]:
    """The mean histogram of each class in patterns of one grain (the last is of no class), and that of all spots.

    A class that was seen little is drawn towards the mean of all.
    """

    @jax.jit
    def add(total: Any, count: Any, key: Any, scene: Scene) -> tuple[Any, Any]:
        first, second = jax.random.split(key)
        slot = drawn(first, scene, shape, settings, alone=True)
        rows = _rows_of(second, slot, settings.rows, shape.classes)
        weight = slot.valid[rows].astype(jnp.float32)
        histogram = _histograms(slot, rows, layout) * weight[:, None]
        return total.at[slot.label[rows]].add(histogram), count.at[slot.label[rows]].add(weight)

    total, count = jnp.zeros((shape.classes + 1, layout.size)), jnp.zeros(shape.classes + 1)
    for i in range(settings.means):
        total, count = add(total, count, jax.random.fold_in(key, i), scene)
    sums, counts = np.asarray(total, np.float64), np.asarray(count, np.float64)
    overall = sums.sum(0) / max(counts.sum(), 1.0)
    return (sums + _SHRINK * overall) / (counts[:, None] + _SHRINK), overall


class Accuracy(NamedTuple):
    """Spots of simulated frames, by what they are taken for.

    `right`: of the spots whose reflection is in a class, those whose most probable class is theirs; `strict`: the same
    where being in no class counts as an answer, a wrong one; `all_right`: of all spots, spurious and of no class too,
    those with the right answer, which may be "in no class"; `in_class`: the share of all spots that are in a class;
    `sure`: spots a frame with a probability of 0.8 or more, and `sure_right` the share of them that is right.
    """

    right: float
    strict: float
    all_right: float
    in_class: float
    sure: float
    sure_right: float
    spots: int
    frames: int


def accuracy(
    recogniser: Recogniser,
    material: Material,
    *,
    grains: int,
    frames: int,
    seed: int,
    strain: float = 0.0,
    **frame: Any,
) -> Accuracy:
    """How well frames are recognised that `simulate_frame` makes (0.2 px noise, 15 % dropped, 10 % spurious, unless
    `frame` says otherwise)."""
    rng = np.random.default_rng(seed)
    sums = np.zeros(7)
    for _ in range(frames):
        made = simulate_frame(
            rng, random_grains(rng, [material] * grains, strain), recogniser.detector, recogniser.energy, **frame
        )
        q = q_from_kf(direction_from_pixel(made.x, made.y, recogniser.detector))
        said = recognise(recogniser, q, made.intensity)
        truth = np.where(made.grain >= 0, class_of_hkl(recogniser.classes, made.hkl), -1)
        known, none = truth >= 0, said.none > said.probability
        hit, sure = said.label == truth, said.probability >= 0.8
        answer = hit & ~none
        answers = (known, known & hit, known & answer, np.where(known, answer, none), sure, sure & hit)
        sums += np.array([*(np.count_nonzero(a) for a in answers), len(truth)])
    n_known, right, strict, every, n_sure, sure_right, spots = (float(v) for v in sums)
    return Accuracy(
        right / max(n_known, 1),
        strict / max(n_known, 1),
        every / max(spots, 1),
        n_known / max(spots, 1),
        n_sure / max(frames, 1),
        sure_right / max(n_sure, 1),
        int(spots),
        frames,
    )


def scene_of(
    material: Material,
    detector: Detector,
    energy: tuple[float, float],
    rng: np.random.Generator,
    settings: Settings,
) -> tuple[Scene, Shape, Classes]:
    """Everything that patterns are made from, and the classes to learn. Raises `InputError` where there are none."""
    table = rays(material, energy[1], detector)
    seen = seen_of(material, table, detector, energy, rng) if len(table.hkl) else np.zeros(0)
    try:
        classes = classes_of(material, table, seen, most=settings.classes, rare=settings.rare, largest=settings.largest)
    except ValueError as error:
        raise InputError(f"nothing can be learnt: {error}; give another energy band or detector") from None
    typical = max(float(seen.sum()), 1.0)
    grains = int(np.clip(round(_SPOTS / typical), 6, _MOST_GRAINS))
    spots = int(np.ceil(1.1 * grains * typical / 64)) * 64
    shape = Shape(grains, max(spots, settings.rows), classes.number)
    label = class_of_hkl(classes, table.hkl)
    grid = np.linspace(energy[0], energy[1], _GRID)
    scene = Scene(
        Rays(
            jnp.asarray(table.hkl, jnp.float32),
            jnp.asarray(table.q, jnp.float32),
            jnp.asarray(table.orders),
            jnp.asarray(table.strength / table.strength.max(), jnp.float32),
        ),
        jnp.asarray(np.where(label >= 0, label, classes.number), jnp.int32),
        jnp.asarray(material.b, jnp.float32),
        Plane(*(jnp.asarray(array, jnp.float32) for array in detector.plane)),
        jnp.asarray(energy, jnp.float32),
        jnp.asarray(bending_magnet(grid) / bending_magnet(grid).max(), jnp.float32),
    )
    return scene, shape, classes


def train(
    material: Material,
    detector: Detector,
    energy: tuple[float, float] = (5.0, 23.0),
    *,
    seed: int = 0,
    minutes: float = 3.0,
    progress: Callable[[Progress], None] | None = None,
    settings: Settings | None = None,
) -> Recogniser:
    """A network for one material on one detector, in `minutes` at most (compilation, a few seconds, not counted).

    The same seed gives the same network, unless the time ends it before all steps; the card says. Raises `InputError`
    for a band of energies or a material that gives no pattern.
    """
    chosen = Settings() if settings is None else settings
    if not 0 < energy[0] < energy[1]:
        raise InputError(f"an energy band is lowest, highest in keV, got {energy[0]:g}, {energy[1]:g}")
    if not minutes > 0:
        raise InputError(f"a training needs time, got {minutes:g} minutes")
    started = time.perf_counter()
    scene, shape, classes = scene_of(material, detector, energy, np.random.default_rng(seed), chosen)
    layout = layout_of(detector, width=chosen.width, tiers=chosen.tiers)
    first, second = jax.random.split(jax.random.key(seed))
    means, overall = mean_histograms(scene, shape, chosen, layout, first)
    model = CountClassifier(layout.size, SIDE, classes.number + 1, hidden=chosen.hidden, rngs=nnx.Rngs(seed))
    model.start(log_ratios(means, overall, background=3.0))
    make = partial(_batch, shape=shape, settings=chosen, layout=layout)
    spent = (time.perf_counter() - started) / 60
    done = fit(
        model,
        make,
        scene,
        steps=chosen.steps,
        minutes=max(minutes - spent, 0.05 * minutes),
        seed=int(jax.random.randint(second, (), 0, 2**31 - 1)),
        rate=chosen.rate,
        progress=progress,
    )
    card: dict[str, Any] = {
        "seed": seed,
        "settings": asdict(chosen) | {"tiers": list(chosen.tiers)},
        "classes": classes.number,
        "steps": done.steps,
        "cut": done.cut,
        "loss": done.loss,
        "seconds": time.perf_counter() - started,
    }
    trained = Recogniser(
        material.name,
        material.digest,
        np.asarray(material.b, np.float64),
        (float(energy[0]), float(energy[1])),
        detector,
        classes,
        layout,
        model,
        card,
    )
    card["validation"] = {
        f"{n} grains": accuracy(trained, material, grains=n, frames=4, seed=10_000 + seed)._asdict() for n in (1, 5)
    }
    return trained
