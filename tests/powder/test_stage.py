"""Lists given to the Python function, and to the stage, that cannot be used: one sentence each, before any search."""

from __future__ import annotations

import numpy as np
import pytest

from mlindex.powder import index_powder
from mlindex.powder.stage import item_from_q2
from mlindex.records import InputError

GOOD = np.linspace(0.01, 0.1, 20)


@pytest.mark.parametrize(
    ("q2", "wavelength", "says"),
    [
        (np.append(GOOD, np.nan), None, "no finite number; remove it"),
        (np.append(GOOD, np.inf), None, "no finite number; remove it"),
        (np.append(GOOD, -0.02), None, "q2 = -0.02 1/angstrom^2, which is not positive"),
        (np.append(GOOD, 0.0), None, "q2 = 0 1/angstrom^2, which is not positive"),
        (np.append(GOOD, 1e-12), None, "q2 = 1e-12 1/angstrom^2, where no crystal has one (d = 1e+06 angstrom)"),
        (np.append(GOOD, 1e6), None, "q2 = 1e+06 1/angstrom^2, where no crystal has one (d = 0.001 angstrom)"),
        (GOOD[:5], None, "5 usable lines; indexing needs at least 6"),
        ([], None, "0 usable lines"),
        (GOOD.reshape(2, 10), None, "has the shape (2, 10)"),
        (["a", "b"], None, "not a list of numbers"),
        (None, None, "shape ()"),
        (GOOD, "blue", "'blue' is no wavelength; give angstrom (1.5406), a line (CuKa1), or None"),
        (GOOD, -1.54, "-1.54 is no wavelength"),
        (GOOD, 0.0, "0.0 is no wavelength"),
        (GOOD, float("nan"), "nan is no wavelength"),
        (GOOD, 15.0, "no line beyond q2 = 4/wavelength^2 can be seen"),
    ],
)
def test_bad_lists_are_one_sentence(q2, wavelength, says):
    with pytest.raises(InputError) as caught:
        index_powder(q2, wavelength=wavelength, name="mine")
    message = str(caught.value)
    assert message.startswith("mine: ") and says in message and "\n" not in message


@pytest.mark.parametrize(
    ("given", "angstrom"),
    [("CuKa1", 1.5405929), ("1.5406", 1.5406), (1.5406, 1.5406), (np.float64(0.7), 0.7), (None, None)],
)
def test_wavelengths_by_number_and_by_name(given, angstrom):
    assert item_from_q2(GOOD, given, "x").attrs["wavelength"] == angstrom
