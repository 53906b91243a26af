"""What the manifest says of a container, within the bounds of one of its lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

import msgspec


class _Told(Protocol):
    def about(self) -> dict[str, object]: ...


def fitting(mounts: Iterable[_Told], room: int) -> Iterator[dict[str, object]]:
    """As many of the mounts as there is room for, in bytes. The record itself is in the archive."""
    for mount in mounts:
        about = mount.about()
        room -= size_of(about)
        if room < 0:
            return
        yield about


def size_of(value: Mapping[str, object]) -> int:
    """Bytes that it takes in the manifest, or a few more."""
    return sum(
        len(key) + len(msgspec.json.encode(one.decode("utf-8", "backslashreplace") if isinstance(one, bytes) else one))
        for key, one in value.items()
    ) + 8 * len(value)
