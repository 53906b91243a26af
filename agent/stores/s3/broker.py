"""Authority by the control channel: the host has no credentials, and asks the controller for everything.

The controller begins uploads, signs one URL for each part after it noted the part's length and digest, compares what
the bucket has with what it noted, and completes. Small objects are handed over whole. Nothing here speaks to AWS.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from agent.errors import StoreError, UnreachableError
from agent.stores.s3.authority import SignedRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agent.channel.host import HostEnd
    from agent.stores.base import Part

T = TypeVar("T")


class Broker:
    """An `Authority`. Methods may be called by several threads, and raise `StoreError`.

    A controller that does not answer may be asked again (`UnreachableError`). One that is gone does not come back, and
    nothing can be stored without it: that is any other `StoreError`, so that nobody waits for it.
    """

    kind = "broker"

    def __init__(self, end: HostEnd) -> None:
        """`end` has said hello, and is closed by whoever made it."""
        self._end = end

    def begin(self, name: str) -> str:
        return self._asked(lambda: self._end.begin(name))

    def sign(self, name: str, upload_id: str, number: int, part: Part) -> SignedRequest:
        signed = self._asked(lambda: self._end.sign(name, upload_id, number, part.size, part.sha256))
        return SignedRequest(signed.method, signed.url, signed.headers)

    def put(self, name: str, data: bytes) -> None:
        self._asked(lambda: self._end.put(name, data))

    def complete(self, name: str, upload_id: str, parts: Sequence[Part], etags: Sequence[str]) -> None:  # noqa: ARG002 - the controller asks the bucket for them
        sums = [(part.size, part.sha256) for part in parts]
        self._asked(lambda: self._end.complete(name, upload_id, sums))

    def close(self) -> None:
        """Nothing is held here."""

    def _asked(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except UnreachableError as error:
            if self._end.lost:
                raise StoreError(str(error)) from error
            raise
