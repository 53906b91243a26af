"""An object that is sealed while it is stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.sealing import Sealer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from acquirers.base import Buffer
    from agent.sealing import Recipient, Sealed
    from agent.stores.base import Store

SUFFIX = ".zst.age"


class SealedObject:
    """Plaintext goes in, a whole sealed object appears in the store, or nothing does."""

    def __init__(self, store: Store, name: str, recipients: Sequence[Recipient]) -> None:
        """`name` is the plaintext's; the object's name says with its suffixes how stock tools open it."""
        self.name = name + SUFFIX
        self._upload = store.begin(self.name)
        self.stored = 0
        self.plaintext = 0
        try:
            self._sealer = Sealer(recipients, self._sink)
        except BaseException:
            self._upload.abort()
            raise

    def _sink(self, data: Buffer) -> None:
        self.stored += len(data)
        self._upload.write(data)

    def write(self, data: Buffer) -> None:
        self.plaintext += len(data)
        self._sealer.write(data)

    def commit(self) -> Sealed:
        sealed = self._sealer.finish()
        self._upload.commit()
        return sealed

    def abort(self) -> None:
        self._upload.abort()
