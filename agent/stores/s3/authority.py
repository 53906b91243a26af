"""By whose right objects appear in the bucket, seen from the examined machine.

session   temporary credentials that may start uploads and add parts below the run's prefix, and nothing else. They
          come over standard input, are renewed over the control channel, and exist in memory only. The controller
          completes.
broker    no credentials at all: the controller begins uploads, signs one URL for each part, naming its length and its
          SHA-256, and completes.
ambient   the machine's own role, only where it was asked for by name. It also completes, create-only.

An object of less than one part is given to `put` whole, every other is begun, gets its parts, and is completed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agent.stores.base import Part

AUTHORITIES = ("session", "broker", "ambient")


class SignedRequest(msgspec.Struct, frozen=True):
    """One request that may be sent as it is, once or again, until it expires. The headers are all it may carry."""

    method: str
    url: str
    headers: Mapping[str, str]

    def __repr__(self) -> str:
        """Without the query: it can hold a signature that lets the bearer act."""
        return f"<SignedRequest {self.method} {self.url.partition('?')[0]}>"


class Authority(Protocol):
    """Methods may be called by several threads, and raise `StoreError`.

    `name` is that of an object below the run's prefix, never a key.
    """

    kind: str
    """One of `AUTHORITIES`."""

    def begin(self, name: str) -> str:
        """Begins a multipart upload and gives its id."""

    def sign(self, name: str, upload_id: str, number: int, part: Part) -> SignedRequest:
        """The request that stores part `number` (from 1), with its length and its SHA-256 signed in.

        Asked again for each attempt: what expired meanwhile is renewed. Raises `AuthorityError` where a part of that
        number was signed before with another digest.
        """

    def put(self, name: str, data: bytes) -> None:
        """Stores a small object whole, where there is none of that name. Raises `ObjectExistsError`."""

    def complete(self, name: str, upload_id: str, parts: Sequence[Part], etags: Sequence[str]) -> None:
        """Makes the object appear, or tells the controller that it may. Raises `ObjectExistsError`."""

    def close(self) -> None: ...


@runtime_checkable
class Renewing(Protocol):
    """An authority that can renew what it signs with."""

    def expired(self, request: SignedRequest) -> None:
        """S3 says that what this request was signed with has expired: the next one is signed with something newer."""
