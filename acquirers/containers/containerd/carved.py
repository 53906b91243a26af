"""Records that are no longer in use, out of the pages of containerd's databases: `carved.jsonl`.

One line per key: {"database", "page", "bucket", "key", "value", "root", "whole", "previous"}. Bytes that are not text
are {"base64": …}. `page` is the page it stands on and `root`, of a bucket, the page that leads on. `whole` is false
where other data has been written over a part of it. `previous`: the transaction before the newest still reaches it.
They are what was found, not what was true: a page may be of any time, and its parts need not belong together.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import msgspec

from acquirers.base import MAX_CHUNK, AcquirerError, Buffer, Flag, FlagKind, Gap, Reason, reason_of
from acquirers.bolt import BoltError, Carved, carve, open_database, open_file

if TYPE_CHECKING:
    from acquirers.base import Report
    from acquirers.bolt import Source
    from acquirers.host import Host

MAX_VALUE = 256 << 10
"""Bytes of a value that are shown; the database itself is stored whole beside this."""
_GATHER = 1 << 18


class CarvedRecords(msgspec.Struct, frozen=True):
    """`Item.read` of what is carved from several databases."""

    host: Host
    databases: Sequence[bytes]
    """Native paths."""

    def __call__(self, report: Report) -> Iterator[Buffer]:
        for path in self.databases:
            try:
                with open_file(self.host, path) as source:
                    yield from _gathered(self._lines(path, source, report))
            except FileNotFoundError:
                continue
            except OSError as error:
                report.gap(Gap(reason_of(error), f"not carved: {error.strerror}", path))
            except BoltError as error:
                report.gap(Gap(Reason.MALFORMED, f"not carved: {error}", path))
            except AcquirerError as error:
                report.gap(error.gap())

    def _lines(self, path: bytes, source: Source, report: Report) -> Iterator[bytes]:
        database = open_database(source)
        previous = database.previous()
        if previous is not None:
            for _ in previous.walk():  # visits what it reaches
                pass
        for one in carve(database):
            yield _line(path, one, previous is not None and previous.reached(one.page)) + b"\n"
        if database.faults:
            detail = f"the database, while it was carved: {database.faults[0]}"
            report.flag(Flag(FlagKind.FINDING, detail, path))


def _gathered(lines: Iterator[bytes]) -> Iterator[Buffer]:
    """Chunks of some size out of many lines."""
    pending = bytearray()
    for line in lines:
        pending += line
        if len(pending) >= _GATHER:
            for start in range(0, len(pending), MAX_CHUNK):
                yield bytes(pending[start : start + MAX_CHUNK])
            pending.clear()
    if pending:
        yield bytes(pending)


def _line(path: bytes, one: Carved, previous: bool) -> bytes:
    value = one.value
    return msgspec.json.encode(
        {
            "database": _shown(path),
            "page": one.page,
            "bucket": _shown(one.bucket) if one.bucket else None,
            "key": _shown(one.key),
            "value": _shown(value[:MAX_VALUE]) if value is not None else None,
            "value_size": len(value) if value is not None else None,
            "root": one.root or None,
            "whole": one.whole,
            "previous": previous,
        }
    )


def _shown(data: bytes) -> object:
    """As text where it is text, and all of it printable."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode("ascii")}
    if all(character.isprintable() or character in "\n\t\r" for character in text):
        return text
    return {"base64": base64.b64encode(data).decode("ascii")}
