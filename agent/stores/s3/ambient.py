"""Authority `ambient`: the machine's own role, only where it was asked for by name. It completes, create-only.

Whoever holds the machine holds that role as well, so the receipt says by which right a run was stored.
"""

from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING

from agent.errors import AuthorityError, StoreError, UnreachableError
from agent.stores.s3.client import READ_TIMEOUT_S, standard_with_credentials
from agent.stores.s3.control import SETTLE_S, Control, code_of, composite_sha256, explained, one_sha256
from agent.stores.s3.signing import PartSigner

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.job import S3
    from agent.stores.base import Part
    from agent.stores.s3.authority import SignedRequest
    from agent.stores.s3.place import Place


class Ambient:
    """The standard AWS sources, renewed by botocore. For any number of threads."""

    kind = "ambient"

    def __init__(self, place: Place, s3: S3) -> None:
        """Raises `UsageError` where there are no credentials."""
        client, self._credentials = standard_with_credentials(s3)
        self.control = Control(client, place, s3)
        self._signer = PartSigner(self.control, self._frozen)

    def begin(self, name: str) -> str:
        return self.control.begin(name)

    def sign(self, name: str, upload_id: str, number: int, part: Part) -> SignedRequest:
        return self._signer.sign(name, upload_id, number, part)

    def put(self, name: str, data: bytes) -> None:
        try:
            self.control.put(name, data)
        except StoreError as error:
            self._unless_it_is_there(error, name, len(data), one_sha256(hashlib.sha256(data).digest()))

    def complete(self, name: str, upload_id: str, parts: Sequence[Part], etags: Sequence[str]) -> None:
        began = time.monotonic()
        try:
            try:
                self.control.complete(name, upload_id, parts, etags)
            except StoreError as error:
                if code_of(error) != "InvalidPart":
                    raise
                self.control.complete(name, upload_id, parts, self._listed(error, name, upload_id, parts))
        except StoreError as error:
            # Long enough that boto3 has asked twice: what exists may be what the first answer would have told of.
            patience = SETTLE_S if time.monotonic() - began >= READ_TIMEOUT_S else 0.0
            size = sum(part.size for part in parts)
            self._unless_it_is_there(error, name, size, composite_sha256(parts), patience)

    def close(self) -> None:
        self.control.client.close()

    def _listed(self, error: StoreError, name: str, upload_id: str, parts: Sequence[Part]) -> list[str]:
        """The ETags that the bucket has, where its parts are the very same; raises the error where they are not.

        With SSE-KMS a part has another ETag each time it is sent, and an attempt that was given up may arrive last.
        """
        try:
            there = list(self.control.parts(name, upload_id))
        except StoreError:
            raise error from None  # the role may not look
        if [(one.size, one.sha256) for one in there] != [(part.size, part.sha256) for part in parts]:
            raise error
        return [one.etag for one in there]

    def _unless_it_is_there(
        self, error: StoreError, name: str, size: int, checksum: str, patience_s: float = 0.0
    ) -> None:
        """Raises the error, unless the very object is there: S3 had done it, and the answer was lost on the way."""
        if isinstance(error, (UnreachableError, AuthorityError)):
            raise error
        try:
            there = self.control.comes_to_be(name, (size, checksum), patience_s=patience_s)
        except StoreError:
            there = False  # the role may not look: then what S3 said is all that is known
        if not there:
            raise error

    def _frozen(self) -> object:
        with explained("the machine's credentials could not be read"):
            return self._credentials.get_frozen_credentials()


def ambient(place: Place, s3: S3) -> Ambient:
    """Raises `UsageError` where there are no credentials."""
    return Ambient(place, s3)
