"""The image of physical memory, side by side with what bounds it, in one run:

    python -m benchmarks.memory [--size MIB] [--rounds N] [--only speed|states|resident|avml] [--in DIRECTORY]

Reads this machine's memory through the first source that works here, but only `--size` MiB of it, in pieces of 128 MiB
that are spread evenly over all RAM. What is measured takes turns, each in a process of its own, so that what else the
machine does falls on all alike; medians of the turns are told. All run at one priority. A ceiling is made of CPU time
and supposes that the cores are ours: on a machine that does something else, look at the cores that the image had.

    speed     image     `acquire --only memory.physical` of that RAM into a directory: its item memory/physical.lime,
                        from the first read to the object that is whole
              run       the whole of the same run: preparing the proof, reading pages again and the account included,
                        which hardly grow with memory
              bare      one process that reads the same ranges into one buffer, and does nothing else
              sealing   our sealing pipeline alone, of a sample of the same ranges that lies in memory, into a directory
              ceiling   of sealing: cores / the sum of the CPU seconds per byte of each stage alone, on the same sample
                        (as `sealing_pipeline` has it, without the reading)
              together  the same with the CPU seconds of the bare read among the stages: nothing that reads and seals on
                        these cores is faster
    states    what page flags, the sample and smear cost: the run with and without them; and, since such a difference is
              lost in what else a machine does, the reader of blocks with and without them, block by block in turn, and
              the second read of smear, in CPU time and as parts of the run
    resident  peaks of a machine of 24 GiB and one of 2 GiB that do not exist: a source that makes up pages, and page
              flags with many page tables among them
    avml      `avml --compress` on all of RAM, into nothing, where there is an `avml`

Nothing of what was read is kept: the destination lies in /dev/shm, or `--in`, and is removed.
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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from acquirers.host import Host, Mode
from acquirers.memory import sources
from agent.sealing.cores import default_workers
from benchmarks.memory_ours import GIB, MIB

HOUSE = Path(__file__).parents[1]
DEADLINE_S = 900
LARGE, SMALL = 24 * GIB, 2 * GIB
CEILING_MIB = 128


def measured(name: str, size: int, place: str) -> dict[str, Any]:
    """One of them, in a process of its own."""
    with tempfile.TemporaryDirectory(dir=place, prefix="memory-") as folder:
        command = [sys.executable, "-m", "benchmarks.memory_ours", name, str(size), f"{folder}/evidence"]
        done = subprocess.run(command, cwd=HOUSE, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    if done.returncode:
        sys.exit(f"{name}: {done.stderr.strip()}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


# -- what is told -----------------------------------------------------------------------------------------------------

Turns = list[dict[str, dict[str, Any]]]


def turns_of(names: Sequence[str], size: int, rounds: int, place: str) -> Turns:
    """Each of them in each turn, every second turn in reverse."""
    measured("bare", size, place)  # a virtual machine gets some of its memory only when it is first read
    found: Turns = []
    for number in range(rounds):
        ordered = names if number % 2 == 0 else names[::-1]
        found.append({name: measured(name, size, place) for name in ordered})
    return found


def median(values: Iterator[float]) -> float:
    return statistics.median(values)


def speed(size: int, rounds: int, place: str) -> None:
    turns = turns_of(["whole", "bare", "ceiling"], size, rounds, place)
    cores = min(default_workers(), len(os.sched_getaffinity(0)))
    rates: list[dict[str, float]] = []
    for turn in turns:
        one, read, costs = turn["whole"], turn["bare"], sum(turn["ceiling"]["costs"].values())
        rates.append({
            "image": one["size"] / one["image"],
            "run": one["size"] / one["seconds"],
            "bare": read["size"] / read["seconds"],
            "sealing": turn["ceiling"]["sealing"],
            "ceiling": cores / costs,
            "together": cores / (costs + read["cpu"] / read["size"]),
        })  # fmt: skip
    first = turns[0]["whole"]
    print(f"\nspeed: {first['size'] / MIB:.0f} MiB, sealed {first['stored'] / first['size']:.0%} of it, {cores} cores")
    for name in rates[0]:
        print(f"  {name:9} {median(one[name] for one in rates) / 1e6:6.0f} MB/s")
    rest = median(turn["whole"]["seconds"] - turn["whole"]["image"] for turn in turns)
    print(f"  {rest:.2f} s of the run were not the image")
    for name in ("image", "run"):
        shares = [one[name] / min(one["bare"], one["ceiling"]) for one in rates]
        print(f"  {name} / min(bare, ceiling): {median(iter(shares)):.2f}, at best {max(shares):.2f}; target 0.80")
    for name in ("sealing", "together"):
        shares = [one["image"] / one[name] for one in rates]
        print(f"  image / {name}: {median(iter(shares)):.2f}, at best {max(shares):.2f}")
    # What the machine does besides takes cores from the image, but not from the ceiling, which is made of CPU time.
    had = median(turn["whole"]["image_cpu"] / turn["whole"]["image"] for turn in turns)
    work = median(
        turn["whole"]["image_cpu"] / turn["whole"]["size"] * one["together"] / cores
        for turn, one in zip(turns, rates, strict=True)
    )
    print(f"  the image had {had:.2f} cores, and took {work:.2f} times the CPU time of reading and all stages alone")
    most = [
        cores * turn["whole"]["size"] / turn["whole"]["image_cpu"] / min(one["bare"], one["ceiling"])
        for turn, one in zip(turns, rates, strict=True)
    ]
    print(f"  with {cores} cores of its own it could be {median(iter(most)):.2f} of min(bare, ceiling) at the most")


def cost(size: int, rounds: int, place: str) -> None:
    turns = turns_of(["whole", "without", "states"], size, rounds, place)
    print(f"\nstates: page flags, sample and smear, {turns[0]['states']['pages']} pages read again")
    for what in ("seconds", "cpu"):
        share = median(turn["whole"][what] / turn["without"][what] - 1 for turn in turns)
        print(f"  run with / without, {what}: {share:+.1%}")
    print("  of the CPU time of the run without them:")
    parts: dict[str, Callable[[dict[str, Any]], float]] = {
        "flags and digests": lambda one: one["full"] - one["plain"],
        "reading again": lambda one: one["again_cpu"],
        "together": lambda one: one["full"] - one["plain"] + one["again_cpu"],
    }
    for name, of in parts.items():
        share = median(of(turn["states"]) / turn["without"]["cpu"] for turn in turns)
        print(f"    {name:18} {share:6.2%}{'; target under 5 %' if name == 'together' else ''}")
    extra = median(turn["states"]["full"] / turn["states"]["plain"] - 1 for turn in turns)
    print(f"  flags and digests are {extra:.1%} of the CPU time of reading alone")
    print(f"  reading again: {median(turn['states']['again'] for turn in turns):.2f} s")


def peaks(place: str) -> None:
    print("\nresident: the agent's own peak (VmHWM), and with its readers, what they share once (Pss)")
    found = {size: measured("resident", size, place) for size in (LARGE, SMALL)}
    for size, one in found.items():
        rate = one["size"] / one["image"] / 1e6
        print(
            f"  {size // GIB:3} GiB: {one['peak_kib'] / 1024:4.0f} MiB,"
            f" with readers {one['together_kib'] / 1024:4.0f} MiB  ({rate:.0f} MB/s)"
        )
    large, small = found[LARGE]["peak_kib"], found[SMALL]["peak_kib"]
    print(f"  {large / small:.2f} times as much; target: flat, and under {CEILING_MIB} MiB")


def avml() -> None:
    program = shutil.which("avml")
    if program is None:
        print("\navml: not here")
        return
    total = sources.survey(Host(Mode.HOST)).ram.total
    started = time.perf_counter()
    done = subprocess.run(
        [program, "--compress", "/dev/null"], capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        print(f"\navml: it failed: {done.stderr.strip()[-300:]}")
        return
    print(f"\navml: all of RAM, compressed into nothing: {total / seconds / 1e6:.0f} MB/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=2048, metavar="MIB")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--only", choices=["speed", "states", "resident", "avml"], action="append")
    parser.add_argument("--in", dest="place", default="/dev/shm", metavar="DIRECTORY")  # noqa: S108 - memory, no disk
    arguments = parser.parse_args()
    wanted = arguments.only or ["speed", "states", "resident", "avml"]
    size = arguments.size * MIB
    if "speed" in wanted:
        speed(size, arguments.rounds, arguments.place)
    if "states" in wanted:
        cost(size, arguments.rounds, arguments.place)
    if "resident" in wanted:
        peaks(arguments.place)
    if "avml" in wanted:
        avml()


if __name__ == "__main__":
    main()
