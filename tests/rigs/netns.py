"""Machines of a network of their own: network namespaces, joined by cables, with nothing else in them.

with Network("responder", "jump", "host") as net:
    net.join("responder", "10.0.1.1", "jump", "10.0.1.2")
    net.run("host", "ip", "route")              # a finished command
    net.prefix("host")                          # to start one by
"""

from __future__ import annotations

import secrets
import subprocess
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType


class Network:
    def __init__(self, *machines: str) -> None:
        self._mark = secrets.token_hex(3)
        self._machines = machines
        self._cables = 0

    def name(self, machine: str) -> str:
        return f"imp-{self._mark}-{machine}"

    def prefix(self, machine: str) -> tuple[str, ...]:
        return ("ip", "netns", "exec", self.name(machine))

    def run(self, machine: str, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.prefix(machine), *command], capture_output=True, text=True, timeout=60, check=check
        )

    def join(self, one: str, address: str, other: str, other_address: str) -> None:
        """A cable between two machines: a network of 24 bits."""
        self._cables += 1
        ends = [f"v{self._mark}{self._cables}{side}" for side in "ab"]
        _ip(
            "link",
            "add",
            ends[0],
            "netns",
            self.name(one),
            "type",
            "veth",
            "peer",
            "name",
            ends[1],
            "netns",
            self.name(other),
        )
        for machine, end, given in ((one, ends[0], address), (other, ends[1], other_address)):
            self.run(machine, "ip", "address", "add", f"{given}/24", "dev", end)
            self.run(machine, "ip", "link", "set", end, "up")

    def __enter__(self) -> Self:
        try:
            for machine in self._machines:
                _ip("netns", "add", self.name(machine))
                self.run(machine, "ip", "link", "set", "lo", "up")
        except BaseException:
            self._remove()
            raise
        return self

    def _remove(self) -> None:
        for machine in self._machines:
            subprocess.run(["ip", "netns", "delete", self.name(machine)], capture_output=True, timeout=60, check=False)

    def __exit__(self, _kind: type[BaseException] | None, _error: object, _trace: TracebackType | None) -> None:
        self._remove()


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=60)
