"""A store on the other end of the channel: objects travel as they are sealed, and the controller puts them somewhere.

Nothing is kept here but what is on its way. An object exists once the controller says that it is whole and durable
where that stores it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.channel.messages import MAX_DATA

if TYPE_CHECKING:
    from acquirers.base import Buffer
    from agent.channel.host import HostEnd
    from agent.stores.throttle import Throttle

RELAY = "-"
"""The destination that means it."""


class RelayUpload:
    """One object on its way."""

    def __init__(self, end: HostEnd, name: str, throttle: Throttle | None) -> None:
        self._end, self._name, self._throttle, self._size = end, name, throttle, 0
        end.begin(name)

    def write(self, data: Buffer) -> None:
        view = memoryview(data).cast("B")
        piece_size = MAX_DATA if self._throttle is None else min(MAX_DATA, self._throttle.piece)
        while view:
            piece, view = view[:piece_size], view[piece_size:]
            if self._throttle is not None:
                self._throttle.take(len(piece))
            self._end.data(self._name, bytes(piece))
            self._size += len(piece)

    def commit(self) -> tuple[()]:
        self._end.whole(self._name, self._size)
        return ()

    def abort(self) -> None:
        self._end.drop(self._name)


class RelayStore:
    """The place of one run, wherever the controller has it."""

    authority = "relay"

    def __init__(self, end: HostEnd, throttle: Throttle | None = None) -> None:
        self.location = RELAY
        self._end, self._throttle = end, throttle

    def begin(self, name: str, *, estimate: int | None = None) -> RelayUpload:  # noqa: ARG002 - no parts to size
        return RelayUpload(self._end, name, self._throttle)

    def moment(self) -> None:
        """The controller's clock stands in its ledger, beside each head that it was told."""
        return

    def close(self) -> None:
        """The channel is somebody else's."""
