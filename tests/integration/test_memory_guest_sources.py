"""Each way to physical memory by itself, in a real kernel: what it gives for every page is what QEMU has there."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.rigs import guest_truth
from tests.rigs.guest import REPOSITORY, Guest, Machine, why_not
from tests.rigs.guest_truth import PAGE

pytestmark = pytest.mark.timeout(600)

MACHINES = {
    "four-level": Machine(),
    "five-level": Machine(paging=5),
    "hole": Machine(paging=5, hole=True),
    "arm64": Machine(architecture="arm64"),
}
RESTLESS = 256
"""Pages of the kernel that change and come back between two looks: locks, counters, page tables of short processes."""


@dataclass(slots=True)
class Read:
    """Addresses of pages, or of parts of one at the edges of ranges."""

    same: int = 0
    changed: int = 0
    differs: list[int] = field(default_factory=list)
    """The same bytes whenever one looked, and not those that the source gave."""
    failed: list[int] = field(default_factory=list)
    missing: list[int] = field(default_factory=list)

    @property
    def total(self) -> int:
        return self.same + self.changed + len(self.differs) + len(self.failed) + len(self.missing)


@pytest.fixture(scope="module", params=[
    pytest.param(name, marks=[] if name == "four-level" else pytest.mark.slow) for name in MACHINES
])  # fmt: skip
def guest(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    machine = MACHINES[request.param]
    if reason := why_not(machine.architecture):
        pytest.skip(reason)
    with Guest(machine, tmp_path_factory.mktemp("guest")) as guest:
        yield guest


def _read(guest: Guest, source: str, directory: Path) -> Read:
    script = (REPOSITORY / "tests/rigs/guest_read.py").read_text()
    before = guest_truth.save(guest, directory / "before")
    with guest_truth.Meanwhile(guest, before, directory / "meanwhile") as meanwhile:
        done = guest.run(["python3", "-c", script, source, f"/evidence/{source}"], seconds=300, check=True)
    after = guest_truth.save(guest, directory / "after")
    *candidates, own = [json.loads(line) for line in done.out.splitlines()]
    assert {one["name"] for one in candidates if one["usable"]} == {"kcore", "bpf"}
    digests = dict(struct.iter_unpack("<Q8s", guest.read(f"/evidence/{source}")))
    restless = set(meanwhile.states) | {address for address, _ in guest_truth.changed(before, after)}
    restless.update(frame * PAGE for first, count in own["own"] for frame in range(first, first + count))
    read = Read()
    for start, end, path in after.pieces:
        with path.open("rb") as truth:
            for at in range(start, end, PAGE):
                page = truth.read(min(PAGE, end - at))
                digest = digests.get(at)
                if digest is None:
                    read.missing.append(at)
                elif digest == bytes(8):
                    read.failed.append(at)
                elif digest == hashlib.blake2b(page, digest_size=8).digest():
                    read.same += 1
                elif at in restless:
                    read.changed += 1
                else:
                    read.differs.append(at)
    return read


@pytest.mark.parametrize("source", ["kcore", "bpf"])
def test_every_page_is_what_the_machine_has(guest: Guest, source: str, tmp_path: Path) -> None:
    read = _read(guest, source, tmp_path)
    assert read.missing == []
    # kcore knows no parts of pages: eBPF gives those.
    parts = [end // PAGE * PAGE for _, end in guest_truth.system_ram(guest.read("/proc/iomem").decode()) if end % PAGE]
    assert read.failed == (parts if source == "kcore" else [])
    assert len(read.differs) < RESTLESS, [hex(address) for address in read.differs]
    assert read.same > 0.94 * read.total
