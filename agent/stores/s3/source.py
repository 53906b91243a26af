"""A run in a bucket, read in place: the first version of every object, in ranges, ahead of who reads in order.

Nothing is changed, and nothing is written anywhere. What is needed: `s3:ListBucket`, `s3:ListBucketVersions`,
`s3:GetObject`, `s3:GetObjectVersion`, and `kms:Decrypt` where the bucket encrypts with a key of KMS.
"""

from __future__ import annotations

import weakref
from collections import deque
from typing import TYPE_CHECKING, Any

from agent.errors import SourceError
from agent.stores.base import Listed
from agent.stores.s3.client import standard
from agent.stores.s3.read_ahead import Budget, S3Blob
from agent.stores.s3.read_listing import Lister
from agent.stores.s3.read_ranges import Ranges, Target

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from agent.job import S3
    from agent.stores.s3.place import Place
    from agent.stores.s3.read_listing import Found

MAX_READY = 64
"""Objects that are read ahead of the one that is open."""
UNSEEN = "this may not list versions (s3:ListBucketVersions): what was put over an object or marked deleted is not seen"


class S3Source:
    """A stored run below a prefix of a bucket. For one thread; the requests have threads of their own."""

    def __init__(self, place: Place, s3: S3, *, client: Any = None) -> None:
        """`client`: one of `client.standard` that several sources share. Raises `UsageError`; asks nothing yet."""
        self.location = str(place)
        self._place = place
        client = client or standard(s3)
        self._lister = Lister(client, place.bucket, s3.bucket_owner)
        self._ranges = Ranges(client, place.bucket, s3.bucket_owner)
        self._finish = weakref.finalize(self, self._ranges.close)
        self._finish.atexit = False
        self._budget = Budget()
        self._found: dict[str, Found] | None = None
        self._order: deque[str] = deque()
        """What is still to be asked for; `_waiting` is the same as a set."""
        self._waiting: set[str] = set()
        self._ready: dict[str, S3Blob] = {}
        """Asked for and not opened yet, in their order."""

    @property
    def note(self) -> str:
        """What a person must know of how this was read; "" for nothing."""
        return "" if self._lister.versions else UNSEEN

    def names(self) -> Iterator[Listed]:
        """Everything below the prefix, listed anew. Of each the first version, and what the store has beside it."""
        prefix = f"{self._place.prefix}/" if self._place.prefix else ""
        self._found = self._lister.objects(prefix)
        for name, found in sorted(self._found.items()):
            size = found.first.size if found.first is not None else 0
            regular = found.first is not None and _is_path(name)
            yield Listed(name or "/", size, regular, found.problem)

    def prefetch(self, names: Iterable[str]) -> None:
        """These will be opened in this order and read from end to end: they are asked for before they are opened.

        What is skipped is given up when one behind it is opened; anything else can be opened in between.
        """
        self._give_up()
        self._order.extend(dict.fromkeys(names))
        self._waiting.update(self._order)
        self._ask_ahead()

    def open(self, name: str) -> S3Blob:
        target = self._target(name)
        whole = name in self._waiting
        if whole:
            while self._order[0] != name:
                self._waiting.remove(self._order.popleft())
            self._waiting.remove(self._order.popleft())
            self._skip()
        elif name in self._ready:
            self._skip(name)
            return self._ready.pop(name)
        return S3Blob(target, self._ranges, self._budget, whole=whole, moved=self._ask_ahead)

    def close(self) -> None:
        """Ends what is on its way. Never raises."""
        self._give_up()
        self._finish()

    def _target(self, name: str) -> Target:
        if self._found is None:
            for _ in self.names():
                pass
        found = (self._found or {}).get(name)
        if found is None or found.first is None:
            raise SourceError(f"{name} is not there")
        first = found.first
        # A bucket without versions has the id "null" for all; there the ETag says which object is meant.
        version = "" if first.version_id == "null" and found.versions == 1 and not found.marked else first.version_id
        return Target(name, self._place.key(name), first.size, first.etag, version)

    def _give_up(self) -> None:
        self._order.clear()
        self._waiting.clear()
        self._skip()

    def _skip(self, upto: str = "") -> None:
        """Gives up what was asked for before this one, or all of it."""
        skipped, self._ready = self._ready, {}
        if upto:
            names = list(skipped)
            self._ready = {name: skipped.pop(name) for name in names[names.index(upto) :]}
        for blob in skipped.values():
            blob.close()

    def _ask_ahead(self) -> None:
        """Asks for the next objects in the order that was told, as far as there is room."""
        if self._ready and not next(reversed(self._ready.values())).fill():
            return
        while self._order and len(self._ready) < MAX_READY:
            name = self._order.popleft()
            self._waiting.discard(name)
            if name in self._ready or self._found is None or name not in self._found or not self._found[name].first:
                continue
            blob = S3Blob(self._target(name), self._ranges, self._budget, whole=True, moved=self._ask_ahead)
            self._ready[name] = blob
            if not blob.fill():
                return


def _is_path(name: str) -> bool:
    """Whether it is a name that a path can be made of. What is not was not put there by impound."""
    sound = name.isprintable() and "\ufffd" not in name
    return sound and not any(part in {"", ".", ".."} for part in name.split("/"))
