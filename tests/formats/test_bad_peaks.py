"""Every bad list is refused with one sentence that names the file, what is wrong and what to do."""

from __future__ import annotations

import json
import os
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlindex.formats import peaks
from mlindex.records import InputError, PeakList

GOOD = "1\n2\n3\n4\n5\n6\n"


def refused(path, **options) -> str:
    with pytest.raises(InputError) as caught:
        peaks.read(path, **options)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    return message.removeprefix(f"{path}: ")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        (" \n\n", "is empty"),
        ("# q2\n# nothing more\n", "no numbers"),
        ("# q2\n1\n2\n-3\n4\n5\n6\n", "line 3 of the list, q2 = -3, is not positive"),
        ("# q2\n0\n" + GOOD, "is not positive"),
        ("# q2\nnan\n" + GOOD, "not finite"),
        ("# q2\ninf\n" + GOOD, "not finite"),
        ("# q2\n1e300\n" + GOOD.replace("1\n", "1e-320\n", 1), "x"),
        ("# d\n1e-200\n" + GOOD, "out of range"),
        ("# q2\n1\n2\n3\n4\n5\n", "5 distinct lines"),
        ("# q2\n1\n2\n3\n4\n5\n5\n", "5 distinct lines"),
        ("# tth\n" + GOOD, "no wavelength; give --wavelength"),
        ("# tth\n# wavelength -1.5\n" + GOOD, "wavelength of -1.5"),
        ("# tth\n# wavelength 0\n" + GOOD, "wavelength of 0"),
        ("# tth\n# wavelength 1.5\n180\n" + GOOD, "below 180"),
        ("# d\n# wavelength 1.5\n0.7\n" + GOOD, "out of reach of 1.5"),
        (GOOD, "--quantity q2|q|d|tth"),
        ("# q2\n1\n2\nthree\n4\n5\n6\n", "line 4 ('three') is not numbers"),
        ("# q2\n1 2\n3\n, 5\n", "line 4 (', 5') is not numbers"),
        ("Lorem ipsum dolor\n" + GOOD, "line 1 ('Lorem ipsum dolor') is not numbers"),
        ("Angle\n" + GOOD, "--quantity q2|q|d|tth"),
        ("# d\n1..5\n" + GOOD, "line 2 ('1..5') is not numbers"),
        ("<html><body>404</body></html>", "is not numbers"),
        ("# d\n" + "".join(f"{5 + 0.02 * i:.2f} 100\n" for i in range(3000)), "measured pattern"),
        ("# q\n" + "".join(f"{0.05 + 0.01 * i:.2f}\n" for i in range(40)), "measured pattern"),
        ("# q\n" + "".join(f"{0.05 + 0.0037 * i!r}\n" for i in range(501)), "measured pattern"),
        ("# q2\n" + "".join(f"{0.05 + 0.0037 * i!r}\n" for i in range(501)), "has 501 lines"),
        ('{"q2": [1, 2,', "not valid JSON"),
        ('{"positions": [1, 2, 3, 4, 5, 6]}', "none of the keys q2, q, d, two_theta"),
        ('{"q2": [1, 2, 3, 4, 5, "6"]}', "'6', which is not a number"),
        ('{"q2": [1, 2, 3, 4, 5, true]}', "not a number"),
        ('{"q2": [1, 2, 3, 4, 5, null]}', "not a number"),
        ('{"q2": 5}', "not a list"),
        ('{"q2": [1, 2, 3, 4, 5, NaN]}', "not finite"),
        ('{"q2": [1, 2, 3, 4, 5, 1' + "0" * 400 + "]}", "too large"),
        ('{"tth": [1, 2, 3, 4, 5, 6], "wavelength": "short"}', "give the wavelength in angstrom"),
        ("#GSAS-II PWDR peaks list file; do not add/delete items!\n", "no numbers"),
        ("#GSAS-II\n[9.1, True, 5\n", "line 2 is not a GSAS-II peak"),
        ("#GSAS-II\n[__import__('os').getcwd()]\n", "line 2 is not a GSAS-II peak"),
        ("#GSAS-II\n" + "".join(f"[{5 * i + 9}.0, 1, 5.0, 0]\n" for i in range(9)), "no wavelength"),
        ("#GSAS-II\n[]\n", "without a position"),
    ],
)
def test_bad_text(tmp_path, text, says):
    path = tmp_path / "list.txt"
    path.write_text(text)
    if says == "x":  # extreme but possible numbers are not the reader's to judge
        assert len(peaks.read(path).q2) == 7
        return
    assert says in refused(path)


def test_bad_options(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text(GOOD)
    assert "unknown quantity 'furlong'; use one of q2, q, d, tth" in refused(path, quantity="furlong")
    for wavelength in (0.0, -1.0, float("nan"), float("inf")):
        assert "not positive" in refused(path, quantity="tth", wavelength=wavelength)


@pytest.mark.parametrize(
    "data",
    [
        b"\x89HDF\r\n\x1a\n" + bytes(100),
        bytes(range(256)) * 4,
        zlib.compress(b"1 2 3 4 5 6 7" * 9),
        b"1\n2\x003\n4\n5\n6\n",
    ],
)
def test_binary_files(tmp_path, data):
    path = tmp_path / "list.txt"
    path.write_bytes(data)
    assert "binary" in refused(path, quantity="q2")


@pytest.mark.parametrize(
    "array",
    [
        np.array(["a", "b"]),
        np.array([1 + 1j] * 9),
        np.ones((2, 2, 2)),
        np.array(1.0),
        np.array([True] * 9),
        np.array([{}] * 9, dtype=object),
    ],
)
def test_bad_npy(tmp_path, array):
    path = tmp_path / "list.npy"
    np.save(path, array, allow_pickle=True)
    assert ".npy" in (said := refused(path, quantity="q2")) or "-dimensional" in said


def test_truncated_npy_and_empty_npy(tmp_path):
    path = tmp_path / "list.npy"
    np.save(path, np.arange(1.0, 9.0))
    path.write_bytes(path.read_bytes()[:-9])
    assert "not a readable .npy" in refused(path, quantity="q2")
    np.save(path, np.empty(0))
    assert "0 distinct lines" in refused(path, quantity="q2")


def test_what_is_no_file(tmp_path):
    assert "no such file" in refused(tmp_path / "none.txt")
    assert "is a directory" in refused(tmp_path)
    loop = tmp_path / "loop"
    os.symlink(loop, loop)
    assert "cannot be read" in refused(loop)


def test_a_huge_file_is_not_read(tmp_path):
    path = tmp_path / "frames.txt"
    with path.open("wb") as file:
        file.truncate(40 * 2**20)
    assert "larger than 32 MiB" in refused(path)


@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_whatever_the_bytes_the_answer_is_a_list_or_a_sentence(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("bytes") / "list"
    path.write_bytes(data)
    try:
        found = peaks.read(path, quantity="q2")
    except InputError as error:
        assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
    else:
        assert np.all(np.diff(found.q2) > 0) and found.q2[0] > 0 and np.all(np.isfinite(found.q2))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=8) | st.dictionaries(st.sampled_from(["q2", "d", "tth", "wavelength"]), inner)
    ),
    max_leaves=20,
)


@given(json_values)
def test_whatever_the_json_the_answer_is_a_list_or_a_sentence(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("json") / "list.json"
    path.write_text(json.dumps(content))
    try:
        peaks.read(path, quantity="q2")
    except InputError as error:
        assert str(error).startswith(f"{path}: ")


def test_writing_angles_needs_a_wavelength_that_reaches(tmp_path):
    q2 = np.arange(1.0, 9.0)
    with pytest.raises(InputError, match="without a wavelength"):
        peaks.write(tmp_path / "a.txt", PeakList("a", "", q2), quantity="tth")
    with pytest.raises(InputError, match="does not reach"):
        peaks.write(tmp_path / "a.txt", PeakList("a", "", q2, 1.5), quantity="tth")
