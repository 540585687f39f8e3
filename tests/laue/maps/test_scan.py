"""Places of frames: whatever is missing, damaged or out of order, every other frame stays where it is."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from mlindex.laue.maps.scan import Scan, frame_numbers
from mlindex.records import InputError


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.randoms())
def test_a_frame_keeps_its_number_whatever_else_is_there(sizes, random):
    """Of files of any sizes, any items may be missing as long as one of each file is known."""
    everything = [(i, k, n) for i, n in enumerate(sizes) for k in range(n)]
    kept = [one for one in everything if one[1] == 0 or random.random() < 0.5]
    random.shuffle(kept)
    input_, index, of = np.array(kept).T
    expected = [everything.index(one) for one in kept]
    np.testing.assert_array_equal(frame_numbers(input_, index, of), expected)


@pytest.mark.parametrize("there", [True, False])
def test_a_stack_that_cannot_be_read_is_as_long_as_the_others(there):
    """Of three stacks of four, the second failed as a whole, as one item; or nothing of it is there yet."""
    rows = [(0, k, 4, False) for k in range(4)] + [(1, 0, 1, True)] * there + [(2, k, 4, False) for k in range(4)]
    input_, index, of, unread = np.array(rows).T
    found = frame_numbers(input_, index, of, unread.astype(bool))
    assert found.tolist() == [0, 1, 2, 3] + [4] * there + [8, 9, 10, 11]


def test_one_file_a_frame_with_failures():
    input_ = np.array([0, 1, 3, 4])
    nothing = np.zeros(4, np.int64)
    unread = np.array([False, True, False, False])
    assert frame_numbers(input_, nothing, nothing + 1, unread).tolist() == [0, 1, 3, 4]
    assert frame_numbers(*(np.empty(0, np.int64),) * 3).size == 0


def test_a_scan_that_is_too_small():
    scan = Scan(2, 3)
    assert scan.checked(np.array([5]), "run").tolist() == [5]
    with pytest.raises(InputError, match=r"run: has 7 frames, and a scan of 2 x 3 has room for 6; give the rows"):
        scan.checked(np.array([0, 6]), "run")
