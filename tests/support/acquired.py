"""What an acquirer of containers brings, each item as a file, without a run around it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.rigs.trees import Recorder

if TYPE_CHECKING:
    from acquirers.base import Acquirer, Gap, Item, Member, Scope
    from acquirers.host import Host


@dataclass
class Acquired:
    """The items, each as a file below `directory`, with what was told of them."""

    directory: Path
    items: dict[str, Item] = field(default_factory=dict)
    reports: dict[str, Recorder] = field(default_factory=dict)

    def path(self, item: str) -> Path:
        return self.directory / item

    @property
    def gaps(self) -> list[Gap]:
        return [gap for report in self.reports.values() for gap in report.gaps]

    @property
    def members(self) -> dict[bytes, Member]:
        return {member.path: member for report in self.reports.values() for member in report.members}

    def container(self, container_id: str) -> str:
        return next(path for path, item in self.items.items() if item.about.get("id") == container_id)

    def layers(self) -> list[str]:
        return [path for path in self.items if "/layers/" in path]

    def extracted(self, prefix: str = "") -> Path:
        """All archives, joined and unpacked by GNU tar as root: the directory that `prefix` names on the host."""
        directory = self.directory / "extracted"
        if not directory.exists():
            directory.mkdir()
            joined = self.directory / "joined.tar"
            with joined.open("wb") as file:
                for item in self.items:
                    file.write(self.path(item).read_bytes() if item.endswith(".tar") else b"")
            arguments = "--ignore-zeros --delay-directory-restore --numeric-owner --same-permissions --xattrs"
            warnings = "--warning=no-unknown-keyword --warning=no-timestamp"
            done = subprocess.run(
                ["tar", *arguments.split(), "--xattrs-include=*", *warnings.split(), "-C", directory, "-xf", joined],
                capture_output=True,
                check=False,
            )
            # The one path that no tar can give back by its name: beyond PATH_MAX.
            errors = [line for line in done.stderr.splitlines() if b"File name too long" not in line]
            assert all(b"due to previous errors" in line for line in errors), errors
            assert done.returncode == 0 or b"File name too long" in done.stderr
        return directory / "[root]" / prefix.lstrip("/")


def take(acquirer: Acquirer, host: Host, directory: Path, scope: Scope, wanted: Callable[[Item], bool]) -> Acquired:
    """Other daemons may run on the machine: only the items that are wanted are read."""
    found = Acquired(directory)
    acquirer.probe(host, scope)
    for item in acquirer.items(host, scope):
        if not wanted(item):
            continue
        report = Recorder()
        path = found.path(item.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            for chunk in item.read(report):
                assert len(chunk) <= 1 << 20
                file.write(chunk)
        found.items[item.path] = item
        found.reports[item.path] = report
    return found


def of_root(root: Path | bytes, key: str = "data_root") -> Callable[[Item], bool]:
    """Only what that root holds."""
    return lambda item: item.about.get(key) == os.fsencode(root)
