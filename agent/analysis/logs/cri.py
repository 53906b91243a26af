"""CRI logs, of containerd, CRI-O and conmon (podman's `k8s-file`): `<RFC 3339> <stream> <tags> <line>`.

kubernetes `pkg/kubelet/kuberuntime/logs`: tags are separated by colons, the first is P (the line goes on) or F.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain

from agent.analysis.logs import jsonfile
from agent.analysis.logs.lines import lines
from agent.analysis.logs.records import Damage, Pieces, Record, parse_time

_LINE = re.compile(
    rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:Z|[+-]\d\d:\d\d)) (stdout|stderr) "
    rb"([PF])(?::[^ ]{0,200})?(?: (.*))?",
    re.DOTALL,
)
_INSIDE = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:Z|[+-]\d\d:\d\d) (?:stdout|stderr) [PF][: ]")
_JSON = b'{"log":"'
_MALFORMED = "not a record of CRI"
_CUT = "the file ends inside of a record"


def decode(pieces: Pieces) -> Iterator[Record | Damage]:
    """Every record, and what is none. Where a line begins is not told by the format, only where it goes on."""
    for line in lines(pieces):
        if isinstance(line, Damage):
            yield line
            continue
        end = line.offset + len(line.data) + line.ended
        match = _LINE.fullmatch(line.data)
        at = line.offset
        if match is None and (inside := _INSIDE.search(line.data)) is not None:
            # What stands before it is damaged; a record that is whole is not lost with it.
            at += inside.start()
            match = _LINE.fullmatch(line.data, inside.start())
            if match is not None:
                yield Damage(line.offset, at, _MALFORMED)
        if match is None:
            if line.data:
                yield Damage(line.offset, end, _MALFORMED if line.ended else _CUT)
            continue
        time, stream, tag, text = match.groups()
        yield Record(at, end, parse_time(time.decode()), stream.decode(), text or b"", tag == b"P")


def decode_either(pieces: Pieces) -> Iterator[Record | Damage]:
    """What lies where CRI logs lie: on nodes with Docker behind the CRI these are `json-file`."""
    rest = iter(pieces)
    head: list[tuple[int, bytes]] = []
    begin = b""
    for offset, piece in rest:
        head.append((offset, bytes(piece)))
        begin += head[-1][1][: len(_JSON)]
        if len(begin) >= len(_JSON):
            break
    either = jsonfile.decode if begin.startswith(_JSON) else decode
    yield from either(chain(head, rest))
