"""Stock age and zstd open what several threads sealed, and refuse what was cut off."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from agent.sealing import Sealer, X25519Identity, generate, header, render_identity_file
from agent.sealing.age import NONCE_SIZE, SEALED_CHUNK_SIZE
from agent.sealing.pipeline import Pipeline

KIB, MIB = 1 << 10, 1 << 20
SIZES = [0, 1, 64 * KIB - 1, 64 * KIB, 64 * KIB + 1, MIB - 1, MIB, MIB + 1, 8 * MIB - 1, 8 * MIB, 8 * MIB + 1]
IDENTITY = generate()


@pytest.fixture(scope="module")
def pipeline() -> Iterator[Pipeline]:
    with Pipeline(3) as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("key") / "identity.txt"
    path.write_text(render_identity_file(IDENTITY, datetime.now().astimezone()))
    return path


def seal(data: bytes, pipeline: Pipeline, identity: X25519Identity = IDENTITY) -> bytes:
    sealed = bytearray()
    sealer = Sealer([identity.recipient], sealed.extend, pipeline=pipeline)
    for start in range(0, len(data), 300_000):
        sealer.write(data[start : start + 300_000])
    sealer.finish()
    return bytes(sealed)


def opened(sealed: bytes, key: Path) -> tuple[int, bytes]:
    """`age -d | zstd -d`: the worse of the two exit codes, and the plaintext."""
    age = subprocess.run(["age", "-d", "-i", key], input=sealed, capture_output=True, timeout=60)
    zstd = subprocess.run(["zstd", "-d"], input=age.stdout, capture_output=True, timeout=60)
    return age.returncode or zstd.returncode, zstd.stdout


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["random", "zeros", "mixed"])
def test_stock_tools_open_the_boundary_sizes(kind: str, size: int, pipeline: Pipeline, key: Path) -> None:
    noise = random.Random(size).randbytes(size)
    data = {"random": noise, "zeros": bytes(size), "mixed": bytes(size // 2) + noise[: size - size // 2]}[kind]
    assert opened(seal(data, pipeline), key) == (0, data)


def test_stock_tools_refuse_a_cut_at_the_edges_of_chunks(pipeline: Pipeline, key: Path) -> None:
    data = random.Random(1).randbytes(200_000)
    sealed = seal(data, pipeline)
    start = header.parse(sealed).size + NONCE_SIZE
    for edge in (*range(start, len(sealed), SEALED_CHUNK_SIZE), len(sealed)):
        for cut in (edge - 1, edge, edge + 1):
            if cut < len(sealed):
                code, plaintext = opened(sealed[:cut], key)
                assert code != 0
                assert data.startswith(plaintext)
