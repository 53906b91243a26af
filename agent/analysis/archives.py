"""The archives of a run, as plaintext streams, from a sealed run or from a directory that `open` made."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from agent.analysis.opening import plaintext, read_sound_run, sealed_objects
from agent.custody.plaintext import open_account
from agent.errors import SourceError, UsageError
from agent.stores.directory import DirectorySource, find_runs

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from agent.custody.plaintext import Account
    from agent.custody.stored import StoredRun
    from agent.sealing import Identity

CHUNK = 1 << 20
LEFT_OUT = ("live/",)
"""Archives that are a target each, not a part of the host."""


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
    source: str, identities: Sequence[Identity], *, signers: Collection[str] = (), receipts: Collection[str] = ()
) -> Iterator[Iterator[Iterator[bytes]]]:
    """One stream of tar bytes per archive, in the order of their names. Raises `SourceError`, `UsageError`."""
    runs = find_runs(source)
    if len(runs) > 1:
        raise UsageError(f"there are {len(runs)} runs in {source!r}: name one")
    sealed = bool(runs) and os.path.isdir(os.path.join(runs[0], "progress"))
    stored = DirectorySource(runs[0] if sealed else source)
    try:
        if sealed:
            if not identities:
                raise UsageError("--identity FILE is missing: the private key that opens the evidence")
            run = read_sound_run(stored, signers=signers, receipts=receipts)
            account = open_account(run, identities)
            yield _sealed(run, account, identities)
        else:
            names = _chosen(one.name for one in stored.names() if one.regular)
            if not names:
                raise SourceError(f"there is neither a run nor an opened archive in {source!r}")
            yield (_opened(stored, name) for name in names)
    finally:
        stored.close()


def _sealed(run: StoredRun, account: Account, identities: Sequence[Identity]) -> Iterator[Iterator[bytes]]:
    objects = sealed_objects(run)
    for plain in _chosen(objects):
        name = objects[plain]
        yield plaintext(run, name, identities, account)


def _opened(stored: DirectorySource, name: str) -> Iterator[bytes]:
    blob = stored.open(name)
    try:
        offset = 0
        while data := blob.read_at(offset, CHUNK):
            yield data
            offset += len(data)
    finally:
        blob.close()
