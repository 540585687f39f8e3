"""Training of the assignment networks: lists sampled on the fly, cells moved by four noise levels, cross entropy.

A list is drawn with its cell from the training families; the cell is then moved, each element of the metric by the
noise level times itself (off the diagonal, times sqrt(g_ii g_jj)), anew in every step; the network sees the differences
of the lines to the moved cell and is told which reflection each line is. All levels are trained at once. Lists are
clean, dirty and serial in equal parts, so that the networks learn that a line may be none of the nearest; impurity
lines and lines beyond the reference list have no weight in the loss.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray
from numpy.typing import NDArray

from mlindex.crystal.lattice import BRAVAIS, SYSTEMS
from mlindex.crystal.reflections import line_key, reference_hkl
from mlindex.powder import assign_network, dataset
from mlindex.powder.assign_network import LEVELS, REFERENCE, Network
from mlindex.powder.ranking import ORDER
from mlindex.powder.templates import design

_ERRORS = (dataset.CLEAN, dataset.DIRTY, dataset.SERIAL)


@dataclass(frozen=True)
class Settings:
    """What a training does. `hidden`: sizes of the hidden layers; `published`: the network has the differences alone;
    `lists` a step; `rate` of Adam, falling as a cosine. With hidden layers a `rate` of 0.002 to 0.003 is right.

    The default has no hidden layer: widths and prior alone assign as many lines as any network that was tried.
    """

    hidden: tuple[int, ...] = ()
    published: bool = False
    steps: int = 150
    lists: int = 48
    rate: float = 2e-2
    seed: int = 0


def moved(
    key: PRNGKeyArray, x: Float[Array, "b p"], embed: Float[Array, "6 p"], project: Float[Array, "p 6"], noise: Any
) -> Float[Array, "b p"]:
    """Free parameters off by a relative `noise`, normal, as `assign_network.reach` says for each element."""
    size = jnp.abs(assign_network.reach(x @ embed.T) @ project.T)
    return x + noise * size * jax.random.normal(key, x.shape)


def labels(hkl: Int[Array, "b n 3"], keys: Int[Array, "m p"], bravais: str) -> Int[Array, "b n"]:
    """The index of each reflection in the reference list with the given line keys; m where it is not in it."""
    own = line_key(hkl, BRAVAIS[bravais].system)
    same = jnp.all(own[:, :, None, :] == keys[None, None], -1)
    return jnp.where(jnp.any(same, -1), jnp.argmax(same, -1), len(keys))


def _batch(
    key: PRNGKeyArray, table: dataset.Table, lists: int, keys: Int[Array, "m p"], bravais: str, resample: bool
) -> tuple[dataset.Sample, Int[Array, "b n"], Float[Array, "b n"]]:
    """Lists of all error models, and label and weight of each line."""
    turn = jnp.arange(lists) % len(_ERRORS)
    errors = jax.tree.map(lambda *values: jnp.array(values)[turn], *_ERRORS)
    sample = dataset.sample(key, table, errors, count=lists, resample=resample, perturb=0.2 * resample)
    label = labels(sample.hkl, keys, bravais)
    weight = sample.weight * sample.genuine * (label < len(keys))
    return sample, jnp.minimum(label, len(keys) - 1), weight


def _scores(
    network: Network, x: Float[Array, "b p"], sample: dataset.Sample, rows: Float[Array, "m p"]
) -> Float[Array, "b n m"]:
    unit = jnp.max(sample.q2 * sample.weight, -1)
    unit = jnp.where(unit > 0, unit, 1.0)  # a list may have lost all its lines
    return jax.vmap(assign_network.logits, in_axes=(None, 0, 0, 0))(network, sample.q2, x @ rows.T, unit)


def train_lattice(
    entries: dataset.Entries,
    bravais: str,
    settings: Settings,
    progress: Callable[[int, float], None] | None = None,
) -> Network:
    """The trained network of one Bravais lattice, all levels stacked. Raises `InputError` without training entries."""
    table = dataset.table(entries, bravais, "train")
    system = SYSTEMS[BRAVAIS[bravais].system]
    hkl = reference_hkl(bravais, REFERENCE[system.n_free])
    keys = jnp.asarray(line_key(hkl, system.name), jnp.int32)
    rows = jnp.asarray(design(hkl, system.name), jnp.float32)
    embed, project = jnp.asarray(system.embed, jnp.float32), jnp.asarray(system.project, jnp.float32)
    root = jax.random.key(settings.seed)
    network = assign_network.initial(root, len(hkl), settings.hidden, published=settings.published)
    rule = optax.adam(optax.cosine_decay_schedule(settings.rate, settings.steps, 0.02))

    def loss(network: Network, key: PRNGKeyArray, noise: Any, sample: Any, label: Any, weight: Any) -> Any:
        x = moved(key, sample.x, embed, project, noise)
        each = optax.softmax_cross_entropy_with_integer_labels(_scores(network, x, sample, rows), label)
        return jnp.sum(weight * each) / jnp.maximum(jnp.sum(weight), 1)

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(network: Network, moments: Any, key: PRNGKeyArray) -> tuple[Network, Any, Array]:
        k_sample, k_noise = jax.random.split(key)
        sample, label, weight = _batch(k_sample, table, settings.lists, keys, bravais, True)

        def total(network: Network) -> Any:
            each = jax.vmap(loss, in_axes=(0, 0, 0, None, None, None))(
                network, jax.random.split(k_noise, len(LEVELS)), jnp.array(LEVELS), sample, label, weight
            )
            return jnp.sum(each)

        value, slope = jax.value_and_grad(total)(network)
        change, moments = rule.update(slope, moments, network)
        return optax.apply_updates(network, change), moments, value

    moments = rule.init(network)
    for i in range(settings.steps):
        network, moments, value = step(network, moments, jax.random.fold_in(root, i + 1))
        if progress is not None and (i + 1) % 50 == 0:
            progress(i + 1, float(value) / len(LEVELS))
    if not np.isfinite(float(value)):
        raise FloatingPointError(f"{bravais}: the loss is {float(value)}; a lower rate than {settings.rate} is needed")
    return network


def accuracy(
    network: Network, entries: dataset.Entries, bravais: str, which: str = "validation", *, lists: int = 300
) -> dict[str, list[float]]:
    """Share of lines whose most probable reflection is right, and the mean log probability of the right one, a level.

    Lists of the set `which` as they are, not augmented, cells moved by each level.
    """
    table = dataset.table(entries, bravais, which)
    system = SYSTEMS[BRAVAIS[bravais].system]
    hkl = reference_hkl(bravais, REFERENCE[system.n_free])
    keys = jnp.asarray(line_key(hkl, system.name), jnp.int32)
    rows = jnp.asarray(design(hkl, system.name), jnp.float32)
    embed, project = jnp.asarray(system.embed, jnp.float32), jnp.asarray(system.project, jnp.float32)

    @jax.jit
    def measured(network: Network, key: PRNGKeyArray) -> tuple[Array, Array]:
        sample, label, weight = _batch(key, table, lists, keys, bravais, False)

        def level(network: Network, key: PRNGKeyArray, noise: Any) -> tuple[Array, Array]:
            scores = _scores(network, moved(key, sample.x, embed, project, noise), sample, rows)
            right = jnp.argmax(scores, -1) == label
            each = -optax.softmax_cross_entropy_with_integer_labels(scores, label)
            return jnp.sum(weight * right) / jnp.sum(weight), jnp.sum(weight * each) / jnp.sum(weight)

        return jax.vmap(level)(network, jax.random.split(key, len(LEVELS)), jnp.array(LEVELS))

    right, mean = measured(network, jax.random.key(10_000))
    return {
        "right": np.asarray(right, float).round(4).tolist(),
        "log_probability": np.asarray(mean, float).round(3).tolist(),
    }


def train(
    entries: dataset.Entries,
    settings: Settings | None = None,
    *,
    lattices: Sequence[str] = ORDER,
    progress: Callable[[str], None] | None = None,
) -> tuple[dict[str, NDArray], dict[str, Any]]:
    """Weights of those of `lattices` that have training entries (float16, for `mlindex.learn.checkpoint.save`), and
    their card; figures where there are validation entries. Raises `FloatingPointError` for a rate too high."""
    settings = settings or Settings()
    arrays: dict[str, NDArray] = {}
    figures: dict[str, Any] = {}
    started = time.process_time()
    sets = set(zip(entries.bravais.tolist(), entries.set.tolist(), strict=True))
    for bravais in lattices:
        if (bravais, "train") not in sets:
            continue
        begun = time.process_time()
        network = train_lattice(entries, bravais, settings)
        arrays |= assign_network.to_arrays(network, bravais)
        stored = assign_network.from_arrays(arrays, bravais)
        figures[bravais] = accuracy(stored, entries, bravais) if (bravais, "validation") in sets else {}
        figures[bravais]["cpu_seconds"] = round(time.process_time() - begun, 1)
        if progress is not None:
            right = figures[bravais].get("right", "not measured, there is no crystal for it")
            progress(f"{bravais}: right {right}, {figures[bravais]['cpu_seconds']} s")
    card = {
        "command": "mlindex train powder DATA --only assign",
        "settings": asdict(settings),
        "levels": LEVELS,
        "set": "train",
        "data_sha256": entries.sha256(),
        "weights_sha256": hashlib.sha256(b"".join(arrays[name].tobytes() for name in sorted(arrays))).hexdigest(),
        "cpu_seconds": round(time.process_time() - started, 1),
        "validation": figures,
    }
    return arrays, card
