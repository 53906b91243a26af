"""Logs of containers as their producers write them, and archives that hold them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from agent.analysis.items import Items

START = 1_700_000_000_000_000_000
MAX_PART = 16384


@dataclass(frozen=True)
class Said:
    """One line that a container wrote."""

    time_ns: int
    stream: str
    line: bytes

    def parts(self, size: int = MAX_PART) -> list[bytes]:
        return [self.line[at : at + size] for at in range(0, max(len(self.line), 1), size)]


def rfc3339(time_ns: int) -> str:
    """As Go's RFC3339Nano: zeros at the end are left out."""
    import time

    seconds, nanoseconds = divmod(time_ns, 1_000_000_000)
    fraction = f".{nanoseconds:09d}".rstrip("0").rstrip(".")
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + fraction + "Z"


def json_file(said: Said, size: int = MAX_PART) -> list[bytes]:
    """The records of one line, each with its newline."""
    parts = said.parts(size)
    parts[-1] += b"\n"
    return [
        json.dumps(
            {"log": part.decode("utf-8", "replace"), "stream": said.stream, "time": rfc3339(said.time_ns)},
            separators=(",", ":"),
            ensure_ascii=False,
        ).encode()
        + b"\n"
        for part in parts
    ]


def cri(said: Said, size: int = MAX_PART) -> list[bytes]:
    parts = said.parts(size)
    head = f"{rfc3339(said.time_ns)} {said.stream} ".encode()
    tags = [b"P"] * (len(parts) - 1) + [b"F"]
    return [head + tag + b" " + part + b"\n" for tag, part in zip(tags, parts, strict=True)]


def local(said: Said, size: int = MAX_PART, attrs: Sequence[tuple[str, str]] = ()) -> list[bytes]:
    parts = said.parts(size)
    whole = len(parts) == 1
    return [
        frame(_message(said, part, None if whole else (number + 1, number + 1 == len(parts)), attrs))
        for number, part in enumerate(parts)
    ]


def frame(message: bytes) -> bytes:
    size = len(message).to_bytes(4, "big")
    return size + message + size


def _message(said: Said, line: bytes, part: tuple[int, bool] | None, attrs: Sequence[tuple[str, str]]) -> bytes:
    """`LogEntry`, in the order and with the omissions of gogo/protobuf."""
    data = _bytes(1, said.stream.encode()) + _number(2, said.time_ns & (1 << 64) - 1) + _bytes(3, line)
    if part is not None:
        ordinal, last = part
        group = f"{said.time_ns:x}{said.stream}".encode()
        data += _number(4, 1) + _bytes(5, _number(1, int(last)) + _bytes(2, group) + _number(3, ordinal))
    for key, value in attrs:
        data += _bytes(6, _bytes(1, key.encode()) + _bytes(2, value.encode()))
    return data


def _number(field: int, value: int) -> bytes:
    return b"" if not value else bytes([field << 3]) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return b"" if not value else bytes([field << 3 | 2]) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def tar(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
    return file.getvalue()


def items(archives: dict[str, dict[str, bytes]]) -> Items:
    """A run that holds these archives."""
    data = {name: tar(members) for name, members in archives.items()}

    def stream(name: str) -> Iterator[bytes]:
        whole = data[name]
        for at in range(0, len(whole), 65536):
            yield whole[at : at + 65536]

    return Items(tuple(sorted(data)), stream)
