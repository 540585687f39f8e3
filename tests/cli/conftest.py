"""Run the command line in this process, with a stage that costs nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from mlindex import stage
from mlindex.cli.main import main
from mlindex.runtime import device
from tests.cli.fake import FakeStage


@dataclass
class Answer:
    code: int
    out: str
    err: str


@pytest.fixture
def mlindex(monkeypatch, capsys) -> Callable[..., Answer]:
    """mlindex("index", "powder", ...) -> exit status, standard output, standard error."""
    bound: list[int] = []
    monkeypatch.setitem(stage.STAGES, "powder", "tests.cli.fake:FakeStage")
    monkeypatch.setattr(device, "apply", lambda *a: bound.append(len(FakeStage.built)))
    monkeypatch.setattr(FakeStage, "built", [])

    def run(*arguments: object) -> Answer:
        with pytest.raises(SystemExit) as ended:
            main([str(a) for a in arguments])
        said = capsys.readouterr()
        if FakeStage.built:
            assert bound and bound[0] == 0, "the device is bound before the stage is built"
        return Answer(int(ended.value.code or 0), said.out, said.err)

    return run


@pytest.fixture
def lists(tmp_path):
    """A folder with two good lists, an unsolvable one, a bad one, one that meets a bug, and a hidden file."""
    good = "# q2\n" + "".join(f"{0.1 * i}\n" for i in range(1, 9))
    for name in ("alpha", "beta", "noise", "bug"):
        (tmp_path / f"{name}.txt").write_text(good)
    (tmp_path / "broken.csv").write_text("# q2\n1\n-2\n")
    (tmp_path / ".hidden").write_text("no list")
    return tmp_path


@pytest.fixture
def run(monkeypatch, capsys):
    """run("index", "laue", ...) -> exit status, standard output, standard error; in this process,
    with the real stages and the device as it is.
    """
    monkeypatch.setattr(device, "apply", lambda *a: None)

    def call(*arguments: object) -> Answer:
        with pytest.raises(SystemExit) as ended:
            main([str(a) for a in arguments])
        said = capsys.readouterr()
        return Answer(int(ended.value.code or 0), said.out, said.err)

    return call
