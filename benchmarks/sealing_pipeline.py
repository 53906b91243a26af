"""Sealing side by side with the shell pipeline that does the same work, on the same data, in one run:

    python -m benchmarks.sealing_pipeline [--data zeros|random|tar|memory|tree] [--size MIB] [--threads N] [--repeat N]

Measured in turn, again and again, so that what else the machine does falls on all alike; medians are told, and the
median of the ratios of each turn. The ceiling supposes that the cores are ours: on a machine that does something else,
look at the best turn and at the cores that were used.

    ours          a file or tree that is in memory -> digest, zstd, age, digest -> a store that keeps nothing
    directory     the same into a directory
    one thread    the same as ours without threads
    shell         tee >(sha256sum) < FILE | zstd -1 -T0 | age -r … | tee >(sha256sum) > /dev/null
    s3            ours into the strict fake over TLS, with authority ambient (a process of its own, on the same cores)
    shell to s3   the shell's, with boto3's `upload_fileobj` at its end instead of /dev/null
    openssl       the shell's with `openssl dgst -sha256`: unlike Debian's sha256sum it uses the SHA instructions
    ceiling       threads / the sum of the CPU seconds per byte of each stage alone, once without and once with the
                  reading of the file and its copying into a block; and what the slowest lane alone can do, because a
                  digest is made in order by one thread at a time

A tree is one of files that are copied from /usr. Ours digests every member as well; the shell's has `tar c` before it.
Everything lies in a directory of its own in /dev/shm, or `--in`, and is removed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agent.sealing import generate
from agent.sealing.cores import default_workers
from benchmarks.sealing_data import MIB, STREAMS, make_stream, make_tree

HOUSE = Path(__file__).parents[1]

REST = """ | zstd -q -1 -T0 | age -r "$2" | tee >($3 >&2) > /dev/null"""
REST_S3 = """ | zstd -q -1 -T0 | age -r "$2" | tee >($3 >&2) | "$4" -m benchmarks.sealing_ours upload - 0 "$5" """
SHELL = """set -o pipefail; tee >($3 >&2) < "$1" """ + REST
SHELL_TREE = """set -o pipefail; tar c -C "$1" . | tee >($3 >&2) """ + REST

DEADLINE_S = 600

SPREAD = ("zstd", "tree over frames", "read", "sha256 of members")
"""Stages that are no lanes: several blocks at once, or done by who reads."""


def ours(way: str, path: Path, workers: int, to: Path | str | None = None) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.sealing_ours", way, str(path), str(workers), str(to or "")]
    done = subprocess.run(command, cwd=HOUSE, capture_output=True, text=True, check=True, timeout=DEADLINE_S)
    if isinstance(to, Path):
        shutil.rmtree(to)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def shell(way: str, path: Path, recipient: str, digest: str, where: str = "") -> dict[str, Any]:
    """The start of its six processes is part of it: about 10 ms.

    Its CPU time is not known: bash does not wait for what is in `>(…)`.
    """
    script = SHELL_TREE if way == "tree" else SHELL
    script = script.replace(REST, REST_S3) if where else script
    started = time.perf_counter()
    done = subprocess.run(
        ["bash", "-c", script, "bash", str(path), recipient, digest, sys.executable, where],
        cwd=HOUSE,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
        timeout=DEADLINE_S,
    )
    seconds = time.perf_counter() - started
    assert done.stderr.count("\n") == 2, done.stderr
    return {"seconds": seconds, "digests": done.stderr}


def run(kind: str, size: int, workers: int, repeat: int, folder: Path, where: str) -> None:
    recipient = generate().recipient.text
    path = folder / "data"
    if kind == "tree":
        files = make_tree(path, size)
        print(f"\n{kind}: {files} files, {size // MIB} MiB of content")
        # The sum of the stages is that of its archive, and of one more digest, which each member gets.
        sample = folder / "sample.tar"
        subprocess.run(["tar", "cf", sample, "-C", path, "."], check=True, timeout=DEADLINE_S)
    else:
        make_stream(kind, path, size)
        sample = path
        print(f"\n{kind}: {size // MIB} MiB")
    way = "tree" if kind == "tree" else "stream"
    ways: dict[str, Callable[[], dict[str, Any]]] = {
        "ours": lambda: ours(way, path, workers),
        "shell": lambda: shell(way, path, recipient, "sha256sum"),
        "openssl": lambda: shell(way, path, recipient, "openssl dgst -sha256 -r"),
        "directory": lambda: ours(way, path, workers, folder / "store"),
        "s3": lambda: ours(way, path, workers, where),
        "shell to s3": lambda: shell(way, path, recipient, "sha256sum", where),
        "one thread": lambda: ours(way, path, 1),
    }
    turns: list[dict[str, dict[str, Any]]] = []
    alone: list[dict[str, float]] = []
    for _ in range(repeat):
        alone.append(ours("stages", sample, 1))
        turns.append({name: call() for name, call in ways.items()})
    tell(kind, workers, turns, alone)


def tell(kind: str, workers: int, turns: list[dict[str, dict[str, Any]]], alone: list[dict[str, float]]) -> None:
    size = turns[0]["ours"]["size"]
    if kind != "tree":
        assert all(turn["ours"]["sha256"] in turn["shell"]["digests"] for turn in turns), "not the same work"
    for name in turns[0]:
        seconds = statistics.median(turn[name]["seconds"] for turn in turns)
        used = [turn[name]["cpu"] / turn[name]["seconds"] for turn in turns if "cpu" in turn[name]]
        cores_used = f"  {statistics.median(used):4.2f} cores" if used else " " * 12
        ratio = statistics.median(turn["shell"]["seconds"] / turn[name]["seconds"] for turn in turns)
        peak = max(turn[name].get("peak_kib", 0) for turn in turns)
        memory = f", peak {peak / 1024:.0f} MiB resident" if peak else ""
        print(f"  {name:11} {size / seconds / 1e6:6.0f} MB/s{cores_used}  {ratio:4.2f} x shell{memory}")
    if kind == "tree":
        for one in alone:
            one["sha256 of members"] = one["sha256"]
    cores = min(workers, len(os.sched_getaffinity(0)))
    for name in alone[0]:
        cost = statistics.median(one[name] for one in alone)
        print(f"  {name + ' alone':27} {1e-6 / cost:6.0f} MB/s of plaintext")
    for what, left_out in (("", ("read",)), (", reading included", ())):
        ceilings = [cores / sum(cost for name, cost in one.items() if name not in left_out) for one in alone]
        shares = [rate(turn) / most for turn, most in zip(turns, ceilings, strict=True)]
        print(
            f"  ceiling of {cores} cores{what}: {statistics.median(ceilings) / 1e6:.0f} MB/s, "
            f"ours is {statistics.median(shares):.0%} of it, at best {max(shares):.0%}"
        )
    ratios = [
        one["ours"]["cpu"] / one["ours"]["size"] / sum(sums.values()) for one, sums in zip(turns, alone, strict=True)
    ]
    print(f"  ours takes {statistics.median(ratios):.2f} times the CPU time of all that is measured alone")
    slowest = [1 / max(cost for name, cost in one.items() if name not in SPREAD) for one in alone]
    share = statistics.median(rate(turn) / most for turn, most in zip(turns, slowest, strict=True))
    print(f"  slowest lane: {statistics.median(slowest) / 1e6:.0f} MB/s, ours is {share:.0%} of it")


def rate(turn: dict[str, dict[str, Any]]) -> float:
    return float(turn["ours"]["size"] / turn["ours"]["seconds"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=[*STREAMS, "tree"], action="append", help="all of them, if not given")
    parser.add_argument("--size", type=int, default=256, metavar="MIB")
    parser.add_argument("--threads", type=int, default=default_workers(), metavar="N")
    parser.add_argument("--repeat", type=int, default=5, metavar="N")
    parser.add_argument("--in", dest="place", default="/dev/shm", metavar="DIRECTORY")  # noqa: S108 - memory, no disk
    arguments = parser.parse_args()
    print(f"{arguments.threads} threads, {len(os.sched_getaffinity(0))} cores, {arguments.repeat} turns")
    server = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.s3_upload", "--serve"],
        cwd=HOUSE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with server:
        assert server.stdin is not None
        assert server.stdout is not None
        where = server.stdout.readline()
        try:
            for kind in arguments.data or [*STREAMS, "tree"]:
                with tempfile.TemporaryDirectory(dir=arguments.place, prefix="sealing-") as folder:
                    run(kind, arguments.size * MIB, arguments.threads, arguments.repeat, Path(folder), where)
        finally:
            server.stdin.close()


if __name__ == "__main__":
    main()
