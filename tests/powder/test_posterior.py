"""The posterior: laws of a probability, agreement with SciPy, what training recovers from lists of a known model."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file
from scipy.optimize import approx_fprime
from scipy.special import expit, softmax

from mlindex.crystal.lattice import BRAVAIS
from mlindex.crystal.metric import reciprocal_metric_from_cell, transform_metric
from mlindex.powder.lines import lines_from_q2
from mlindex.powder.posterior import LIST, WEIGHING, WEIGHTS, Features, features, posterior, probabilities_of, weights
from mlindex.powder.posterior_train import (
    MOST,
    Labelled,
    Outcomes,
    _objective,
    calibration_error,
    cross_validated,
    ended,
    figures,
    fitted,
    is_true,
    joined,
    load,
    outcome,
    probabilities,
    train,
)
from mlindex.powder.ranking import judged, merged, with_superstructures
from mlindex.powder.relatives import relatives
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
    """The true cell judged among its relatives."""
    lines = known(name).lines
    found = judged(lines, [(name, known(name).metric)], fit_zero=True)
    found += judged(lines, relatives(found[0].fit, tolerance=0.004, missing=2), fit_zero=True)
    return with_superstructures(merged(found), lines)


def random_model(rng):
    t = len(LIST)
    model = {
        "evidence": rng.normal(0, 0.3, len(WEIGHING)),
        "solved": rng.normal(0, 0.3, t),
        "bend": rng.normal(1.5, 0.5, 1),
        "mean": rng.normal(0, 0.3, t),
    }
    return model | {"scale": rng.uniform(0.5, 2, t)}


def random_features(rng, k):
    difference = -np.sort(rng.exponential(8, k))
    return Features(difference - difference.max(), rng.normal(0, 1, len(LIST)))


@given(SEEDS, st.integers(1, MOST))
def test_probabilities_follow_a_power_law_sum_to_one_and_keep_the_order_of_the_evidence(seed, k):
    rng = np.random.default_rng(seed)
    of, model = random_features(rng, k), random_model(rng)
    t = (of.whole - model["mean"]) / model["scale"]
    weight, solved = (
        np.exp(sum(t[i] * a for i, a in zip(WEIGHING, model["evidence"], strict=True))),
        t @ model["solved"],
    )
    probability, none = posterior(of, model)
    bend = np.exp(model["bend"][0])
    share = (1 + np.abs(of.difference) / bend) ** (-weight * bend)
    np.testing.assert_allclose(probability, share / share.sum() * expit(solved), rtol=1e-9, atol=1e-300)
    assert probability.sum() + none == pytest.approx(1.0)
    assert (np.diff(probability[np.argsort(of.difference)]) >= 0).all()


@given(SEEDS, st.integers(2, MOST), st.floats(0.01, 30))
def test_more_evidence_is_more_probable_whatever_the_weights(seed, k, more):
    rng = np.random.default_rng(seed)
    of, model = random_features(rng, k), random_model(rng)
    which = int(rng.integers(k))
    raised = of.difference.copy()
    raised[which] += more
    overtakes = raised[which] > 0
    raised -= raised.max()
    before, _ = posterior(of, model)
    after, _ = posterior(replace(of, difference=raised), model)
    assert after[which] >= before[which]
    # of differences beyond the bend the others share anew where the first is another one
    assert overtakes or (np.delete(after, which) <= np.delete(before, which) * (1 + 1e-12)).all()


@given(SEEDS, st.integers(2, MOST))
def test_near_the_best_the_evidence_counts_as_scipys_softmax_has_it(seed, k):
    rng = np.random.default_rng(seed)
    of, model = random_features(rng, k), random_model(rng)
    near = replace(of, difference=1e-3 * of.difference)
    t = (of.whole - model["mean"]) / model["scale"]
    weight = np.exp(t[list(WEIGHING)] @ model["evidence"])
    expected = softmax(weight * near.difference) * expit(t @ model["solved"])
    np.testing.assert_allclose(posterior(near, model)[0], expected, rtol=1e-2 * max(weight, 1.0))


@given(SEEDS)
def test_training_and_inference_compute_the_same(seed):
    rng = np.random.default_rng(seed)
    model = {name: value.astype(np.float32) for name, value in random_model(rng).items()}
    parts = [drawn(rng, k, rng.normal(0, 1, len(LIST))) for k in (1, 7, MOST)]
    got = probabilities(joined(parts), model)
    for one, row in zip(parts, got, strict=True):
        real = one.real[0]
        seen = Features(one.difference[0][real].astype(float), one.whole[0].astype(float))
        probability, none = posterior(seen, model)
        np.testing.assert_allclose(row[:-1][real], probability, rtol=2e-3, atol=1e-6)
        assert row[-1] == pytest.approx(none, rel=2e-3, abs=1e-6)
        assert not row[:-1][~real].any()


@pytest.mark.parametrize("name", ["cF", "hR", "oI", "mC", "aP"])
def test_order_of_the_candidates_does_not_matter(name):
    ranked, lines = ranked_of(name), known(name).lines
    shuffled = np.random.default_rng(3).permutation(len(ranked))
    probability, none = probabilities_of(ranked, lines)
    again, none_again = probabilities_of([ranked[i] for i in shuffled], lines)
    np.testing.assert_allclose(again, probability[shuffled], rtol=1e-9)
    assert none_again == pytest.approx(none)


@pytest.mark.parametrize("name", list(BRAVAIS))
def test_known_lattices_are_first_and_probable(name):
    one, ranked = known(name), ranked_of(name)
    probability, _ = probabilities_of(ranked, one.lines)
    assert is_true(ranked, one)[0] and probability[0] > 0.5, (probability[:3], [j.fit.bravais for j in ranked[:3]])


def test_cells_that_have_nothing_to_do_with_the_lines_are_not_believed():
    tth = np.sort(np.random.default_rng(0).uniform(8, 60, 30))
    lines = lines_from_q2(q2_from_tth(tth), CU)
    probability, none = probabilities_of(
        merged(judged(lines, [(n, known(n).metric) for n in BRAVAIS], fit_zero=True)), lines
    )
    assert none > 0.9 and probability.max() < 0.1
    assert probabilities_of([], lines)[1] == 1.0
    with pytest.raises(ValueError, match="at least one candidate"):
        features([], lines)


@pytest.mark.parametrize("name", ["tP", "oP", "mP"])
def test_features_of_a_cell_of_half_the_volume(name):
    one = known(name)
    cells = [(name, one.metric), (name, transform_metric(one.metric, np.diag([1.0, 1.0, 2.0])))]
    ranked = judged(one.lines, cells, fit_zero=False)
    of = features(ranked, one.lines)
    column = dict(zip(LIST, of.whole, strict=True))
    np.testing.assert_array_equal(of.difference, [0, ranked[1].gain - ranked[0].gain])
    lead = ranked[0].gain - ranked[1].gain
    assert column["lead of the best over other volumes"] == pytest.approx(min(lead, 40) / 10)
    assert (
        column["unexplained share of the best"] == 0 and column["free parameters of the best"] == BRAVAIS[name].n_free
    )
    assert column["gain a line of the best"] == pytest.approx(ranked[0].gain / len(one.lines) - 4)
    assert features(ranked[:1], one.lines).whole[3] == 4  # no other volume


def test_true_cells_are_told_from_others():
    one = known("oI")
    half = transform_metric(one.metric, np.diag([1.0, 2.0, 1.0]))
    ranked = judged(one.lines, [("oP", half), ("oI", one.metric)], fit_zero=False)
    assert is_true(ranked, one) == [False, True]
    assert is_true(ranked, one._replace(metric=None)) == [False, False]


def drawn(rng, k, whole, right=None, family=0):
    """One list of k candidates with random evidence as an outcome."""
    difference = np.zeros(MOST, np.float32)
    difference[:k] = -np.append(0, np.cumsum(rng.exponential(3, k - 1)))
    mine = np.zeros(MOST, bool) if right is None else right
    arrays = (difference, whole.astype(np.float32), np.arange(MOST) < k, mine, family, 0, 1.0, "", "", "")
    return Outcomes(*(np.asarray(a)[None] for a in arrays))


@cache
def of_a_known_model(count):
    """Lists whose right candidate is drawn with the evidence at a temperature of 5, and 10 without a wavelength, which
    bends at 8 nats; a share of lists without an answer that falls with the second feature."""
    rng = np.random.default_rng(4)
    parts, truth = [], []
    for number in range(count):
        whole = np.append(1.0, rng.normal(0, 1, len(LIST) - 1))
        whole[LIST.index("no wavelength")] = number % 2
        one = drawn(rng, int(rng.integers(2, 9)), whole, family=number // 2)
        p = (1 - one.difference[0][one.real[0]] / 8) ** (-8 / (10 if number % 2 else 5))
        p /= p.sum()
        solved = expit(1.0 + 2.0 * one.whole[0, 1])
        right = np.zeros(MOST, bool)
        if rng.random() < solved:
            right[rng.choice(len(p), p=p)] = True
        parts.append(replace(one, right=right[None]))
        truth.append(np.append(np.pad(p * solved, (0, MOST - len(p))), 1 - solved))
    return joined(parts), np.array(truth)


def test_training_recovers_a_known_model_and_is_calibrated_on_families_left_out():
    outcomes, truth = of_a_known_model(2000)
    made = cross_validated(outcomes, folds=2)
    assert np.abs(made - truth).mean() < 0.02
    got, best = figures(outcomes, made), figures(outcomes, truth)
    assert got["calibration_error"] < 0.04 and got["loss"] < best["loss"] + 0.05
    model = fitted(outcomes)
    for no_wavelength, temperature in ((0, 5), (1, 10)):
        t = np.zeros(len(LIST))
        t[0], t[LIST.index("no wavelength")] = 1, no_wavelength
        got = posterior(Features(np.array([0.0, -5.0]), t), model)[0]
        assert np.log(got[0] / got[1]) == pytest.approx(8 * np.log(1 + 5 / 8) / temperature, rel=0.2)
    assert np.exp(model["bend"][0]) == pytest.approx(8, rel=0.5)


def test_the_gradient_is_that_of_the_loss():
    outcomes, _ = of_a_known_model(40)
    rng = np.random.default_rng(0)
    flat = rng.normal(0, 0.3, len(WEIGHING) + 1 + len(LIST))
    arguments = (np.zeros_like(flat), outcomes.whole.astype(float), outcomes, 0.5)
    slope = _objective(flat, *arguments)[1]
    assert (
        np.max(np.abs(approx_fprime(flat, lambda x: _objective(x, *arguments)[0]) - slope)) < 1e-3 * np.abs(slope).max()
    )


def test_training_again_gives_the_same_and_the_data_are_in_the_card():
    outcomes, _ = of_a_known_model(40)
    model, card = train(outcomes, folds=2)
    again, other = train(outcomes, folds=2)
    assert all(np.array_equal(model[name], again[name]) for name in model)
    assert card["data"] == outcomes.digest() == other["data"]
    assert card["lists"] == 40 and card["cross_validation"]["lists"] == 40
    assert all(value.dtype == np.float32 for value in model.values())
    with pytest.raises(ValueError, match="no lists"):
        fitted(outcomes.subset(np.zeros(0, int)))


def test_a_search_ends_at_its_first_state_with_little_doubt():
    rng = np.random.default_rng(0)
    one = drawn(rng, 3, np.ones(len(LIST)))
    turns, doubts = [0, 1, 2, 0, 0, 1], [0.1, 0.1, 1.0, 1.0, 0.1, 1.0]
    states = zip(turns, doubts, strict=True)
    outcomes = joined([replace(one, turn=np.array([t]), doubt=np.array([d])) for t, d in states])
    none = np.array([0.2, 0.05, 0.0, 0.9, 0.3, 0.9])
    probability = np.column_stack([np.zeros((6, MOST)), none])
    assert ended(outcomes, probability).tolist() == [1, 3, 5]
    # the first state of the third list had no candidates
    uid = np.array(["a", "a", "a", "b", "c", "c"])
    later = replace(outcomes, uid=uid, turn=np.array([0, 1, 2, 0, 1, 2]))
    assert ended(later, probability).tolist() == [1, 3, 5]
    # with no doubt every search ends at once, with great doubt at its last state
    assert ended(outcomes, 0 * probability).tolist() == [0, 3, 4]
    assert ended(outcomes, 0 * probability + 1).tolist() == [2, 3, 5]


def test_outcomes_on_disk(tmp_path):
    one = known("oI")
    kept = outcome(one, ranked_of("oI"), is_true(ranked_of("oI"), one))
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
    assert model["evidence"].shape == (len(WEIGHING),) and model["solved"].shape == (len(LIST),)
    assert model["bend"].shape == (1,)
    assert all(np.isfinite(value).all() for value in model.values())
    save_file({name: value for name, value in model.items() if name != "bend"}, tmp_path / "older.safetensors")
    with pytest.raises(InputError, match=r"older\.safetensors: .* of this version; train them again"):
        weights(tmp_path / "older.safetensors")
    (tmp_path / "w.safetensors").write_bytes(b"nothing")
    for name in ("w.safetensors", "missing.safetensors"):
        with pytest.raises(InputError, match=rf"{name}: these are no weights"):
            weights(tmp_path / name)
