"""Takes what stands here from real kernels, each in a guest of its own: python -m tests.golden.kcore.take (30 s).

NAME.head is /proc/kcore from its first byte to the end of its notes, NAME.iomem is /proc/iomem. KASLR moves the
addresses with each boot. scripts/guests.sh makes the guests, of both architectures.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.rigs.guest import Guest, Machine

HERE = Path(__file__).parent
MACHINES = {
    "four": Machine(memory=512, paging=4),
    "five": Machine(memory=512, paging=5),
    "hole": Machine(memory=512, hole=True),
    "arm64": Machine(architecture="arm64"),
}
_HEAD = """\
import sys
from acquirers.memory import kcore
sys.stdout.buffer.write(kcore.parse_header(kcore.read_header(kcore.open_checked(b"/proc/kcore"))).verbatim)
"""


def main() -> None:
    for name, machine in MACHINES.items():
        with tempfile.TemporaryDirectory() as directory, Guest(machine, Path(directory, "guest")) as guest:
            for suffix, command in ("head", ["python3", "-c", _HEAD]), ("iomem", ["cat", "/proc/iomem"]):
                done = guest.run(command)
                if done.code:
                    sys.exit(f"{name}: {done}")
                (HERE / f"{name}.{suffix}").write_bytes(done.out)


if __name__ == "__main__":
    main()
