"""The posterior: laws of a probability, agreement with SciPy, what training recovers from lists of a known model."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, softmax

from mlindex.crystal.lattice import BRAVAIS
from mlindex.crystal.metric import reciprocal_metric_from_cell, transform_metric, volume_from_reciprocal_metric
from mlindex.powder.lines import lines_from_q2
from mlindex.powder.posterior import (
    CANDIDATE,
    LIST,
    MOST,
    WEIGHTS,
    Features,
    features,
    logits,
    posterior,
    ranked_by_posterior,
    weights,
)
from mlindex.powder.posterior_train import (
    Labelled,
    Logits,
    Outcomes,
    Tempering,
    calibration_error,
    cross_validated,
    figures,
    fitted,
    is_true,
    joined,
    load,
    logits_of,
    outcome,
    probabilities,
    related,
    tempered,
    tempered_logits,
    tempering,
    train,
)
from mlindex.powder.search import judged, merged
from mlindex.records import InputError
from tests.powder.patterns import CELLS, CU, measured, q2_from_tth

SEEDS = st.integers(0, 2**31 - 1)


@cache
def known(name):
    """A list of the known cell `name` with the metric that made it."""
    metric = reciprocal_metric_from_cell(np.array(CELLS[name][0], float))
    return Labelled(name, name, "clean", name, lines_from_q2(measured(name, 25), CU), metric)


@cache
def ranked_of(name):
    return related(known(name))


def random_model(rng):
    f, t = len(CANDIDATE), len(LIST)
    shapes = {
        "evidence": t,
        "other": 1,
        "linear": f,
        "solved": t,
        "candidate_mean": f,
        "list_mean": t,
    }
    model = {name: rng.normal(0, 0.3, shape) for name, shape in shapes.items()}
    return model | {"candidate_scale": rng.uniform(0.5, 2, f), "list_scale": rng.uniform(0.5, 2, t)}


def random_features(rng, k):
    difference = -np.sort(rng.exponential(8, k))
    return Features(difference - difference.max(), rng.normal(0, 1, (k, len(CANDIDATE))), rng.normal(0, 1, len(LIST)))


@given(SEEDS, st.integers(1, MOST))
def test_probabilities_are_scipys_softmax_and_sum_to_one(seed, k):
    rng = np.random.default_rng(seed)
    of, model = random_features(rng, k), random_model(rng)
    each, solved = logits(of, model)
    probability, none = posterior(of, model)
    np.testing.assert_allclose(probability, softmax(each) * expit(solved), rtol=1e-9, atol=1e-300)
    assert probability.sum() + none == pytest.approx(1.0)


@given(SEEDS, st.integers(2, MOST), st.floats(0.01, 30))
def test_more_evidence_is_more_probable_whatever_the_weights(seed, k, more):
    rng = np.random.default_rng(seed)
    of, model = random_features(rng, k), random_model(rng)
    which = int(rng.integers(k))
    raised = of.difference.copy()
    raised[which] += more
    before, _ = posterior(of, model)
    after, _ = posterior(replace(of, difference=raised), model)
    assert after[which] >= before[which]
    assert (np.delete(after, which) <= np.delete(before, which) * (1 + 1e-12)).all()


@given(SEEDS)
def test_training_and_inference_compute_the_same(seed):
    rng = np.random.default_rng(seed)
    model = {name: value.astype(np.float32) for name, value in random_model(rng).items()}
    parts = [drawn(rng, k, rng.normal(0, 1, len(LIST))) for k in (1, 7, MOST)]
    got = probabilities(joined(parts), model)
    for one, row in zip(parts, got, strict=True):
        real = one.real[0]
        seen = Features(*(x.astype(float) for x in (one.difference[0][real], one.candidate[0][real], one.whole[0])))
        probability, none = posterior(seen, model)
        np.testing.assert_allclose(row[:-1][real], probability, rtol=2e-3, atol=1e-6)
        assert row[-1] == pytest.approx(none, rel=2e-3, abs=1e-6)
        assert not row[:-1][~real].any()


@pytest.mark.parametrize("name", ["cF", "hR", "oI", "mC", "aP"])
def test_order_of_the_candidates_does_not_matter(name):
    ranked, lines = ranked_of(name)[:MOST], known(name).lines
    shuffled = np.random.default_rng(3).permutation(len(ranked))
    order, probability, none = ranked_by_posterior(ranked, lines)
    other, again, none_again = ranked_by_posterior([ranked[i] for i in shuffled], lines)
    assert shuffled[other].tolist() == order.tolist()
    np.testing.assert_allclose(again, probability, rtol=1e-9)
    assert none_again == pytest.approx(none)
    assert sorted(order.tolist()) == list(range(len(ranked))) and (np.diff(probability) <= 0).all()
    assert probability.sum() + none == pytest.approx(1.0)


@pytest.mark.parametrize("name", list(BRAVAIS))
def test_known_lattices_are_first_and_probable(name):
    one, ranked = known(name), ranked_of(name)
    order, probability, _ = ranked_by_posterior(ranked, one.lines)
    right = is_true(ranked, one)
    assert right[order[0]] and probability[0] > 0.5, (probability[:3], [ranked[i].fit.bravais for i in order[:3]])


def test_cells_that_have_nothing_to_do_with_the_lines_are_not_believed():
    tth = np.sort(np.random.default_rng(0).uniform(8, 60, 30))
    lines = lines_from_q2(q2_from_tth(tth), CU)
    ranked = merged(judged(lines, [(n, known(n).metric) for n in BRAVAIS], fit_zero=True))
    _, probability, none = ranked_by_posterior(ranked, lines)
    assert none > 0.9 and probability.max() < 0.1
    assert ranked_by_posterior([], lines)[2] == 1.0


def test_candidates_beyond_the_most_follow_without_probability():
    ranked = ranked_of("aP") * (MOST + 3)
    order, probability, none = ranked_by_posterior(ranked, known("aP").lines)
    assert order[MOST:].tolist() == list(range(MOST, len(ranked))) and not probability[MOST:].any()
    assert probability.sum() + none == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["tP", "oP", "mP"])
def test_features_of_a_cell_of_half_the_volume(name):
    one = known(name)
    double = np.diag([1.0, 1.0, 2.0])
    cells = [(name, one.metric), (name, transform_metric(one.metric, double))]
    ranked = judged(one.lines, cells, fit_zero=False)
    of = features(ranked, one.lines)
    column = {title: of.candidate[:, i] for i, title in enumerate(CANDIDATE)}
    ratio = volume_from_reciprocal_metric(ranked[1].fit.g) / volume_from_reciprocal_metric(ranked[0].fit.g)
    assert ratio == pytest.approx(2.0, rel=1e-3)
    assert column["log volume a line"][1] - column["log volume a line"][0] == pytest.approx(np.log(2), abs=1e-3)
    assert (
        column["evidence of a cell of 2 times the volume"][0]
        < 0.5
        < column["evidence of a cell of 1/2 of the volume"][1]
    )
    assert not column["evidence of a cell of 3 times the volume"].any()
    assert column["lines explained beyond the smaller cell"].tolist() == [0, 0]  # the true cell explains every line
    np.testing.assert_array_equal(of.difference, [0, ranked[1].gain - ranked[0].gain])
    with pytest.raises(ValueError, match="at least one candidate"):
        features([], one.lines)


@pytest.mark.parametrize("name", ["cP", "tP", "oP", "mP", "aP"])
def test_related_lists_hold_the_truth_once_and_the_cell_of_half_its_volume(name):
    one = known(name)
    half = transform_metric(one.metric, np.diag([2.0, 2.0, 2.0] if name == "cP" else [1.0, 2.0, 1.0]))
    other = one._replace(metric=half, bravais=name if name in ("cP", "oP", "mP", "aP") else "oP")
    ranked = related(other)
    right = is_true(ranked, other)
    assert sum(right) == 1 and sum(is_true(ranked, one)) == (name != "cP")  # an eighth of the volume is no relative
    assert not any(is_true(ranked, one._replace(metric=None)))
    assert related(one._replace(metric=None)) == []


def drawn(rng, k, whole, right=None, family=0, searched=True):
    """One list of k candidates with random features as an outcome."""
    difference = np.zeros(MOST, np.float32)
    difference[:k] = -np.append(0, np.cumsum(rng.exponential(3, k - 1)))
    candidate = rng.normal(0, 1, (MOST, len(CANDIDATE))).astype(np.float32)
    real = np.arange(MOST) < k
    mine = np.zeros(MOST, bool) if right is None else right
    arrays = (difference, candidate * real[:, None], whole.astype(np.float32), real, mine, searched, family, "", "", "")
    return Outcomes(*(np.asarray(a)[None] for a in arrays))


@cache
def of_a_known_model(count):
    """Lists whose right candidate is drawn from a conditional logit: evidence at a temperature of 5, one feature of
    weight 1.5, and a share of lists without an answer that falls with the second feature of the list."""
    rng = np.random.default_rng(4)
    column = CANDIDATE.index("log aspect")
    parts, truth = [], []
    for number in range(count):
        whole = np.append(1.0, rng.normal(0, 1, len(LIST) - 1))
        one = drawn(rng, int(rng.integers(2, 9)), whole, family=number)
        real = one.real[0]
        p = softmax(one.difference[0][real] / 5 + 1.5 * one.candidate[0][real, column])
        solved = expit(1.0 + 2.0 * one.whole[0, 1])
        right = np.zeros(MOST, bool)
        if rng.random() < solved:
            right[rng.choice(len(p), p=p / p.sum())] = True
        parts.append(replace(one, right=right[None]))
        truth.append(np.append(np.pad(p * solved, (0, MOST - len(p))), 1 - solved))
    return joined(parts), np.array(truth)


def test_training_recovers_a_known_model_and_is_calibrated_on_families_left_out():
    outcomes, truth = of_a_known_model(1000)
    left_out = cross_validated(outcomes, folds=2, decay=10.0, steps=100)
    made = tempered_logits(left_out, tempering(outcomes, left_out)).probabilities()
    assert np.abs(made - truth).mean() < 0.02
    got, best = figures(outcomes, made), figures(outcomes, truth)
    assert got["calibration_error"] < 0.05 and got["loss"] < best["loss"] + 0.15
    model = fitted(outcomes, decay=10.0, steps=100)
    temperature = 10 / np.exp(((np.eye(len(LIST))[0] - model["list_mean"]) / model["list_scale"]) @ model["evidence"])
    assert temperature == pytest.approx(5, rel=0.25)


def test_a_tempered_model_has_tempered_logits():
    rng = np.random.default_rng(5)
    model = {name: value.astype(np.float32) for name, value in random_model(rng).items()}
    model["list_mean"][0], model["list_scale"][0] = 0, 1
    outcomes, by = of_a_known_model(20)[0], Tempering(0.6, 1.3, -0.4)
    expected, got = tempered_logits(logits_of(outcomes, model), by), logits_of(outcomes, tempered(model, by))
    real = outcomes.real
    np.testing.assert_allclose(got.each[real], expected.each[real], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(got.solved, expected.solved, rtol=1e-4, atol=1e-4)


def test_tempering_undoes_a_wrong_temperature():
    outcomes, truth = of_a_known_model(1000)
    exact = Logits(np.log(np.maximum(truth[:, :-1], 1e-30)), np.log(1 / truth[:, -1] - 1))
    exact.each[~outcomes.real] = -1e30
    by = tempering(outcomes, tempered_logits(exact, Tempering(2.0, 0.5, 0.3)))
    assert by == pytest.approx((0.5, 2.0, -0.6), abs=0.2)


def test_training_again_gives_the_same_and_the_data_are_in_the_card():
    outcomes, _ = of_a_known_model(40)
    model, card = train(outcomes, folds=2, steps=20)
    again, other = train(outcomes, folds=2, steps=20)
    assert all(np.array_equal(model[name], again[name]) for name in model)
    assert card["data"] == outcomes.digest() == other["data"]
    assert card["lists"] == {"searched": 40, "related": 0} and card["cross_validation"]["lists"] == 40
    assert all(value.dtype == np.float32 for value in model.values())
    with pytest.raises(ValueError, match="no lists"):
        fitted(outcomes.subset(np.zeros(0, int)))


def test_lists_of_relatives_teach_ranking_alone():
    outcomes, _ = of_a_known_model(200)
    found = outcomes.subset(outcomes.right.any(1))
    model = fitted(replace(found, searched=np.zeros(len(found), bool)), steps=50)
    start = fitted(found.subset(np.arange(1)), decay=1e6)
    assert np.abs(model["linear"]).max() > 0.1
    assert np.count_nonzero(model["solved"]) == np.count_nonzero(start["solved"]) == 2


def test_outcomes_on_disk(tmp_path):
    one = known("oI")
    kept = outcome(one, ranked_of("oI"), is_true(ranked_of("oI"), one), searched=False)
    both = joined([kept, kept])
    both.save(tmp_path / "kept.npz")
    again = load(tmp_path / "kept.npz")
    assert again.digest() == both.digest() != kept.digest() and len(again) == 2
    assert again.subset(np.array([1])).digest() == kept.digest()
    (tmp_path / "broken.npz").write_bytes(b"PK no archive")
    with pytest.raises(InputError, match=r"broken\.npz: these are no outcomes"):
        load(tmp_path / "broken.npz")
    replace(both, whole=both.whole[:, :3]).save(tmp_path / "old.npz")
    with pytest.raises(InputError, match="other features"):
        load(tmp_path / "old.npz")


def test_calibration_error():
    rng = np.random.default_rng(0)
    stated = rng.uniform(0, 1, 20_000)
    assert calibration_error(stated, rng.random(20_000) < stated) < 0.015
    assert calibration_error(np.full(10, 0.95), np.arange(10) < 5) == pytest.approx(0.45)
    assert calibration_error(np.array([0.2, 1.0]), np.array([False, True])) == pytest.approx(0.1)


def test_shipped_weights_are_small_and_damaged_ones_are_named(tmp_path):
    assert WEIGHTS.stat().st_size < 100_000
    model = weights()
    assert model["linear"].shape == (len(CANDIDATE),) and model["solved"].shape == (len(LIST),)
    assert all(np.isfinite(value).all() for value in model.values())
    (tmp_path / "w.safetensors").write_bytes(b"nothing")
    for name in ("w.safetensors", "missing.safetensors"):
        with pytest.raises(InputError, match=rf"{name}: these are no weights"):
            weights(tmp_path / name)
