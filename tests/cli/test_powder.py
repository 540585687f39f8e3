"""The real thing in real processes: a list in, its cell out, as a table, JSON, and a CIF that gemmi agrees with."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import gemmi
import pytest

CELL = gemmi.UnitCell(4.0496, 4.0496, 4.0496, 90, 90, 90)  # aluminium
QUICK = ("--effort", "quick", "--lattice", "cP,cI,cF")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the lines of aluminium as d, and a file that is no list."""
    path = tmp_path_factory.mktemp("powder")
    hkl = [(h, k, m) for h in range(7) for k in range(h + 1) for m in range(k + 1) if len({h % 2, k % 2, m % 2}) == 1]
    spacings = sorted({round(CELL.calculate_d(x), 4) for x in hkl if any(x)}, reverse=True)[:14]
    (path / "aluminium.txt").write_text("# d\n" + "".join(f"{d}\n" for d in spacings))
    (path / "empty.txt").write_text("")
    return path


def shell(folder, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "MLINDEX_CACHE": str(folder / "cache")}
    command = [sys.executable, "-W", "error", "-m", "mlindex.cli.main", *arguments]
    root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env, cwd=root)


def test_index_and_export(folder):
    files = (str(folder / "aluminium.txt"), str(folder / "empty.txt"))
    answer = shell(folder, "index", "powder", "--json", "-o", str(folder / "r.h5"), *QUICK, *files)
    assert answer.returncode == 1, answer.stderr
    solved, failed = (json.loads(line) for line in answer.stdout.splitlines())
    best = solved["solutions"][0]
    assert solved["status"] == "solved" and best["bravais"] == "cF" and best["unindexed"] == []
    assert best["cell"] == pytest.approx(CELL.parameters, abs=2e-3)
    assert failed["status"] == "failed" and "is empty" in failed["reason"] and "is empty" in answer.stderr

    cif = shell(folder, "export", str(folder / "r.h5"), "--to", "cif")
    assert cif.returncode == 0, cif.stderr
    block = gemmi.cif.read_string(cif.stdout).sole_block()
    read = gemmi.make_small_structure_from_block(block).cell
    lines = block.find("_refln_", ["index_h", "index_k", "index_l", "d_spacing"])
    assert len(lines) == 14
    for h, k, m, d in lines:
        assert read.calculate_d([int(h), int(k), int(m)]) == pytest.approx(float(d), abs=2e-4)


def test_a_campaign(folder):
    text = '[campaign]\ninputs = ["aluminium.txt"]\n[powder]\neffort = "quick"\nlattice = ["cP", "cI", "cF"]\n'
    (folder / "c.toml").write_text(text)
    answer = shell(folder, "run", str(folder / "c.toml"))
    assert answer.returncode == 0, answer.stderr
    head, row, last = answer.stdout.splitlines()
    assert "space group" in head and row.startswith("aluminium cF") and last.startswith("1 of 1 done (1 solved")
