"""An object that is sealed while it is stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.sealing import Sealer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from acquirers.base import Buffer
    from agent.sealing import Pipeline, Recipient, Sealed
    from agent.stores.base import Part, Store

SUFFIX = ".zst.age"

_GROWTH = 1.001
_GROWTH_FIXED = 1 << 20
"""Ciphertext is never longer than plaintext * `_GROWTH` + `_GROWTH_FIXED`: 16 bytes for each 64 KiB (age), 3 for each
128 KiB and 12 for each MiB (zstd that found nothing to compress, and its seek table), and a header of some KiB.
"""


class SealedObject:
    """Plaintext goes in, a whole sealed object appears in the store, or nothing does."""

    def __init__(
        self,
        store: Store,
        name: str,
        recipients: Sequence[Recipient],
        *,
        estimate: int | None = None,
        pipeline: Pipeline | None = None,
    ) -> None:
        """`name` is the plaintext's; the object's name says with its suffixes how stock tools open it."""
        self.name = name + SUFFIX
        self.parts: Sequence[Part] = ()
        """What it was stored in, once it is committed."""
        self._upload = store.begin(self.name, estimate=estimate)
        try:
            # Not through a method of this object: the circle would keep its buffers until the garbage collector comes.
            self._sealer = Sealer(recipients, self._upload.write, pipeline=pipeline)
        except BaseException:
            self._upload.abort()
            raise

    @property
    def capacity(self) -> int | None:
        """Bytes of plaintext that surely fit, where what is stored cannot be of any size."""
        bytes_of_ciphertext: int | None = getattr(self._upload, "capacity", None)
        if bytes_of_ciphertext is None:
            return None
        return max(0, int((bytes_of_ciphertext - _GROWTH_FIXED) / _GROWTH))

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
        self.parts = self._upload.commit()
        return sealed

    def give_up(self) -> None:
        """For another thread: lets a `write` or `commit` that waits for a bucket raise `StoreError`. Never raises.

        Only uploads that may be aborted by any thread (`gone`, S3) are; a directory is never waited for.
        """
        if hasattr(self._upload, "gone"):
            self._upload.abort()

    def abort(self) -> None:
        """Gives it up; nothing of it is written when this returns. Never raises."""
        self._sealer.abort()
        self._upload.abort()
