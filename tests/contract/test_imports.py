"""The architecture as a test: who may import whom, and that importing starts nothing."""

from __future__ import annotations

import configparser
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
from importlinter.application.use_cases import FAILURE, SUCCESS, lint_imports
from importlinter.cli import lint_imports as lint_imports_cli  # noqa: F401  (configures the ports that lint_imports uses)

import mlindex

ROOT = Path(mlindex.__file__).parents[1]
CONFIG = ROOT / ".importlinter"
MODULES = sorted(m.name for m in pkgutil.walk_packages(mlindex.__path__, "mlindex."))
ROOMS = {name for name in MODULES if name.count(".") == 1}
OUTSIDE = {  # who alone may import what
    "mpi": {"mlindex.runtime"},
    "gemmi": {"mlindex.crystal", "mlindex.formats"},
}


def test_import_contract(capsys):
    assert lint_imports(config_filename=str(CONFIG), cache_dir=None) == SUCCESS, capsys.readouterr().out


def test_the_contract_can_fail(tmp_path):
    """The same contract with a layer in the wrong place is broken: it does look at this package."""
    bottom = "    config : records\n"
    text = CONFIG.read_text().replace(bottom, "").replace("    cli\n", f"{bottom}    cli\n")
    (tmp_path / "upside_down").write_text(text)
    assert lint_imports(config_filename=str(tmp_path / "upside_down"), cache_dir=None) == FAILURE


@pytest.mark.parametrize("contract", sorted(OUTSIDE))
def test_the_contract_forgets_no_room(contract):
    config = configparser.ConfigParser()
    config.read(CONFIG)
    named = set(config[f"importlinter:contract:{contract}"]["source_modules"].split())
    assert named == ROOMS - OUTSIDE[contract]


def imported_after(program: str) -> dict:
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT)
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout.splitlines()[-1])


def test_importing_every_module_starts_no_backend_and_no_mpi():
    """Module constants are NumPy: a rank must still choose its device after all imports."""
    found = imported_after(
        "import importlib, json, sys\n"
        f"for name in {MODULES!r}: importlib.import_module(name)\n"
        "from jax._src import xla_bridge\n"
        "print(json.dumps({'backends': sorted(xla_bridge._backends), 'mpi': 'mpi4py.MPI' in sys.modules}))"
    )
    assert found == {"backends": [], "mpi": False}


def test_the_backend_would_be_noticed():
    found = imported_after(
        "import json, jax\njax.numpy.zeros(1)\nfrom jax._src import xla_bridge\n"
        "print(json.dumps(sorted(xla_bridge._backends)))"
    )
    assert "cpu" in found


def test_importing_the_package_imports_nothing_else():
    found = imported_after("import json, sys, mlindex; print(json.dumps(sorted(sys.modules)))")
    assert {"jax", "numpy", "h5py", "gemmi", "mpi4py"}.isdisjoint(found)


def test_public_names_are_there():
    for name in mlindex.__all__:
        assert getattr(mlindex, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        mlindex.nothing  # noqa: B018


def test_no_module_is_too_long_or_a_drawer():
    for path in (ROOT / "mlindex").rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 500, path
        assert path.stem not in ("utils", "helpers", "common"), path
