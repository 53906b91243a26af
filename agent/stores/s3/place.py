"""Where in S3: `s3://bucket/prefix`."""

from __future__ import annotations

import re

import msgspec

from agent.errors import UsageError

SCHEME = "s3://"

_BUCKET = re.compile(r"(?!.*\.\.)[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_COMPONENT = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9!_.*'()=+@-]{1,255}")
MAX_PREFIX = 600
"""Bytes of a prefix: a key has 1,024, and names of objects need the rest."""


class Place(msgspec.Struct, frozen=True):
    """A bucket, and a prefix in it without slashes at its ends ("" is the bucket itself)."""

    bucket: str
    prefix: str

    def __str__(self) -> str:
        return f"{SCHEME}{self.bucket}/{self.prefix}".rstrip("/")

    def key(self, name: str) -> str:
        """The key of an object below the prefix."""
        return f"{self.prefix}/{name}" if self.prefix else name

    def below(self, path: str) -> Place:
        """The place of `path` below this one."""
        return Place(self.bucket, self.key(path))


def is_s3(text: str) -> bool:
    """Whether a DEST or SRC means a bucket."""
    return text.startswith(SCHEME)


def parse_place(text: str) -> Place:
    """Reads `s3://bucket/prefix`. Raises `UsageError`."""
    bucket, _, prefix = text.removeprefix(SCHEME).partition("/")
    prefix = prefix.rstrip("/")
    if not is_s3(text) or not _BUCKET.fullmatch(bucket):
        raise UsageError(f"{text[:80]!r} is no place in S3: write s3://BUCKET/PREFIX")
    sound = not prefix or all(_COMPONENT.fullmatch(part) for part in prefix.split("/"))
    if not sound or len(prefix) > MAX_PREFIX:
        raise UsageError(
            f"the prefix of {text[:80]!r} has an empty or odd component: use A-Z a-z 0-9 and ! _ . * ' ( ) = + @ -"
        )
    return Place(bucket, prefix)
