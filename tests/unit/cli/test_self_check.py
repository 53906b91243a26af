"""What the program says of itself."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.support.runs import impound


def states(result: dict[str, object]) -> dict[str, str]:
    checks = result["checks"]
    assert isinstance(checks, list)
    return {check["name"]: check["state"] for check in checks}


def test_an_installation_is_not_taken_for_the_single_file() -> None:
    code, result, said = impound("self-check")
    assert (code, result["verdict"], result["form"]) == (0, "good", "python")
    assert states(result) == {"form": "unknown", "sealing": "good", "threads": "good", "certificates": "good"}
    assert "not checked" in said


def test_the_signature_of_a_release(tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    signer = "ed25519:" + key.public_key().public_bytes_raw().hex()
    sums, signature = tmp_path / "SHA256SUMS", tmp_path / "SHA256SUMS.sig"
    sums.write_text(f"{'0' * 64}  impound\n")
    signature.write_bytes(base64.b64encode(key.sign(sums.read_bytes())) + b"\n")
    asked = ("self-check", "--sums", sums, "--signature", signature, "--signer")
    assert states(impound(*asked, signer)[1])["signature"] == "good"
    other = "ed25519:" + Ed25519PrivateKey.generate().public_key().public_bytes_raw().hex()
    code, result, _ = impound(*asked, other)
    assert (code, result["verdict"], states(result)["signature"]) == (1, "findings", "bad")
    sums.write_text(f"{'1' * 64}  impound\n")
    assert states(impound(*asked, signer)[1])["signature"] == "bad"
    signature.write_text("not base64")
    assert states(impound(*asked, signer)[1])["signature"] == "bad"


@pytest.mark.parametrize(
    "options",
    [("--signature", "x"), ("--signer", "ed25519:00"), ("--sums", "/none"), ("--signature", "x", "--signer", "y")],
)
def test_what_does_not_go_together_is_refused(options: tuple[str, ...]) -> None:
    assert impound("self-check", *options)[0] == 2


def test_an_installation_has_no_file_that_could_stand_in_the_list(tmp_path: Path) -> None:
    (tmp_path / "sums").write_text(f"{'0' * 64}  impound\n")
    code, result, _ = impound("self-check", "--sums", tmp_path / "sums")
    assert (code, states(result)["file"]) == (1, "bad")


def installation(directory: Path) -> Path:
    place = directory / "opt/impound"
    (place / "bin").mkdir(parents=True)
    (place / "share").mkdir()
    (place / "bin/impound").write_bytes(b"program")
    (place / "share/notes").write_bytes(b"notes")
    lines = [
        f"{hashlib.sha256((place / name).read_bytes()).hexdigest()}  {name}" for name in ("bin/impound", "share/notes")
    ]
    (place / "SHA256SUMS").write_text("\n".join(lines) + "\n")
    for path in [directory, directory / "opt", place, *place.rglob("*")]:
        path.chmod(0o755)
    return place


def replaced(path: Path) -> None:
    path.unlink()
    path.symlink_to("/bin/true")


def piped(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def capable(path: Path) -> None:
    os.setxattr(path, "security.capability", bytes.fromhex("0100000200002000000000000000000000000000"))


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (lambda _: None, ""),
    "content": (lambda place: (place / "share/notes").write_bytes(b"other"), "share/notes: is not the file"),
    "missing": (lambda place: (place / "share/notes").unlink(), "share/notes: is missing"),
    "more": (lambda place: (place / "bin/sitecustomize.py").touch(mode=0o644), "sitecustomize.py: is not part"),
    "a link": (lambda place: replaced(place / "share/notes"), "share/notes: is no file"),
    "a pipe": (lambda place: piped(place / "share/notes"), "is no file"),
    "writable": (lambda place: (place / "bin/impound").chmod(0o777), "others than root may write"),
    "a directory that is writable": (lambda place: (place / "bin").chmod(0o775), "others than root may write"),
    "a directory above": (lambda place: place.parent.chmod(0o777), "opt: others than root may write"),
    "set-user-ID": (lambda place: (place / "bin/impound").chmod(0o4755), "is set-user-ID"),
    "somebody else's": (lambda place: os.chown(place / "share", 1000, 1000), "belongs to 1000:1000"),
    "a directory that is more": (lambda place: (place / "more").mkdir(), "more: is not part"),
    "capabilities": (lambda place: capable(place / "bin/impound"), "has capabilities of its own"),
    "a signature that is none": (lambda place: os.mkfifo(place / "SHA256SUMS.sig"), "SHA256SUMS.sig: is not part"),
    "an escape in a name": (lambda place: (place / "\x1b[2J").touch(mode=0o644), "is not part of the release"),
}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("change", CHANGES)
def test_every_file_of_an_installation_counts(change: str, tmp_path: Path) -> None:
    place = installation(tmp_path)
    do, expected = CHANGES[change]
    do(place)
    code, result, said = impound("self-check", "--package", place)
    assert (code, states(result)["package"]) == ((1, "bad") if expected else (0, "good"))
    assert expected in said
    assert "\x1b" not in said


@pytest.mark.parametrize("line", ["0" * 64 + "  ../../etc/passwd", "0" * 64 + "  /etc/passwd", "no digest", "\0"])
def test_a_list_that_is_none_is_refused(line: str, tmp_path: Path) -> None:
    (tmp_path / "SHA256SUMS").write_text(line + "\n")
    code, _, said = impound("self-check", "--package", tmp_path)
    assert code == 2
    assert "no installation of the package that can be read" in said


def test_a_list_that_never_answers_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "SHA256SUMS")
    for given in (("--package", tmp_path), ("--sums", tmp_path / "SHA256SUMS")):
        code, _, said = impound("self-check", *given)
        assert (code, "is no file" in said) == (2, True)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_what_is_compared_is_what_was_signed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody changes the list each time it is opened: it is opened once."""
    place = installation(tmp_path)
    key = Ed25519PrivateKey.generate()
    signed = (place / "SHA256SUMS").read_bytes()
    (place / "SHA256SUMS.sig").write_bytes(base64.b64encode(key.sign(signed)) + b"\n")
    (place / "SHA256SUMS.sig").chmod(0o644)
    (place / "share/notes").write_bytes(b"other")
    fits = signed.replace(hashlib.sha256(b"notes").hexdigest().encode(), hashlib.sha256(b"other").hexdigest().encode())
    opened = os.open

    def changing(path: str, *given: int, **named: int) -> int:
        fd = opened(path, *given, **named)
        if str(path).endswith("SHA256SUMS"):
            turns.append(path)
            (place / "SHA256SUMS").write_bytes(fits if len(turns) % 2 else signed)
        return fd

    for first in (signed, fits):
        turns: list[str] = []
        (place / "SHA256SUMS").write_bytes(first)
        monkeypatch.setattr(os, "open", changing)
        code, result, _ = impound(
            "self-check", "--package", place, "--signer", "ed25519:" + key.public_key().public_bytes_raw().hex()
        )
        monkeypatch.undo()
        assert code == 1
        assert "bad" in {states(result)["package"], states(result)["signature"]}
