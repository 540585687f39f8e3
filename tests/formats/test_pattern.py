"""Patterns as files: what is read is what was written, and what cannot be used is said in a sentence."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlindex.formats import peaks
from mlindex.formats.pattern import holds_pattern, read_pattern
from mlindex.records import InputError, PeakList

X = np.round(np.arange(5.0, 25.0, 0.02), 2)
Y = np.round(100 + 50 * np.sin(X), 1)


def text_of(columns, separator=" ", head=""):
    return head + "".join(separator.join(map(repr, map(float, row))) + "\n" for row in zip(*columns, strict=True))


@pytest.mark.parametrize(
    ("head", "separator"),
    [
        ("", " "),
        ("2theta,intensity\n", ","),
        ("# a comment in words\n", "\t"),
        ("[Scan points]\nAngle,Intensity\n", ","),
    ],
)
def test_two_columns(tmp_path, head, separator):
    path = tmp_path / "scan.xy"
    path.write_text(text_of((X, Y), separator, head))
    found = read_pattern(path, wavelength=1.54)
    np.testing.assert_allclose(found.x, X)
    np.testing.assert_allclose(found.y, Y)
    assert (found.sigma, found.scan, found.wavelength, found.id) == (None, "tth", 1.54, "scan")


def test_uncertainties_and_the_wavelength_of_the_file(tmp_path):
    path = tmp_path / "scan.xye"
    path.write_text(text_of((X, Y, np.sqrt(Y)), head="# wavelength 0.7\n"))
    found = read_pattern(path)
    np.testing.assert_allclose(found.sigma, np.sqrt(Y))
    assert found.wavelength == 0.7


def test_over_q(tmp_path):
    path = tmp_path / "scan.csv"
    path.write_text(text_of((X / 30, Y), ",", "q,intensity\n"))
    np.testing.assert_allclose(read_pattern(path).x, X / 30)
    np.testing.assert_allclose(read_pattern(path, scan="2pi/d").x, X / 30 / (2 * np.pi))
    assert read_pattern(path).scan == "q" and read_pattern(path).wavelength is None


@given(st.permutations(range(40)))
def test_order_and_repetition_do_not_matter(tmp_path_factory, order):
    path = tmp_path_factory.mktemp("scan") / "scan.xy"
    at = np.array([*order, 7, 3])
    path.write_text(text_of((X[at], Y[at])))
    found = read_pattern(path, wavelength=1.5)
    np.testing.assert_allclose(found.x, X[:40])
    np.testing.assert_allclose(found.y, Y[:40])


@pytest.mark.parametrize(
    ("content", "options", "what"),
    [
        (text_of((X, Y)), {}, "needs a wavelength; give --wavelength, as 1.5406 or CuKa "),
        (text_of((X[:20], Y[:20])), {"wavelength": 1.5}, "20 points"),
        (text_of((X,)), {"wavelength": 1.5}, "no column of intensities"),
        (text_of((X * 20, Y)), {"wavelength": 1.5}, "2theta up to"),
        (text_of((np.where(X > 15, X + 5, X), Y)), {"wavelength": 1.5}, "jumps from"),
        (
            text_of((np.append(np.arange(5, 9, 0.01), np.arange(9, 19, 0.05)), np.tile(Y[:300], 2))),
            {"wavelength": 1.5},
            "changes its step from 0.01 to 0.05",
        ),
        (text_of((X, Y, Y), head="# 2theta obs calc\n"), {"wavelength": 1.5}, "name it intensity, counts, I, Iobs in"),
        (text_of((X, 0 * Y)), {"wavelength": 1.5}, "without any intensity"),
        (text_of((X, Y), ",", "d,I\n"), {"wavelength": 1.5}, "is over d"),
        (text_of((X, Y)), {"wavelength": -1.0}, "not positive"),
        (text_of((X, Y)), {"scan": "energy"}, "unknown quantity"),
        ("", {"wavelength": 1.5}, "is empty"),
        ("a b c\nhello\n", {"wavelength": 1.5}, "not numbers"),
    ],
)
def test_bad_patterns(tmp_path, content, options, what):
    path = tmp_path / "bad.xy"
    path.write_text(content)
    with pytest.raises(InputError, match=what) as caught:
        read_pattern(path, **options)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_patterns_are_told_from_lists(tmp_path):
    (tmp_path / "scan").write_text(text_of((X, Y)))
    (tmp_path / "rounded").write_text(text_of((np.round(X * 0.7, 3), Y)))
    (tmp_path / "list").write_text(text_of((np.sort(np.random.default_rng(0).uniform(5, 60, 300)),), head="# tth\n"))
    assert [holds_pattern(tmp_path / n) for n in ("scan", "rounded", "list", "none")] == [True, True, False, False]


PARTS = np.concatenate([np.arange(5.0, 8.0, 0.05), np.arange(8.0, 16.0, 0.1), np.arange(16.0, 30.0, 0.2)])
GROWING = 5.0 * 1.01 ** np.arange(150)


@pytest.mark.parametrize("quantity", ["tth", "q", "d"])
@pytest.mark.parametrize("x", [PARTS, GROWING, GROWING[::-1], X[:40], np.round(X[:150] * 0.83, 3)])
def test_scans_of_uneven_steps_and_short_ones_are_no_lists(tmp_path, x, quantity):
    (tmp_path / "scan").write_text(text_of((x, np.ones_like(x))))
    assert holds_pattern(tmp_path / "scan")
    with pytest.raises(InputError, match="measured pattern"):
        peaks.read(tmp_path / "scan", quantity=quantity, wavelength=1.5)


def sums_of_squares(rule, most=1200):
    """All h2 + k2 + l2 that a cube's lattice has lines at."""
    hkl = ((h, k, m) for h in range(35) for k in range(h + 1) for m in range(k + 1))
    return np.array(sorted({n for x in hkl if any(x) and rule(x) and (n := sum(i * i for i in x)) < most}), float)


@pytest.mark.parametrize("count", [40, 60, 100, 200, 400])
@pytest.mark.parametrize(
    "rule", [lambda x: True, lambda x: sum(x) % 2 == 0, lambda x: len({i % 2 for i in x}) == 1], ids=["P", "I", "F"]
)
def test_the_lines_of_a_cube_are_no_scan(rule, count):
    q = np.sqrt(sums_of_squares(rule)[:count])
    for wavelength in (1.0, 0.3):
        tth = 2 * np.degrees(np.arcsin(q / q[-1] * wavelength * 0.99))
        for quantity, x in (("q", q / 8), ("d", 8 / q), ("tth", tth), ("tth", np.round(tth, 2))):
            assert not peaks.is_scan(x, quantity)


def test_even_steps_in_q2_are_a_list(tmp_path):
    q2 = np.arange(1, 61) * 0.0123
    (tmp_path / "list").write_text(text_of((q2,), head="# q2\n"))
    np.testing.assert_allclose(peaks.read(tmp_path / "list").q2, q2)
    assert not holds_pattern(tmp_path / "list")


def test_a_list_with_more_columns_is_read_back(tmp_path):
    q2 = np.array([0.1, 0.2, 0.33, 0.4, 0.5, 0.61])
    given_ = PeakList("x", "x", q2, 1.5, np.arange(6.0))
    more = {"q2_esd": q2 * 1e-3, "height": np.ones(6), "fwhm_2theta": np.full(6, 0.1)}
    for quantity in ("q2", "tth", "d"):
        peaks.write(tmp_path / "x.txt", given_, quantity=quantity, more=more)
        found = peaks.read(tmp_path / "x.txt")
        np.testing.assert_allclose(found.q2, q2, rtol=1e-12)
        np.testing.assert_allclose(found.intensity, np.arange(6.0))
        assert found.wavelength == 1.5
