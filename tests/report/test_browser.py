"""The page in a real browser without a display: it shows what it should, and the console is silent."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from mlindex.cli.report import write_report
from tests.report.page_reader import Page
from tests.report.runs import make, results

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome-headless-shell")
QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--enable-logging=stderr",
    "--v=0",
]


def browser(profile: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    assert program, "no Chromium to open the report in: install one, on Debian with 'apt-get install chromium'"
    words = [program, *QUIET, f"--user-data-dir={profile}", *arguments]
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=120)


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    run = make(tmp_path_factory.mktemp("browser") / "run", results(60), inputs_more=4)
    return write_report(run, None)


def test_the_headline_is_shown_and_the_console_is_silent(path, tmp_path):
    answer = browser(tmp_path, "--dump-dom", path.as_uri())
    shown, written = Page(answer.stdout), Page(path.read_text())
    assert shown.texts["n-done"] == "60" and shown.texts["state"] == "unfinished, 4 left"
    assert shown.tables == written.tables  # the browser mends nothing
    assert [tag for tag, _ in shown.tags].count("svg") == [tag for tag, _ in written.tags].count("svg") > 5
    assert "CONSOLE" not in answer.stderr, answer.stderr


def test_the_console_would_be_heard(tmp_path):
    page = tmp_path / "loud.html"
    page.write_text("<!DOCTYPE html><title>x</title><script>nothing.at.all</script>")
    assert "CONSOLE" in browser(tmp_path / "profile", "--dump-dom", page.as_uri()).stderr


def test_it_can_be_drawn_and_printed(path, tmp_path):
    """A picture with more than a few colours, and a PDF of several pages whose first is the overview."""
    import matplotlib.image

    browser(tmp_path / "a", f"--screenshot={tmp_path / 'page.png'}", "--window-size=1200,1400", path.as_uri())
    pixels = matplotlib.image.imread(tmp_path / "page.png")
    assert pixels.shape[:2] == (1400, 1200) and len({tuple(p) for p in pixels[::7, ::7, :3].reshape(-1, 3)}) > 20
    browser(tmp_path / "b", f"--print-to-pdf={tmp_path / 'page.pdf'}", "--no-pdf-header-footer", path.as_uri())
    pdf = (tmp_path / "page.pdf").read_bytes()
    assert pdf.startswith(b"%PDF-") and 2 <= pdf.count(b"/Type /Page\n") <= 8
