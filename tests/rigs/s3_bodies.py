"""Bodies as the strict S3 keeps them: digests as they come in, bytes in memory, in a file, or not at all."""

from __future__ import annotations

import base64
import hashlib
import secrets
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.rigs.s3_errors import S3Error
from tests.rigs.s3_signature import TRAILER, UNSIGNED

if TYPE_CHECKING:
    from tests.rigs.s3_http import Body, Request

SPILL = 1 << 20
"""Bytes of a body above which it goes to a file."""
ALGORITHMS = ("SHA256", "SHA1", "CRC32", "CRC32C", "CRC64NVME")
_POLYNOMIALS = {"CRC32C": (0x82F63B78, 32), "CRC64NVME": (0x9A6C9329AC4BC9B5, 64)}
"""Reflected. https://reveng.sourceforge.io/crc-catalogue/"""


class _SlowCRC:
    """For what the standard library does not have: about 10 MB/s."""

    def __init__(self, name: str) -> None:
        polynomial, self._bits = _POLYNOMIALS[name]
        self._mask = (1 << self._bits) - 1
        self._value = self._mask
        self._table = []
        for value in range(256):
            for _ in range(8):
                value = (value >> 1) ^ (polynomial if value & 1 else 0)  # noqa: PLW2901
            self._table.append(value)

    def update(self, data: memoryview) -> None:
        value, table = self._value, self._table
        for byte in data:
            value = (value >> 8) ^ table[(value ^ byte) & 0xFF]
        self._value = value

    def digest(self) -> bytes:
        return (self._value ^ self._mask).to_bytes(self._bits // 8, "big")


class _CRC32:
    def __init__(self) -> None:
        self._value = 0

    def update(self, data: memoryview) -> None:
        self._value = zlib.crc32(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(4, "big")


def hasher_of(name: str) -> hashlib._Hash | _CRC32 | _SlowCRC:
    if name == "CRC32":
        return _CRC32()
    if name in _POLYNOMIALS:
        return _SlowCRC(name)
    return hashlib.new(name.lower(), usedforsecurity=False)


@dataclass(slots=True, eq=False)
class Blob:
    """The bytes of one part or one object, or only what is known of them."""

    size: int
    etag: str
    sums: dict[str, str]
    """Algorithm -> base64. SHA256 is always there."""
    data: bytes | None = None
    file: Path | None = None

    def read(self, start: int, end: int) -> Iterator[bytes]:
        """Bytes `start` to `end` (exclusive). Raises `S3Error` where they were not kept."""
        if self.data is not None:
            yield self.data[start:end]
        elif self.file is not None:
            with self.file.open("rb") as file:
                file.seek(start)
                while start < end and (piece := file.read(min(1 << 20, end - start))):
                    start += len(piece)
                    yield piece
        elif start < end:
            raise S3Error("NotImplemented", "this server keeps digests of large bodies, not their bytes")

    def forget(self) -> None:
        if self.file:
            self.file.unlink(missing_ok=True)


@dataclass(slots=True)
class Bodies:
    """Takes bodies in. With `keep` False, what is larger than `keep_below` is only counted and digested."""

    directory: Path
    keep: bool = True
    keep_below: int = 1 << 16

    def receive(self, request: Request, payload: str, *, random_etag: bool) -> Blob:
        """Reads the body and holds it against everything that the request says of it. Raises `S3Error`.

        The ETag follows from the content, without being its MD5; with SSE-KMS it does not even follow.
        """
        headers, body = request.headers, request.body
        if body.length is None and "x-amz-decoded-content-length" not in headers:
            raise S3Error("MissingContentLength", "You must provide the Content-Length HTTP header.")
        names = {name for name in ALGORITHMS if f"x-amz-checksum-{name.lower()}" in headers}
        trailer = headers.get("x-amz-trailer", "").strip().lower()
        if trailer:
            names |= {name for name in ALGORITHMS if trailer == f"x-amz-checksum-{name.lower()}"}
        hashers = {name: hasher_of(name) for name in sorted(names | {"SHA256"})}
        md5 = hashlib.md5(usedforsecurity=False) if "content-md5" in headers else None
        trailers: dict[str, str] = {}
        streamed = payload == TRAILER
        if payload.startswith("STREAMING-") and not streamed:
            raise S3Error("NotImplemented", "chunks that are signed one by one")
        pieces = unframed(body, trailers) if streamed else body.pieces()
        size, kept, file, path = 0, bytearray(), None, None
        try:
            for piece in pieces:
                size += len(piece)
                for hasher in hashers.values():
                    hasher.update(piece)
                if md5:
                    md5.update(piece)
                if file:
                    file.write(piece)
                elif size <= (SPILL if self.keep else self.keep_below):
                    kept += piece
                elif self.keep:
                    path = self.directory / secrets.token_hex(12)
                    file = path.open("wb")
                    file.write(kept)
                    file.write(piece)
        except BaseException:
            if path:
                path.unlink(missing_ok=True)
            raise
        finally:
            if file:
                file.close()
        sums = {name: base64.b64encode(hasher.digest()).decode() for name, hasher in hashers.items()}
        etag = secrets.token_hex(16) if random_etag else hashers["SHA256"].digest()[:16].hex()
        in_memory = path is None and (self.keep or size <= self.keep_below)
        blob = Blob(size, etag, sums, bytes(kept) if in_memory else None, path)
        try:
            self._compare(blob, {**headers, **trailers}, names, payload, md5.digest() if md5 else None)
        except BaseException:
            blob.forget()
            raise
        return blob

    @staticmethod
    def _compare(blob: Blob, headers: dict[str, str], names: set[str], payload: str, md5: bytes | None) -> None:
        decoded = headers.get("x-amz-decoded-content-length")
        if decoded is not None and decoded != str(blob.size):
            raise S3Error("IncompleteBody", "You did not provide the number of bytes specified")
        if payload not in {UNSIGNED, TRAILER}:
            ours = base64.b64decode(blob.sums["SHA256"]).hex()
            if payload != ours:
                raise S3Error(
                    "XAmzContentSHA256Mismatch",
                    "The provided 'x-amz-content-sha256' header does not match what was computed.",
                    more={"ClientComputedContentSHA256": payload, "S3ComputedContentSHA256": ours},
                )
        if md5 is not None:
            given = headers["content-md5"]
            if len(given) != 24:
                raise S3Error("InvalidDigest", "The Content-MD5 you specified was invalid.")
            if given != base64.b64encode(md5).decode():
                raise S3Error("BadDigest", "The Content-MD5 you specified did not match what we received.")
        for name in names:
            given = headers.get(f"x-amz-checksum-{name.lower()}", "")
            if len(given) != len(blob.sums[name]):
                raise S3Error("InvalidRequest", f"Value for x-amz-checksum-{name.lower()} header is invalid.")
            if given != blob.sums[name]:
                raise S3Error("BadDigest", f"The {name} you specified did not match the calculated checksum.")


def unframed(body: Body, trailers: dict[str, str]) -> Iterator[memoryview]:
    """The content of an aws-chunked body without signatures; what follows it goes to `trailers`. Raises `S3Error`."""
    line, left, state = bytearray(), 0, "size"
    for piece in body.pieces():
        at = 0
        while at < len(piece):
            if state == "data":
                take = min(left, len(piece) - at)
                yield piece[at : at + take]
                at, left = at + take, left - take
                if not left:
                    state = "end of data"
                continue
            line.append(piece[at])
            at += 1
            if len(line) > 4096:
                raise S3Error("IncompleteBody", "The aws-chunked body is malformed")
            if not line.endswith(b"\r\n"):
                continue
            text, line = line[:-2].decode("latin-1"), bytearray()
            if state == "size":
                left = _hexadecimal(text)
                state = "data" if left else "trailer"
            elif state == "end of data":
                state = "size"
            elif text:
                name, _, value = text.partition(":")
                trailers[name.strip().lower()] = value.strip()
            else:
                state = "done"
    if state != "done":
        raise S3Error("IncompleteBody", "The aws-chunked body ends early")


def _hexadecimal(text: str) -> int:
    try:
        return int(text.partition(";")[0], 16)
    except ValueError:
        raise S3Error("IncompleteBody", "The aws-chunked body is malformed") from None
