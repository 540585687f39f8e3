"""The package as a whole: its version, its files, and what the linters say of it."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import mlindex

ROOT = Path(mlindex.__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_version_is_one_and_the_changelog_knows_it():
    assert re.fullmatch(r"\d+\.\d+\.\d+", mlindex.__version__)
    assert PROJECT["dynamic"] == ["version"]
    assert f"## [{mlindex.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_command_is_declared():
    assert PROJECT["scripts"]["mlindex"] == "mlindex.cli.main:main"


@pytest.mark.parametrize("command", [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]])
def test_linters(command):
    answer = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_the_demo_campaign_reads():
    """The first command of the README: its lists are there, readable, and say where they are from."""
    from mlindex.config import PowderSettings, read_campaign
    from mlindex.formats import peaks
    from mlindex.runtime.inputs import find

    campaign = read_campaign(ROOT / "slurm" / "demo.toml")
    assert campaign.powder.model_dump() == PowderSettings().model_dump(), "the demo runs at default settings"
    files = find(campaign.campaign.inputs, ROOT / "slurm", "demo.toml")
    assert len(files) >= 5
    for file in files:
        assert len(peaks.read(ROOT / "slurm" / file).q2) >= 19
        text = (ROOT / "slurm" / file).read_text()
        for word in ("# source: ", "# licence: MIT", "# cell: "):
            assert word in text, file


def test_no_test_is_skipped_or_expected_to_fail():
    words = re.compile(r"pytest\.(skip|importorskip)\(|mark\.(skip|skipif|xfail)\b|pytest\.xfail")
    found = [p for p in (ROOT / "tests").rglob("*.py") if words.search(p.read_text()) and p != Path(__file__)]
    assert not found
