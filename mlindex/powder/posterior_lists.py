"""Lists with a known answer for the training of the posterior: crystals of the training families, and random lines.

The crystals are as they are, neither moved nor resampled, because the posterior says how probable it is that a real
lattice is right: near-symmetries and lines too weak to be seen must be those of nature. They are drawn by the weight of
their families, with the errors of a good diffractometer, of a pattern with dirt, of a serial powder, and of a good
diffractometer whose wavelength was not told in turn: without the last a list without wavelength would be believed to
be of a serial powder, however well its lines agree. Every third list ends early, after 6 lines or more: many cells fit
few lines, above all of low symmetry. Patterns that have not ten lines in all are left out: they made the calibration of
the others worse (error 0.042, and 0.017 without them). To a list of random lines the answer is "none of these".
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from mlindex.crystal.lattice import BRAVAIS, metric_from_free
from mlindex.formats.peaks import MINIMUM_LINES
from mlindex.powder.dataset.augment import CLEAN, DIRTY, SERIAL, sample, table
from mlindex.powder.dataset.entries import Entries
from mlindex.powder.dataset.observable import WAVELENGTH, q2_from_tth
from mlindex.powder.dataset.split import FEWEST
from mlindex.powder.lines import lines_from_q2
from mlindex.powder.posterior_train import Labelled
from mlindex.powder.search import JUDGED

ERRORS = {"clean": CLEAN, "dirty": DIRTY, "serial": SERIAL, "bare": CLEAN}
_WITHOUT_WAVELENGTH = ("serial", "bare")
RANDOM = "random"
_SPARE = 3  # lists are drawn for one that is wanted, because some are too short
_SHORT = (3, 20)  # every how many-th list ends early, and after how many lines at most
_APART = 0.07  # degrees 2theta between random lines


def of_lattice(entries: Entries, bravais: str, *, lists: int, turn: int, seed: int) -> list[Labelled]:
    """At most `lists` lists of six to forty lines of one Bravais lattice, from its entries of the set "train"; `turn`
    says with what errors, and of what length, they begin. Raises `InputError` where it has no such entry."""
    found = table(entries, bravais, "train", lines=JUDGED)
    count = _SPARE * lists
    kinds = (np.arange(count) + turn) % len(ERRORS)
    errors = jax.tree.map(lambda *values: jnp.asarray(values)[kinds], *ERRORS.values())
    made = sample(
        jax.random.fold_in(jax.random.key(seed), tuple(BRAVAIS).index(bravais)),
        found,
        errors,
        count=count,
        lines=JUDGED,
        perturb=0.0,
        resample=False,
    )
    x, q2 = np.asarray(made.x, np.float64), np.asarray(made.q2, np.float64)
    there = np.asarray(made.weight) > 0
    rows = np.asarray(found.row)[np.asarray(made.entry)]
    metric = metric_from_free(x, BRAVAIS[bravais].system)
    out = []
    lengths = np.random.default_rng([seed, tuple(BRAVAIS).index(bravais)]).integers(MINIMUM_LINES, _SHORT[1] + 1, count)
    lengths = np.where((np.arange(count) + turn) % _SHORT[0] == 0, lengths, JUDGED)
    for n in np.flatnonzero(there.sum(1) >= FEWEST)[:lists]:
        variant, row = tuple(ERRORS)[kinds[n]], rows[n]
        wavelength = None if variant in _WITHOUT_WAVELENGTH else WAVELENGTH
        lines = lines_from_q2(q2[n, there[n]][: lengths[n]], wavelength)
        out.append(Labelled(str(entries.uid[row]), str(entries.family[row]), variant, bravais, lines, metric[n]))
    return out


def random_list(number: int, seed: int) -> Labelled:
    """15 to 40 lines, uniform in 2theta from a first one at 4 to 20 degrees; every other list without wavelength."""
    rng = np.random.default_rng([seed, number])
    first = rng.uniform(4, 20)
    tth: NDArray = np.sort(rng.uniform(first, first + rng.uniform(20, 60), int(rng.integers(15, JUDGED + 1))))
    q2 = q2_from_tth(tth[np.append(True, np.diff(tth) > _APART)])
    lines = lines_from_q2(q2, WAVELENGTH if number % 2 else None)
    return Labelled(f"random {number}", f"random {number}", RANDOM, "", lines, None)


def labelled(entries: Entries, *, lists: int, seed: int) -> Iterator[Labelled]:
    """`lists` lists of every lattice that has training entries, and as many random ones as of a lattice.

    Lattices and errors take turns, so that any part from the start is a fair sample.
    """
    present = [b for b in BRAVAIS if np.any((entries.bravais == b) & (entries.set == "train"))]
    made = [of_lattice(entries, b, lists=lists, turn=n, seed=seed) for n, b in enumerate(present)]
    for turn in range(lists):
        yield from itertools.chain.from_iterable(mine[turn : turn + 1] for mine in made)
        yield random_list(turn, seed)
