"""Manual pages and completions that a package brings: made of the commands, and good roff."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

from agent.cli.main import VERBS, impound

SOURCE = Path(__file__).parents[2] / "packaging/release/manual.py"


@pytest.fixture(scope="module")
def manual() -> ModuleType:
    found = importlib.util.spec_from_file_location("manual", SOURCE)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pages(manual: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pages")
    manual.write_pages(impound, "9.8.7", "2026-01-02", directory)
    return directory


def test_there_is_one_for_each_verb(pages: Path) -> None:
    names = {path.name for path in pages.iterdir()}
    assert {"impound.1", *(f"impound-{verb}.1" for verb in VERBS)} <= names
    text = (pages / "impound-acquire.1").read_text()
    for part in (r"\-\-recipient", "EXIT STATUS", "EXAMPLES", "9.8.7", "2026-01-02", ".BR impound (1)"):
        assert part in text


def mandoc(*arguments: str | Path) -> str:
    if shutil.which("mandoc") is None:
        pytest.skip("needs mandoc")
    return subprocess.run(["mandoc", *arguments], capture_output=True, text=True, check=True).stdout


def test_every_option_is_in_it(pages: Path) -> None:
    said = re.sub(r".\x08", "", mandoc("-T", "ascii", pages / "impound-plan.1"))
    for option in ("--where", "--container", "--root", "--only"):
        assert option in said


def test_they_are_good_roff(pages: Path) -> None:
    assert mandoc("-T", "lint", "-W", "warning", *sorted(pages.glob("*.1"))) == ""


@pytest.mark.parametrize("text", [".so /etc/passwd", "'in", r"a \fB b", "first\n.TH x"])
def test_nothing_in_a_help_text_is_taken_for_roff(text: str, manual: ModuleType) -> None:
    escaped = manual.escaped(text)
    assert not re.search(r"^[.']", escaped, re.MULTILINE)
    assert r"\f" not in escaped


def test_completions_for_three_shells(manual: ModuleType, tmp_path: Path) -> None:
    manual.write_completions(impound, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"impound.bash", "_impound", "impound.fish"}
    subprocess.run(["bash", "-n", tmp_path / "impound.bash"], check=True)
