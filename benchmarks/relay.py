"""What the relay carries of what the bare channel carries, over a real sshd on loopback, in one run:

    python -m benchmarks.relay [--size MIB] [--rounds N] [--in DIRECTORY]

The bare channel is `cat FILE` on the host, read to its end by the same SSH client in the same way, and thrown away. The
relay is the command itself, from its start to its end, less what a run of nothing takes: the host reads a disk that
holds the same file (random bytes: nothing is gained by compressing), seals it, sends it; the controller stores it in a
directory. Both take turns; a ratio of 0.5 or more is what is asked for. Needs root, sshd and the binary.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from agent.delivery.ssh.config import route
from agent.delivery.ssh.connection import Authentication, Connection
from agent.delivery.ssh.hostkeys import KnownHosts
from agent.delivery.ssh.program import SshProgram
from tests.rigs.sshd import Sshd
from tests.support.runs import ENVIRONMENT, keygen

BINARY = Path(__file__).parents[1] / ".cache/binary/impound"
MIB = 1 << 20


def bare(host: Sshd, path: Path) -> float:
    """Seconds."""
    hops = route(f"root@{host.address}:{host.port}", [], [str(host.client_key)], "")
    known = KnownHosts([str(host.known_hosts)])
    connection = Connection(hops, lambda _hop: known, Authentication(agent=False))
    began = time.monotonic()
    program = SshProgram(connection, shlex.join(["cat", str(path)]), lambda _line: None)
    size = 0
    while data := os.read(program.writes, 1 << 18):
        size += len(data)
    took = time.monotonic() - began
    program.end(10.0)
    assert size == path.stat().st_size
    return took


def relay(host: Sshd, disk: Path, to: Path, recipient: str) -> float:
    """Seconds."""
    command = [
        sys.executable, "-m", "agent", "deploy", "ssh", f"root@{host.address}:{host.port}", "--relay", "--case", "C",
        "--to", str(to), "-r", recipient, "--root", str(disk), "--only", "containers.docker", "--agent", str(BINARY),
        "--key", str(host.client_key), "--known-hosts", str(host.known_hosts), "--ssh-config", "",
        "--state", str(to.parent / "state"), "--nice", "0", "--io", "normal", "--json",
    ]  # fmt: skip
    began = time.monotonic()
    done = subprocess.run(
        command, env=ENVIRONMENT | {"HOME": str(to.parent)}, capture_output=True, timeout=900, check=False
    )
    took = time.monotonic() - began
    result = json.loads(done.stdout)
    if result["verdict"] != "complete":
        raise SystemExit(done.stderr.decode())
    subprocess.run(["rm", "-rf", str(to)], check=True, timeout=60)
    return took


def make_disk(base: Path, size: int) -> tuple[Path, Path]:
    """A disk with a Docker volume that holds one file of random bytes, and that file."""
    disk = base / f"disk-{size}"
    for name in ("containers", "image", "overlay2", "volumes/unused/_data"):
        (disk / "var/lib/docker" / name).mkdir(parents=True)
    path = disk / "var/lib/docker/volumes/unused/_data/big"
    with path.open("wb") as file:
        for _ in range(size // MIB):
            file.write(os.urandom(MIB))
    return disk, path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512, metavar="MIB")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--in", dest="place", default="/dev/shm")  # noqa: S108 - memory, so that no disk is measured
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.place, prefix="impound-relay.") as name:
        base = Path(name)
        key = base / "keys"
        key.mkdir()
        _, recipient = keygen(key)
        disk, path = make_disk(base, given.size * MIB)
        nothing, _ = make_disk(base, 0)
        rounds = []
        with Sshd(base / "host") as host:
            for _ in range(given.rounds):
                alone = bare(host, path)
                start = relay(host, nothing, base / "to", recipient)
                took = relay(host, disk, base / "to", recipient) - start
                rounds.append((alone, took, start))
                print(
                    f"bare {given.size * MIB / alone / 1e6:.0f} MB/s, relay {given.size * MIB / took / 1e6:.0f} MB/s "
                    f"behind {start:.1f} s of start and end: ratio {alone / took:.2f}",
                    flush=True,
                )
        print(f"median of the ratios {statistics.median(alone / took for alone, took, _ in rounds):.2f}")


if __name__ == "__main__":
    main()
