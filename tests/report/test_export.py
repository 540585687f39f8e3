"""What is handed on: JSON that any parser takes, CSV that the csv module reads back, CIF that gemmi understands."""

from __future__ import annotations

import csv
import io
import json

import gemmi
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mlindex.formats.cif import Block, number_with_esd, text_from_blocks
from mlindex.powder.record import powder_record
from mlindex.records import Status
from mlindex.report.export import CSV_HEADER, cif_note, cif_text, csv_lines, json_lines
from tests.report.results import CELLS, failed, solved, unsolved


def strict(text: str):
    """JSON without the extensions of Python: NaN and Infinity are errors."""

    def refuse(name):
        raise AssertionError(name)

    return json.loads(text, parse_constant=refuse)


def exported(writer, results) -> str:
    return "".join(writer(results))


def test_record_has_the_documented_keys_and_null_for_nan():
    record = strict(json.dumps(powder_record(solved())))
    assert list(record) == ["id", "source", "status", "seconds", "solutions"]
    best, second = record["solutions"]
    documented = {"bravais", "cell", "niggli", "volume", "m20", "n_indexed", "score", "space_group"}
    assert documented <= set(best) and best["bravais"] == "hR" and best["cell"] == CELLS[0].tolist()
    assert best["unindexed"] == [0.2] and second["unindexed"] == []
    assert second["zero_shift"] is None and second["information"] is None and best["zero_shift"] == 0.0123
    assert isinstance(best["n_indexed"], int)


def test_record_of_what_has_no_solutions():
    assert powder_record(failed())["status"] == "failed" and "is empty" in powder_record(failed())["reason"]
    assert powder_record(failed())["solutions"] == [] == powder_record(unsolved())["solutions"]
    assert "reason" not in powder_record(unsolved())


def test_json_is_one_object_a_line():
    lines = exported(json_lines, [solved(), failed(), unsolved()]).splitlines()
    assert [strict(line)["status"] for line in lines] == ["solved", "failed", "unsolved"]


def test_csv_reads_back():
    text = exported(csv_lines, [solved(), failed(), unsolved('a, "b"\n')])
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [row["id"] for row in rows] == ["corundum", "corundum", "broken", 'a, "b"\n']
    assert all(tuple(row) == CSV_HEADER for row in rows)
    np.testing.assert_array_equal([float(rows[1][k]) for k in ("a", "b", "c", "alpha", "beta", "gamma")], CELLS[1])
    assert rows[0]["rank"] == "1" and rows[1]["zero_shift"] == "" and rows[0]["unindexed"] == "0.2"
    assert rows[2]["bravais"] == "" and rows[2]["status"] == "failed"


def test_cif_read_by_gemmi():
    text = exported(cif_text, [solved("one"), failed(), solved("one"), solved("ONE with # blanks'")])
    document = gemmi.cif.read_string(text)
    document.check_for_duplicates()
    assert [block.name for block in document] == ["one", "one_2", "ONE_with___blanks_"]
    for block in document:
        read = gemmi.make_small_structure_from_block(block)
        assert read.spacegroup_hm == "R -3 c"
        np.testing.assert_allclose(read.cell.parameters, CELLS[0], atol=1e-4)
        assert abs(read.cell.volume - 254.81) < 0.01
    block = document[0]
    assert block.find_value("_cell_length_c") == "12.9920(13)" and block.find_value("_cell_angle_gamma") == "120"
    rows = [[row[0], row[1], row[2]] for row in block.find("_refln_", ["index_h", "index_k", "index_l"])]
    assert rows == [["0", "1", "2"], ["1", "0", "4"], ["1", "1", "0"], ["1", "1", "3"]]


def test_a_cell_that_was_rejected_has_no_block():
    """An unsolved item may have cells in its tables; who reads a CIF takes a cell for an answer."""
    found = [solved("one"), solved("two", status=Status.UNSOLVED), unsolved(), failed(), solved("three")]
    assert [block.name for block in gemmi.cif.read_string(exported(cif_text, found))] == ["one", "three"]
    assert (
        cif_note(found) == "2 unsolved items have no block in the CIF; the cells that were rejected are in json and csv"
    )
    assert cif_note(found[1:2]).startswith("1 unsolved item has no block") and cif_note(found[3:]) == ""


def test_cif_without_a_space_group_and_with_awkward_text():
    block = Block(
        "x", [1.0, 2.0, 3.0, 90.0, 90.0, 90.0], [0.0] * 6, 6.0, extra={"_mlindex_source": 'it\'s "here" ; _loop'}
    )
    read = gemmi.cif.read_string(text_from_blocks([block])).sole_block()
    assert read.find_value("_symmetry_space_group_name_H-M") == "?"
    assert gemmi.cif.as_string(read.find_value("_mlindex_source")) == 'it\'s "here" ; _loop'


@pytest.mark.parametrize(
    ("value", "esd", "text"),
    [
        (5.43112, 0.0002, "5.4311(2)"),
        (5.43112, 0.00019, "5.43112(19)"),
        (5.43112, 0.000196, "5.4311(2)"),
        (12.992, 0.0013, "12.9920(13)"),
        (12.992, 0.0097, "12.992(10)"),
        (1682.87, 3.2, "1683(3)"),
        (1682.87, 25.1, "1680(30)"),
        (90.0, 0.0, "90"),
        (4.5, float("nan"), "4.5"),
        (0.00004, 0.0, "0"),
    ],
)
def test_standard_uncertainties(value, esd, text):
    assert number_with_esd(value, esd) == text


@given(st.floats(0.1, 1e4), st.floats(1e-6, 100))
def test_standard_uncertainties_are_read_back_by_gemmi(value, esd):
    assume(esd < value)
    text = number_with_esd(value, esd)
    digits = int(text[text.index("(") + 1 : -1])
    unit = 10.0 ** -len(text.partition("(")[0].partition(".")[2])
    assert abs(gemmi.cif.as_number(text) - value) <= 0.5 * max(unit, digits * unit) * (1 + 1e-6)
    assert abs(digits * unit - esd) <= 0.28 * esd
