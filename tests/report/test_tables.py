"""What people read: every number of the record, at any width of the terminal, and a line for what has no solution."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
from rich.console import Console

from mlindex.records import Status
from mlindex.report.tables import PLAIN_WIDTH, best_table, printer, result_table, tally
from tests.report.results import failed, solved, unsolved


def shown(renderable, width: int = PLAIN_WIDTH) -> str:
    out = io.StringIO()
    Console(file=out, width=width, highlight=False).print(renderable)
    return out.getvalue()


def test_ranked_table():
    text = shown(result_table(solved()))
    lines = text.splitlines()
    assert lines[0].strip() == "corundum"
    for part in ("hR", "4.7589(2)", "12.9920(13)", "120", "254.8", "54.3", "4/5", "0.98", "+0.012", "R -3 c"):
        assert part in lines[2], part
    assert "95.110(12)" in lines[3] and "nan" not in text and "None" not in text
    assert "not indexed by 1: d = 2.2361" in text


@pytest.mark.parametrize("width", [40, 80, 200])
def test_nothing_is_cut_off_at_any_width(width):
    text = shown(result_table(solved()), width)
    assert "…" not in text
    squeezed = re.sub(r"\s", "", text)
    assert all(character in squeezed for character in "hRmP")
    if width >= 80:
        assert "12.9920(13)" in text and "24.681(3)" in text


def test_ambiguous_solutions_are_named():
    text = shown(result_table(solved(ambiguity=np.array([3, 3]))))
    assert "1 and 2 have identical line positions" in text
    assert "identical" not in shown(result_table(solved(ambiguity=np.array([0, 0]))))


def test_without_solutions():
    assert shown(result_table(failed())).strip() == "broken  failed: lists/broken.txt: is empty; give a list"
    assert shown(result_table(unsolved())).strip() == "noise  unsolved"
    assert "unsolved: no solution is good enough" in shown(result_table(solved(status=Status.UNSOLVED)))


def test_one_row_a_list():
    text = shown(best_table([solved(), failed(), unsolved(), solved("weak", Status.UNSOLVED)]))
    rows = text.splitlines()
    assert len(rows) == 5
    assert "4.7589(2)" in rows[1] and "failed: lists/broken.txt: is empty" in rows[2] and "unsolved" in rows[3]
    assert "weak (unsolved)" in rows[4] and "hR" in rows[4]
    assert tally([solved(), failed(), unsolved()]) == "3 lists: 1 solved, 1 unsolved, 1 failed"
    assert tally([solved()]) == "1 list: 1 solved"


def test_names_are_not_markup(capsys):
    printer().print(result_table(solved("[red]a[/red] :smile:")))
    assert "[red]a[/red] :smile:" in capsys.readouterr().out
