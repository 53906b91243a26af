"""`impound self-check`: whether this program is what was released, and whether it can do its work here."""

from __future__ import annotations

import itertools
import os
import stat
import threading
from typing import TYPE_CHECKING

import click
import msgspec
from msgspec.structs import asdict

from agent import installation, runtime
from agent.cli import options
from agent.cli.output import emit, say
from agent.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAX_SUMS = 1 << 20
_MAX_PROBLEMS = 5
_LONG = 200
_SECONDS = 5.0
_MARKS = {"good": "ok", "bad": "NO", "unknown": "-"}


class Check(msgspec.Struct, frozen=True):
    """One of them. `state`: good, bad, or unknown where it was not asked for."""

    name: str
    state: str
    detail: str


class Listed(msgspec.Struct, frozen=True):
    """SHA256SUMS, as it was read."""

    path: str
    data: bytes


class Signed(msgspec.Struct, frozen=True):
    """Its signature, as it was read, and who must have made it."""

    path: str
    signer: str
    data: bytes


def _check(name: str, detail: str, *, good: bool) -> Check:
    return Check(name, "good" if good else "bad", detail)


@click.command("self-check")
@click.option("--sums", metavar="FILE", help="SHA256SUMS of the release: this file must stand in it.")
@click.option("--signature", metavar="FILE", help="Of SHA256SUMS: SHA256SUMS.sig of the release.")
@click.option("--signer", metavar="KEY", help="Who must have signed: ed25519:…, from a place that you trust.")
@click.option(
    "--package",
    metavar="[DIR]",
    is_flag=False,
    flag_value=installation.PLACE,
    help=f"Also what the deb or rpm put into {installation.PLACE}, or into DIR of a mounted image: every file of it.",
)
@options.json_option
def command(sums: str | None, signature: str | None, signer: str | None, package: str | None, as_json: bool) -> int:
    """Check this program itself: its file, what it has loaded, whether it can seal and start threads here.

    Nothing is written and nothing is sent. A machine that lies to every program can lie to this one as well: what
    counts is the digest that you computed where you trust, before you brought the file here.

    \b
    Example:
      impound self-check
      impound self-check --sums SHA256SUMS --signature SHA256SUMS.sig --signer ed25519:…
      /opt/impound/bin/impound self-check --package --signer ed25519:…
    """
    if package is not None:
        if sums or signature:
            raise UsageError("--package brings its own SHA256SUMS and signature: give --signer alone")
        sums = os.path.join(package, installation.SUMS)
        signature = os.path.join(package, installation.SIGNATURE) if signer else None
    if bool(signature) != bool(signer) or (signature and not sums):
        raise UsageError("--signature goes with --sums and with --signer, who must have signed")
    # Once: what was compared with the files is what was signed.
    listed = Listed(sums, _read(sums, installation.SUMS)) if sums else None
    signed = Signed(signature, signer, _read(signature, "signature")) if signature and signer else None
    checks = list(_checks(listed, signed, package))
    bad = [check for check in checks if check.state == "bad"]
    if not as_json:
        for check in checks:
            say(f"  {_MARKS[check.state]:4}{check.name}: {check.detail}")
        if not bad and any(check.state == "unknown" for check in checks):
            say("it works here; what is marked - was not checked")
    result = {"verdict": "findings" if bad else "good", **runtime.current().as_dict()}
    emit({**result, "checks": [asdict(check) for check in checks], "exit": 1 if bad else 0})
    return 1 if bad else 0


def _checks(listed: Listed | None, signed: Signed | None, package: str | None) -> Iterator[Check]:
    own = runtime.current()
    if own.form == "python":
        yield Check("form", "unknown", "runs in a Python of this machine: what that loads is not checked")
        if listed and package is None:
            yield Check("file", "bad", "--sums is for the single file, and this is not it")
    else:
        yield Check("form", "good", f"the single file, started by way of {own.stage}")
        digest, name = runtime.sha256(own)
        yield _file(digest, name, listed)
        foreign = runtime.foreign_code()
        named = ", ".join(os.fsdecode(one) for one in foreign[:5])
        yield _check(
            "loaded", f"code of this machine: {named}" if foreign else "nothing of this machine", good=not foreign
        )
    if package is not None and listed:
        yield _package(package, listed)
    if listed and signed:
        yield _signature(listed, signed)
    yield _sealing()
    yield _threads()
    yield _certificates()


def _read(path: str, what: str) -> bytes:
    """A small regular file: what never answers, or is something else, is refused."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise UsageError(f"{what} {path!r} is no file")
            data = file.read(_MAX_SUMS + 1)
    except OSError as error:
        raise UsageError(f"{what} {path!r} cannot be read: {error.strerror}") from error
    if len(data) > _MAX_SUMS:
        raise UsageError(f"{what} {path!r} is larger than {_MAX_SUMS} bytes")
    return data


def _file(digest: str, name: str, listed: Listed | None) -> Check:
    if not listed:
        return Check("file", "unknown", f"sha256 {digest} ({name}): compare it with what was released, or give --sums")
    digests = {line.split()[0] for line in listed.data.decode("utf-8", "replace").splitlines() if line.strip()}
    there = digest in digests
    stands = "stands" if there else "does not stand"
    return _check("file", f"sha256 {digest} ({name}) {stands} in {listed.path}", good=there)


def _package(place: str, listed: Listed) -> Check:
    try:
        names = installation.listed(listed.data.decode("utf-8", "replace"))
        found = list(itertools.islice(installation.problems(place, names), _MAX_PROBLEMS))
    except (OSError, ValueError) as error:
        raise UsageError(f"{place!r} is no installation of the package that can be read: {error}") from error
    if found:
        return Check("package", "bad", "; ".join(problem[:_LONG] for problem in found))
    return Check("package", "good", f"{len(names)} files in {place}, each as {listed.path} has it, all of them root's")


def _signature(listed: Listed, signed: Signed) -> Check:
    from cryptography.exceptions import InvalidSignature

    from agent.custody.canonical import decode_base64
    from agent.custody.signing import parse_signer, verify
    from agent.errors import DamagedError

    who = parse_signer(signed.signer)
    try:
        raw = decode_base64(signed.data.decode("ascii", "replace").strip(), "the signature")
        verify(who, raw, listed.data)
    except (InvalidSignature, ValueError, DamagedError):
        return Check("signature", "bad", f"{signed.path} is not {who}'s signature of {listed.path}")
    return Check("signature", "good", f"{listed.path} was signed by {who}")


def _sealing() -> Check:
    from agent.sealing import generate, open_bytes, seal_bytes

    key, data = generate(), os.urandom(100_000)
    good = open_bytes(seal_bytes(data, [key.recipient]), [key]) == data
    return _check(
        "sealing", "what was sealed opens again" if good else "what was sealed does not open again", good=good
    )


def _threads() -> Check:
    done = threading.Event()
    try:
        threading.Thread(target=done.set, daemon=True).start()
    except RuntimeError as error:
        return Check("threads", "bad", f"none can be started: {error}")
    return _check("threads", "can be started", good=done.wait(_SECONDS))


def _certificates() -> Check:
    from agent.stores.s3.connection import tls_context

    count = tls_context("").cert_store_stats()["x509_ca"]
    return _check("certificates", f"{count} authorities, of its own", good=count > 0)
