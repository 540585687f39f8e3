"""Real processes: what the shell sees, and that help, version and completion load nothing heavy."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

import mlindex

HEAVY = {"jax", "mpi4py", "h5py", "gemmi", "scipy", "numpy", "matplotlib"}


def shell(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mlindex.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **(env or {})})


def test_version():
    answer = shell("--version")
    assert answer.returncode == 0 and answer.stdout == f"mlindex {mlindex.__version__}\n" and answer.stderr == ""


@pytest.mark.parametrize(
    "arguments", [["--version"], ["--help"], ["index", "powder", "--help"], ["run", "--help"], ["report", "--help"]]
)
def test_help_and_version_import_nothing_heavy(arguments):
    program = (
        "import sys, json\nfrom mlindex.cli.main import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit as end:\n    assert not end.code\n"
        "print(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert HEAVY.isdisjoint(json.loads(answer.stderr))


def test_errors_have_no_traceback():
    answer = shell("run", "there-is-no-such.toml")
    assert answer.returncode == 2 and answer.stdout == ""
    assert answer.stderr.startswith("mlindex: there-is-no-such.toml: cannot be read") and answer.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("mlindex index powder --effort q", "quick"),
        ("mlindex index powder --lattice m", "mP"),
        ("mlindex st", "status"),
    ],
)
def test_completion_of_the_shell(words, completed):
    last = str(len(words.split()) - 1)
    answer = shell(env={"_MLINDEX_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": last})
    assert completed in answer.stdout.split()
