"""The archives of a run that belong to the host, as plaintext streams."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from agent.analysis.items import items_of
from agent.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from agent.job import S3
    from agent.sealing import Identity

LEFT_OUT = ("live/", "memory/")
"""Archives that are a target each, or that tell of the kernel and of processes, and are no part of the host's disk."""


def _chosen(names: Iterable[str]) -> list[str]:
    """The host's own archives first, then each runtime's, then its containers and layers: directories have the metadata
    that they come with where they are met first.
    """
    wanted = [name for name in names if name.endswith(".tar") and not name.startswith(LEFT_OUT)]
    return sorted(
        wanted,
        key=lambda name: (not name.startswith("host/"), not name.endswith("/runtime.tar"), "/layers/" in name, name),
    )


@contextlib.contextmanager
def archives_of(
    source: str,
    identities: Sequence[Identity],
    *,
    signers: Collection[str] = (),
    receipts: Collection[str] = (),
    s3: S3 | None = None,
) -> Iterator[Iterator[Iterator[bytes]]]:
    """One stream of tar bytes per archive, in the order of their names. `s3` says how a bucket is reached.

    Raises `SourceError`, `UsageError`.
    """
    with items_of(source, identities, signers=signers, receipts=receipts, s3=s3) as items:
        names = _chosen(items.names)
        if not items.names:
            raise SourceError(f"there is neither a run nor an opened archive in {source!r}")
        yield (items.stream(name) for name in names)
