"""Authority `session`: temporary credentials, which may begin uploads and add parts below the run's prefix, no more.

They exist in memory only and are renewed over the control channel, five minutes before they end or when S3 says that
they did. With a channel the controller stores small objects and completes the others. Without one every object is left
as an upload whose parts are all there: `impound finish` completes it.
"""

from __future__ import annotations

import hashlib
import threading
import time
from typing import TYPE_CHECKING, Protocol, TypeVar

from agent.errors import AuthorityError, UnreachableError
from agent.stores.s3.client import given
from agent.stores.s3.control import Control, has_expired
from agent.stores.s3.signing import PartSigner

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agent.channel.messages import Credentials
    from agent.job import S3
    from agent.stores.base import Part
    from agent.stores.s3.authority import SignedRequest
    from agent.stores.s3.place import Place

T = TypeVar("T")

RENEW_BEFORE_S = 300.0
RENEW_EVERY_S = 30.0
"""Not more often than this by the clock, which may be wrong on this machine."""


class HostEnd(Protocol):
    """What is asked of the control channel. Methods raise `StoreError`."""

    def put(self, name: str, data: bytes, /) -> None: ...

    def complete(self, name: str, upload_id: str, parts: Sequence[tuple[int, bytes]], /) -> None:
        """`parts`: their sizes and SHA-256."""

    def renew(self) -> Credentials: ...


class _Held:
    """Credentials, and what was made with them."""

    def __init__(self, place: Place, s3: S3, credentials: Credentials) -> None:
        from botocore.credentials import Credentials as Frozen

        self.credentials = credentials
        self.control = Control(given(s3, credentials), place, s3)
        frozen = Frozen(credentials.access_key, credentials.secret_key, credentials.token or None)
        self.signer = PartSigner(self.control, frozen.get_frozen_credentials)


class Session:
    """For any number of threads."""

    kind = "session"

    def __init__(
        self,
        place: Place,
        s3: S3,
        credentials: Credentials | None,
        host_end: HostEnd | None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Without `credentials` the channel is asked for the first ones. Raises `UsageError`, `StoreError`."""
        self._place, self._s3, self._host_end, self._clock = place, s3, host_end, clock
        self._lock = threading.Lock()
        self._renewed = float("-inf")
        self._small: dict[tuple[str, bytes], str] = {}
        if credentials is None:
            if host_end is None:
                raise AuthorityError("there are neither credentials nor a channel to ask for them")
            credentials = host_end.renew()
        self._held = _Held(place, s3, credentials)
        self._expired = False

    def begin(self, name: str) -> str:
        return self._by_right(lambda held: held.control.begin(name))

    def sign(self, name: str, upload_id: str, number: int, part: Part) -> SignedRequest:
        return self._current().signer.sign(name, upload_id, number, part)

    def put(self, name: str, data: bytes) -> None:
        if self._host_end is not None:
            self._host_end.put(name, data)
            return
        # One part, left for the controller to complete. Tried again it is the same upload, so that there are not two.
        digest = hashlib.sha256(data).digest()
        upload_id = self._small.get((name, digest)) or self.begin(name)
        self._small[name, digest] = upload_id
        self._by_right(lambda held: held.control.put_part(name, upload_id, 1, data))
        del self._small[name, digest]

    def complete(self, name: str, upload_id: str, parts: Sequence[Part], etags: Sequence[str]) -> None:  # noqa: ARG002
        """The controller asks the bucket for the ETags.

        Without a channel nothing is done: the parts are there, and `finish` completes what the receipt names.
        """
        if self._host_end is not None:
            self._host_end.complete(name, upload_id, [(part.size, part.sha256) for part in parts])

    def expired(self, request: SignedRequest) -> None:
        with self._lock:
            if self._held.credentials.access_key in request.headers.get("authorization", ""):
                self._expired = True

    def close(self) -> None:
        self._held.control.client.close()

    def _by_right(self, call: Callable[[_Held], T]) -> T:
        held = self._current()
        try:
            return call(held)
        except AuthorityError as error:
            if not has_expired(error) or not self._renew(held, must=True):
                raise
        return call(self._held)

    def _current(self) -> _Held:
        held = self._held
        ends = held.credentials.expires - self._clock()
        if self._expired or (ends < RENEW_BEFORE_S and time.monotonic() - self._renewed > RENEW_EVERY_S):
            self._renew(held, must=self._expired)
        return self._held

    def _renew(self, held: _Held, *, must: bool) -> bool:
        """Replaces these credentials, if nobody has. Whether there are others now. `must`: they are of no use."""
        with self._lock:
            if self._held is not held:
                return True
            if self._host_end is None:
                self._expired = False
                return False
            self._renewed = time.monotonic()
            try:
                credentials = self._host_end.renew()
            except UnreachableError:
                if must:
                    raise
                return False  # what is left of their time can be used
            self._held, self._expired = _Held(self._place, self._s3, credentials), False
            return True


def session(place: Place, s3: S3, credentials: Credentials | None, host_end: HostEnd | None = None) -> Session:
    """`place` is that of the run. Raises `UsageError`, `StoreError`."""
    return Session(place, s3, credentials, host_end)
