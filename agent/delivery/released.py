"""The agent's binary that a controller brings to a host: where it lies, and whether it is what was released.

A wheel that was made by `scripts/release` holds `released.json` beside this file: the SHA-256 of each binary of the
same release. An agent that is taken from where releases are put must have that digest; one that is named by hand need
not, and then the ledger says so.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from importlib import resources

import msgspec

from agent import __version__
from agent.errors import UsageError

RELEASED = "released.json"
"""`{"x86_64": SHA-256 in hexadecimal, …}`."""
MACHINES = {62: "x86_64", 183: "aarch64"}
"""Of ELF (`e_machine`)."""
MAX_SIZE = 256 << 20
_CHUNK = 1 << 20
_HEADER = 20


class Agent(msgspec.Struct, frozen=True):
    """A binary that can be brought to a host. `released`: it has the digest of this very release."""

    path: str
    architecture: str
    size: int
    sha256: str
    released: bool


def released() -> dict[str, str]:
    """SHA-256 by architecture, of the binaries of this release; empty where nobody released this."""
    try:
        text = resources.files("agent.delivery").joinpath(RELEASED).read_bytes()
    except OSError:
        return {}
    try:
        found = msgspec.json.decode(text, type=dict[str, str])
    except msgspec.MsgspecError as error:
        raise UsageError(f"this installation of impound is damaged: {RELEASED}: {error}") from error
    return {key: value for key, value in found.items() if re.fullmatch("[0-9a-f]{64}", value)}


def place(architecture: str) -> str:
    """Where a binary of this version lies unless a person says otherwise."""
    home = os.environ.get("XDG_DATA_HOME", "")
    if not os.path.isabs(home):  # as the specification says: a relative one is not used
        home = os.path.expanduser("~/.local/share")
    return os.path.join(home, "impound", __version__, f"impound-linux-{architecture}")


def find(architecture: str, given: str = "") -> Agent:
    """The agent for an architecture: the file `given`, else the one of this release. Raises `UsageError`."""
    if architecture not in MACHINES.values():
        raise UsageError(f"there is no agent for {architecture[:40]}: only for {' and '.join(MACHINES.values())}")
    known = released().get(architecture, "")
    path = given or place(architecture)
    if not given and not known:
        raise UsageError(
            "this impound was not made by a release, and knows no digest of an agent: name the agent with --agent FILE"
        )
    try:
        found = _read(path)
    except OSError as error:
        where = (
            ""
            if given
            else f": put impound-linux-{architecture} of release {__version__} there, or name it with --agent"
        )
        raise UsageError(f"the agent {path!r} cannot be read: {error.strerror}{where}") from error
    if found.architecture != architecture:
        raise UsageError(
            f"{path!r} is for {found.architecture or 'no machine that impound knows'}, and the host is {architecture}"
        )
    if not given and found.sha256 != known:
        raise UsageError(
            f"{path!r} is not the agent of this release: it has SHA-256 {found.sha256}, not {known}. Get it again, or "
            "name it with --agent if you know what it is"
        )
    return msgspec.structs.replace(found, released=found.sha256 == known)


def _read(path: str) -> Agent:
    """Raises `OSError`, and `UsageError` where it is no file that could be an agent."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or not 0 < status.st_size <= MAX_SIZE:
            raise UsageError(f"{path!r} is no agent")
        digest, size, header = hashlib.sha256(), 0, b""
        while data := file.read(_CHUNK):
            header = header or data[:_HEADER]
            digest.update(data)
            size += len(data)
    machine = MACHINES.get(int.from_bytes(header[18:20], "little"), "") if header.startswith(b"\x7fELF\x02\x01") else ""
    return Agent(path, machine, size, digest.hexdigest(), released=False)
