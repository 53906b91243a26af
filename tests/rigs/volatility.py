"""Volatility 3 as an analyst runs it: its own command line, the symbols of one folder, and no cache of anybody's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.rigs.s3_process import RigError

_SECONDS = 300


class Volatility:
    """`symbols`: an ISF. `directory` is for the caches, and should be new."""

    def __init__(self, image: Path, symbols: Path, directory: Path) -> None:
        self.image, self.directory = image, directory
        for place in ("symbols/linux", "cache"):
            (directory / place).mkdir(parents=True)
        shutil.copy(symbols, directory / "symbols/linux" / symbols.name)

    def run(self, plugin: str, *arguments: str) -> list[dict[str, Any]]:
        """The rows of a plugin. Raises `RigError` where it fails or finds no kernel."""
        script = Path(sys.executable).with_name("vol")
        options = ["-q", "--offline", "-r", "json", "-s", str(self.directory / "symbols")]
        options += ["--cache-path", str(self.directory / "cache"), "-f", str(self.image)]
        done = subprocess.run(
            [sys.executable, str(script), *options, plugin, *arguments],
            capture_output=True,
            timeout=_SECONDS,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "HOME": str(self.directory)},
        )
        if done.returncode:
            raise RigError(f"volatility {plugin}: {(done.stdout + done.stderr)[-3000:].decode('utf-8', 'replace')}")
        rows: list[dict[str, Any]] = json.loads(done.stdout)
        return rows
