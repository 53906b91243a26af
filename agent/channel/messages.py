"""What controller and host say to each other: JSON Lines, one message a line.

    controller -> host   the job, as the first line; answers; stop
    host -> controller   hello first; requests, each with a number that its answer repeats; heads; events; the result

The controller believes nothing that the host says: names are held against `is_object_name`, sizes and counts against
bounds, and what it signs or completes it notes first. The host believes the controller, which gave it the job.
Binary data stands as base64, but for `Data`, behind whose line it follows as it is. No message is larger than
`MAX_MESSAGE`.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

MAX_MESSAGE = 16 << 20
MAX_SMALL_OBJECT = 10 << 20
"""Bytes of an object that is handed over whole (`Put`)."""
MAX_PARTS = 10_000
MAX_DATA = 1 << 20
"""Bytes that follow one message (`Data`)."""

Hex256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
Size = Annotated[int, msgspec.Meta(ge=0, le=5 << 30)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=1000)]
Text = Annotated[str, msgspec.Meta(max_length=4000)]
Number = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="say"):
    """Base of all messages."""


class PartSum(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One part: bytes, SHA-256."""

    size: Size
    sha256: Hex256


# -- host -> controller -----------------------------------------------------------------------------------------------


class Hello(Message, tag="hello", frozen=True, forbid_unknown_fields=True):
    """The first word of the host: which run this is, and under which key its account will be signed."""

    version: int
    tool: Text
    run: Text
    case: Text
    host: Text
    attempt: Number
    signer: Text


class Begin(Message, tag="begin", frozen=True, forbid_unknown_fields=True):
    """Asks for a multipart upload."""

    id: Number
    name: Name


class Sign(Message, tag="sign", frozen=True, forbid_unknown_fields=True):
    """Asks for the request that stores one part."""

    id: Number
    name: Name
    upload: Text
    number: Annotated[int, msgspec.Meta(ge=1, le=MAX_PARTS)]
    part: PartSum


class Put(Message, tag="put", frozen=True, forbid_unknown_fields=True):
    """Asks to store a small object."""

    id: Number
    name: Name
    data: bytes


class Complete(Message, tag="complete", frozen=True, forbid_unknown_fields=True):
    """Tells that every part is there. The controller compares before it completes."""

    id: Number
    name: Name
    upload: Text
    parts: Annotated[list[PartSum], msgspec.Meta(min_length=1, max_length=MAX_PARTS)]


class Data(Message, tag="data", frozen=True, forbid_unknown_fields=True):
    """A piece of an object on its way (relay): so many bytes follow the line, as they are. Not answered."""

    name: Name
    size: Annotated[int, msgspec.Meta(ge=0, le=MAX_DATA)]


class Whole(Message, tag="whole", frozen=True, forbid_unknown_fields=True):
    """Every byte of an object was sent (relay). Answered when it is durable where the controller stores it."""

    id: Number
    name: Name
    size: Number


class Drop(Message, tag="drop", frozen=True, forbid_unknown_fields=True):
    """An object on its way is given up (relay). Not answered."""

    name: Name


class Renew(Message, tag="renew", frozen=True, forbid_unknown_fields=True):
    """Asks for credentials anew (authority session)."""

    id: Number


class Head(Message, tag="head", frozen=True, forbid_unknown_fields=True):
    """The head of the custody log, every second. Not answered."""

    custody: Text
    lines: Number
    wall_ns: int


class Event(Message, tag="event", frozen=True, forbid_unknown_fields=True):
    """What a display shows: an event of the run (`agent.events`) by its name and fields. Not answered."""

    name: Text
    fields: dict[str, msgspec.Raw]


class Result(Message, tag="result", frozen=True, forbid_unknown_fields=True):
    """The last word: the result line of `acquire`."""

    result: dict[str, msgspec.Raw]


# -- controller -> host -----------------------------------------------------------------------------------------------


class Start(Message, tag="start", frozen=True, forbid_unknown_fields=True):
    """The first word of the controller: the job (`agent.job.Job`), and the id of the run, which the controller makes.

    With authority session, credentials are asked for (`Renew`) once `Hello` has said which host it is: what they allow
    is bounded by the run's own prefix. A controller that knows the host already may send the first ones here.
    """

    job: msgspec.Raw
    credentials: Credentials | None = None
    run: str = ""
    delivered: dict[str, str] = {}
    """How the controller reached the host, in its own words: for the host's account."""


class Credentials(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Temporary credentials. Never printed, stored or logged."""

    access_key: str
    secret_key: str
    token: str
    expires: float
    """Seconds since the epoch."""

    def __repr__(self) -> str:
        return f"<Credentials until {self.expires:.0f}>"

    __str__ = __repr__


class Begun(Message, tag="begun", frozen=True, forbid_unknown_fields=True):
    id: Number
    upload: str


class Signed(Message, tag="signed", frozen=True, forbid_unknown_fields=True):
    id: Number
    method: str
    url: str
    headers: dict[str, str]

    def __repr__(self) -> str:
        """Without the query: it holds the signature."""
        return f"<Signed {self.id} {self.method} {self.url.partition('?')[0]}>"

    __str__ = __repr__


class Renewed(Message, tag="renewed", frozen=True, forbid_unknown_fields=True):
    id: Number
    credentials: Credentials


class Done(Message, tag="done", frozen=True, forbid_unknown_fields=True):
    id: Number


class Refused(Message, tag="refused", frozen=True, forbid_unknown_fields=True):
    """Not done. `kind`: exists, authority, unreachable, store or full: which `StoreError` it becomes."""

    id: Number
    kind: str
    error: str


class Broken(Message, tag="broken", frozen=True, forbid_unknown_fields=True):
    """An object on its way cannot be stored (relay): nothing more of it is wanted. `kind` as in `Refused`."""

    name: str
    kind: str
    error: str


class Stop(Message, tag="stop", frozen=True, forbid_unknown_fields=True):
    """Ends the run in order, as a signal would."""

    signal: str = "SIGTERM"


FromHost = Hello | Begin | Sign | Put | Complete | Data | Whole | Drop | Renew | Head | Event | Result
FromController = Start | Begun | Signed | Renewed | Done | Refused | Broken | Stop
