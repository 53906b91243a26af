"""An item as objects: one, or as many as it needs.

An item that is longer than `MAX_PIECE` goes on in the next object: `NAME`, `NAME.0002`, `NAME.0003`, … Each is a whole
object that stock tools open, and what they open to, one after the other, is the item. The item is whole when its last
object is; so nothing is recorded of any before that, and what an item that was cut off left lies in the store like any
other object that nobody vouches for.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

from agent.custody.attempt import Counts
from agent.custody.records import MAX_NAME
from agent.stores.sealed import SUFFIX

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from acquirers.base import Buffer
    from agent.sealing import Sealed
    from agent.stores.base import Part
    from agent.stores.sealed import SealedObject

MAX_PIECE = 512 << 30
"""Bytes of plaintext in one object."""

_MAX_LEAF = 200
_CONTINUED = re.compile(r"(.+)\.\d{4,}(?:-\d+)?" + re.escape(SUFFIX))


class Told(msgspec.Struct):
    """What an item told while one of its objects was read."""

    counts: Counts = msgspec.field(default_factory=Counts)
    first_gaps: list[dict[str, object]] = msgspec.field(default_factory=list)


class Piece(msgspec.Struct, frozen=True):
    """One object of an item, whole in the store."""

    object: str
    offset: int
    """Where in the item it begins."""
    sealed: Sealed
    parts: Sequence[Part]
    told: Told
    """What the item told while this was read."""


class Names:
    """The names of objects that are taken. `done` are whole items of earlier attempts."""

    def __init__(self, done: Collection[str], taken: Collection[str]) -> None:
        self._done = frozenset(done)
        self._taken: set[str] = set()
        self._continued: set[str] = set()
        """Plain names of which there are continuations: who had one of these would seem to go on in them."""
        for name in (*done, *taken):
            self._take(name)

    def _take(self, name: str) -> str:
        self._taken.add(name)
        if match := _CONTINUED.fullmatch(name):
            self._continued.add(match[1])
        return name

    def is_done(self, path: str) -> bool:
        """Whether an earlier attempt left the item whole."""
        return path + SUFFIX in self._done

    def take(self, path: str) -> str:
        """The plain name of an item: its own, or the next that nothing has."""
        stem, dot, suffix = path.rpartition(".")
        plain, number = path, 2
        while plain + SUFFIX in self._taken or plain in self._continued:
            plain = f"{stem}-{number}.{suffix}" if dot else f"{path}-{number}"
            number += 1
        return self._take(plain + SUFFIX).removesuffix(SUFFIX)

    def continuation(self, plain: str, number: int) -> str:
        """The plain name of the `number`-th object (from 2) of the item `plain`."""
        above, slash, leaf = plain.rpartition("/")
        again = 1
        while True:
            end = f".{number:04d}" + (f"-{again}" if again > 1 else "")
            room = min(_MAX_LEAF, MAX_NAME - len(above + slash)) - len(end + SUFFIX)
            name = f"{above}{slash}{leaf[:room]}{end}{SUFFIX}"
            if name not in self._taken:
                return self._take(name).removesuffix(SUFFIX)
            again += 1


class PieceWriter:
    """Takes the plaintext of one item and begins an object whenever one is full. Methods raise `StoreError`."""

    def __init__(
        self,
        begin: Callable[[int], SealedObject],
        cut: Callable[[], Told],
        on_continue: Callable[[Piece], None],
    ) -> None:
        """`begin` is told the number of the object, from 1; `cut` gives what the item told since it was last asked.

        `on_continue` is told of each object but the last when it is whole.
        """
        self._begin, self._cut, self._on_continue = begin, cut, on_continue
        self.pieces: list[Piece] = []
        """Those that are whole."""
        self.waits = False
        """Whether somebody is in `write` or `commit` now."""
        self._before = self._stored_before = 0
        self._object: SealedObject | None = None
        self._open()

    def _open(self) -> SealedObject:
        self._object = one = self._begin(len(self.pieces) + 1)
        capacity = one.capacity
        self._room = MAX_PIECE if capacity is None else min(MAX_PIECE, capacity)
        if self._room < 1:
            raise ValueError("an object of this store holds nothing")
        return one

    @property
    def plaintext(self) -> int:
        """Bytes of the item so far."""
        one = self._object  # another thread may look
        return self._before + (one.plaintext if one else 0)

    @property
    def stored(self) -> int:
        """Bytes of ciphertext so far, in all of its objects."""
        one = self._object
        return self._stored_before + (one.stored if one else 0)

    def write(self, data: Buffer) -> None:
        if type(data) is memoryview:
            data = data.cast("B")
        size = len(data)
        self.waits = True
        if size <= self._room and self._object is not None:
            self._room -= size
            self._object.write(data)
        else:
            self._write_over_the_edge(memoryview(data))
        self.waits = False

    def _write_over_the_edge(self, view: memoryview) -> None:
        while view:
            if not self._room:
                self._on_continue(self._close())
                self._open()
            one = self._object
            if one is None:
                raise ValueError("the item has ended")
            piece = view[: self._room]
            self._room -= len(piece)
            one.write(piece)
            view = view[len(piece) :]

    def commit(self) -> list[Piece]:
        """Ends the item, and gives all of its objects, in order."""
        self.waits = True
        self._close()
        return self.pieces

    def _close(self) -> Piece:
        one = self._object
        if one is None:
            raise ValueError("the item has ended")
        sealed = one.commit()
        self._object = None
        piece = Piece(one.name, self._before, sealed, one.parts, self._cut())
        self._before += sealed.plaintext_size
        self._stored_before += sealed.ciphertext_size
        self.pieces.append(piece)
        return piece

    def give_up(self) -> None:
        """For another thread: whoever waits for a bucket in `write` or `commit` gets a `StoreError`. Never raises."""
        one = self._object
        if one is not None:
            one.give_up()

    def abort(self) -> None:
        """Gives up the object that is open. Never raises."""
        one, self._object = self._object, None
        if one is not None:
            one.abort()
