"""Files of /proc that somebody mounted something over are no kernel's word."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from acquirers.host import Host, Mode
from acquirers.memory import sources
from acquirers.memory.covered import covered
from acquirers.memory.ranges import Ranges

HOUSE = Path(__file__).parents[3]
ASK = """
import sys
from acquirers.host import Host, Mode
from acquirers.memory.covered import covered
from acquirers.memory import iomem, sources
found = sources.survey(Host(Mode.HOST))
print(sorted(covered(Host(Mode.HOST))), found.iomem, [one for one in found.findings if "iomem" in one], sep="\\n")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("other", ["a file", "/proc/zoneinfo"])
def test_a_file_that_is_mounted_over_is_not_read(tmp_path: Path, other: str) -> None:
    lie = tmp_path / "iomem"
    lie.write_text("00001000-0009ffff : System RAM\n")
    source = str(lie) if other == "a file" else other
    script = 'mount --bind "$1" /proc/iomem && exec "$2" -c "$3"'
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", source, sys.executable, ASK]
    done = subprocess.run(command, cwd=HOUSE, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "[b'iomem']",
        "b''",
        "['something was mounted over /proc/iomem: it is not read']",
    ]


def test_nothing_is_mounted_over_here() -> None:
    assert covered(Host(Mode.HOST)) <= {b"kcore"}  # some machines mask it


def test_ram_that_only_kcore_names_is_found_and_edges_are_not() -> None:
    ram = Ranges([(0x1000, 0x9FC00), (0x100000, 0x800000)])
    assert not sources._beyond(Ranges([(0x1000, 0xA0000), (0x100000, 0x800000)]), ram)
    assert list(sources._beyond(Ranges([(0x1000, 0x9F000), (0x100000, 0x900000)]), ram)) == [(0x800000, 0x900000)]
