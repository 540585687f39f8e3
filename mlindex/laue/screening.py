"""The orientations of one material that are worth refining: proposed by pairs of spots, screened by table look-up."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from mlindex.laue import assign, judge, propose
from mlindex.laue.geometry import Detector, direction_from_pixel, q_from_kf
from mlindex.laue.materials import Material

_CANDIDATES = 600_000  # screened at most for one net and material
_TILES = (2048, 16384)  # of which one program each is compiled
_KEPT = 2048  # of the candidates, for the second look
_LISTED, _CHECKED = 32, 512  # rays looked up at first, and then
_GREATEST = 75.0  # degrees between two anchors
_APART = 0.6  # degrees; candidates closer than that are one


class Net(NamedTuple):
    """How wide to cast: anchors for each grain that the free spots may hold, strong rays, tolerances (degrees, px)."""

    anchors: float
    strong: int
    angle: float
    radius: float


class Looks(NamedTuple):
    """What screening needs of a crystal on a detector: pairs of strong rays, lists by direction, the first rays, and
    the direction of q at the centre of the detector."""

    pairs: propose.RayPairs
    lists: assign.RayLists
    directions: NDArray[np.float32]
    least_sine: NDArray[np.float32]
    centre: NDArray[np.float32]


@lru_cache(maxsize=64)
def looks_of(material: Material, detector: Detector, energy: tuple[float, float], strong: int) -> Looks:
    """The tables for one material and one net; the last are kept."""
    crystal = propose.crystal_of(material, detector, energy)
    ny, nx = detector.shape
    across, down = np.meshgrid(np.linspace(1, nx, 15), np.linspace(1, ny, 15))
    q = q_from_kf(direction_from_pixel(across.ravel(), down.ravel(), detector))
    centre = q.mean(0) / np.linalg.norm(q.mean(0))
    away = np.degrees(np.arccos(np.clip(q @ centre, -1, 1)))
    # A narrower cone than the detector: most of the rays in the list then fall onto it, whichever way it is turned
    cone = float(np.quantile(away, 0.75))
    lists = assign.ray_lists(crystal.directions[:1000], crystal.least_sine[:1000], cone=cone, most=_LISTED)
    pairs = propose.ray_pairs(crystal.directions[:strong], crystal.rotations, min(_GREATEST, 2 * away.max()))
    short = max(_CHECKED - len(crystal.hkl), 0)  # made up with rays that are never seen
    directions = np.pad(crystal.directions[:_CHECKED], ((0, short), (0, 0))).astype(np.float32)
    least_sine = np.pad(crystal.least_sine[:_CHECKED], (0, short), constant_values=2.0).astype(np.float32)
    return Looks(pairs, lists, directions, least_sine, centre.astype(np.float32))


def _in_bucket(frames: Float[np.ndarray, "n 3 3"]) -> Float[np.ndarray, "m 3 3"]:
    """`frames` with zeros behind them, 4096 or 8, 64, ... times as many: every size is a program to compile."""
    size = 4096
    while size < len(frames):
        size *= 8
    return np.pad(frames, ((0, size - len(frames)), (0, 0), (0, 0)))


class Scene:
    """The spots of a frame: `xy` (n, 2) px, unit `q`, brightest first in `order`, the `owner` of each (-1: none)."""

    def __init__(
        self,
        xy: Float[np.ndarray, "n 2"],
        intensity: Float[np.ndarray, " n"] | None,
        detector: Detector,
        energy: tuple[float, float],
    ) -> None:
        self.xy, self.detector, self.energy = xy, detector, energy
        self.plane = detector.plane
        self.q = q_from_kf(direction_from_pixel(xy[:, 0], xy[:, 1], detector))
        self.order = np.arange(len(xy)) if intensity is None else np.argsort(-intensity, kind="stable")
        self.owner = np.full(len(xy), -1)
        self.tree = cKDTree(xy)
        self.density = judge.spot_density(xy, self.plane.size)
        self._tables: dict[float, tuple[Any, float]] = {}

    def table(self, radius: float) -> tuple[Any, float]:
        """`assign.near_table` of the spots, on the device."""
        if radius not in self._tables:
            table, chance = assign.near_table(self.xy, self.detector.shape, radius)
            self._tables[radius] = jnp.asarray(table), chance
        return self._tables[radius]

    def match(self, ub: NDArray[np.float64], crystal: propose.Crystal) -> assign.Match:
        """All rays of a grain that should be seen, and their nearest spots."""
        ray, at = assign.visible(ub, crystal.hkl, crystal.orders, self.plane, self.energy)
        return assign.matched(ray, at, self.tree, 2.0)


def screened(
    scene: Scene, anchors: Int[np.ndarray, " a"], material: Material, net: Net
) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, "k 3 3"], Int[np.ndarray, "k 2"]]:
    """The orientations worth refining, best first: their scores, u, and the two spots each comes from."""
    looks = looks_of(material, scene.detector, scene.energy, net.strong)
    spots = propose.spot_pairs(scene.q[anchors], _GREATEST)
    pair, entry, frames = propose.candidates(spots, looks.pairs, np.radians(net.angle), _CANDIDATES)
    if not len(pair):
        return np.empty(0), np.empty((0, 3, 3)), np.empty((0, 2), np.int64)
    table, chance = scene.table(net.radius)
    gain = np.float32(np.log(0.4 + 0.6 / max(chance, 1e-5)))  # six in ten of the strongest rays are thought to be seen
    loss = np.float32(-np.log(0.4 + 0.6 * chance))
    matrix = jnp.asarray(scene.plane.to_pixel.astype(np.float32))
    tile = _TILES[len(pair) > 4 * _TILES[0]]
    padding = np.zeros(-len(pair) % tile, np.int64)
    pairs, entries = (np.concatenate([a, padding]).astype(np.int32) for a in (pair, entry))
    fixed = [jnp.asarray(a) for a in (looks.lists.rays, looks.lists.least_sine, looks.centre)]
    spot_frames, ray_frames = jnp.asarray(_in_bucket(frames)), jnp.asarray(_in_bucket(looks.pairs.frames))
    shape = scene.detector.shape
    parts = [
        assign.screen(
            spot_frames,
            ray_frames,
            pairs[i : i + tile],
            entries[i : i + tile],
            *fixed,
            matrix,
            table,
            gain,
            loss,
            shape,
        )
        for i in range(0, len(pairs), tile)
    ]
    score = np.concatenate([np.asarray(part) for part in parts])[: len(pair)]
    keep = np.flatnonzero(score > gain)
    if len(keep) > _KEPT:
        keep = keep[np.argpartition(-score[keep], _KEPT)[:_KEPT]]
    if not len(keep):
        return np.empty(0), np.empty((0, 3, 3)), np.empty((0, 2), np.int64)
    u = frames[pair[keep]] @ np.swapaxes(looks.pairs.frames[entry[keep]], 1, 2)
    tile = 256 if len(keep) <= 512 else _KEPT
    padded = np.concatenate([u, np.repeat(u[-1:], -len(u) % tile, 0)])
    fixed = [jnp.asarray(a) for a in (looks.directions, looks.least_sine)]
    parts = [
        assign.screen_all(padded[i : i + tile], *fixed, matrix, table, gain, loss, shape)
        for i in range(0, len(padded), tile)
    ]
    score = np.concatenate([np.asarray(part) for part in parts])[: len(u)]
    order = np.argsort(-score, kind="stable")
    order = order[score[order] > 2 * gain]
    which = pair[keep[order]] % len(spots.first)
    both = np.stack([anchors[spots.first[which]], anchors[spots.second[which]]], 1)
    return score[order].astype(np.float64), u[order].astype(np.float64), both


class Queue:
    """Candidate orientations of one material, best first, until they are tried or ruled out."""

    def __init__(
        self,
        which: int,
        crystal: propose.Crystal,
        score: Float[np.ndarray, " k"],
        u: Float[np.ndarray, "k 3 3"],
        both: Int[np.ndarray, "k 2"],
    ) -> None:
        self.which, self.crystal, self.score, self.u, self.both = which, crystal, score, u, both
        self.alive: Bool[np.ndarray, " k"] = np.ones(len(score), bool)
        self.failures = 0

    @property
    def head(self) -> float:
        """The score of the next candidate; minus infinity when there is none."""
        return float(self.score[np.argmax(self.alive)]) if self.alive.any() else -np.inf

    def pop(self) -> Float[np.ndarray, "3 3"]:
        """The next orientation; all that are the same by symmetry, within `_APART`, go with it."""
        first = int(np.argmax(self.alive))
        equivalent = (self.u[first] @ self.crystal.rotations).reshape(-1, 9)
        rest = np.flatnonzero(self.alive)
        trace = (self.u[rest].reshape(-1, 9) @ equivalent.T).max(1)
        self.alive[rest[trace > 1 + 2 * np.cos(np.radians(_APART))]] = False
        self.alive[first] = False
        return self.u[first]

    def rule_out(self, owner: Int[np.ndarray, " n"]) -> None:
        """Drop what comes from spots that are explained."""
        self.alive &= (owner[self.both] < 0).all(1)
