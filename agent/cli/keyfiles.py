"""Key files that impound writes: never over another one, on the disk before it says so. And which one countersigns."""

from __future__ import annotations

import os

from agent.errors import UsageError

PRIVATE = 0o600
PUBLIC = 0o644


def check_new(*paths: str | None) -> None:
    """Raises `UsageError` where one of them is there already, before anything else is done."""
    for path in paths:
        if path is not None and os.path.lexists(path):
            raise UsageError(f"{path!r} is there already and is not overwritten")


def write_new(path: str, text: str, mode: int) -> None:
    """Write a file that is not there yet. Raises `UsageError`."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except FileExistsError:
        raise UsageError(f"{path!r} is there already and is not overwritten") from None
    except OSError as error:
        raise UsageError(f"{path!r} cannot be written: {error.strerror}") from error
    with os.fdopen(fd, "w", encoding="ascii") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def signer_of(text: str) -> str:
    """`ed25519:…` of a key that countersigns (PKCS#8, PEM), nothing of what is no such file. Raises `UsageError`."""
    if not text.removeprefix("\ufeff").lstrip().startswith("-----BEGIN PRIVATE KEY-----"):
        return ""
    from agent.custody.countersign import parse_signing_key

    return parse_signing_key(text.encode("utf-8")).signer
