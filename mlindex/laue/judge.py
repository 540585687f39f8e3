"""How much better than chance a grain explains the spots, in nats, and how much is enough.

Each ray that should be seen is a trial. By chance a spot lies at a distance d of it with the local density of spots;
under the hypothesis it is seen with probability p, and then d follows the error of the positions. So a ray counts
ln(1 - p + p f(d) / density), where f is the density of the error, and ln(1 - p) where there is no spot near. Weak rays
fall below the threshold of detection, so p is taken as constant over the strongest n rays and as another constant
beyond; n and the two are those that serve the grain best, which costs the logarithm of how many n were tried. The
matching rate of all rays plays no part.

Chance is not the only rival. The pattern of a crystal of another kind is no cloud of independent points: two lattices
in a special orientation share directions, whole zones of them, far beyond chance, and two cubic lattices share them
all. Four signs tell such a grain from a true one: of its strongest rays many are missing (`coverage`); spots lie where
its own reflections are extinct, or where they would need more than the highest energy (`betrayed`); its spots end
well below that energy (`ends_early`: copper as silicon, whose cell is half as long again); and it must be strained
more than a crystal bears. Two crystals of one structure whose cells differ by a few per cent (silicon, germanium) have
the same white-beam pattern, and nothing tells them apart.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray

_BLOCKS = 8  # of the density map, a side
_PRIOR_BLOCKS = 1.0  # weight of the mean density, in blocks
_TAIL, _TAIL_WIDTH = 0.1, 3.0  # share and width (in sigma) of the badly measured spots
_CUTS = 12
_EARLY, _DARK, _ENDS = 1.35, 0.05, 4.0  # how far below the highest energy, the share still seen beyond, nats


class Density(NamedTuple):
    """Spots a square pixel, in `_BLOCKS` x `_BLOCKS` blocks of the detector (rows along Y)."""

    blocks: NDArray[np.float64]
    size: NDArray[np.float64]


def spot_density(xy: Float[np.ndarray, "n 2"], size: Float[np.ndarray, 2]) -> Density:
    """The density of the spots, drawn towards its mean where there are few."""
    at = np.clip((xy - 0.5) / size * _BLOCKS, 0, _BLOCKS - 1).astype(int)
    counts = np.bincount(at[:, 1] * _BLOCKS + at[:, 0], minlength=_BLOCKS**2).reshape(_BLOCKS, _BLOCKS)
    padded = np.pad(counts, 1, mode="reflect")
    smooth = sum(padded[i : i + _BLOCKS, j : j + _BLOCKS] for i in range(3) for j in range(3)) / 9
    mean = max(len(xy), 1) / _BLOCKS**2
    return Density((smooth + _PRIOR_BLOCKS * mean) / (1 + _PRIOR_BLOCKS) * _BLOCKS**2 / np.prod(size), size)


def density_at(density: Density, xy: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, " n"]:
    """Spots a square pixel around each of the positions."""
    at = np.clip((xy - 0.5) / density.size * _BLOCKS, 0, _BLOCKS - 1).astype(int)
    return density.blocks[at[:, 1], at[:, 0]]


def error_density(distance: Float[np.ndarray, " n"], sigma: float) -> Float[np.ndarray, " n"]:
    """The density (1/px^2) of a spot at a distance (px, infinite for none) from its prediction."""
    narrow = np.exp(-(distance**2) / (2 * sigma**2)) / sigma**2
    wide = np.exp(-(distance**2) / (2 * (_TAIL_WIDTH * sigma) ** 2)) / (_TAIL_WIDTH * sigma) ** 2
    return ((1 - _TAIL) * narrow + _TAIL * wide) / (2 * np.pi)


def log_likelihood_ratio(
    distance: Float[np.ndarray, " n"],
    taken: Bool[np.ndarray, " n"],
    density: Float[np.ndarray, " n"],
    sigma: float,
) -> float:
    """ln of the likelihood of a grain against chance; rays are in order of their expected intensity, strongest first.

    `distance` (px) to the nearest spot, infinite for none; a ray whose spot is `taken` by another grain counts
    nothing, for the spot hides what is there.
    """
    open_ = ~taken
    ratio = error_density(distance[open_], sigma) / density[open_]
    n = len(ratio)
    if not n:
        return 0.0
    hit = ratio > 1.0
    best = -np.inf
    for cut in np.unique(np.geomspace(min(8, n), n, _CUTS).astype(int)):
        value = 0.0
        for part, low, high in ((slice(0, cut), 0.2, 0.97), (slice(cut, n), 0.001, 0.97)):
            inside = ratio[part]
            if len(inside):
                p = np.clip((hit[part].sum() + 0.5) / (len(inside) + 1), low, high)
                value += float(np.log1p(p * (inside - 1)).sum())
        best = max(best, value)
    return best - np.log(_CUTS)


def coverage(hit: Bool[np.ndarray, " n"], least: int = 16) -> float:
    """The share of rays that are seen among the strongest n, for the best n that has room for all hits.

    `hit` is in order of expected intensity, strongest first; n is not below `least` nor below the number of hits. A
    weak grain shows its strongest rays, and a grain of another kind shows some of all.
    """
    if not len(hit):
        return 0.0
    count = np.arange(1, len(hit) + 1)
    share = np.cumsum(hit) / (count + 0.5)
    return float(share[min(max(least, int(hit.sum())), len(hit)) - 1 :].max())


def betrayed(seen: int, elsewhere: int, expected: float, share: float) -> bool:
    """Whether spots lie where the grain can have none: `elsewhere` of them, `expected` by chance, beside its `seen`.

    They must be beyond chance, and at least `share` of the spots that the grain explains.
    """
    return bool(elsewhere > expected + 3 * np.sqrt(expected) + 1.5 and elsewhere - expected > share * seen)


def ends_early(hit: Bool[np.ndarray, " n"], energy: Float[np.ndarray, " n"], highest: float) -> bool:
    """Whether the spots of a grain end at an energy far below the `highest` (keV) of the band.

    `hit` of its rays, strongest first, and the `energy` of their lowest order in the band. Two models explain the hits
    among the strongest rays, half as many again as there are hits: the stronger are seen with one probability and the
    weaker with another, as of any grain; or those below some energy with one, and next to none beyond. Copper taken for
    silicon is the second case, and so is a beam that ends a third below the band that is asked for.
    """
    n = min(len(hit), max(20, int(1.5 * hit.sum())))
    if not n:
        return False
    hit, energy = hit[:n], energy[:n]
    order = np.argsort(energy, kind="stable")
    by_strength, by_energy = _split(hit, 1.0), _split(hit[order], _DARK)
    end = int(np.argmax(by_energy))
    return bool(by_energy[end] > by_strength.max() + _ENDS and energy[order][end] < highest / _EARLY)


def _split(hit: Bool[np.ndarray, " n"], most: float) -> Float[np.ndarray, " n"]:
    """Log-likelihood of hits that come with one probability up to each place, and with at most `most` beyond it."""
    below, rays = np.cumsum(hit.astype(np.float64)), np.arange(1.0, len(hit) + 1)
    beyond, rest = below[-1] - below, len(hit) - rays
    share = np.clip(beyond / np.maximum(rest, 1), 1e-3, most)
    return _binomial(below, rays, below / rays) + _binomial(beyond, rest, share)


def _binomial(
    k: Float[np.ndarray, " n"], n: Float[np.ndarray, " n"], p: Float[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """Log-likelihood of k successes in n trials at p, but for the number of their orders."""
    p = np.clip(p, 1e-9, 1 - 1e-9)
    return k * np.log(p) + (n - k) * np.log1p(-p)
