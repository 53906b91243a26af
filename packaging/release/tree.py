"""What a package puts on a machine: /opt/impound and /etc/impound, and a list of it that can be signed."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import manual
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from agent.cli.main import impound
from agent.custody.canonical import encode_base64
from agent.installation import PLACE, SIGNATURE, SUMS

if TYPE_CHECKING:
    from agent.custody.countersign import LocalCountersigner

PAGES = f"{PLACE}/share/man/man1"
_NOTICE = f"""\
Nothing in this directory is read by impound: on a machine that is examined, no file of that machine says to whom
evidence is sealed, where it goes, or with whose authority. Those come with each run, over its standard input or its
command line.

The directory is here for those who deploy impound to note which digest they rolled out. Before a run,

    {PLACE}/bin/impound self-check --package --signer ed25519:...

compares every file below {PLACE} with what was released; what counts is a signer that you brought with you.
"""


def make(root: Path, binary: Path, version: str, date: str, signer: LocalCountersigner | None) -> None:
    """Lays everything out in the new directory `root`, with its modes; owners are the package's to set."""
    place = root / PLACE.lstrip("/")
    (place / "bin").mkdir(parents=True)
    shutil.copyfile(binary, place / "bin/impound")
    (place / "bin/impound").chmod(0o755)
    manual.write_pages(impound, version, date, root / PAGES.lstrip("/"))
    manual.write_completions(impound, place / "share/completions")
    papers = place / "share/doc"
    papers.mkdir()
    for suffix, name in ((".cdx.json", "impound.cdx.json"), (".licences.txt", "licences.txt")):
        shutil.copyfile(f"{binary}{suffix}", papers / name)
    (place / SUMS).write_text(sums(place))
    if signer is not None:
        (place / SIGNATURE).write_text(signature(signer, place / SUMS))
    notice = root / "etc/impound/README"
    notice.parent.mkdir(parents=True)
    notice.write_text(_NOTICE)
    for path in root.rglob("*"):
        path.chmod(0o755 if path.is_dir() or path.name == "impound" else 0o644)


def sums(directory: Path) -> str:
    """What `sha256sum` says of every file below, by name."""
    files = sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())
    return "".join(f"{hashlib.sha256((directory / name).read_bytes()).hexdigest()}  {name}\n" for name in files)


def signature(signer: LocalCountersigner, path: Path) -> str:
    """The raw Ed25519 signature of a file, in base64 and with a line feed."""
    return encode_base64(signer.sign(path.read_bytes())) + "\n"


def public(signer: LocalCountersigner) -> bytes:
    """Its public half in PEM, for `openssl pkeyutl -verify -pubin -rawin`."""
    raw = bytes.fromhex(signer.signer.partition(":")[2])
    return Ed25519PublicKey.from_public_bytes(raw).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
