"""The items of one run as plaintext streams, from a sealed run or from a directory that `open` made."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import msgspec

from agent.analysis.opening import plaintext, read_sound_run, sealed_objects
from agent.custody.plaintext import open_account
from agent.errors import SourceError, UsageError
from agent.stores.directory import DirectorySource
from agent.stores.sources import SCHEME, find_runs, open_source

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from agent.job import S3
    from agent.sealing import Identity
    from agent.stores.base import Source
    from agent.stores.sources import OpenSource

CHUNK = 1 << 20


class Items(msgspec.Struct, frozen=True):
    """What one run holds."""

    names: tuple[str, ...]
    """Plaintext names, sorted."""
    stream: Callable[[str], Iterator[bytes]]
    """All bytes of one item. What was given out until an error must not be kept.

    Raises `DamagedError`, `IdentityError`, `SourceError`.
    """


@contextlib.contextmanager
def items_of(
    source: str,
    identities: Sequence[Identity],
    *,
    signers: Collection[str] = (),
    receipts: Collection[str] = (),
    s3: S3 | None = None,
) -> Iterator[Items]:
    """The items of the one run in `source`. `s3` says how a bucket is reached. Raises `SourceError`, `UsageError`."""
    runs = find_runs(source, s3)
    if len(runs) > 1:
        raise UsageError(f"there are {len(runs)} runs in {source!r}: name one")
    in_bucket = source.startswith(SCHEME)
    if in_bucket and not runs:
        raise SourceError(f"there is no run in {source!r}")
    sealed = in_bucket or (bool(runs) and os.path.isdir(os.path.join(runs[0].location, "progress")))
    stored: OpenSource = open_source(runs[0]) if sealed else DirectorySource(source)
    with contextlib.closing(stored):
        if not sealed:
            names = tuple(sorted(one.name for one in stored.names() if one.regular))
            yield Items(names, lambda name: _opened(stored, name))
            return
        if not identities:
            raise UsageError("--identity FILE is missing: the private key that opens the evidence")
        run = read_sound_run(stored, signers=signers, receipts=receipts)
        account = open_account(run, identities)
        objects = sealed_objects(run)
        yield Items(tuple(sorted(objects)), lambda name: plaintext(run, objects[name], identities, account))


def _opened(stored: Source, name: str) -> Iterator[bytes]:
    blob = stored.open(name)
    try:
        offset = 0
        while data := blob.read_at(offset, CHUNK):
            yield data
            offset += len(data)
    finally:
        blob.close()
