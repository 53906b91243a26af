"""What a host may ask of its controller. Pure: what was noted goes in, what is wrong comes out as `AuthorityError`.

Everything that the host says is a stranger's: names, numbers and sizes are held against what impound writes, and
against what was noted before.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from agent.custody.countersign import COUNTERSIGNATURE
from agent.custody.records import is_object_name
from agent.errors import AuthorityError, ObjectExistsError
from agent.stores.base import Part
from agent.stores.s3.control import composite_sha256

if TYPE_CHECKING:
    from agent.channel.messages import Hello, PartSum
    from agent.delivery.notes import LedgerState, Uploading
    from agent.stores.s3.control import ListedPart

_HOST = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")
_SIGNER = re.compile(r"ed25519:[0-9a-f]{64}")
_TOOL = re.compile(r"[ -~]{1,100}")
_UPLOAD = re.compile(r"[!-~]{1,1024}")
_ATTEMPT = re.compile(r"attempt-(\d+)(?:/.*)?")


class Bounds(msgspec.Struct, frozen=True):
    """What a run may come to. The defaults are beyond any machine, and far below what would harm the controller."""

    min_part: int = 5 << 20
    max_part: int = 5 << 30
    parts: int = 1_000_000
    size: int = 64 << 40
    """Bytes, of all objects."""
    objects: int = 200_000
    uploads: int = 64
    """Uploads that are open at once."""
    messages_s: float = 2000.0
    """Messages a second that are heard; faster ones wait in the pipe."""
    burst: int = 4000
    renewals_s: float = 0.2
    renewals: int = 20
    """Renewals at once; then `renewals_s` a second."""
    refusals: int = 10_000
    """Refused requests, after which the channel is closed."""
    findings: int = 1000
    """Findings and refusals that are noted; more are counted."""


class Dictated(msgspec.Struct, frozen=True):
    """What the controller has decided before the host says a word."""

    run: str
    case: str
    attempt: int
    host: str = ""
    """Known where a run goes on."""


def check_hello(hello: Hello, dictated: Dictated, version: int) -> None:
    """Whether the host is on the run that it was sent. Raises `AuthorityError`."""
    if hello.version != version:
        raise AuthorityError(f"the agent on the host speaks version {hello.version} of the channel, not {version}")
    if hello.run != dictated.run or hello.case != dictated.case or hello.attempt != dictated.attempt:
        raise AuthorityError("the host is on another run than the one it was sent")
    if not _HOST.fullmatch(hello.host):
        raise AuthorityError(f"the host gives itself a name that is none: {hello.host[:100]!r}")
    if dictated.host and hello.host != dictated.host:
        raise AuthorityError(f"the run is of {dictated.host}, and the host calls itself {hello.host!r}")
    if not _SIGNER.fullmatch(hello.signer):
        raise AuthorityError("the host names a signing key that is none")
    if not _TOOL.fullmatch(hello.tool):
        raise AuthorityError("the host names a tool in odd characters")


class Grants:
    """Holds requests against what was noted. Called under the ledger's lock."""

    def __init__(self, state: LedgerState, bounds: Bounds) -> None:
        self._state, self._bounds = state, bounds
        self.busy: set[str] = set()
        """Names on which a request is at work."""

    def name(self, name: str) -> None:
        """Whether an object of the run may have this name. Raises `AuthorityError`."""
        if not is_object_name(name):
            raise AuthorityError(f"{name[:100]!r} is no name of an object")
        if name == COUNTERSIGNATURE:
            raise AuthorityError("the countersignature is the controller's")
        attempt = _ATTEMPT.fullmatch(name)
        if attempt and attempt[1] != str(self._state.attempt):
            raise AuthorityError(f"{name[:100]} belongs to another attempt")
        if name in self.busy:
            raise AuthorityError(f"{name} is being worked on")

    def _new(self, name: str) -> None:
        self.name(name)
        there = self._state.objects.get(name)
        if there is not None and there.sure:
            raise ObjectExistsError(f"{name} is there already, and it is not overwritten")
        if len(self._state.objects) + len(self._state.uploads) >= self._bounds.objects:
            raise AuthorityError(f"a run has at most {self._bounds.objects} objects")

    def begin(self, name: str) -> None:
        self._new(name)
        if name in self._state.uploads or name in self._state.objects:
            raise AuthorityError(f"{name} was begun before: an object is uploaded once in an attempt")
        if len(self._state.uploads) >= self._bounds.uploads:
            raise AuthorityError(f"{self._bounds.uploads} uploads are open: complete some first")

    def sign(self, name: str, upload: str, number: int, part: Part) -> bool:
        """Whether it is new, and has to be noted; else the very same was signed before."""
        self.name(name)
        begun = self._begun(name, upload)
        before = begun.parts.get(number)
        if before is not None:
            if before != part:
                raise AuthorityError(f"part {number} of {name} was signed before, with another digest or length")
            return False
        if name in self._state.objects:
            raise AuthorityError(f"{name} is being completed: it takes no more parts")
        self._sized(name, begun, number, part)
        if self._state.parts >= self._bounds.parts:
            raise AuthorityError(f"a run has at most {self._bounds.parts} parts")
        self.room(part.size)
        return True

    def _sized(self, name: str, begun: Uploading, number: int, part: Part) -> None:
        if not 1 <= part.size <= self._bounds.max_part:
            raise AuthorityError(f"part {number} of {name} would have {part.size} bytes")
        # One part may be shorter than S3's smallest, and that is the last.
        last = begun.smallest if begun.parts and begun.parts[begun.smallest].size < self._bounds.min_part else 0
        if last and number > last:
            raise AuthorityError(f"part {last} of {name} is the last, by its size: {number} cannot follow")
        if part.size < self._bounds.min_part and (last or number < begun.highest):
            raise AuthorityError(f"part {number} of {name} has {part.size} bytes, and is not the last")

    def room(self, size: int) -> None:
        """Whether so many bytes more may come. Raises `AuthorityError`."""
        if self._state.size + size > self._bounds.size:
            raise AuthorityError(f"a run has at most {self._bounds.size} bytes")

    def put(self, name: str, data: bytes, sha256: str) -> None:
        self._new(name)
        if name in self._state.uploads:
            raise AuthorityError(f"{name} was begun in parts")
        unsure = self._state.objects.get(name)
        if unsure is not None and (unsure.size, unsure.sha256) != (len(data), sha256):
            raise AuthorityError(f"{name} was handed over before, with another digest")
        self.room(len(data))

    def complete(self, name: str, upload: str, said: Sequence[PartSum], *, signed: bool) -> list[Part]:
        """The parts that the bucket has to have. `signed`: they are those that were noted (authority broker)."""
        there = self._state.objects.get(name)
        if there is not None and there.sure:
            raise ObjectExistsError(f"{name} is there already, and it is not overwritten")
        self.name(name)
        parts = [Part(one.size, bytes.fromhex(one.sha256)) for one in said]
        if signed or name in self._state.uploads:
            begun = self._begun(name, upload)
            if signed and begun.parts != dict(enumerate(parts, 1)):
                raise AuthorityError(f"the parts of {name} are not those that were signed")
        elif not _UPLOAD.fullmatch(upload):
            raise AuthorityError(f"the upload of {name} has an id that is none")
        if there is not None and there.checksum != composite_sha256(parts):
            raise AuthorityError(f"{name} was to be completed of other parts before")
        sound = all(self._bounds.min_part <= part.size <= self._bounds.max_part for part in parts[:-1])
        if not sound or not 1 <= parts[-1].size <= self._bounds.max_part:
            raise AuthorityError(f"the parts of {name} have sizes that no upload has")
        if not signed:
            if len(self._state.objects) >= self._bounds.objects:
                raise AuthorityError(f"a run has at most {self._bounds.objects} objects")
            if self._state.parts + len(parts) > self._bounds.parts:
                raise AuthorityError(f"a run has at most {self._bounds.parts} parts")
            self.room(sum(part.size for part in parts))
        return parts

    def _begun(self, name: str, upload: str) -> Uploading:
        begun = self._state.uploads.get(name)
        if begun is None or begun.upload != upload:
            raise AuthorityError(f"{name} has no such upload")
        return begun


def difference(listed: Sequence[ListedPart], wanted: Sequence[Part]) -> tuple[str, bool]:
    """How the parts in the bucket differ from those that were notified, and whether somebody else must have put them.

    ("", False) where they do not differ. Sizes alone are compared where the bucket tells no digests.
    """
    have = {one.number: one for one in listed}
    for number, want in enumerate(wanted, 1):
        part = have.pop(number, None)
        if part is None:
            return f"part {number} is not in the bucket", False
        if part.size != want.size:
            return (
                f"part {number} has {part.size} bytes, and {want.size} were notified: part put twice by somebody else",
                True,
            )
        if part.sha256 is not None and part.sha256 != want.sha256:
            return f"part {number} is not the one that was notified: part put twice by somebody else", True
    if have:
        return f"part {min(have)} was never notified: part put by somebody else", True
    return "", False
