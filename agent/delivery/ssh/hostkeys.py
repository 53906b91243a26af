"""Which key a host may have: files of known hosts (sshd(8)), and fingerprints that a person gives.

Nothing is ever added. A host that nothing is known of is refused, and so is one whose key has changed: on a machine
that is under suspicion that is a finding. Only a fingerprint that a person gives by hand stands above the files.
"""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import hmac
import os
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import msgspec

from agent.errors import UsageError

if TYPE_CHECKING:
    from paramiko import PKey

MAX_FILE = 16 << 20
_FINGERPRINT = re.compile(r"SHA256:([A-Za-z0-9+/]{43})=?")
_TYPE = re.compile(r"[a-z0-9@.-]{1,64}")


class HostKeyError(UsageError):
    """The host has a key that it is not known by."""


class HostKey(msgspec.Struct, frozen=True):
    """A key that a host showed. `trust`: why it was taken; `differs`: what stands against it in the files."""

    kind: str
    fingerprint: str
    trust: str
    differs: str = ""


class _Line(msgspec.Struct, frozen=True):
    hosts: str
    kind: str
    key: bytes
    revoked: bool
    where: str


class KnownHosts:
    """What is known of hosts."""

    def __init__(self, files: Iterable[str], fingerprints: Iterable[str] = (), lines: Iterable[str] = ()) -> None:
        """`lines`: more of them, as a file has them. Raises `UsageError` for a file or a fingerprint that is none.

        Only the host that a person names is held against `fingerprints`, not the hops before it.
        """
        self._lines = [line for path in files for line in _read(path)]
        self._lines += [one for text in lines if (one := _parse(text, "the console output")) is not None]
        self._fingerprints = {_canonical(text) for text in fingerprints}

    def kinds(self, name: str, port: int) -> list[str]:
        """The types of key that are known of a host: it is asked for these first."""
        return list(dict.fromkeys(line.kind for line in self._of(name, port) if not line.revoked))

    def check(self, name: str, port: int, key: PKey, *, given: bool = True) -> HostKey:
        """Raises `HostKeyError` where the host may not have this key. `given`: fingerprints count for it."""
        data, kind = key.asbytes(), key.get_name()
        fingerprint = fingerprint_of(data)
        lines = list(self._of(name, port))
        if any(line.revoked and line.key == data for line in lines):
            raise HostKeyError(f"the key that {name} shows ({kind} {fingerprint}) is revoked in the known hosts")
        known = [line for line in lines if not line.revoked]
        if (same := next((line for line in known if line.key == data), None)) is not None:
            if given and self._fingerprints and fingerprint not in self._fingerprints:
                raise HostKeyError(f"{name} shows {kind} {fingerprint}, which is not the fingerprint that you gave")
            return HostKey(kind, fingerprint, same.where)
        differs = ""
        if known:
            others = ", ".join(f"{line.kind} {fingerprint_of(line.key)}" for line in known[:4])
            differs = f"the host key of {name} has changed: it shows {kind} {fingerprint}, and is known by {others}"
        if given and fingerprint in self._fingerprints:
            return HostKey(kind, fingerprint, "a fingerprint given by hand", differs)
        if differs:
            raise HostKeyError(
                f"{differs} ({known[0].where}). If you know why, give --host-key {fingerprint}; if not, somebody else "
                "may be answering"
            )
        if given and self._fingerprints:
            raise HostKeyError(f"{name} shows {kind} {fingerprint}, which is not the fingerprint that you gave")
        raise HostKeyError(
            f"nothing is known of {name}: it shows {kind} {fingerprint}. Compare it with what the machine's console or "
            f"its owner says, and give --host-key {fingerprint}"
        )

    def _of(self, name: str, port: int) -> Iterator[_Line]:
        names = [name if port == 22 else f"[{name}]:{port}"]
        for line in self._lines:
            if any(_matches(line.hosts, one) for one in names):
                yield line


def fingerprint_of(data: bytes) -> str:
    """As ssh-keygen(1) writes it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(data).digest()).decode("ascii").rstrip("=")


def _canonical(text: str) -> str:
    match = _FINGERPRINT.fullmatch(text)
    if match is None:
        raise UsageError(f"a fingerprint is SHA256: and 43 letters, as ssh-keygen -lf shows it, not {text[:80]!r}")
    return f"SHA256:{match[1]}"


def _read(path: str) -> Iterator[_Line]:
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_FILE + 1)
    except OSError as error:
        raise UsageError(f"the known hosts {path!r} cannot be read: {error.strerror}") from error
    if len(text) > MAX_FILE:
        raise UsageError(f"the known hosts {path!r} are larger than {MAX_FILE >> 20} MiB")
    for number, line in enumerate(text.decode("utf-8", "replace").splitlines(), 1):
        if (found := _parse(line, f"{path} line {number}")) is not None:
            yield found


def _parse(text: str, where: str) -> _Line | None:
    """A line, or `None` for a comment, for one that is damaged, and for an authority: those are not followed."""
    fields = text.split()
    marker = fields.pop(0) if fields and fields[0].startswith("@") else ""
    if len(fields) < 3 or fields[0].startswith("#") or marker not in {"", "@revoked"} or not _TYPE.fullmatch(fields[1]):
        return None
    try:
        key = base64.b64decode(fields[2], validate=True)
    except ValueError:
        return None
    return _Line(fields[0], fields[1], key, marker == "@revoked", where)


def _matches(hosts: str, name: str) -> bool:
    """As sshd(8) says: names and patterns with commas between, `!` for one that is not meant; or one hashed name."""
    if hosts.startswith("|1|"):
        return _hashed(hosts, name)
    found = False
    for pattern in hosts.split(","):
        negated, plain = pattern.startswith("!"), pattern.removeprefix("!").lower()
        # fnmatch knows classes in brackets, which known hosts do not: `[host]:port` is a name.
        if fnmatch.fnmatchcase(name.lower(), plain.replace("[", "[[]")):
            if negated:
                return False
            found = True
    return found


def _hashed(hosts: str, name: str) -> bool:
    try:
        salt, digest = (base64.b64decode(part, validate=True) for part in hosts.split("|")[2:4])
    except ValueError:
        return False
    # HMAC-SHA1 is what the format is made of.
    return hmac.compare_digest(hmac.new(salt, name.encode("utf-8"), "sha1").digest(), digest)


def default_files() -> list[str]:
    """Those that ssh(1) reads, as far as they exist."""
    paths = ["~/.ssh/known_hosts", "~/.ssh/known_hosts2", "/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2"]
    return [path for path in map(os.path.expanduser, paths) if os.path.isfile(path)]
