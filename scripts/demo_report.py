"""What a demo run found, from what `impound open` wrote: the tables of the snapshot and the manifest.

Only what a reader wants first. Everything named here came from the examined machine, and is printed escaped.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agent.cli.output import printable, size

SHOWN = 5
Record = dict[str, Any]


def records(path: Path) -> Iterator[Record]:
    if path.is_file():
        with path.open("rb") as lines:
            for line in lines:
                yield json.loads(line)


def say(name: str, text: str) -> None:
    print(f"  {name:<12}  {text}")


def more(text: str) -> None:
    print(f"  {'':<12}    {printable(text)}")


def count(number: int, noun: str, plural: str = "") -> str:
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def tell_some(lines: list[str]) -> None:
    for text in lines[:SHOWN]:
        more(text)
    if len(lines) > SHOWN:
        more(f"… and {len(lines) - SHOWN} more")


def tell_processes(opened: Path) -> None:
    processes: dict[int, Record] = {}
    listening = []
    for record in records(opened / "snapshot" / "processes.jsonl"):
        if record["type"] == "process":
            processes[record["pid"]] = record
        elif record["type"] == "socket" and record.get("state") == "LISTEN" and record.get("local_port"):
            listening.append(record)
    inside = sum("container" in process for process in processes.values())
    kernel = sum(process.get("kernel_thread", False) for process in processes.values())
    say("processes", f"{len(processes)}: {kernel} of the kernel, {inside} in containers")
    names = []
    for socket in listening:
        held = [f"{one['pid']} {processes.get(one['pid'], {}).get('comm', '?')}" for one in socket.get("holders", [])]
        names.append(f"{socket['family']} {socket['local']}:{socket['local_port']} by {', '.join(held) or 'unknown'}")
    say("listening", count(len(names), "TCP socket"))
    tell_some(names)

    files = [record for record in records(opened / "snapshot" / "executables.jsonl") if record["type"] == "executable"]
    nameless = [record for record in files if record["deleted"]]
    taken = f"{len(nameless)} of them without a name any more: taken whole" if nameless else "all of them with a name"
    say("executables", f"{len(files)} different ones, {taken}")
    tell_some([f"pid {file['pids'][0]} runs {file['path']}: {file.get('item', 'not taken')}" for file in nameless])


def tell_containers(manifest: list[Record]) -> None:
    inside = [item for item in manifest if item["type"] == "item" and item["item"].startswith("containers/")]
    if not inside:
        return
    containers = [item for item in inside if item["about"].get("id")]
    layers = [item for item in inside if "/layers/" in item["item"]]
    say("containers", f"{len(containers)}, and {count(len(layers), 'image layer')}")
    for item in containers:
        about = item["about"]
        more(f"{about['id'][:12]} {about.get('name') or '-'}: {about.get('state')}, image {about.get('image') or '-'}")
        upper = (about.get("rootfs") or {}).get("upper")
        if isinstance(upper, dict):  # how the manifest writes bytes
            upper = upper.get("bytes")
        if not upper:
            continue  # its filesystem could not be told: a gap says so
        upper = upper.rstrip("/") + "/"
        written = [
            member
            for member in manifest
            if member["type"] == "member" and member["item"] == item["item"] and member["path"].startswith(upper)
        ]
        files = [member for member in written if member["kind"] in {"file", "symlink"}]
        gone = [member for member in written if member["kind"] == "char-device" and not member.get("rdev")]
        for what, found in (("wrote", files), ("deleted", gone)):
            if found:
                names = " ".join("/" + member["path"].removeprefix(upper) for member in found[:SHOWN])
                more(f"  {what} {count(len(found), 'file')}: {names}{' …' if len(found) > SHOWN else ''}")


def tell_gaps(manifest: list[Record]) -> None:
    findings = [
        f"{one['item']}: {one['detail']}" for one in manifest if one["type"] == "flag" and one["kind"] == "finding"
    ]
    say("findings", f"{len(findings)} places where two views of the machine disagree")
    tell_some(findings)
    gaps = [one for one in manifest if one["type"] == "gap"]
    reasons = Counter(gap["reason"] for gap in gaps)
    say("gaps", ", ".join(f"{number} {reason}" for reason, number in reasons.most_common()) or "none")
    tell_some([f"{gap['item'] or gap.get('acquirer')}: {gap.get('where', '')} {gap['detail']}" for gap in gaps])


def main() -> None:
    opened = Path(sys.argv[1])
    attempts = sorted(opened.glob("attempt-*/manifest.jsonl"))
    manifest = list(records(attempts[-1])) if attempts else []
    tell_processes(opened)
    tell_containers(manifest)
    tell_gaps(manifest)
    total = sum(path.stat().st_size for path in opened.rglob("*") if path.is_file())
    say("opened", f"{size(total)} in {opened}")


if __name__ == "__main__":
    main()
