"""What the controller notes of a run, and what follows from the notes.

Each note is one line of the ledger (`agent.delivery.ledger`); `event` is the name that the line gives it. `LedgerState`
is made of the notes alone, so that a ledger that is read again says what the controller knew when it wrote it.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec
from msgspec.structs import replace

from agent.errors import DamagedError
from agent.stores.base import Part
from agent.stores.s3.control import one_sha256


class Note(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of what a line says."""

    event: ClassVar[str]


class Opened(Note, frozen=True, forbid_unknown_fields=True):
    """An attempt of a run begins. `job_sha256` is of the document that the host was sent."""

    event = "opened"
    run: str
    case: str
    to: str
    authority: str
    attempt: int
    tool: str
    job_sha256: str


class Arrived(Note, frozen=True, forbid_unknown_fields=True):
    """The host was reached, by this way: host keys, the agent's digest, and what else is known of it."""

    event = "reached"
    how: dict[str, str]


class Greeted(Note, frozen=True, forbid_unknown_fields=True):
    """What the host said of itself."""

    event = "hello"
    host: str
    attempt: int
    signer: str
    tool: str


class Begun(Note, frozen=True, forbid_unknown_fields=True):
    """An upload was begun for the host."""

    event = "begun"
    run: str
    object: str
    upload: str


class PartSigned(Note, frozen=True, forbid_unknown_fields=True):
    """A part is signed next: of this number, with this length and digest, and never with another."""

    event = "signed"
    run: str
    object: str
    upload: str
    part: int
    size: int
    sha256: str


class Completing(Note, frozen=True, forbid_unknown_fields=True):
    """The parts in the bucket are those that were notified, and the upload is completed next.

    `checksum` is that of the object of parts as S3 writes it: base64 over the digests of its parts, `-`, their number.
    `checked`: sha256, where the bucket told the digest of every part, or size.
    """

    event = "completing"
    run: str
    object: str
    upload: str
    parts: int
    size: int
    checksum: str
    checked: str
    sha256: str = ""
    """Of the object, where it is one part."""


class Storing(Note, frozen=True, forbid_unknown_fields=True):
    """A small object that the host handed over is stored next."""

    event = "storing"
    run: str
    object: str
    size: int
    sha256: str


class Appeared(Note, frozen=True, forbid_unknown_fields=True):
    """The object that was completed or stored is there."""

    event = "appeared"
    run: str
    object: str


class Unmade(Note, frozen=True, forbid_unknown_fields=True):
    """The object did not appear after all: the bucket refused it."""

    event = "unmade"
    run: str
    object: str
    why: str


class Dropped(Note, frozen=True, forbid_unknown_fields=True):
    """An object on its way was given up by the host (relay)."""

    event = "dropped"
    run: str
    object: str


class Heading(Note, frozen=True, forbid_unknown_fields=True):
    """Head of the host's custody log. When it was told stands in the line itself; `host_ns` is the host's clock."""

    event = "head"
    custody: str
    lines: int
    host_ns: int


class Minted(Note, frozen=True, forbid_unknown_fields=True):
    """The host gets session credentials. What they are is not noted anywhere."""

    event = "minted"
    role: str
    session: str
    below: str
    until: float


class Declined(Note, frozen=True, forbid_unknown_fields=True):
    """A request that was refused."""

    event = "refused"
    request: str
    object: str
    why: str


class Found(Note, frozen=True, forbid_unknown_fields=True):
    """Something is not as it should be."""

    event = "finding"
    finding: str


class Reported(Note, frozen=True, forbid_unknown_fields=True):
    """The host's last word, as it said it."""

    event = "result"
    result: str


class Torn(Note, frozen=True, forbid_unknown_fields=True):
    """A controller was killed while it wrote: this much of a line was cut off."""

    event = "torn"
    bytes: int
    sha256: str


class Ended(Note, frozen=True, forbid_unknown_fields=True):
    event = "ended"
    verdict: str
    why: str


NOTES: dict[str, type[Note]] = {
    one.event: one
    for one in (
        Opened, Arrived, Greeted, Begun, PartSigned, Completing, Storing, Appeared, Unmade, Dropped, Heading, Minted,
        Declined, Found, Reported, Torn, Ended,
    )
}  # fmt: skip


class Uploading(msgspec.Struct):
    """An upload, as far as it was notified."""

    name: str
    upload: str
    attempt: int
    parts: dict[int, Part] = msgspec.field(default_factory=dict)
    size: int = 0
    highest: int = 0
    """Number of the part that stands last so far."""
    smallest: int = 0
    """Number of the part with the fewest bytes."""


class Whole(msgspec.Struct, frozen=True):
    """An object that is there, or that may be: its completion was asked for and nobody knows what came of it."""

    name: str
    size: int
    checksum: str
    """As S3 keeps it: base64, with `-N` where it was completed of N parts."""
    sha256: str
    """Hex; "" where it was completed of several parts."""
    checked: str
    """whole: it was handed over. sha256: the bucket told the digest of every part. size: it told sizes alone."""
    sure: bool


class LedgerState(msgspec.Struct):
    """What follows from the lines."""

    run: str = ""
    case: str = ""
    to: str = ""
    authority: str = ""
    host: str = ""
    attempt: int = 0
    signer: str = ""
    tool: str = ""
    uploads: dict[str, Uploading] = msgspec.field(default_factory=dict)
    """By name: begun in this attempt and not complete."""
    abandoned: list[Uploading] = msgspec.field(default_factory=list)
    """Begun in an earlier attempt, or by the name of an object that appeared otherwise."""
    objects: dict[str, Whole] = msgspec.field(default_factory=dict)
    findings: list[str] = msgspec.field(default_factory=list)
    custody: str = ""
    custody_lines: int = 0
    heads: int = 0
    parts: int = 0
    """Parts that were signed, of all attempts."""
    size: int = 0
    """Bytes that were signed or stored."""
    result: str = ""
    verdict: str = ""

    def apply(self, note: Note) -> None:
        """Raises `DamagedError` for a note that cannot follow on those before."""
        match note:
            case Opened():
                if self.run and (note.run, note.case, note.to) != (self.run, self.case, self.to):
                    raise DamagedError("the ledger is of two runs")
                self.run, self.case, self.to = note.run, note.case, note.to
                self.authority, self.attempt = note.authority, note.attempt
                self.abandoned += self.uploads.values()
                self.objects = {name: one for name, one in self.objects.items() if one.sure}
                self.uploads = {}
                self.custody, self.custody_lines, self.signer, self.result, self.verdict = "", 0, "", "", ""
            case Greeted():
                self.host, self.attempt, self.signer, self.tool = note.host, note.attempt, note.signer, note.tool
            case Begun():
                self.uploads[note.object] = Uploading(note.object, note.upload, self.attempt)
            case PartSigned():
                self._signed(note)
            case Completing():
                if not (note.object in self.uploads and self.uploads[note.object].parts):  # not signed one by one
                    self.parts, self.size = self.parts + note.parts, self.size + note.size
                self.objects[note.object] = Whole(
                    note.object, note.size, note.checksum, note.sha256, note.checked, sure=False
                )
            case Storing():
                checksum = one_sha256(bytes.fromhex(note.sha256))
                self.objects[note.object] = Whole(note.object, note.size, checksum, note.sha256, "whole", sure=False)
                self.size += note.size
            case Appeared():
                if note.object not in self.objects:
                    raise DamagedError("the ledger says that an object appeared, and not which")
                self.objects[note.object] = replace(self.objects[note.object], sure=True)
                self.uploads.pop(note.object, None)
            case Unmade():
                self.objects.pop(note.object, None)
            case Dropped():
                self.uploads.pop(note.object, None)
            case Heading():
                self.custody, self.custody_lines, self.heads = note.custody, note.lines, self.heads + 1
            case Found():
                self.findings.append(note.finding)
            case Reported():
                self.result = note.result
            case Ended():
                self.verdict = note.verdict
            case _:
                pass

    def _signed(self, note: PartSigned) -> None:
        upload = self.uploads.get(note.object)
        if upload is None or upload.upload != note.upload or note.part in upload.parts:
            raise DamagedError(f"the ledger signs part {note.part} of an upload that was not begun, or signs it twice")
        upload.parts[note.part] = Part(note.size, bytes.fromhex(note.sha256))
        upload.size += note.size
        upload.highest = max(upload.highest, note.part)
        if not upload.smallest or note.size < upload.parts[upload.smallest].size:
            upload.smallest = note.part
        self.parts += 1
        self.size += note.size
