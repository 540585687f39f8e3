"""The cluster of the session, and campaigns of the toy stage on it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Answer
from tests.runtime.campaigns import ROOT
from tests.slurm import cluster as clusters
from tests.slurm.cluster import Cluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    with clusters.running() as found:
        yield found


@pytest.fixture
def submit(cluster, monkeypatch, capsys) -> Callable[..., Answer]:
    """submit(campaign, ...): `mlindex submit` in this process, on the cluster."""
    from mlindex.cli.main import main

    for name, value in cluster.variables.items():
        monkeypatch.setenv(name, value)

    def run(campaign: Path, *arguments: str) -> Answer:
        with pytest.raises(SystemExit) as ended:
            main(["submit", str(campaign), *arguments])
        said = capsys.readouterr()
        return Answer(int(ended.value.code or 0), said.out, said.err)

    return run


def slurm_table(text: str = "") -> str:
    """A `[slurm]` table for a job that runs the code of this checkout, as root where the tests do."""
    variables = {
        "PYTHONPATH": str(ROOT),
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    }
    table = ", ".join(f'{name} = "{value}"' for name, value in variables.items())
    return f'[slurm]\nenvironment = {{ {table} }}\npython = "{sys.executable}"\n{text}'
