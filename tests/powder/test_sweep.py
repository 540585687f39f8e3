"""The thorough search in one lattice: what is chosen among candidates, and that cells come back from their lines."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlindex.crystal.lattice import BRAVAIS
from mlindex.crystal.metric import (
    reciprocal_metric_from_cell,
    transform_metric,
    volume_from_reciprocal_metric,
)
from mlindex.crystal.reduction import lattice_distance
from mlindex.powder import propose
from mlindex.powder.lines import lines_from_q2
from mlindex.powder.search import EFFORTS
from mlindex.powder.sweep import SEARCHED, best_of_volumes, refined, screened
from tests.powder.patterns import CELLS, CU, measured

NORMAL = next(one for one in EFFORTS["normal"] if one.screened == 4096)


def cubes(volume):
    edge = np.asarray(volume) ** (1 / 3)
    return reciprocal_metric_from_cell(np.stack([edge, edge, edge, *np.full((3, len(edge)), 90.0)], 1))


@given(st.integers(0, 2**31 - 1), st.integers(1, 60), st.integers(1, 80))
def test_the_chosen_are_distinct_best_first_and_hold_the_best_of_all(seed, k, count):
    rng = np.random.default_rng(seed)
    g, score = cubes(np.exp(rng.uniform(4, 8, k))), rng.normal(size=k)
    index = best_of_volumes(g, score, count)
    assert len(set(index.tolist())) == len(index) == min(k, count)
    assert (np.diff(score[index]) <= 0).all()
    if count >= 8:  # ranges of volumes
        assert index[0] == score.argmax()


def test_every_range_of_volumes_has_its_share_whatever_its_scores():
    rng = np.random.default_rng(0)
    log_volume = rng.uniform(4, 8, 8000)
    score = -3 * log_volume + rng.normal(size=8000)  # chance favours the small
    chosen = log_volume[best_of_volumes(cubes(np.exp(log_volume)), score, 800)]
    numbers = np.histogram(chosen, np.linspace(4.0, 8.0, 9))[0]
    assert numbers.min() > 85 and numbers.max() < 115
    # a cell without volume and one that is no metric are never better than those that are
    g = np.concatenate([cubes(np.exp(log_volume)), [[1.0, 1.0, 1.0, 3.0, 0.0, 0.0]]])
    assert 8000 not in best_of_volumes(g, np.append(score, -np.inf), 800)


@pytest.mark.parametrize("name", ["oP", "mP", "mC", "aP"])
@pytest.mark.parametrize("learned", [(0, 0), (32, 8)])
def test_a_lattice_comes_back_from_its_lines(name, learned):
    lines = lines_from_q2(measured(name, 30, 0.01), CU)
    sweep = replace(NORMAL, screened=512, finished=128, learned=learned)
    first = lines.first(SEARCHED)
    candidates = screened(first, first.q2, name, sweep, None, 0)
    assert len(candidates) == 512 + sum(learned)
    window = propose.volume_window(first, name)
    volume = volume_from_reciprocal_metric(candidates[:512].astype(np.float64)) / BRAVAIS[name].multiplicity
    assert ((volume > 0.99 * window.low) & (volume < 1.01 * window.high)).all()
    found = refined(lines, name, candidates, sweep, 0, fit_zero=True)
    assert 0 < len(found) <= sweep.judged
    p = BRAVAIS[name].primitive
    truth = transform_metric(reciprocal_metric_from_cell(np.array(CELLS[name][0], float)), p)
    assert lattice_distance(transform_metric(found, p), truth).min() < 3e-3


def test_nothing_comes_from_nothing():
    lines = lines_from_q2(measured("oP", 30), CU)
    assert refined(lines, "oP", np.empty((0, 6), np.float32), NORMAL, 0, fit_zero=True).shape == (0, 6)
    first = lines.first(SEARCHED)
    assert screened(first, first.q2, "oP", NORMAL, 1.0, 0).shape == (0, 6)  # no cell is so small
