"""Training of the learned proposals: networks and forests of all groups, from entries with lists made on the fly.

Every cycle has new lists: perturbed cells, resampled peaks, and errors of a diffractometer (alone, or with impurity
lines, a zero shift and missing lines) or of serial powders, in fixed shares. The forests grow on lists of their own.
Needs no device but a core; the same seed gives the same weights, unless the time ends the training before all steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from mlindex.crystal.lattice import BRAVAIS, SYSTEMS
from mlindex.crystal.metric import q2_from_hkl
from mlindex.learn import forest, variance
from mlindex.powder import proposals
from mlindex.powder.dataset.augment import CLEAN, DIRTY, SERIAL, Errors, Table, sample, table
from mlindex.powder.dataset.entries import Entries
from mlindex.powder.dataset.observable import WAVELENGTH
from mlindex.records import InputError

# Shares of the lists, and their errors: a good diffractometer, a pattern with dirt, serial powders
MIXTURE: tuple[tuple[float, Errors], ...] = ((0.5, CLEAN), (0.3, DIRTY), (0.2, SERIAL))
TREES = 80
_POOL = 3000  # lists of each network and cycle; the forests grow on twice as many
_PERTURBED = 0.2  # standard deviations of the cells, along each of their directions
_CYCLES, _STEPS = 5, 700
_SHORTEST = 5  # lines of a list
_ALIKE = 0.02  # standard deviation below which an output is as good as constant


def mixed_errors(count: int, mixture: tuple[tuple[float, Errors], ...] = MIXTURE) -> Errors:
    """The errors of `count` lists, those of each kind in their share, as arrays (count,)."""
    bounds = np.rint(count * np.cumsum([share for share, _ in mixture])).astype(np.int64)
    kind = np.searchsorted(bounds, np.arange(count), side="right").clip(0, len(mixture) - 1)
    every = [errors for _, errors in mixture]

    def column(values: list[float]) -> NDArray[np.float32]:
        return np.asarray(values, np.float32)[kind]

    return Errors(
        sigma=column([e.sigma for e in every]),
        zero=column([e.zero for e in every]),
        missing=column([e.missing for e in every]),
        impurities=column([e.impurities for e in every]),
        serial=(column([e.serial[0] for e in every]), column([e.serial[1] for e in every])),
    )


class Maker:
    """Lists of every group, made when they are asked for; `lattices` and `sizes` (entries) of the groups."""

    def __init__(self, entries: Entries, which: str) -> None:
        self.tables: list[Table] = []
        self.lattices: list[str] = []
        sizes = []
        for bravais in [b for b in BRAVAIS if np.any((entries.bravais == b) & (entries.set == which))]:
            found = table(entries, bravais, which)
            number = np.asarray(found.group)
            for group in np.unique(number):
                here = number == group
                # entries without weight are never drawn: the tables of a lattice share their shapes and a program
                self.tables.append(found._replace(weight=jnp.where(here, found.weight, 0.0)))
                self.lattices.append(bravais)
                sizes.append(int(here.sum()))
        self.sizes = np.array(sizes)

    def lists(self, key: Any, count: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Inputs (g, count, i) and outputs (g, count, o) of fresh lists, not scaled."""
        errors = mixed_errors(count)
        x = np.empty((len(self.tables), count, proposals.INPUTS), np.float32)
        y = np.empty((len(self.tables), count, proposals.OUTPUTS), np.float32)
        for group, one in enumerate(self.tables):
            made = sample(
                jax.random.fold_in(key, group), one, errors, count=count, lines=proposals.LINES, perturb=_PERTURBED
            )
            inputs, outputs = _pairs(made.x, made.q2, made.weight, self.lattices[group])
            enough = (np.asarray(made.weight).sum(1) >= _SHORTEST) & np.isfinite(outputs).all(1)
            if not enough.any():
                raise InputError(f"no list of {self.lattices[group]} has {_SHORTEST} lines; give other crystals of it")
            # lists that lost nearly all their lines give their place to others
            rows = np.flatnonzero(enough)[np.arange(count) % enough.sum()]
            rows = np.where(enough, np.arange(count), rows)
            x[group], y[group] = inputs[rows], outputs[rows]
        return x, y


def _pairs(x: Any, q2: Any, weight: Any, bravais: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Inputs and outputs of lists and the free parameters of their cells."""
    lattice = BRAVAIS[bravais]
    g = x @ SYSTEMS[lattice.system].embed.T.astype(np.float32)
    inputs, outputs = _pairs_on_device(g, q2, weight, jnp.float32(lattice.multiplicity))
    return np.asarray(inputs), np.asarray(outputs)


@jax.jit
def _pairs_on_device(g: Any, q2: Any, weight: Any, multiplicity: Any) -> tuple[Any, Any]:
    inputs, scale = proposals.inputs_from_q2(q2, weight)
    return inputs, proposals.outputs_from_metric(g, scale, multiplicity)


def _scaling(y: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and standard deviation of each input or output of each group; 1 where nothing varies."""
    scale = y.std(1)
    return y.mean(1), np.where(scale > 1e-4, np.maximum(scale, _ALIKE), 1.0).astype(np.float32)


def _weights(lattices: list[str]) -> NDArray[np.float32]:
    """1 for the outputs that the free parameters of a lattice are, and for the volume."""
    weight = np.zeros((len(lattices), proposals.OUTPUTS), np.float32)
    for row, bravais in zip(weight, lattices, strict=True):
        row[list(proposals.FREE[BRAVAIS[bravais].system])] = 1
        row[proposals.VOLUME] = 1
    return weight


def train(
    entries: Entries,
    set: str = "train",
    *,
    minutes: float = 20.0,
    seed: int = 0,
    cycles: int = _CYCLES,
    steps: int = _STEPS,
    pool: int = _POOL,
    trees: int = TREES,
    progress: Callable[[str], None] | None = None,
) -> tuple[dict[str, NDArray], dict[str, Any]]:
    """The arrays of the model and its card, as `proposals.model_from_arrays` takes them.

    `set` names the entries that are learnt from, `minutes` is the time that the networks and their lists may take, the
    forests not counted. Raises `InputError` for a group all of whose lists are too short.
    """
    say = progress or (lambda text: None)
    started = time.process_time()
    maker = Maker(entries, set)
    key = jax.random.key(seed)
    weight = _weights(maker.lattices)
    x, y = (
        np.concatenate(halves, 1)
        for halves in zip(*(maker.lists(jax.random.fold_in(key, n), pool) for n in (1, 2)), strict=True)
    )
    input_centre, input_scale = _scaling(x)
    output_centre, output_scale = _scaling(y)
    say(f"{len(maker.lattices)} groups, {time.process_time() - started:.0f} s")

    def scaled(x: Any, y: Any) -> tuple[Any, Any]:
        y = (y - output_centre[:, None]) / output_scale[:, None] * weight[:, None]
        return (x - input_centre[:, None]) / input_scale[:, None], y.clip(-8, 8)

    forests = []
    unscaled = scaled(x, y)[1]
    for group in range(len(maker.lattices)):
        forests.append(forest.grow(x[group], unscaled[group], trees=trees, seed=seed + group))
    say(f"forests grown, {time.process_time() - started:.0f} s")

    def pool_of(cycle: int) -> variance.Pool:
        made = scaled(*maker.lists(jax.random.fold_in(key, 3 + cycle), pool))
        say(f"cycle {cycle}: lists made, {time.process_time() - started:.0f} s")
        return variance.Pool(*made, weight)

    tenths = 0

    def told(share: float, loss: float) -> None:
        nonlocal tenths
        if int(10 * share) > tenths:
            tenths = int(10 * share)
            say(f"{share:.0%} done, loss {loss:.3f}, {time.process_time() - started:.0f} s")

    first = variance.initialised(jax.random.fold_in(key, 0), len(maker.lattices), proposals.INPUTS, proposals.OUTPUTS)
    done = variance.train(
        first,
        pool_of,
        cycles=cycles,
        steps=steps,
        minutes=minutes,
        seed=seed,
        progress=told,
    )
    share = np.zeros(len(maker.lattices))
    for bravais in {*maker.lattices}:
        mine = [i for i, b in enumerate(maker.lattices) if b == bravais]
        share[mine] = maker.sizes[mine] / maker.sizes[mine].sum()
    arrays = variance.arrays_of(jax.tree.map(np.asarray, done.networks))
    arrays |= {f"forests.{k}": v for k, v in forest.stacked(forests, proposals.OUTPUTS)._asdict().items()}
    arrays |= {
        "input_centre": input_centre,
        "input_scale": input_scale,
        "output_centre": output_centre,
        "output_scale": output_scale,
        "share": share.astype(np.float32),
    }
    card: dict[str, Any] = {
        "command": f"mlindex.powder.proposals_train.train(entries, {set!r}, minutes={minutes:g}, seed={seed})",
        "groups": maker.lattices,
        "entries": maker.sizes.tolist(),
        "set": set,
        "data_sha256": entries.sha256(),
        "seed": seed,
        "settings": {"minutes": minutes, "cycles": cycles, "steps": steps, "pool": pool, "trees": trees},
        "steps": done.steps,
        "cut": done.cut,
        "cpu_seconds": round(time.process_time() - started, 1),
    }
    card["validation"] = validated(proposals.model_from_arrays(arrays, card), entries, seed=seed)
    return arrays, card


def validated(
    model: proposals.Model,
    entries: Entries,
    *,
    set: str = "validation",
    seed: int = 0,
    count: int = 100,
) -> dict[str, dict[str, float | int]]:
    """How well the networks do on crystals that they have not seen, by lattice: observable lines, 0.01 degrees.

    `nll`: negative log-likelihood a list (nats, of the free parameters in units of their spread, groups by their
    shares); `volume`: standard deviation of ln(volume) about the networks' mean, against `volume_prior` before the
    list was seen; `inside99`: share of the lists whose volume lies in the networks' 99 % interval.
    """
    rng = np.random.default_rng(seed)
    chosen = []
    for bravais in dict.fromkeys(model.bravais):
        rows = np.flatnonzero((entries.bravais == bravais) & (entries.set == set))
        chosen.append(rng.permutation(rows)[:count])
    rows = np.concatenate(chosen)
    q2, weight = (np.zeros((len(rows), proposals.LINES), np.float32) for _ in range(2))
    for n, i in enumerate(rows):
        hkl, observable = entries.lines(int(i))
        true = q2_from_hkl(entries.g[i], hkl[observable])[: proposals.LINES]
        tth = 2 * np.arcsin(np.sqrt(true) * WAVELENGTH / 2) + np.radians(0.01) * rng.normal(size=len(true))
        q2[n, : len(true)], weight[n, : len(true)] = np.sort((2 / WAVELENGTH * np.sin(tth / 2)) ** 2), 1
    multiplicity = np.array([BRAVAIS[b].multiplicity for b in entries.bravais[rows]], np.float32)
    g = entries.g[rows].astype(np.float32)
    x, y = (np.asarray(a) for a in _pairs_on_device(g, q2, weight, multiplicity))
    arrays = model.arrays
    inputs = (jnp.asarray(x)[None] - arrays.input_centre[:, None]) / arrays.input_scale[:, None]
    posterior = jax.jit(variance.predict)(arrays.networks, inputs)
    target = (y[None] - arrays.output_centre[:, None]) / arrays.output_scale[:, None]
    likelihood = -np.asarray(jax.jit(variance.negative_log_likelihood)(target, posterior))
    students = [a[..., proposals.VOLUME] for a in _students(posterior, arrays)]
    out: dict[str, dict[str, float | int]] = {}
    for bravais in dict.fromkeys(model.bravais):
        here = np.flatnonzero(entries.bravais[rows] == bravais)
        if not len(here):
            continue
        mine = model.groups(bravais)
        share = model.share[mine] / model.share[mine].sum()
        places = np.array(proposals.FREE[BRAVAIS[bravais].system])
        joint = likelihood[np.ix_(mine, here, places)].sum(-1) + np.log(share)[:, None]
        volume = y[here, proposals.VOLUME]
        inside = 0
        for row, true in zip(here, volume, strict=True):
            mixture = proposals.Mixture(share, *(a[mine, row].astype(np.float64) for a in students))
            low, high = mixture.quantiles(np.array([0.005, 0.995]))
            inside += int(low <= true <= high)
        mean = (share[:, None] * students[0][np.ix_(mine, here)]).sum(0)
        out[bravais] = {
            "lists": len(here),
            "nll": round(float(-np.logaddexp.reduce(joint, axis=0).mean()), 3),
            "volume": round(float((volume - mean).std()), 3),
            "volume_prior": round(float(volume.std()), 3),
            "inside99": round(inside / len(here), 3),
        }
    return out


def _students(posterior: variance.Posterior, arrays: proposals.Arrays) -> tuple[NDArray, NDArray, NDArray]:
    """Location, width and degrees of freedom of the outputs (g, n, o), not scaled."""
    scale = np.asarray(arrays.output_scale)[:, None]
    location = np.asarray(posterior.mu) * scale + np.asarray(arrays.output_centre)[:, None]
    return location, np.sqrt(np.asarray(posterior.beta / posterior.alpha)) * scale, 2 * np.asarray(posterior.alpha)
