"""What a Docker daemon was told: its arguments, daemon.json, unit files and defaults, as pure parsers.

They take bytes and return `Settings`. Sources: moby `cmd/dockerd/{config,options}.go`, `daemon/config/config.go`.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Sequence

import msgspec

from acquirers.containers.records import MalformedError, decode

# pflag takes `--name=value` and `--name value`; of a short option also `-gvalue`, `-g=value`, and the options without
# a value (-D, -v) may stand in front of it.
_LONG = {b"--data-root": "root", b"--graph": "root", b"--config-file": "config"}
_SHORT = re.compile(rb"-[Dv]*g(?:=(.*)|(.*))", re.DOTALL)

_ASSIGNED = re.compile(r"\s*(?:ExecStart|Environment|(?:export\s+)?[A-Z][A-Z0-9_]*)\s*=")
_MAX_TEXT = 4096
MAX_LINES = 10_000
"""Lines of one file that are looked at."""


class Settings(msgspec.Struct, frozen=True):
    """Where a daemon was told to keep its data, as far as one source says so. The last word wins, as in pflag."""

    data_root: bytes | None = None
    config_file: bytes | None = None
    userns_remap: str = ""

    def __bool__(self) -> bool:
        return self.data_root is not None or self.config_file is not None


class _DaemonJson(msgspec.Struct):
    data_root: msgspec.Raw = msgspec.field(name="data-root", default=msgspec.Raw(b""))
    graph: msgspec.Raw = msgspec.Raw(b"")
    userns_remap: msgspec.Raw = msgspec.field(name="userns-remap", default=msgspec.Raw(b""))


def parse_arguments(arguments: Sequence[bytes]) -> Settings:
    """The arguments of dockerd, its own name first or not."""
    found: dict[str, bytes] = {}
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition(b"=")
        if name in _LONG:
            found[_LONG[name]] = value if equals else next(rest, b"")
        elif short := _SHORT.fullmatch(argument):
            found["root"] = short[1] or short[2] or next(rest, b"")
    return Settings(found.get("root") or None, found.get("config") or None)


def parse_daemon_json(data: bytes) -> Settings:
    """`daemon.json`; an empty file is one without settings. Raises `MalformedError`."""
    if not data.strip():
        return Settings()
    document = decode(data, _DaemonJson)
    root = _text(document.data_root) or _text(document.graph)
    return Settings(root.encode() if root else None, None, _text(document.userns_remap))


def _text(raw: msgspec.Raw) -> str:
    if bytes(raw) in {b"", b"null"}:
        return ""
    text = decode(raw, str)
    if len(text) > _MAX_TEXT or "\0" in text:
        raise MalformedError("a path that no kernel would take")
    return text


def is_cut(data: bytes) -> bool:
    """Whether `parse_lines` and `parse_homes` look at the beginning only."""
    return data.rstrip(b"\n").count(b"\n") >= MAX_LINES


def _lines(data: bytes) -> list[bytes]:
    return data.split(b"\n", MAX_LINES)[:MAX_LINES]


def parse_lines(data: bytes) -> Settings:
    """A systemd unit, a drop-in, or a file of shell variables (/etc/default/docker, /etc/sysconfig/docker).

    Every assignment is read as if it held arguments: `ExecStart=dockerd -g /x`, `DOCKER_OPTS="--data-root /x"`. What
    is no argument of dockerd is not found in it.
    """
    root: bytes | None = None
    config: bytes | None = None
    text = os.fsdecode(b"\n".join(_lines(data))).replace("\\\n", " ")
    for line in text.split("\n"):
        if not _ASSIGNED.match(line):
            continue
        name, _, value = line.partition("=")
        words = _split(value) if name.strip() == "ExecStart" else _inner_words(value)
        found = parse_arguments([os.fsencode(word) for word in words])
        root, config = found.data_root or root, found.config_file or config
    return Settings(root, config)


def _inner_words(text: str) -> Iterator[str]:
    """The words inside of the words: a variable holds a whole line of arguments."""
    for word in _split(text):
        yield from _split(word.partition("=")[2] if re.match(r"[A-Z][A-Z0-9_]*=", word) else word)


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:  # an unclosed quote
        return text.split()


def parse_homes(data: bytes) -> list[bytes]:
    """The home directories of a passwd(5) file, each once, in its order."""
    homes: dict[bytes, None] = {}
    for line in _lines(data):
        fields = line.split(b":")
        if len(fields) == 7 and fields[5].startswith(b"/") and b"\0" not in fields[5] and len(fields[5]) <= _MAX_TEXT:
            homes[fields[5].rstrip(b"/") or b"/"] = None
    return list(homes)
