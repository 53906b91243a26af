"""`impound plan --where PATH`: which container, pod, image and layer a path of the host belongs to."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from acquirers.containers.census import where
from acquirers.containers.census.runtimes import known
from acquirers.containers.paths import within
from acquirers.host import Mode
from agent.cli.output import emit, json_line, printable, say
from agent.custody.manifest import put_bytes
from agent.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from acquirers.base import Gap
    from acquirers.containers.census.where import Place
    from acquirers.containers.known import Known
    from acquirers.host import Host

SHOWN = 50


def show(host: Host, path: str, *, as_json: bool) -> int:
    """Prints each answer, and the result. Reads records, and nothing of the path itself."""
    if not path.startswith("/"):
        raise UsageError(f"--where wants a path of the host from its root on, not {path!r}")
    if host.mode is Mode.INSIDE:
        raise UsageError("--where is answered on the host: inside of a container nobody sees its paths")
    native = os.path.normpath(os.fsencode(path))
    gaps: list[Gap] = []
    roots: dict[bytes, str] = {}
    found = list(where.places(where.seen(host, native), _noting(known(host, gaps), roots)))
    for place in found if as_json else found[:SHOWN]:
        if as_json:
            sys.stdout.write(json_line(_record(place)) + "\n")
        else:
            _say(place)
    if not as_json:
        if not found:
            say(f"{printable(native)} belongs to no container that is known here")
            _say_why(host, native, roots)
        if len(found) > SHOWN:
            say(f"… and {len(found) - SHOWN} more")
        for gap in gaps[:SHOWN]:
            say(f"  not looked at: {gap.detail}")
    emit({"verdict": "where", "found": len(found), "not_looked_at": len(gaps), "exit": 0})
    return 0


def _noting(known_: Iterator[Known], roots: dict[bytes, str]) -> Iterator[Known]:
    for one in known_:
        roots.setdefault(one.root, one.runtime)
        yield one


def _say_why(host: Host, native: bytes, roots: dict[bytes, str]) -> None:
    for root, runtime in roots.items():
        if root and within(native, root):
            say(f"  it lies in {printable(root)}, the data root of {runtime}, and in no layer of a container")
            return
    try:
        os.close(host.follow(native).fd)
    except OSError as error:
        say(f"  nor is it there: {error.strerror}")


def _record(place: Place) -> dict[str, object]:
    known_ = place.known
    record: dict[str, object] = {
        "what": place.what,
        "runtime": known_.runtime,
        "container": known_.id,
        "name": known_.name,
        "state": known_.state,
        "image": known_.image,
        "pod": known_.pod,
        "namespace": known_.namespace,
        "pod_uid": known_.pod_uid,
        "task": known_.task,
    }
    put_bytes(record, "directory", place.directory)
    put_bytes(record, "path", place.path)
    return record


def _say(place: Place) -> None:
    one = place.known
    pod = f", pod {one.namespace}/{one.pod}" if one.pod else ""
    task = f", task {one.task}" if one.task else ""
    image = f", image {one.image}" if one.image else ""
    name = f" {one.name}" if one.name else ""
    say(printable(f"{one.runtime} container {one.id[:12]}{name} ({one.state or 'state unknown'}){pod}{task}{image}"))
    inside = f"/{place.path.decode('utf-8', 'backslashreplace')}" if place.path else "itself"
    say(printable(f"  {place.what}: {inside}"))
