"""What the one file weighs, and what it costs to start:

    python -m benchmarks.footprint [--binary FILE] [--rounds N]

    size      of the file, and of it compressed as it travels (gzip) and as a package has it (xz)
    verbs     `--help` of each: time to its end, beside /bin/true and `python3 -c pass` in the same rounds; the largest
              resident memory of the process; modules imported
    acquire   of a small disk into a directory: time to the first stored byte, to the end, resident memory

Times are medians of rounds in which all take turns. tests/integration/test_binary.py holds the budgets.
"""

from __future__ import annotations

import argparse
import gzip
import json
import lzma
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from agent.cli.main import VERBS
from tests.support.docker_disk import make_disk

REPOSITORY = Path(__file__).resolve().parents[1]
_MODULES = (
    "import io, contextlib, sys; from agent.start import main; sys.argv[1:] = sys.argv[2:]\n"
    "with contextlib.redirect_stdout(io.StringIO()):\n    main()\n"
    "print(len(sys.modules))"
)

_RESIDENT = (
    "import os, sys\n"
    "null = [(os.POSIX_SPAWN_OPEN, fd, '/dev/null', os.O_WRONLY, 0) for fd in (1, 2)]\n"
    "pid = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ, file_actions=null)\n"
    "print(os.wait4(pid, 0)[2].ru_maxrss)"
)


def timed(command: list[str | Path]) -> float:
    """Seconds to its end."""
    began = time.monotonic()
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    return time.monotonic() - began


def resident(command: list[str | Path]) -> float:
    """MiB at most. Asked by a small Python: what a child had before it became another program counts as its own."""
    asked = [sys.executable, "-I", "-S", "-c", _RESIDENT, *command]
    done = subprocess.run(asked, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    return int(done.stdout.split()[-1]) / 1024


def modules(arguments: list[str]) -> int:
    done = subprocess.run(
        [sys.executable, "-c", _MODULES, "impound", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout.split()[-1])


def sizes(binary: Path) -> None:
    data = binary.read_bytes()
    packed = {"gzip -9": len(gzip.compress(data, 9)), "xz -6": len(lzma.compress(data))}
    print(
        f"size     {len(data) / 1e6:.1f} MB" + "".join(f", {how} {size / 1e6:.1f} MB" for how, size in packed.items())
    )


def starts(binary: Path, rounds: int) -> None:
    asked = {"--version": ["--version"], "--help": ["--help"], **{verb: [verb, "--help"] for verb in VERBS}}
    commands: dict[str, list[str | Path]] = {"/bin/true": ["/bin/true"], "python3 -c pass": ["python3", "-c", "pass"]}
    commands |= {f"impound {name}": [binary, *arguments] for name, arguments in asked.items()}
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds):
        for name in sorted(commands, reverse=bool(number % 2)):
            taken[name].append(timed(commands[name]))
    for name, command in commands.items():
        count = modules(asked[name.removeprefix("impound ")]) if name.startswith("impound ") else 0
        rest = f"{count:5} modules" if count else ""
        print(f"{name:22} {statistics.median(taken[name]) * 1000:7.1f} ms {resident(command):6.1f} MiB {rest}")


def acquires(binary: Path, rounds: int) -> None:
    with tempfile.TemporaryDirectory(prefix="impound-footprint.") as name:
        directory = Path(name)
        make_disk(directory / "disk", containers=1, files=10, size=100_000)
        made = subprocess.run([binary, "keygen", "-o", directory / "key"], capture_output=True, check=True)
        recipient = json.loads(made.stdout)["recipient"]
        found = []
        for number in range(rounds):
            to = directory / f"{number}"
            began = time.time()
            seconds = timed(acquire(binary, to, recipient, directory / "disk"))
            (record,) = to.rglob("progress/000000.json")
            found.append((record.stat().st_mtime - began, seconds))
        first, end = (statistics.median(one[at] for one in found) * 1000 for at in (0, 1))
        most = resident(acquire(binary, directory / "last", recipient, directory / "disk"))
        print(f"acquire, a small disk  first byte {first:.0f} ms, end {end:.0f} ms, {most:.1f} MiB")


def acquire(binary: Path, to: Path, recipient: str, disk: Path) -> list[str | Path]:
    return [binary, "acquire", "--case", "C", "--to", to, "-r", recipient, "--root", disk]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, default=REPOSITORY / ".cache/binary/impound")
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    sizes(given.binary)
    starts(given.binary, given.rounds)
    acquires(given.binary, given.rounds)


if __name__ == "__main__":
    main()
