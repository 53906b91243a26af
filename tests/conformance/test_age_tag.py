"""P-256 tag recipients with everybody else's tools: stock age and pyrage seal to them, and through the plugin they open
what we seal, with the private half in a KMS on loopback.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pyrage
import pytest

from agent.errors import DamagedError, IdentityError
from agent.sealing import (
    KmsIdentity,
    P256TagRecipient,
    Sealer,
    Unsealed,
    generate,
    open_bytes,
    parse_identity_file,
    parse_recipient,
    render_identity_file,
    seal_bytes,
)
from agent.sealing.kms import KeyArn, Kms
from agent.sealing.streams import BytesSource
from tests.support.kms import REGION, KmsDouble, RefusedError, environment, kms_double
from tests.support.runs import Script, acquire, impound, only_run, play
from tests.support.tagkeys import GOLDEN, KEYS, golden_key, tag_identity

HOUSE = Path(__file__).resolve().parents[2]
SIZES = [0, 1, 65535, 65536, 65537]


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[KmsDouble]:
    """A KMS, and the plugin on PATH as it is installed."""
    plugin = tmp_path / "bin/age-plugin-impoundkms"
    plugin.parent.mkdir()
    plugin.write_text(
        f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(HOUSE))} exec {shlex.quote(sys.executable)} -m agent.cli.plugin "$@"\n'
    )
    plugin.chmod(0o755)
    with kms_double() as found:
        for name, value in environment(found.url).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("PATH", f"{plugin.parent}:{os.environ['PATH']}")
        yield found


def key_file(double: KmsDouble, folder: Path) -> tuple[Path, KmsIdentity]:
    arn = double.add()
    identity = KmsIdentity(P256TagRecipient(Kms(REGION).public_half(arn).key), [KeyArn(arn)])
    path = folder / "kms.key"
    path.write_text(render_identity_file(identity, datetime.now(UTC)))
    return path, identity


def age(*arguments: str | Path, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["age", *arguments], input=data, capture_output=True, timeout=60)


@pytest.mark.parametrize("size", SIZES)
def test_we_open_what_pyrage_seals(size: int) -> None:
    identity = tag_identity()
    data = os.urandom(size)
    assert (
        open_bytes(pyrage.encrypt(data, [pyrage.tag.Recipient.from_str(identity.recipient.text)]), [identity]) == data
    )


def test_we_open_what_stock_age_sealed() -> None:
    """By age 1.3.1, the first that knows the type: tests/golden/age/README.md."""
    identity = tag_identity(golden_key("tag"))
    assert identity.recipient == parse_recipient(KEYS["tag"]["recipient"])
    assert open_bytes((GOLDEN / "made/tag.age").read_bytes(), [identity]) == b"sealed to tag\n"


@pytest.mark.parametrize("size", SIZES)
def test_stock_age_opens_what_we_seal_through_the_plugin(size: int, double: KmsDouble, tmp_path: Path) -> None:
    path, identity = key_file(double, tmp_path)
    data = os.urandom(size)
    sealed = bytearray()
    sealer = Sealer([generate().recipient, identity.recipient], sealed.extend)
    sealer.write(data)
    sealer.finish()
    done = age("-d", "-i", path, data=bytes(sealed))
    assert done.returncode == 0, done.stderr
    unpacked = subprocess.run(["zstd", "-d"], input=done.stdout, capture_output=True, check=True)
    assert unpacked.stdout == data
    assert double.count("DeriveSharedSecret") == 1
    assert b"".join(Unsealed(BytesSource(sealed), parse_identity_file(path.read_text())).stream()) == data


PYRAGE = """
import sys, pyrage

class Callbacks:
    def display_message(self, message): raise AssertionError(message)
    def confirm(self, message, yes, no): raise AssertionError(message)
    def request_public_string(self, description): raise AssertionError(description)
    def request_passphrase(self, description): raise AssertionError(description)

identity = pyrage.plugin.Identity.from_str(sys.argv[1])
holder = pyrage.plugin.IdentityPluginV1("impoundkms", [identity], Callbacks())
sys.stdout.buffer.write(pyrage.decrypt(sys.stdin.buffer.read(), [holder]))
"""


def test_pyrage_opens_what_we_seal_through_the_plugin(double: KmsDouble, tmp_path: Path) -> None:
    """In a process of its own: it holds the interpreter's lock while it waits for the KMS in this one."""
    _, identity = key_file(double, tmp_path)
    sealed = seal_bytes(b"evidence", [identity.recipient])
    command = [sys.executable, "-c", PYRAGE, identity.text]
    done = subprocess.run(command, input=sealed, capture_output=True, timeout=60)
    assert done.stdout == b"evidence", done.stderr


def test_stock_age_opens_it_with_another_recipient_and_without_the_plugin(tmp_path: Path) -> None:
    """age 1.1.1 does not know the type, and leaves it alone."""
    other = generate()
    path = tmp_path / "case.key"
    path.write_text(render_identity_file(other, datetime.now(UTC)))
    done = age("-d", "-i", path, data=seal_bytes(b"evidence", [tag_identity().recipient, other.recipient]))
    assert done.stdout == b"evidence", done.stderr


def test_stock_age_says_what_the_plugin_says(double: KmsDouble, tmp_path: Path) -> None:
    path, identity = key_file(double, tmp_path)
    sealed = seal_bytes(b"evidence", [identity.recipient])
    double.refuse["DeriveSharedSecret"] = RefusedError("AccessDeniedException", "no")
    done = age("-d", "-i", path, data=sealed)
    assert done.returncode == 1
    assert b"kms:DeriveSharedSecret on arn:aws:kms:" in done.stderr
    assert done.stdout == b""
    double.refuse.clear()
    done = age("-d", "-i", path, data=seal_bytes(b"evidence", [tag_identity().recipient]))
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"no identity matched" in done.stderr
    assert double.count("DeriveSharedSecret") == 1


def test_a_whole_run_is_verified_and_opened_with_a_key_in_kms(
    double: KmsDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, Script())
    path, identity = key_file(double, tmp_path)
    assert acquire(tmp_path / "ev", identity.recipient.text)[0] == 0
    before = len(double.calls)
    code, _, error = impound("verify", tmp_path / "ev", "--identity", path)
    assert code == 0, error
    objects = len(list(only_run(tmp_path / "ev").rglob("*.age"))) + 1  # a progress record holds one more
    asked = double.count("DeriveSharedSecret")
    assert 0 < asked <= objects + 1
    assert len(double.calls) - before == asked
    code, _, error = impound("open", tmp_path / "ev", "--identity", path, "--output", tmp_path / "out")
    assert code == 0, error
    assert (tmp_path / "out/containers/docker/one.tar").read_bytes() == b"hello" + b"world" * 1000
    double.refuse["DeriveSharedSecret"] = RefusedError("AccessDeniedException", "no")
    code, _, error = impound("open", tmp_path / "ev", "--identity", path, "--output", tmp_path / "none")
    assert code == 4
    assert "kms:DeriveSharedSecret" in error
    code, _, error = impound("verify", tmp_path / "ev", "--identity", path)
    assert code == 3
    assert "kms:DeriveSharedSecret" in error
    assert len(error.splitlines()) < 15


def test_another_key_opens_nothing(double: KmsDouble, tmp_path: Path) -> None:
    _, identity = key_file(double, tmp_path)
    swapped = KmsIdentity(identity.recipient, [KeyArn(double.add())])
    sealed = seal_bytes(b"evidence", [identity.recipient])
    with pytest.raises(DamagedError, match="belongs to another key"):
        open_bytes(sealed, [swapped])
    with pytest.raises(IdentityError):
        open_bytes(sealed, [tag_identity()])
