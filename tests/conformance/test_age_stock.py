"""Stock age, age-keygen, zstd and pyrage open what we seal, and we open what they seal.

These tools are the promise: evidence must open without impound. So their absence is a failure, not a skip;
`scripts/test` installs them.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import pyrage
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from agent.errors import DamagedError
from agent.sealing import (
    BytesSource,
    Sealer,
    Unsealed,
    X25519Identity,
    generate,
    header,
    open_bytes,
    parse_identity_file,
    parse_recipient,
    render_identity_file,
    seal_bytes,
)
from agent.sealing.age import SEALED_CHUNK_SIZE

MIB = 1 << 20
SIZES = [0, 1, 65535, 65536, 65537, MIB - 1, MIB, MIB + 1, 8 * MIB]
NOW = datetime.now().astimezone()


def write_identity(folder: Path, identity: X25519Identity) -> Path:
    path = folder / "identity.txt"
    path.write_text(render_identity_file(identity, NOW))
    return path


def evidence(size: int) -> bytes:
    """Half random, half text, so that zstd has both to do."""
    half = random.Random(size).randbytes(size // 2)
    return half + (b"evidence " * (size // 9 + 1))[: size - len(half)]


def seal(data: bytes, identities: Sequence[X25519Identity]) -> bytes:
    sealed = bytearray()
    sealer = Sealer([identity.recipient for identity in identities], sealed.extend)
    for start in range(0, len(data), 100_000):
        sealer.write(data[start : start + 100_000])
    sealer.finish()
    return bytes(sealed)


def age(*arguments: str | Path, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["age", *arguments], input=data, capture_output=True)


def age_opens(sealed: bytes, identity: Path) -> bytes:
    done = age("-d", "-i", identity, data=sealed)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def identities() -> list[X25519Identity]:
    return [generate() for _ in range(3)]


@pytest.mark.parametrize("size", SIZES)
def test_age_and_zstd_open_what_the_sealer_sealed(size: int, identities: list[X25519Identity], tmp_path: Path) -> None:
    data = evidence(size)
    sealed = seal(data, identities)
    for identity in identities:
        compressed = age_opens(sealed, write_identity(tmp_path, identity))
        done = subprocess.run(["zstd", "-d"], input=compressed, capture_output=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout == data
        assert b"".join(Unsealed(BytesSource(sealed), [identity]).stream()) == data


def test_zstd_itself_finds_the_frames_whole_and_checked(identities: list[X25519Identity], tmp_path: Path) -> None:
    compressed = open_bytes(seal(evidence(3 * MIB + 1), identities), identities[:1])
    path = tmp_path / "object.zst"
    path.write_bytes(compressed)
    assert subprocess.run(["zstd", "-t", path], capture_output=True).returncode == 0
    listed = subprocess.run(["zstd", "-lv", path], capture_output=True, text=True).stdout
    assert re.search(r"Zstandard Frames: 4\n", listed)
    assert re.search(r"Skippable Frames: 1\n", listed)
    assert re.search(rf"Decompressed Size: .*\({3 * MIB + 1} B\)", listed)
    assert "XXH64" in listed


def test_an_empty_object_is_an_empty_file_to_every_tool(identities: list[X25519Identity], tmp_path: Path) -> None:
    path = tmp_path / "object.zst"
    path.write_bytes(open_bytes(seal(b"", identities), identities[:1]))
    subprocess.run(["zstd", "-q", "-d", path], check=True)
    assert (tmp_path / "object").read_bytes() == b""


@pytest.mark.parametrize("size", SIZES)
def test_age_and_pyrage_open_small_things(size: int, identities: list[X25519Identity], tmp_path: Path) -> None:
    data = evidence(size)
    sealed = seal_bytes(data, [identity.recipient for identity in identities])
    for identity in identities:
        assert age_opens(sealed, write_identity(tmp_path, identity)) == data
        assert pyrage.decrypt(sealed, [pyrage.x25519.Identity.from_str(identity.secret_text())]) == data


@pytest.mark.parametrize("size", SIZES)
def test_we_open_what_age_and_pyrage_sealed(size: int, identities: list[X25519Identity]) -> None:
    data = evidence(size)
    flags = [argument for identity in identities for argument in ("-r", identity.recipient.text)]
    done = age(*flags, data=data)
    assert done.returncode == 0
    recipients = [pyrage.x25519.Recipient.from_str(identity.recipient.text) for identity in identities]
    for sealed in (done.stdout, pyrage.encrypt(data, recipients)):
        for identity in identities:
            assert open_bytes(sealed, [identity]) == data


def test_we_open_a_file_that_is_sealed_to_an_ssh_key_beside_ours(identities: list[X25519Identity]) -> None:
    """Stanzas of other types are left alone."""
    key = Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    done = age("-r", key, "-r", identities[0].recipient.text, data=b"evidence")
    assert b"-> ssh-ed25519 " in done.stdout
    assert open_bytes(done.stdout, identities[:1]) == b"evidence"


def test_age_keygen_reads_our_identity_file(tmp_path: Path) -> None:
    identity = generate()
    path = write_identity(tmp_path, identity)
    done = subprocess.run(["age-keygen", "-y", path], capture_output=True, text=True, check=True)
    assert done.stdout == f"{identity.recipient.text}\n"


def test_we_read_the_file_of_age_keygen_and_write_the_same(tmp_path: Path) -> None:
    path = tmp_path / "key.txt"
    subprocess.run(["age-keygen", "-o", path], capture_output=True, check=True)
    text = path.read_text()
    (identity,) = parse_identity_file(text)
    match = re.match(r"# created: (\S+)\n# public key: (age1\S+)\n", text)
    assert match is not None
    assert parse_recipient(match[2]) == identity.recipient
    assert render_identity_file(identity, datetime.fromisoformat(match[1])) == text


@pytest.mark.parametrize("zone", ["UTC", "Asia/Kolkata", "America/St_Johns"])
def test_the_created_line_is_that_of_age_keygen_in_every_zone(zone: str, tmp_path: Path) -> None:
    path = tmp_path / "key.txt"
    environment = {**os.environ, "TZ": zone}
    subprocess.run(["age-keygen", "-o", path], capture_output=True, check=True, env=environment)
    created = path.read_text().split("\n")[0].removeprefix("# created: ")
    (identity,) = parse_identity_file(path.read_text())
    assert render_identity_file(identity, datetime.fromisoformat(created)) == path.read_text()


@pytest.mark.parametrize("size", [0, 1, 65536, 65537])
def test_age_refuses_every_cut_and_extension_that_we_refuse(
    size: int, identities: list[X25519Identity], tmp_path: Path
) -> None:
    sealed = seal_bytes(evidence(size), [identities[0].recipient])
    key = write_identity(tmp_path, identities[0])
    start = header.parse(sealed).size
    edges = {0, start, start + 16, start + 16 + SEALED_CHUNK_SIZE, len(sealed)}
    cuts = {edge + delta for edge in edges for delta in (-17, -16, -1, 0, 1, 16) if 0 <= edge + delta < len(sealed)}
    for broken in [*(sealed[:cut] for cut in sorted(cuts)), sealed + b"\x00", sealed + sealed]:
        assert age("-d", "-i", key, data=broken).returncode != 0
        with pytest.raises(DamagedError):
            open_bytes(broken, identities[:1])


def test_age_refuses_every_changed_header_byte_that_we_refuse(identities: list[X25519Identity], tmp_path: Path) -> None:
    sealed = seal_bytes(b"evidence", [identities[0].recipient])
    key = write_identity(tmp_path, identities[0])
    for at in range(0, len(sealed), 3):
        changed = bytearray(sealed)
        changed[at] ^= 0x04
        assert age("-d", "-i", key, data=bytes(changed)).returncode != 0
