"""What a person gives as DEST or SRC, and what is said where nothing of the kind is there."""

from __future__ import annotations

import contextlib
import os
import re

from acquirers.near import did_you_mean
from agent.errors import SourceError, UsageError

_ABOVE = 8
"""How far up from a SRC the run is looked for that it is part of."""
_BEGIN = 4096
"""Bytes of a file that tell whether it was meant as a proof."""


def check_destination(to: str) -> None:
    """Refuses what is no place, although a directory could be called so. Raises `UsageError`."""
    if to == "-":
        raise UsageError(
            "--to - is not part of this version: give a directory, as --to ./evidence, or s3://BUCKET/PREFIX; over a "
            "channel, `impound deploy … --relay`"
        )
    if to.startswith("-"):
        raise UsageError(f"--to is followed by {to!r}, which looks like an option: a directory of that name is ./{to}")
    _check_place(to, "--to", f"a directory is written --to ./{to}")


def _check_place(text: str, what: str, otherwise: str) -> None:
    if text.startswith("s3://"):
        if not text.removeprefix("s3://").split("/")[0]:
            raise UsageError(f"{what} {text[:80]!r} is no place in S3, it names no bucket: write s3://BUCKET/PREFIX")
        return
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):", text)
    if scheme and scheme[1].lower() in {"s3", "s3a", "s3n"}:
        raise UsageError(f"a bucket is written s3://BUCKET/PREFIX, not {text[:80]!r}")
    if scheme and not os.path.lexists(text):
        raise UsageError(f"{what} {text[:80]!r} is neither a directory nor s3://BUCKET/PREFIX; {otherwise}")


def check_source(source: str) -> None:
    """Whether anything lies at SRC, as far as names tell. Raises `UsageError`, `SourceError`."""
    if not source.strip():
        raise UsageError("SRC is empty: it is the directory of a run, a case or a destination, or s3://BUCKET/PREFIX")
    _check_place(source, "SRC", "nothing of that name is here")
    if source.startswith("s3://"):
        return
    try:
        os.lstat(source)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise SourceError(f"{source!r} cannot be read: {error.strerror}") from error
    else:
        return
    above, name = os.path.split(os.path.abspath(source))
    while not os.path.isdir(above):
        above, name = os.path.split(above)
    with contextlib.suppress(OSError):
        beside = sorted(os.listdir(above))
        raise SourceError(
            f"there is no evidence at {source!r}: {above!r} holds no {name!r}{did_you_mean(name, beside)}"
        )
    raise SourceError(f"there is no evidence at {source!r}: nothing of that name is there")


def no_run(source: str, levels: str = "") -> SourceError:
    """What is said of a place that holds no run, with what may have been meant."""
    return SourceError(
        f"there is no evidence here: there is no run in {source!r}{levels}{_what_it_is(source)}. "
        "Give the directory of a run, or one above it: DEST, DEST/CASE or DEST/CASE/HOST"
    )


def _what_it_is(source: str) -> str:
    """That SRC is a part of a run, or what `open` wrote."""
    if source.startswith("s3://"):
        return ""
    above = os.path.abspath(source)
    for _ in range(_ABOVE):
        above = os.path.dirname(above)
        if os.path.isfile(os.path.join(above, "progress", "000000.json")):
            return f"; it is a part of the run {above!r}: name that"
    if any(os.path.isfile(os.path.join(source, "attempt-1", name)) for name in ("manifest.jsonl", "items.jsonl")):
        return "; it is what `open` wrote, of which nothing is signed: name the sealed run"
    return ""


def check_proof_file(source: str) -> None:
    """Refuses a file that has nothing of a proof, not even a damaged one. Raises `SourceError`."""
    try:
        with open(source, "rb") as file:
            begin = file.read(_BEGIN)
    except OSError as error:
        raise SourceError(f"{source!r} cannot be read: {error.strerror}") from error
    if begin.strip(b"\0") and b"range-proof" not in begin:
        raise SourceError(
            f"{source!r} is a file, and no proof that `export proof` made{_what_it_is(source)}. "
            "Evidence is the directory of a run, or one above it"
        )
