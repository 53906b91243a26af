"""A run of the real command line, opened again: what tests of whole containers look at."""

from __future__ import annotations

import base64
import json
import subprocess
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tests.support.runs import ENVIRONMENT, agent_command, impound

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

_TAR = "--ignore-zeros --delay-directory-restore --numeric-owner --same-permissions --xattrs --xattrs-include=*"
_SILENT = "--warning=no-unknown-keyword --warning=no-timestamp"


def as_it_is(command: Sequence[str]) -> list[str]:
    return [*command]


@dataclass
class Evidence:
    """One run below `directory`, opened."""

    directory: Path
    result: dict[str, Any]

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        (manifest,) = self.directory.glob("attempt-*/manifest.jsonl")
        return [json.loads(line) for line in manifest.read_bytes().splitlines()]

    @property
    def items(self) -> list[str]:
        return sorted(str(path.relative_to(self.directory)) for path in self.directory.glob("*/**/*.tar"))

    def about(self, item: str) -> dict[str, Any]:
        found: dict[str, Any] = next(
            one["about"] for one in self.records if one.get("item") == item and one["type"] == "item"
        )
        return found

    def gaps(self, *allowed: str) -> list[dict[str, Any]]:
        """All but those whose reason is expected."""
        return [one for one in self.records if one["type"] == "gap" and one["reason"] not in allowed]

    def container(self, runtime: str, container_id: str) -> str:
        (found,) = [item for item in self.items if item.startswith(f"containers/{runtime}/{container_id[:12]}-")]
        return found

    def census(self) -> list[dict[str, Any]]:
        lines = (self.directory / "containers/census.jsonl").read_bytes().splitlines()
        return [line for line in map(json.loads, lines) if line["type"] == "container"]

    def extracted(self, native: bytes) -> bytes:
        """Containers and layers, unpacked by GNU tar as root: where the directory of this native path is now."""
        target = self.directory / "extracted"
        if not target.exists():
            target.mkdir()
            joined = self.directory / "joined.tar"
            with joined.open("wb") as file:
                for item in self.items:
                    if item.startswith("containers/"):
                        file.write((self.directory / item).read_bytes())
            command = ["tar", *_TAR.split(), *_SILENT.split(), "-C", str(target), "-xf", str(joined)]
            done = subprocess.run(command, capture_output=True, check=False)
            # The one path that no tar can give back by its name: beyond PATH_MAX.
            errors = [line for line in done.stderr.splitlines() if b"File name too long" not in line]
            assert all(b"due to previous errors" in line for line in errors), errors
        return str(target).encode() + b"/[root]" + native

    def timeline(self, output: Path, container_id: str, name: str) -> list[dict[str, Any]]:
        """What `export logs` makes of the logs of one container."""
        if not output.exists():
            code, _, error = impound("export", "logs", self.directory, "-o", output)
            assert code == 0, error
        lines = (output / f"{container_id[:12]}-{name}.jsonl").read_bytes().splitlines()
        return [json.loads(line) for line in lines]


def true_bytes(value: dict[str, Any], key: str) -> bytes:
    """Of a path in the manifest."""
    encoded = value.get(f"{key}_b64")
    return base64.b64decode(encoded) if encoded else str(value[key]).encode()


def take(
    directory: Path,
    key: Path,
    recipient: str,
    *selection: str,
    within: Callable[[Sequence[str]], list[str]] = as_it_is,
) -> Evidence:
    """`impound acquire` as its own process, then `impound open`. `directory` is made."""
    directory.mkdir()
    command = [*agent_command(), "acquire", "--case", "C", "--to", str(directory / "sealed"), "-r", recipient]
    done = subprocess.run(
        within([*command, *selection]), capture_output=True, env=ENVIRONMENT, timeout=240, check=False
    )
    assert done.returncode in {0, 1}, done.stderr.decode(errors="replace")[-3000:]
    code, _, error = impound("open", directory / "sealed", "-i", key, "-o", directory / "opened")
    assert code == 0, error
    return Evidence(directory / "opened", json.loads(done.stdout.splitlines()[-1]))
