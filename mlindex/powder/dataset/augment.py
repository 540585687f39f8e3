"""Line lists sampled on the device as they are needed, so that no network sees the same list twice.

A sample is an entry drawn by its weight, its cell perturbed and scaled, its lines put where the new cell has them, some
of them seen, and the errors of an instrument. Which lines are seen: the entry's own observable ones, or (half of the
samples, and for a first list the paper's rule) a walk along all lines: the first by the distribution of first lines;
then a line within 0.1/1.5 degrees of the last seen one is not; one that overlaps the next is seen with probability
1/2, and if it is not the next is; any other with the fitted acceptance. Source: the write-up of ML-Index, section
2.1.5 and eq. 19.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray
from numpy.typing import NDArray

from mlindex.crystal.lattice import BRAVAIS, SYSTEMS, free_from_metric
from mlindex.crystal.metric import matrix_from_metric, products_from_hkl, q2_from_hkl
from mlindex.powder.dataset.acceptance import (
    SEPARATION,
    acceptance,
    first_shares,
    fitted_acceptance,
    with_odds,
)
from mlindex.powder.dataset.entries import Entries
from mlindex.powder.dataset.groups import groups
from mlindex.powder.dataset.lists import MARGIN
from mlindex.powder.dataset.observable import WAVELENGTH, tth_from_q2
from mlindex.powder.dataset.perturb import perturbed, spread
from mlindex.powder.dataset.split import FEWEST
from mlindex.records import InputError

WIDEST = 256  # lines of an entry on the device
FITTING = 0.97  # of the entries: the share that has all the lines that are wanted
SCALE = 0.3  # standard deviation of the logarithm of the volume of a perturbed cell, at perturb = 0.2
SHORT, LONG = 60.0, 120.0  # degrees 2theta between which a resampled pattern ends
STRANGERS = 8  # impurity lines of a sample at most
_CLEAR = 0.07  # degrees 2theta between an impurity line and the others
_TRIALS = 6


@jax.tree_util.register_static
class Lattice(str):
    """The name of a Bravais lattice, constant under `jit`."""

    __slots__ = ()


class Table(NamedTuple):
    """The entries of one Bravais lattice in one set, on the device.

    `x` (n, p): free parameters (1/angstrom^2). `hkl` (n, m, 3): the lines of each entry, ascending in q2; `valid`
    (n, m): which rows are lines; `observable` (n, m). `group` (n,): pattern of reflection conditions. `weight` (n,):
    1 / size of the family. `known` (n,): q2 up to which `observable` was decided, `reach` (n,): up to which the lines
    are complete. `steps` (p, p): spread of the cells; `law` (4,): acceptance; `first` (f,): cumulative shares of the
    position of the first seen line; all three from the training entries. `lattice`: its name; `row` (n,): the rows in
    the entries.
    """

    x: Float[Array, "n p"]
    hkl: Int[Array, "n m 3"]
    observable: Bool[Array, "n m"]
    valid: Bool[Array, "n m"]
    group: Int[Array, " n"]
    weight: Float[Array, " n"]
    known: Float[Array, " n"]
    reach: Float[Array, " n"]
    steps: Float[Array, "p p"]
    law: Float[Array, " k"]
    first: Float[Array, " f"]
    lattice: Lattice
    row: Int[Array, " n"]


class Errors(NamedTuple):
    """The errors of a list; each a number, or an array (b,), one a sample.

    `sigma`: standard deviation of 2theta (degrees). `zero`: the largest zero shift (degrees 2theta), uniform either
    way. `missing`: the share of lines that are lost. `impurities`: their mean number (Poisson, at most 8). `serial`:
    standard deviation of q2, constant and slope; (0, 0) for none.
    """

    sigma: Any = 0.0
    zero: Any = 0.0
    missing: Any = 0.0
    impurities: Any = 0.0
    serial: Any = (0.0, 0.0)


CLEAN = Errors(sigma=0.01)
DIRTY = Errors(sigma=0.01, zero=0.05, missing=0.2, impurities=2.0)
SERIAL = Errors(serial=(1e-4, 6e-4))


class Sample(NamedTuple):
    """Lists: `x` (b, p) free parameters; `q2` (b, n) as observed, ascending, and `hkl` (b, n, 3); `genuine` (b, n):
    not an impurity; `weight` (b, n): 1, or 0 for padding, which is at the end with q2 = 0 and hkl = 0; `entry` (b,):
    the row of the table."""

    x: Float[Array, "b p"]
    q2: Float[Array, "b n"]
    weight: Float[Array, "b n"]
    hkl: Int[Array, "b n 3"]
    genuine: Bool[Array, "b n"]
    entry: Int[Array, " b"]


def table(entries: Entries, bravais: str, set: str, *, lines: int = 24) -> Table:
    """The entries of a Bravais lattice in a set ("train", "validation", "test") for sampling lists of `lines` lines.

    Raises `InputError` where there are none.
    """
    here = entries.bravais == bravais
    index = np.flatnonzero(here & (entries.set == set))
    if not len(index):
        raise InputError(f"no entry of the lattice {bravais} is in the set {set}; give more crystals")
    train = np.flatnonzero(here & (entries.set == "train"))
    number = groups(entries).number
    rows = [_row(entries, int(i), lines) for i in index]
    width = int(np.ceil(np.quantile([len(hkl) for hkl, _, _ in rows], FITTING)))
    rows = [_cut(entries, int(i), row, width) for i, row in zip(index, rows, strict=True)]
    hkl = np.zeros((len(rows), width, 3), np.int8)
    observable, valid = np.zeros((2, len(rows), width), bool)
    for n, (listed, flags, _) in enumerate(rows):
        hkl[n, : len(listed)], observable[n, : len(listed)], valid[n, : len(listed)] = listed, flags, True
    _, family, size = np.unique(entries.family[index], return_inverse=True, return_counts=True)
    law, first = _seen_law(entries, train if len(train) else index, lines)
    free = free_from_metric(entries.g, BRAVAIS[bravais].system)
    return Table(
        x=jnp.asarray(free[index], jnp.float32),
        hkl=jnp.asarray(hkl),
        observable=jnp.asarray(observable),
        valid=jnp.asarray(valid),
        group=jnp.asarray(number[index]),
        weight=jnp.asarray(1 / size[family], jnp.float32),
        known=jnp.asarray(entries.known[index], jnp.float32),
        reach=jnp.asarray([reach for _, _, reach in rows], jnp.float32),
        steps=jnp.asarray(spread(free[train if len(train) else index]), jnp.float32),
        law=jnp.asarray(law, jnp.float32),
        first=jnp.asarray(first, jnp.float32),
        lattice=Lattice(bravais),
        row=jnp.asarray(index, jnp.int32),
    )


def _row(entries: Entries, i: int, lines: int) -> tuple[NDArray, NDArray, float]:
    """The lines of an entry that samples of `lines` lines may need, their flags, and the q2 to which they are all."""
    hkl, observable = entries.lines(i)
    q2 = q2_from_hkl(entries.g[i], hkl)
    seen = np.flatnonzero(observable)
    last = int(seen[min(lines, len(seen)) - 1]) if len(seen) else 0
    wanted = MARGIN * max(q2[last], q2[min(2 * lines, len(q2)) - 1])
    stop = min(int(np.searchsorted(q2, wanted)), WIDEST)
    large = np.flatnonzero(np.abs(hkl).max(1) > 127)  # of what an int8 holds
    stop = min(stop, int(large[0])) if len(large) else stop
    return _cut(entries, i, (hkl, observable, float(entries.complete[i])), stop)


def _cut(entries: Entries, i: int, row: tuple[NDArray, NDArray, float], stop: int) -> tuple[NDArray, NDArray, float]:
    hkl, observable, reach = row
    if stop < len(hkl):
        reach = float(q2_from_hkl(entries.g[i], hkl[stop : stop + 1])[0] * (1 - 1e-6))
    return hkl[:stop], observable[:stop], reach


def _seen_law(entries: Entries, train: NDArray, lines: int) -> tuple[NDArray, NDArray]:
    """The acceptance and the cumulative shares of first positions, from the first seen `lines` of some entries."""
    gaps, places, flags, owners, firsts = [], [], [], [], []
    for i in train:
        hkl, observable = entries.lines(int(i))
        q2 = q2_from_hkl(entries.g[i], hkl)
        inside = q2 <= entries.known[i] * (1 + 1e-9)
        if inside.sum() < 3 or not observable.any():
            continue
        q2, observable = q2[inside], observable[inside]
        tth = tth_from_q2(q2)
        apart = np.minimum(np.diff(q2, prepend=-np.inf), np.diff(q2, append=np.inf))
        alone = np.minimum(np.diff(tth, prepend=-np.inf), np.diff(tth, append=np.inf)) > SEPARATION
        first = int(np.argmax(observable))
        firsts.append(first)
        alone[: first + 1] = False
        alone &= np.cumsum(observable) - observable < lines
        gaps.append(apart[alone])
        places.append(q2[alone])
        flags.append(observable[alone])
        owners.append(np.full(int(alone.sum()), i))
    some = [np.concatenate(values) if values else np.zeros(0) for values in (gaps, places, flags, owners)]
    law = fitted_acceptance(some[0], some[1], some[2].astype(bool), some[3].astype(np.int64))
    return law, first_shares(np.array(firsts, np.int64))


def _tth(q2: Float[Array, "*n"]) -> Float[Array, "*n"]:
    return jnp.degrees(2 * jnp.arcsin(jnp.clip(jnp.sqrt(jnp.maximum(q2, 0)) * (WAVELENGTH / 2), 0, 1)))


def _q2(tth: Float[Array, "*n"]) -> Float[Array, "*n"]:
    return (2 / WAVELENGTH * jnp.sin(jnp.radians(jnp.clip(tth, 0, 180) / 2))) ** 2


def _walk(
    key: PRNGKeyArray,
    tth: Float[Array, "b m"],
    rho: Float[Array, "b m"],
    first: Int[Array, " b"],
    exists: Bool[Array, "b m"],
    overlap: Bool[Array, " b"],
) -> Bool[Array, "b m"]:
    """Which lines are seen, in the order of 2theta. `rho`: probability of a line alone; `overlap`: whether the rule
    of one half holds for lines that overlap the next."""
    b, m = tth.shape
    coin = jax.random.uniform(key, (m, b), tth.dtype)
    following = jnp.concatenate([tth[:, 1:], jnp.full((b, 1), jnp.inf, tth.dtype)], 1)
    close = (following - tth < SEPARATION) & overlap[:, None]

    def step(state: tuple, line: tuple) -> tuple:
        last, owed = state
        position, probability, near, there, u, index = line
        free = there & (position - last >= SEPARATION) & (index >= first)
        chance = jnp.where(index == first, 1.0, jnp.where(owed, 1.0, jnp.where(near, 0.5, probability)))
        taken = free & (u < chance)
        return (jnp.where(taken, position, last), free & near & ~taken), taken

    start = (jnp.full(b, -jnp.inf, tth.dtype), jnp.zeros(b, bool))
    lines = (tth.T, rho.T, close.T, exists.T, coin, jnp.arange(m))
    return jax.lax.scan(step, start, lines)[1].T


def _per_sample(value: Any, count: int) -> Float[Array, " b"]:
    return jnp.broadcast_to(jnp.asarray(value, jnp.float32), (count,))


@partial(jax.jit, static_argnames=("count", "lines", "resample"))
def sample(
    key: PRNGKeyArray,
    table: Table,
    errors: Errors,
    *,
    count: int,
    lines: int = 20,
    perturb: Any = 0.2,
    resample: bool = True,
    rows: Int[Array, " b"] | None = None,
) -> Sample:
    """`count` lists of at most `lines` lines. Pure and deterministic in `key`.

    `perturb`: standard deviations by which cells are moved (0: the cells as they are, nor scaled). `resample`: half of
    the samples, and all of entries with fewer than ten observable lines, take their lines by the acceptance; False
    keeps the entries' observable lines in all. `rows` (count,)
    chooses the rows of the table; None draws them by weight. Lists are cut where the entry's lines would no longer be
    complete in the new cell.
    """
    keys = jax.random.split(key, 13)
    share = jnp.cumsum(table.weight) / jnp.sum(table.weight)
    drawn = jnp.searchsorted(share, jax.random.uniform(keys[0], (count,)))
    entry = jnp.minimum(drawn, len(table.weight) - 1).astype(jnp.int32) if rows is None else rows.astype(jnp.int32)
    system = SYSTEMS[BRAVAIS[table.lattice].system]
    embed = jnp.asarray(system.embed, jnp.float32)

    # The cell: perturbed, then scaled, which changes no angle and no ratio
    old = table.x[entry]
    near = perturbed(keys[1], old, table.steps, perturb, table.lattice)
    scale = jnp.exp(-2 / 3 * SCALE * perturb / 0.2 * jax.random.normal(keys[2], (count,), jnp.float32))
    x = near * scale[:, None]
    hkl = table.hkl[entry].astype(jnp.int32)
    design = products_from_hkl(hkl).astype(jnp.float32) @ embed
    position = jnp.einsum("bmp,bp->bm", design, x)
    # Every line that is not listed has q2 of at least reach times the smallest stretch of q2
    complete = table.reach[entry] * _smallest_stretch(old, near, embed) * scale

    # Which lines are seen
    exists = table.valid[entry] & (position <= complete[:, None] * (1 + 1e-6))
    order = jnp.argsort(jnp.where(exists, position, jnp.inf), axis=1)
    position, exists, flags, hkl = (
        jnp.take_along_axis(a, order if a.ndim == 2 else order[:, :, None], axis=1)
        for a in (position, exists, table.observable[entry], hkl)
    )
    few = jnp.sum(table.observable, axis=1)[entry] < FEWEST
    resampled = (jax.random.bernoulli(keys[3], 0.5, (count,)) | few) & resample
    ordered = jnp.where(exists, position, jnp.inf)
    ahead = jnp.diff(ordered, append=jnp.full((count, 1), jnp.inf), axis=1)
    ahead = jnp.where(jnp.isnan(ahead), jnp.inf, ahead)
    behind = jnp.concatenate([jnp.full((count, 1), jnp.inf), ahead[:, :-1]], 1)
    level = jnp.exp(table.law[3] * jax.random.normal(keys[12], (count, 1), jnp.float32))
    chance = with_odds(acceptance(table.law, jnp.minimum(ahead, behind), position), level)
    rho = jnp.where(resampled[:, None], chance, flags)
    place = jnp.searchsorted(table.first, jax.random.uniform(keys[4], (count,)))
    first = jnp.where(resampled, place, -1)
    angle = _tth(position)
    end = jnp.where(few, LONG, jax.random.uniform(keys[5], (count,), jnp.float32, SHORT, LONG))[:, None]
    exists &= (angle < end) | ~resampled[:, None]
    seen = _walk(keys[6], jnp.where(exists, angle, jnp.inf), rho, first, exists, resampled)

    # What the instrument makes of them
    lost = jax.random.bernoulli(keys[7], _per_sample(errors.missing, count)[:, None], seen.shape)
    seen &= ~lost
    normal = jax.random.normal(keys[8], seen.shape, jnp.float32)
    constant, slope = (_per_sample(v, count)[:, None] for v in errors.serial)
    moved = position + normal * (constant + slope * position)
    shift = _per_sample(errors.zero, count) * jax.random.uniform(keys[9], (count,), jnp.float32, -1.0, 1.0)
    added = normal * _per_sample(errors.sigma, count)[:, None] + shift[:, None]
    observed = jnp.where(added == 0, moved, _q2(_tth(moved) + added))
    seen &= observed > 0
    strangers, present = _strangers(keys[10], keys[11], observed, seen, _per_sample(errors.impurities, count), lines)

    every = jnp.concatenate([jnp.where(seen, observed, jnp.inf), jnp.where(present, strangers, jnp.inf)], 1)
    chosen = jnp.argsort(every, axis=1)[:, :lines]
    q2 = jnp.take_along_axis(every, chosen, axis=1)
    kept = jnp.isfinite(q2)
    genuine = kept & (chosen < seen.shape[1])
    index = jnp.minimum(chosen, seen.shape[1] - 1)[:, :, None]
    listed = jnp.where(genuine[:, :, None], jnp.take_along_axis(hkl, index, axis=1), 0)
    return Sample(x, jnp.where(kept, q2, 0.0), kept.astype(jnp.float32), listed, genuine, entry)


def _smallest_stretch(
    old: Float[Array, "b p"], new: Float[Array, "b p"], embed: Float[Array, "6 p"]
) -> Float[Array, " b"]:
    """The smallest ratio of q2 in the new cell to q2 in the old one, over all directions."""
    before = jnp.linalg.cholesky(jax.vmap(matrix_from_metric)(old @ embed.T))
    turned = jax.scipy.linalg.solve_triangular(before, jax.vmap(matrix_from_metric)(new @ embed.T), lower=True)
    relative = jax.scipy.linalg.solve_triangular(before, jnp.swapaxes(turned, 1, 2), lower=True)
    return jnp.linalg.eigvalsh((relative + jnp.swapaxes(relative, 1, 2)) / 2)[:, 0]


def _strangers(
    number_key: PRNGKeyArray,
    place_key: PRNGKeyArray,
    observed: Float[Array, "b m"],
    seen: Bool[Array, "b m"],
    mean: Float[Array, " b"],
    lines: int,
) -> tuple[Float[Array, "b k"], Bool[Array, "b k"]]:
    """Impurity lines (q2), uniform in 2theta from half the first line to the last of the list, clear of the others."""
    b = len(observed)
    number = jax.random.poisson(number_key, mean, (b,))
    angle = _tth(jnp.where(seen, observed, jnp.inf))
    angle = jnp.where(seen, angle, jnp.inf)
    ranked = jnp.sort(angle, axis=1)
    count = jnp.sum(seen, axis=1)
    low = 0.5 * ranked[:, 0]
    high = jnp.take_along_axis(ranked, jnp.clip(count, 1, lines)[:, None] - 1, axis=1)[:, 0]
    u = jax.random.uniform(place_key, (b, STRANGERS * _TRIALS), jnp.float32)
    trial = low[:, None] + u * (high - low)[:, None]
    clear = jnp.min(jnp.abs(trial[:, :, None] - angle[:, None, :]), axis=2) > _CLEAR
    clear = clear.reshape(b, STRANGERS, _TRIALS)
    choice = jnp.argmax(clear, axis=2)[:, :, None]
    place = jnp.take_along_axis(trial.reshape(b, STRANGERS, _TRIALS), choice, axis=2)[:, :, 0]
    wanted = jnp.arange(STRANGERS)[None, :] < number[:, None]
    return _q2(place), wanted & jnp.any(clear, axis=2) & (count > 1)[:, None]
