"""The plugin side of `identity-v1` (C2SP `age-plugin.md`): how stock age opens what is sealed to a key in AWS KMS.

Both sides write stanzas (`stanzas.py`). First age speaks, until `done`, and nothing is answered:

    -> add-identity AGE-PLUGIN-IMPOUNDKMS-1…        one each; numbered from 0
    -> recipient-stanza FILE TYPE ARG…              a stanza of the header of a file; files are numbered from 0

Commands and types that are not known are left alone. Then the plugin speaks, and reads an answer to each command:

    -> file-key FILE                                the body is the file key
    -> error identity NUMBER | stanza FILE NUMBER | internal       the body says what is wrong
    -> done

An identity that cannot be used, and a file with a malformed stanza of ours, are errors before anything is opened. What
age sends is bounded, so that a header from a hostile machine costs no more than another.
"""

from __future__ import annotations

from typing import IO, TYPE_CHECKING

import msgspec

from agent.errors import DamagedError, IdentityError, ImpoundError, UsageError
from agent.sealing import p256tag, p256tagpq
from agent.sealing.kmsidentity import parse_kms_identity
from agent.sealing.stanzas import Stanza, parse_stanza, render_stanza

if TYPE_CHECKING:
    from agent.sealing.kmsidentity import KmsIdentity

STATE_MACHINE = "identity-v1"

MAX_LINE = 64 << 10
"""Bytes of one line. The longest that means something to us has about 2,300."""
MAX_INPUT = 8 << 20
MAX_COMMANDS = 8192
MAX_FILES = 1024

_TYPES = frozenset({p256tag.TYPE, p256tagpq.TYPE})
_ANSWERS = frozenset({"ok", "fail", "unsupported"})


class ProtocolError(ImpoundError):
    """The other side does not speak the protocol, or has gone."""


class _Asked(msgspec.Struct):
    """What phase 1 asked for."""

    identities: list[str] = msgspec.field(default_factory=list)
    files: dict[int, list[Stanza]] = msgspec.field(default_factory=dict)


def serve(read: IO[bytes], write: IO[bytes]) -> None:
    """Run the state machine once, to its end. Raises `ProtocolError`; every other failure is told to age."""
    channel = _Channel(read, write)
    asked = _listen(channel)
    identities: list[KmsIdentity] = []
    sound = True
    for number, text in enumerate(asked.identities):
        try:
            identities.append(parse_kms_identity(text))
        except (ValueError, UsageError) as error:
            sound = False
            channel.command("error", "identity", str(number), body=f"this identity cannot be used: {error}")
    if sound:
        for number, stanzas in asked.files.items():
            _open(channel, number, stanzas, identities)
    channel.send(Stanza("done", (), b""))


def _listen(channel: _Channel) -> _Asked:
    """Phase 1."""
    asked = _Asked()
    for _ in range(MAX_COMMANDS):
        stanza = channel.receive()
        match stanza.type, stanza.args:
            case "done", ():
                return asked
            case "add-identity", (text,):
                asked.identities.append(text)
            case "recipient-stanza", (file, kind, *arguments):
                number = _file_number(file, asked)
                asked.files.setdefault(number, []).append(Stanza(kind, tuple(arguments), stanza.body))
            case (("done" | "add-identity" | "recipient-stanza"), _):
                raise ProtocolError(f"age sent a malformed {stanza.type} command")
            case _:
                pass  # a command of a later version, or grease
    raise ProtocolError(f"age sent more than {MAX_COMMANDS} commands")


def _file_number(text: str, asked: _Asked) -> int:
    """Files are numbered in ascending order."""
    if not text.isascii() or not text.isdecimal() or len(text) > 6 or str(int(text)) != text:
        raise ProtocolError("age sent a file number that is none")
    number = int(text)
    if asked.files and number < max(asked.files):
        raise ProtocolError("age sent the stanzas of a file after those of the next")
    if number not in asked.files and len(asked.files) == MAX_FILES:
        raise ProtocolError(f"age sent more than {MAX_FILES} files")
    return number


def _open(channel: _Channel, number: int, stanzas: list[Stanza], identities: list[KmsIdentity]) -> None:
    """Phase 2 for one file: its key, or why not, or nothing where no stanza is for any of these identities."""
    for position, identity in enumerate(identities):
        try:
            file_key = identity.unwrap(stanzas)
        except DamagedError as error:
            culprit = next(index for index, stanza in enumerate(stanzas) if stanza.type in _TYPES)
            channel.command("error", "stanza", str(number), str(culprit), body=str(error))
            return
        except (IdentityError, UsageError) as error:
            channel.command("error", "identity", str(position), body=str(error))
            continue
        if file_key is not None:
            channel.command("file-key", str(number), body=file_key)
            return


class _Channel:
    """Stanzas over two pipes."""

    def __init__(self, read: IO[bytes], write: IO[bytes]) -> None:
        self._read, self._write = read, write
        self._left = MAX_INPUT

    def receive(self) -> Stanza:
        try:
            return parse_stanza(self._line)
        except ValueError as error:
            raise ProtocolError(f"age sent a {error}") from None

    def send(self, stanza: Stanza) -> None:
        try:
            self._write.write(render_stanza(stanza))
            self._write.flush()
        except OSError:
            raise ProtocolError("age has gone") from None

    def command(self, kind: str, *arguments: str, body: str | bytes) -> None:
        """One command of phase 2, and age's answer, which changes nothing: there is nothing else to try."""
        data = body.encode("utf-8", "backslashreplace") if isinstance(body, str) else body
        self.send(Stanza(kind, arguments, data))
        answer = self.receive()
        if answer.type not in _ANSWERS:
            raise ProtocolError("age sent something else than an answer")

    def _line(self) -> bytes:
        limit = min(MAX_LINE, self._left)
        try:
            line = self._read.readline(limit + 1)
        except OSError:
            line = b""
        self._left -= len(line)
        if not line.endswith(b"\n"):
            raise ProtocolError("age sent too much" if len(line) > limit else "age ended before it had said everything")
        return line[:-1]
