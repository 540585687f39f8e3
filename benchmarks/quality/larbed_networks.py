"""The two networks of J. Chen's thesis, which invert LARBED patterns, on its own cases: R factor and thickness.

    python benchmarks/quality/larbed_networks.py --json out.json
    python benchmarks/quality/larbed_networks.py --cases SrTiO3-1 --channels 64 --inputs 0     # the thesis' sizes

Source: J. Chen, Application of Deep Learning Method in analyzing Electron Diffraction Data, master's thesis, Humboldt
University of Berlin (2022). From the intensities I of a pattern a network says [Re U_g, Im U_g, t / 1000 A], U_g in
1/A^2. Training: 100 patterns (40 more for the loss on others), MSE, Adam at 1e-3, batches of 20, 20 epochs for the CNN
and 30 for the ANN. R = sum |I - I_said| / sum I, I_said the pattern that follows from what a network says.

`deviation` (section 3.3.1): U_g + s |U_g| (a + ib) with a, b uniform within +-1 and the thickness within 3 nm of the
truth, s doubled from 0.01 until R reaches 0.5; the weights go on from one s to the next. `scale` is the largest
s with R below 0.3 and all |U| below 0.2. `mean` is the same for an answer that does not look at the pattern, the mean
of the training vectors: it is near the truth by construction, which is what this experiment is worth.

`iterative` (3.3.2): from 100 random patterns, U within +-0.2, t 5 to 100 nm, the origin such that two U of low order
have phase 0. In each of 100 rounds what the network says of the measured pattern, off by up to s |U_g| with
s = 5 x 0.99^round and by up to 3 nm, replaces one pattern, and 5 epochs follow. `R` is the least of all rounds, `t`
what was said there; it is chosen with the measured pattern alone. `empty` is the R of no crystal at all, U = 0.

Where this differs from the thesis: U_g are all distinct differences of two beams (41 for 13 beams, 81 for 25), because
the patterns follow from all of them, and one of g and -g is in the vector; the thesis has one U a beam. ResNet-50 has
random weights (see `Residual`) and a quarter of its channels (--channels), and the ANN gets some tilts (--inputs).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script, from anywhere

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from mlindex.bloch.beams import Geometry, differences
from mlindex.bloch.judge import r_factor
from mlindex.bloch.propagate import intensities
from mlindex.bloch.simulate import THICKNESS, random_u

TRAIN, TEST, BATCH, RULE = 100, 40, 20, optax.adam(1e-3)
EPOCHS, AGAIN = {"CNN": 20, "ANN": 30}, 5  # first training; in each round
FIRST, LAST, FAILED, RIGHT, LARGEST = 0.01, 40.96, 0.5, 0.3, 0.2  # deviation: s, s, R, R, 1/A^2
START, SHRINK = 5.0, 0.99  # iterative: s, and its factor a round
AWAY = 30.0  # A, "a few nm" in both experiments
PIXELS = 70  # of an image, as in the thesis (section 3.2.1)
Draw = tuple[np.ndarray, float]  # U (1/A^2) at Geometry.dhkl and thickness (A)

# Tables 4.2 and 4.4: R, t (nm), s of the CNN, then of the ANN; deviation scales of both
PUBLISHED = {
    "SrTiO3-1": ((0.303, 55.5, 1127), (0.423, 52.4, 952), (5.12, 5.12)),
    "SrTiO3-2": ((0.197, 36.8, 1174), (0.219, 52.9, 1064), (5.12, 5.12)),
    "SrTiO3-3": ((0.215, 55.9, 1223), (0.176, 51.3, 1729), (5.12, 5.12)),
    "SrTiO3-4": ((0.397, 55.6, 1891), (0.353, 55.4, 2271), (5.12, 5.12)),
    "SrTiO3-5": ((0.515, 53.0, 1737), (0.510, 51.7, 3411), (5.12, 5.12)),
    "SrTiO3-6": ((0.221, 48.6, 2071), (0.177, 47.5, 4881), (5.12, 1.28)),
    "SrTiO3-7": ((0.199, 48.3, 2027), (0.169, 49.3, 4234), (5.12, 5.12)),
    "SrTiO3-8": ((0.505, 47.7, 1554), (0.479, 48.6, 1658), (5.12, 5.12)),
    "SrTiO3-9": ((0.301, 55.5, 1630), (0.262, 55.1, 2561), (5.12, 5.12)),
    "SrTiO3-10": ((0.630, 51.6, 2771), (0.711, 55.6, 10459), (5.12, 5.12)),
    "ZnO-1": ((0.495, 47.2, 1424), (0.531, 46.8, 3317), (10.24, 10.24)),
    "ZnO-2": ((0.666, 52.3, 3122), (0.713, 54.2, 6293), (10.24, 2.56)),
}


@dataclass(frozen=True, eq=False)
class Case:
    """A measured pattern (tilts, beams), its truth (u at `geometry.dhkl` in 1/A^2, thickness in A), how it is shown.

    `pixel` (tilts, beams): where each intensity is in the flat square image of `side` pixels, a disc of tilts a beam.
    `kept`: the tilts that the ANN gets.
    """

    name: str
    geometry: Geometry
    observed: np.ndarray
    u: np.ndarray
    thickness: float
    pixel: np.ndarray
    side: int
    kept: np.ndarray

    def said(self, vector: np.ndarray) -> Draw:
        """U (1/A^2), which is Hermitian with U_0 = 0, and the thickness (A) of a vector."""
        half = len(self.u) // 2
        u = vector[:half] + 1j * vector[half : 2 * half]
        return np.concatenate([u[::-1].conj(), [0], u]), float(np.clip(1e3 * vector[-1], *THICKNESS))

    def vector(self, u: np.ndarray, thickness: float) -> np.ndarray:
        """[Re U, Im U, t / 1000 A] of one of each g and -g."""
        half = u[len(u) // 2 + 1 :]
        return np.concatenate([half.real, half.imag, [thickness / 1e3]])

    def r_of(self, vector: np.ndarray) -> float:
        """R of what a vector says, against the measured pattern."""
        return r_factor(self.observed, sample(self, [self.said(vector)])[0][0])

    def images(self, patterns: np.ndarray) -> np.ndarray:
        """(k, 70, 70, 1) of patterns (k, tilts, beams)."""
        flat = np.zeros((len(patterns), self.side**2), np.float32)
        flat[:, self.pixel.ravel()] = patterns.reshape(len(patterns), -1)
        shape = len(patterns), PIXELS, PIXELS, 1
        return np.asarray(jax.image.resize(flat.reshape(-1, self.side, self.side, 1), shape, "linear"))


def read_case(name: str, data: Path, inputs: int) -> Case:
    """The case of that name; the ANN gets every k-th tilt in both directions, k the least that leaves `inputs`."""
    with np.load(data / "bloch" / f"{name}_thesisformula_lobato.npz") as file:
        hkl, kt, ij = file["hkl"], file["kt"], file["ij"]
        g = np.pad(file["g"], ((0, 0), (0, 1)))  # the zero-order zone
        geometry = Geometry(hkl, g, kt, 1 / float(file["wavelength"]), *differences(hkl))
        observed, u, thickness = file["I"], file["U_d"], float(file["thickness_A"])
    u = np.where(geometry.dhkl.any(1), u, 0)  # U_0 is a common phase
    shortest = np.linalg.norm(g[g.any(1)], axis=1).min()
    at = np.rint(g[:, :2] / shortest * (2 * np.abs(ij).max() + 1)).astype(int) + ij[:, None]  # (tilts, beams, 2)
    at, side = at - at.min((0, 1)), int(np.ptp(at, (0, 1)).max()) + 1
    every = (np.all(ij % step == 0, 1) for step in range(1, len(ij)))
    kept = next(kept for kept in every if not inputs or kept.sum() * len(hkl) <= inputs)
    return Case(name, geometry, observed, u, thickness, at[..., 0] * side + at[..., 1], side, kept)


def unique(u: np.ndarray, geometry: Geometry) -> np.ndarray:
    """The same pattern with the phases of the two shortest differences that are not parallel at 0 (section 3.1.2).

    `mlindex.bloch.judge.with_origin` takes the strong ones of each pattern instead, so that what is said of two like
    patterns may differ in origin; a network needs the same two always.
    """
    one, *others = np.argsort(np.linalg.norm(geometry.g, axis=1), kind="stable")[1:]  # without 000
    two = next(i for i in others if np.cross(geometry.hkl[one], geometry.hkl[i]).any())
    parts = np.linalg.lstsq(geometry.hkl[[one, two]].T.astype(float), geometry.dhkl.T.astype(float), rcond=None)[0].T
    phase = np.angle([u[geometry.index[i, geometry.origin]] for i in (one, two)])
    return u * np.exp(-1j * (parts @ phase))


def deviated(rng: np.random.Generator, case: Case, u: np.ndarray, thickness: float, scale: float) -> Draw:
    """Hermitian U, each off by up to `scale` |U| in its real and in its imaginary part, and a thickness (A)."""
    away = scale * np.abs(u) * random_u(rng, case.geometry.dhkl, 1.0)
    return u + away, float(np.clip(thickness + rng.uniform(-AWAY, AWAY), *THICKNESS))


def dense(widths: Sequence[int], rngs: nnx.Rngs) -> nnx.Sequential:
    """Dense layers of the given widths, each followed by tanh."""
    start = nnx.initializers.glorot_uniform()
    layers = [nnx.Linear(a, b, kernel_init=start, rngs=rngs) for a, b in pairwise(widths)]
    return nnx.Sequential(*(part for layer in layers for part in (layer, jnp.tanh)))


def normed(into: int, out: int, size: int, stride: int, rngs: nnx.Rngs) -> nnx.Sequential:
    """A convolution without bias and a batch normalisation."""
    start = nnx.initializers.he_normal()
    conv = nnx.Conv(into, out, (size, size), stride, use_bias=False, kernel_init=start, rngs=rngs)
    return nnx.Sequential(conv, nnx.BatchNorm(out, momentum=0.0, rngs=rngs))


class Bottleneck(nnx.Module):
    """x + (1x1, 3x3, 1x1 convolutions of x), He et al., CVPR (2016) 770."""

    def __init__(self, into: int, middle: int, stride: int, rngs: nnx.Rngs):
        one, two = normed(into, middle, 1, stride, rngs), normed(middle, middle, 3, 1, rngs)
        self.path = nnx.Sequential(one, nnx.relu, two, nnx.relu, normed(middle, 4 * middle, 1, 1, rngs))
        self.short = normed(into, 4 * middle, 1, stride, rngs) if stride > 1 or into != 4 * middle else None

    def __call__(self, x: Any) -> Any:
        return nnx.relu(self.path(x) + (x if self.short is None else self.short(x)))


class Residual(nnx.Module):
    """ResNet-50 without its last layer: images (k, 70, 70, 1) to features (k, 3 x 3 x 32 `channels`).

    Its weights are random and stay so; the normalisations have the statistics of the random patterns. That is a
    stand-in for the weights of ImageNet, which are nowhere in this project. The thesis has 64 channels, three equal
    inputs (with random weights the same as one), and flattens 3 x 3 x 2048: its 58,849,583 trained weights for 191
    targets are those of dense layers of 18432, 16 n, 4 n, n, n.
    """

    def __init__(self, channels: int, rngs: nnx.Rngs):
        self.first, self.blocks, into = normed(1, channels, 7, 2, rngs), nnx.List([]), channels
        for stage, number in enumerate((3, 4, 6, 3)):
            for i in range(number):
                self.blocks.append(Bottleneck(into, channels * 2**stage, 2 if stage and i == 0 else 1, rngs))
                into = 4 * channels * 2**stage

    def __call__(self, x: Any) -> Any:
        x = nnx.max_pool(nnx.relu(self.first(x)), (3, 3), (2, 2), "SAME")
        for block in self.blocks:
            x = block(x)
        return x.reshape(len(x), -1)


class Network:
    """A network with its state of training, and what it sees of patterns."""

    def __init__(self, kind: str, case: Case, patterns: np.ndarray, channels: int, seed: int):
        """`patterns`: the random ones, for the statistics of the residual network."""
        rngs, n = nnx.Rngs(seed), len(case.u)  # as long as a vector: t is there instead of U_0
        self.kind, self.case, self.seed, self.calls = kind, case, seed, 0
        if kind == "ANN":
            inputs = int(case.kept.sum()) * len(case.geometry.hkl)
            widths = [inputs, 2 * inputs // 3, inputs // 3, n, n]
        else:
            frozen = Residual(channels, rngs)
            frozen(jnp.asarray(case.images(patterns)))  # as in training: takes the statistics
            frozen.eval()
            self.frozen = nnx.split(frozen)
            widths = [9 * 32 * channels, 16 * n, 4 * n, n, n]
        self.definition, self.weights = nnx.split(dense(widths, rngs))
        self.moments = RULE.init(self.weights)
        self.trained = int(sum(leaf.size for leaf in jax.tree.leaves(self.weights)))

    def inputs(self, patterns: np.ndarray) -> Any:
        """What the dense layers get of patterns (k, tilts, beams)."""
        if self.kind == "ANN":
            return jnp.asarray(patterns[:, self.case.kept].reshape(len(patterns), -1), jnp.float32)
        images = self.case.images(patterns)
        parts = [jnp.asarray(images[k : k + BATCH]) for k in range(0, len(images), BATCH)]
        return jnp.concatenate([_answer(*self.frozen, part) for part in parts])

    def train(self, x: Any, y: Any, epochs: int) -> float:
        """The mean loss of the last epoch."""
        self.calls += 1
        key = jax.random.key(1000 * self.seed + self.calls)
        self.weights, self.moments, loss = _epochs(self.definition, self.weights, self.moments, x, y, key, epochs)
        return float(loss)

    def __call__(self, x: Any) -> np.ndarray:
        """Vectors of inputs."""
        return np.asarray(_answer(self.definition, self.weights, x), np.float64)


@partial(jax.jit, static_argnums=0)
def _answer(definition: Any, weights: Any, x: Any) -> Any:
    """Outputs of a network."""
    return nnx.merge(definition, weights)(x)


@partial(jax.jit, static_argnums=(0, 6), donate_argnums=(1, 2))
def _epochs(definition: Any, weights: Any, moments: Any, x: Any, y: Any, key: Any, epochs: int) -> tuple[Any, Any, Any]:
    """Weights, moments and the mean loss of the last epoch; every pattern is seen once in each."""

    def loss(weights: Any, rows: Any) -> Any:
        return jnp.mean((nnx.merge(definition, weights)(x[rows]) - y[rows]) ** 2)

    def step(state: Any, rows: Any) -> Any:
        weights, moments = state
        value, gradient = jax.value_and_grad(loss)(weights, rows)
        change, moments = RULE.update(gradient, moments, weights)
        return (optax.apply_updates(weights, change), moments), value

    order = jax.vmap(lambda k: jax.random.permutation(k, len(x)))(jax.random.split(key, epochs))
    state, losses = jax.lax.scan(step, (weights, moments), order.reshape(-1, BATCH))
    return *state, losses.reshape(epochs, -1)[-1].mean()


def sample(case: Case, draws: Iterable[Draw]) -> tuple[np.ndarray, np.ndarray]:
    """Patterns and vectors of (U, thickness)."""
    made = [(intensities(u, case.geometry, t), case.vector(u, t)) for u, t in draws]
    return np.array([pattern for pattern, _ in made]), np.array([vector for _, vector in made])


def random_set(case: Case, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Patterns and vectors of random U with the origin of `unique`."""
    rng, at = np.random.default_rng([seed, 0]), case.geometry
    draws = ((unique(random_u(rng, at.dhkl), at), float(rng.uniform(*THICKNESS))) for _ in range(TRAIN + TEST))
    return sample(case, draws)


@lru_cache(maxsize=16)
def deviation_set(case: Case, scale: float, seed: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Patterns and vectors about the truth, the same for both networks, and the CPU seconds that they took."""
    started, rng = time.process_time(), np.random.default_rng([seed, 1, round(scale / FIRST)])
    made = sample(case, (deviated(rng, case, case.u, case.thickness, scale) for _ in range(TRAIN)))
    return *made, time.process_time() - started


def deviation(network: Network, seed: int) -> dict[str, Any]:
    """The first experiment: R by scale of the deviation, and CPU seconds."""
    case, seen = network.case, network.inputs(network.case.observed[None])
    scale, seconds, rows = FIRST, 0.0, []
    while scale <= LAST:
        patterns, vectors, took = deviation_set(case, scale, seed)
        started = time.process_time()
        loss = network.train(network.inputs(patterns), jnp.asarray(vectors, jnp.float32), EPOCHS[network.kind])
        vector = network(seen)[0]
        u, thickness = case.said(vector)
        row = {"scale": scale, "r": case.r_of(vector), "t": thickness / 10, "u": float(np.abs(u).max()), "loss": loss}
        rows.append(row | {"mean": case.r_of(vectors.mean(0))})
        seconds += took + time.process_time() - started
        if row["r"] >= FAILED:
            break
        scale *= 2
    right = max((row["scale"] for row in rows if row["r"] < RIGHT and row["u"] < LARGEST), default=0.0)
    mean, r = max((row["scale"] for row in rows if row["mean"] < RIGHT), default=0.0), [row["r"] for row in rows]
    return {"scale": right, "mean_scale": mean, "r": min(r), "worst": max(r), "cpu_seconds": seconds, "rows": rows}


def iterative(network: Network, patterns: np.ndarray, vectors: np.ndarray, rounds: int, seed: int) -> dict[str, Any]:
    """The second experiment: R, thickness (nm) and loss by round; the last 40 patterns are for `test_loss`."""
    case, rng = network.case, np.random.default_rng([seed, 2])
    seen, every = network.inputs(case.observed[None]), network.inputs(patterns)
    x, other = every[:TRAIN], every[TRAIN:]
    y, other_y = jnp.asarray(vectors[:TRAIN], jnp.float32), vectors[TRAIN:]
    loss = network.train(x, y, EPOCHS[network.kind])
    test = float(np.mean((network(other) - other_y) ** 2))
    rows: list[dict[str, float]] = []
    for k in range(rounds + 1):
        vector = network(seen)[0]
        u, thickness = case.said(vector)
        rows.append({"r": case.r_of(vector), "t": thickness / 10, "loss": loss})
        if k == rounds:
            break
        u, thickness = deviated(rng, case, u, thickness, START * SHRINK**k)
        pattern, vector = sample(case, [(unique(u, case.geometry), thickness)])
        x = x.at[k % TRAIN].set(network.inputs(pattern)[0])
        y = y.at[k % TRAIN].set(vector[0])
        loss = network.train(x, y, AGAIN)
    best = min(rows, key=lambda row: row["r"])
    empty = case.r_of(np.zeros(len(case.u)))
    return {"first": rows[0]["r"], "r": best["r"], "t": best["t"], "empty": empty, "test_loss": test, "rows": rows}


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(list(PUBLISHED)[:9]), help="comma list; without: 13 and 25 beams")
    parser.add_argument("--rounds", type=int, default=100, help="of the iterative experiment")
    parser.add_argument("--channels", type=int, default=16, help="of the residual network; 64 in the thesis")
    parser.add_argument("--inputs", type=int, default=1500, help="of the ANN at most, 0 for all, as in the thesis")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, default=os.environ.get("MLINDEX_DATA"), help="folder that holds bloch/")
    parser.add_argument("--json", type=Path, help="write everything here")
    options = parser.parse_args(arguments)
    if options.data is None:
        parser.error("give --data or set MLINDEX_DATA")
    if not PUBLISHED.keys() >= set(options.cases.split(",")):
        parser.error(f"the cases are {', '.join(PUBLISHED)}, not {options.cases}")
    return options


def rows_of(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row a network and experiment of a case, printed as it is there."""
    started = time.process_time()
    case = read_case(name, Path(options.data), options.inputs)
    patterns, vectors = random_set(case, options.seed)
    made, rows = time.process_time() - started, []
    for kind, theirs, scale in zip(EPOCHS, PUBLISHED[name], PUBLISHED[name][2], strict=False):
        started = time.process_time()
        network = Network(kind, case, patterns[:TRAIN], options.channels, options.seed)
        row = {"case": name, "network": kind, "experiment": "iterative", "weights": network.trained}
        row |= iterative(network, patterns, vectors, options.rounds, options.seed)
        row |= {"t_true": case.thickness / 10, "cpu_seconds": made + time.process_time() - started}
        row |= {"published": dict(zip(("r", "t", "seconds"), theirs, strict=True))}
        said = f"R {row['first']:.3f} -> {row['r']:.3f} (empty {row['empty']:.3f}; published {theirs[0]:.3f}), "
        said += f"t {row['t']:4.1f} nm (true {row['t_true']:.0f}; published {theirs[1]:.1f})"
        print(f"{name:<9} {kind} iterative {said}, {row['cpu_seconds']:.0f} s", flush=True)
        network = Network(kind, case, patterns[:TRAIN], options.channels, options.seed)
        other = {"case": name, "network": kind, "experiment": "deviation", "published": {"scale": scale}}
        other |= deviation(network, options.seed)
        said = f"scale {other['scale']:.2f} (mean {other['mean_scale']:.2f}; published {scale}), R {other['r']:.4f} to "
        print(f"{name:<9} {kind} deviation {said}{other['worst']:.3f}, {other['cpu_seconds']:.0f} s", flush=True)
        rows += [row, other]
    return rows


def rounded(value: Any) -> str:
    """As JSON with five digits a number."""
    return json.dumps(json.loads(json.dumps(value), parse_float=lambda text: float(f"{float(text):.5g}")))


def main(arguments: list[str] | None = None) -> None:
    options = options_of(arguments)
    load, started, rows = os.getloadavg(), time.process_time(), []
    versions = {"python": platform.python_version(), "numpy": np.__version__, "jax": jax.__version__}
    versions |= {"flax": flax.__version__, "optax": optax.__version__}
    for name in options.cases.split(","):
        rows += rows_of(name, options)
        if options.json:  # after each case, so that a run that is ended leaves what it has
            about = {"machine": platform.machine(), "device": jax.devices()[0].device_kind, "load": list(load)}
            about |= {"cores": len(os.sched_getaffinity(0)), "cpu_seconds": time.process_time() - started}
            given = {k: v for k, v in vars(options).items() if k not in ("data", "json")}
            head = rounded({"options": given, "hardware": about, "versions": versions})
            body = ",\n".join(rounded(row) for row in rows)
            options.json.write_text(f'{head[:-1]}, "rows": [\n{body}\n]}}\n')


if __name__ == "__main__":
    main()
