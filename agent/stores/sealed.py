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
        try:
            # Not through a method of this object: the circle would keep its buffers until the garbage collector comes.
            self._sealer = Sealer(recipients, self._upload.write)
        except BaseException:
            self._upload.abort()
            raise

    @property
    def stored(self) -> int:
        """Bytes of ciphertext so far."""
        return self._sealer.ciphertext_size

    @property
    def plaintext(self) -> int:
        """Bytes of plaintext so far."""
        return self._sealer.plaintext_size

    def write(self, data: Buffer) -> None:
        self._sealer.write(data)

    def commit(self) -> Sealed:
        sealed = self._sealer.finish()
        self._upload.commit()
        return sealed

    def abort(self) -> None:
        self._upload.abort()
