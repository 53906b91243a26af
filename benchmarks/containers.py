"""Containers, side by side with what somebody without impound would do, on the same files in one run:

    python -m benchmarks.containers [--only large|small|live|union] [--size MIB] [--files N] [--layers N]
                                    [--union-files N] [--rounds N] [--in DIRECTORY]

What is ours is the command itself, `acquire` into a directory and `export`, from its start to its end, at the priority
of everything else. What is measured takes turns, every second turn in reverse, so that what else the machine does falls
on all alike; medians are told, and medians of the ratios of each turn. A ratio of 1 or more: we are at least as fast.

    large   a writable layer of large files on a mounted disk, against the ceiling of sealing: cores / the sum of the
            CPU seconds per byte of each stage alone, the digest of each member and the reading included (as
            `sealing_pipeline` has it). The ceiling supposes that the cores are ours
    small   a writable layer of small files on a mounted disk, against `tar --xattrs | zstd -1 | age` and after it
            `find -exec sha256sum {} +`, which together give what an archive with a digest of each member gives
    live    the same files in a running container of a real dockerd, read by `live.files` from the host, against the
            same two through /proc/PID/root, and against `tar --xattrs` alone, which neither compresses nor seals
    union   a container of many layers: the union of its directories, every path with its history, and then without it;
            its acquisition, and `export tree` and `export oci` of that

Everything lies below /dev/shm, or `--in`, and is removed. The files are read once before each turn.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from acquirers.overlay import DirectoryLayer, Handles, Union
from agent.sealing import generate, render_identity_file
from agent.sealing.cores import default_workers
from benchmarks.containers_data import fill, large_files, many_layers, small_files
from benchmarks.sealing_data import MIB
from benchmarks.sealing_pipeline import ours as sealing
from tests.rigs.docker import PrivateDocker, why_not

HOUSE = Path(__file__).parents[1]
DEADLINE_S = 900

ARCHIVE = """set -o pipefail; tar --xattrs -c -C "$1" . | zstd -q -1 | age -r "$2" > "$3" """
DIGESTS = """find "$1" -type f -exec sha256sum {} + > "$2" """
PLAIN = """set -o pipefail; tar --xattrs -c -C "$1" . | cat > /dev/null"""  # into /dev/null itself it reads nothing
READ = """find "$1" -type f -exec cat {} + > /dev/null"""


@dataclass(frozen=True, slots=True)
class Took:
    """Seconds of wall clock, CPU seconds of all processes, and what a command of ours told at its end."""

    seconds: float
    cpu: float
    told: Mapping[str, object]

    def __add__(self, other: Took) -> Took:
        return Took(self.seconds + other.seconds, self.cpu + other.cpu, self.told)


Turns = list[dict[str, Took]]


def timed(command: list[str]) -> Took:
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        command, cwd=HOUSE, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"{command}: {done.stdout[-500:]} {done.stderr[-2000:]}")
    told = json.loads(done.stdout.splitlines()[-1]) if "--json" in command else {}
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Took(seconds, used, told)


def bash(script: str, *arguments: object) -> Took:
    return timed(["bash", "-c", script, "bash", *map(str, arguments)])


def agent(*arguments: object) -> Took:
    return timed([sys.executable, "-m", "agent", *map(str, arguments), "--json"])


class Sealing:
    """Keys, and a directory for what is stored, which is emptied by each that asks for it."""

    def __init__(self, folder: Path) -> None:
        identity = generate()
        self.recipient = identity.recipient.text
        self.key = folder / "key"
        self.key.touch(mode=0o600)
        self.key.write_text(render_identity_file(identity, datetime.now(UTC)))
        self._folder = folder

    def acquire(self, *selection: object) -> Took:
        to = self.fresh("evidence")
        took = agent(
            "acquire", "--case", "speed", "--to", to, "--recipient", self.recipient, "--nice", 0, "--io", "normal",
            *selection,
        )  # fmt: skip
        if took.told["verdict"] != "complete":
            sys.exit(f"not complete: {took.told}")
        return took

    def archive(self, tree: Path) -> Took:
        return bash(ARCHIVE, tree, self.recipient, self.fresh("archive"))

    def digests(self, tree: Path) -> Took:
        return bash(DIGESTS, tree, self.fresh("sums"))

    def fresh(self, name: str) -> Path:
        path = self._folder / name
        subprocess.run(["rm", "-rf", "--", path], check=True, timeout=DEADLINE_S)
        return path


def in_turn(ways: Mapping[str, Callable[[], Took]], rounds: int, before: Callable[[], object]) -> Turns:
    found: Turns = []
    for number in range(rounds):
        before()
        names = list(ways) if number % 2 == 0 else list(ways)[::-1]
        took = {name: ways[name]() for name in names}
        found.append({name: took[name] for name in ways})
    return found


def tell(turns: Turns, first: str, others: Mapping[str, Callable[[dict[str, Took]], Took]]) -> None:
    """`others`: what the first is compared with, made of what was measured."""
    for name in turns[0]:
        seconds, used = (statistics.median(getattr(turn[name], what) for turn in turns) for what in ("seconds", "cpu"))
        print(f"  {name:24} {seconds:7.2f} s  {used:7.2f} s of CPU")
    for name, of in others.items():
        ratios = [of(turn).seconds / turn[first].seconds for turn in turns]
        spent = statistics.median(of(turn).cpu / turn[first].cpu for turn in turns)
        each = " ".join(f"{ratio:.2f}" for ratio in ratios)
        print(
            f"  {statistics.median(ratios):.2f} times as fast as {name} (each turn: {each}), "
            f"in {1 / spent:.2f} times its CPU time"
        )


def both(turn: dict[str, Took]) -> Took:
    """An archive, and then the digests of its members."""
    return turn["tar | zstd | age"] + turn["find | sha256sum"]


def warm(tree: Path) -> Callable[[], object]:
    return lambda: bash(READ, tree)


# -- what is measured -------------------------------------------------------------------------------------------------


def large(folder: Path, options: argparse.Namespace) -> None:
    disk = folder / "disk"
    sample = large_files(disk, options.size * MIB)
    print(f"\nlarge: {options.size} MiB in files of {sample.stat().st_size // MIB} MiB")
    seals = Sealing(folder)
    shares: list[float] = []
    alone: list[float] = []
    turns: Turns = []
    cores = min(default_workers(), len(os.sched_getaffinity(0)))
    for _ in range(options.rounds):
        warm(disk)()
        costs = sealing("stages", sample, 1)
        took = seals.acquire("--root", disk, "--only", "containers.docker")
        ceiling = cores / (sum(costs.values()) + costs["sha256"])
        rate = float(str(took.told["read_bytes"])) / float(str(took.told["seconds"]))
        turns.append({"acquire": took})
        alone.append(ceiling)
        shares.append(rate / ceiling)
    tell(turns, "acquire", {})
    used = statistics.median(turn["acquire"].cpu / turn["acquire"].seconds for turn in turns)
    each = " ".join(f"{share:.0%}" for share in shares)
    print(
        f"  ceiling of {cores} cores: {statistics.median(alone) / 1e6:.0f} MB/s, ours is "
        f"{statistics.median(shares):.0%} of it (each turn: {each}) with {used:.2f} cores"
    )


def small(folder: Path, options: argparse.Namespace) -> None:
    disk = folder / "disk"
    tree = small_files(disk, options.files)
    print(f"\nsmall: {options.files} files in a writable layer")
    seals = Sealing(folder)
    ways = {
        "acquire": lambda: seals.acquire("--root", disk, "--only", "containers.docker"),
        "tar | zstd | age": lambda: seals.archive(tree),
        "find | sha256sum": lambda: seals.digests(tree),
    }
    turns = in_turn(ways, options.rounds, warm(tree))
    tell(turns, "acquire", {"both": both})


def live(folder: Path, options: argparse.Namespace) -> None:
    reason = why_not()
    if reason:
        print(f"\nlive: {reason}")
        return
    with PrivateDocker(folder / "docker") as docker:
        docker.import_base()
        container = docker.docker(
            "create", "--network", "none", "--name", "many", "base:1", "sleep", "100000"
        )  # fmt: skip
        fill(docker.upper_of("many") / "diff/srv", options.files)
        docker.docker("start", "many")
        tree = docker.root_of("many") / "srv"
        print(f"\nlive: {options.files} files in a running container")
        seals = Sealing(folder)
        ways = {
            "acquire": lambda: seals.acquire("--only", "live.files", "--container", container),
            "tar | zstd | age": lambda: seals.archive(tree),
            "find | sha256sum": lambda: seals.digests(tree),
            "tar alone": lambda: bash(PLAIN, tree),
        }
        turns = in_turn(ways, options.rounds, warm(tree))
        tell(turns, "acquire", {"both": both, "tar alone": lambda turn: turn["tar alone"]})


def union(folder: Path, options: argparse.Namespace) -> None:
    disk = folder / "disk"
    layers = many_layers(disk, options.layers, options.union_files)
    print(f"\nunion: {options.union_files} files in {options.layers} layers")
    seals = Sealing(folder)

    def export(kind: str) -> Took:
        to = seals.fresh(f"{kind}.tar")
        return agent("export", kind, folder / "evidence", "-i", seals.key, "--container", "c0", "--output", to)

    ways: dict[str, Callable[[], Took]] = {
        "union": lambda: merged(layers, history=True),
        "union, no history": lambda: merged(layers, history=False),
        "acquire": lambda: seals.acquire("--root", disk, "--only", "containers.docker"),
        "export tree": lambda: export("tree"),
        "export oci": lambda: export("oci"),
    }
    turns: Turns = []
    for _ in range(options.rounds):
        took: dict[str, Took] = {name: way() for name, way in ways.items()}
        turns.append(took)  # exports need what was acquired
        seals.fresh("tree.tar.jsonl")
    tell(turns, "union", {})
    print(f"  {turns[0]['union'].told}")


def merged(layers: Sequence[Path], *, history: bool) -> Took:
    """A walk through all of the union, in this process."""
    with ExitStack() as stack:
        handles = Handles()
        opened = []
        for path in layers:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            stack.callback(os.close, fd)
            opened.append(DirectoryLayer(fd, path.parent.name[:12], handles=handles))
            stack.callback(opened[-1].close)
        problems: list[tuple[bytes, str]] = []
        whole = Union(opened, on_problem=lambda path, problem: problems.append((path, problem)))
        started, used = time.perf_counter(), time.process_time()
        seen = gone = 0
        for entry in whole.walk(history=history):
            seen += entry.object is not None
            gone += entry.object is None
        assert not problems, problems
        return Took(time.perf_counter() - started, time.process_time() - used, {"paths": seen, "deleted": gone})


MEASURES = {"large": large, "small": small, "live": live, "union": union}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=MEASURES, action="append", help="all of them, if not given")
    parser.add_argument("--size", type=int, default=2048, metavar="MIB")
    parser.add_argument("--files", type=int, default=200_000, metavar="N")
    parser.add_argument("--layers", type=int, default=50, metavar="N")
    parser.add_argument("--union-files", type=int, default=100_000, metavar="N")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--in", dest="place", default="/dev/shm", metavar="DIRECTORY")  # noqa: S108 - memory, no disk
    options = parser.parse_args()
    if options.union_files < 23 * options.layers:
        parser.error("--union-files: at least 23 for each layer")
    print(f"{len(os.sched_getaffinity(0))} cores, {options.rounds} turns")
    for name in options.only or MEASURES:
        with tempfile.TemporaryDirectory(dir=options.place, prefix="containers-") as folder:
            MEASURES[name](Path(folder), options)


if __name__ == "__main__":
    main()
