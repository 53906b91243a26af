from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.rigs.trees import Recorder, make_every_type


@pytest.fixture
def report() -> Recorder:
    return Recorder()


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """An empty directory with room beside it."""
    directory = tmp_path / "top"
    directory.mkdir()
    return directory


@pytest.fixture
def every_type(top: Path) -> Path:
    """A directory with every type of file, odd names and everything that can hang on a file."""
    if os.geteuid() != 0:
        pytest.skip("needs root to make devices")
    make_every_type(top)
    return top
