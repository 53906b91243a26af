"""Databases of containerd with bytes changed at random: nothing is raised, and what can still be found is taken."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.fuzz.test_bolt import mutate
from tests.unit.containers.containerd_disk import Machine, probe, take
from tests.unit.containers.disk import hex_id
from tests.unit.containers.test_containerd import LABELS


@pytest.mark.parametrize("seed", range(4))
def test_damaged_databases(tmp_path: Path, seed: int) -> None:
    generator = random.Random(seed)
    machine = Machine(tmp_path)
    top = machine.image()
    for number in range(4):
        container = hex_id(f"c{number}")
        machine.snapshot(container, parent=top)
        machine.container(container, labels={**LABELS, "io.kubernetes.container.name": f"app-{number}"})
    host = machine.write()
    paths = [
        machine.data / "io.containerd.metadata.v1.bolt/meta.db",
        machine.snapshotter("overlayfs") / "metadata.db",
    ]
    whole = {path: path.read_bytes() for path in paths}
    for _ in range(12):
        for path in paths:
            if generator.randrange(3):
                path.write_bytes(mutate(whole[path], generator, 4096))
            else:
                path.write_bytes(whole[path])
        probe(host)
        taken = take(host)
        # Whatever the records say, what was written is in some archive.
        text = b"".join(one.data for one in taken.values())
        gaps = [gap for one in taken.values() for gap in one.gaps]
        flags = [flag for one in taken.values() for flag in one.flags]
        missing = [number for number in range(4) if b"of " + hex_id(f"c{number}").encode() not in text]
        assert not missing or gaps or flags, "a loss without a word"
