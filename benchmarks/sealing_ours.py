"""One timed run of the sealing pipeline, in a process of its own, so that its peak of memory is its own.

`python -m benchmarks.sealing_ours WAY PATH WORKERS TO`: reads the file or the tree at PATH and seals it, into nothing,
into the directory TO, or into S3 where TO is what the server of `s3_upload` says of itself; prints one line of JSON.
WAY `stages` measures each stage alone instead, on one thread; WAY `upload` stores standard input with boto3's
`upload_fileobj`.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acquirers.files.archive import archive
from acquirers.files.tree import open_tree
from acquirers.files.walk import walk
from agent.sealing import generate
from agent.sealing.age import OUT_SIZE, AgeEncrypter
from agent.sealing.frames import FRAME_SIZE, FrameCompressor
from agent.sealing.merkle import leaf_hash
from agent.sealing.pipeline import Pipeline
from agent.stores.directory import DirectoryStore
from agent.stores.sealed import SealedObject

if TYPE_CHECKING:
    from acquirers.base import Buffer, Flag, Gap, Member

MIB = 1 << 20
SAMPLE = 192 * MIB


class Report:
    """Counts members: as a manifest would, it keeps nothing."""

    def __init__(self) -> None:
        self.members = 0

    def member(self, member: Member) -> None:
        self.members += member.sha256 is not None

    def gap(self, gap: Gap) -> None:
        raise AssertionError(gap)

    def flag(self, flag: Flag) -> None:
        """Not counted."""


class NullStore:
    """A store that costs nothing and keeps nothing, and its own upload."""

    location = "nowhere"
    parts = ()

    def begin(self, _name: str, **_more: object) -> NullStore:
        return self

    def write(self, data: Buffer) -> None:
        """Nothing is kept."""

    def commit(self) -> None:
        """Nothing was kept."""

    abort = commit


def stream(path: str) -> Iterator[Buffer]:
    """A file in one buffer that is used again and again, as an acquirer reads."""
    buffer = bytearray(MIB)
    view = memoryview(buffer)
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            yield view[:count]


def tree(path: str, report: Report) -> Iterator[Buffer]:
    fd = os.open(path, os.O_PATH)
    try:
        with open_tree(fd, os.fsencode(path)) as opened:
            yield from archive(walk(opened, report), report)
    finally:
        os.close(fd)


def seal(way: str, path: str, workers: int, to: str) -> dict[str, object]:
    report = Report()
    chunks = tree(path, report) if way == "tree" else stream(path)
    recipients = [generate().recipient]
    started, used = time.perf_counter(), time.process_time()
    with Pipeline(workers) as pipeline:
        store: Any = NullStore()
        if to.startswith("{"):
            store = bucket(json.loads(to))
        elif to:
            store = DirectoryStore(to, "case/host/run")
        item = SealedObject(store, "item", recipients, pipeline=pipeline)
        for chunk in chunks:
            item.write(chunk)
        sealed = item.commit()
        if to:
            store.close()
    seconds, cpu = time.perf_counter() - started, time.process_time() - used
    return {
        "seconds": seconds,
        "cpu": cpu,
        "size": sealed.plaintext_size,
        "sealed": sealed.ciphertext_size,
        "sha256": sealed.plaintext_sha256.hex(),
        "members": report.members,
        "peak_kib": peak_kib(),
    }


def bucket(where: dict[str, str]) -> Any:
    from agent.job import S3
    from agent.stores.s3.ambient import Ambient
    from agent.stores.s3.place import Place
    from agent.stores.s3.store import S3Store

    os.environ.update(credentials(where))
    place = Place("evidence", f"run-{os.getpid()}")
    s3 = S3(endpoint_url=where["url"], region=where["region"], ca_bundle=where["ca"])
    return S3Store(place, s3, Ambient(place, s3), memory=128 * MIB)


def credentials(where: dict[str, str]) -> dict[str, str]:
    return {
        "AWS_ACCESS_KEY_ID": where["access_key"],
        "AWS_SECRET_ACCESS_KEY": where["secret_key"],
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    }


def upload(where: dict[str, str]) -> None:
    """Standard input into the bucket, as somebody with boto3 would: what the shell's pipeline ends in."""
    import boto3
    from boto3.s3.transfer import TransferConfig
    from botocore.config import Config

    os.environ.update(credentials(where))
    client = boto3.client(
        "s3", region_name=where["region"], endpoint_url=where["url"], verify=where["ca_file"],
        config=Config(s3={"addressing_style": "path"}),
    )  # fmt: skip
    parts = TransferConfig(multipart_chunksize=8 * MIB)
    extra = {"ChecksumAlgorithm": "SHA256"}
    client.upload_fileobj(sys.stdin.buffer, "evidence", f"shell-{os.getpid()}", Config=parts, ExtraArgs=extra)


def stages(path: str) -> dict[str, float]:
    """CPU seconds per byte of plaintext of each stage alone, on blocks of 1 MiB that are in memory."""
    blocks = [bytes(chunk) for chunk, _ in zip(stream(path), range(SAMPLE // MIB), strict=False)]
    size = sum(map(len, blocks))
    compressor = FrameCompressor()
    digest = hashlib.sha256()
    found = {
        "sha256": timed(digest.update, blocks),
        "zstd": timed(compressor.compress, blocks),
    }
    frames = [compressor.compress(block).data for block in blocks]
    found["tree over frames"] = timed(lambda frame: leaf_hash(bytes(32), frame), frames)
    sealed = b"".join(frames)
    pieces = [memoryview(sealed)[start : start + FRAME_SIZE] for start in range(0, len(sealed), FRAME_SIZE)]
    encrypter = AgeEncrypter([generate().recipient])
    out = memoryview(bytearray(OUT_SIZE + FRAME_SIZE))
    found["age"] = timed(lambda piece: encrypter.update(piece, out), pieces)
    found["sha256 of ciphertext"] = timed(digest.update, pieces)
    started = time.thread_time()
    into = memoryview(bytearray(FRAME_SIZE))
    for chunk, _ in zip(stream(path), blocks, strict=False):
        into[: len(chunk)] = chunk
    found["read"] = time.thread_time() - started
    return {name: seconds / size for name, seconds in found.items()}


def timed(work: Callable[[Any], object], pieces: Sequence[Buffer]) -> float:
    started = time.thread_time()
    for piece in pieces:
        work(piece)
    return time.thread_time() - started


def peak_kib() -> int:
    with Path("/proc/self/status").open(encoding="ascii") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))


def main() -> None:
    way, path, workers, to = sys.argv[1:]
    if way == "upload":
        upload(json.loads(to))
        return
    print(json.dumps(stages(path) if way == "stages" else seal(way, path, int(workers), to)))


if __name__ == "__main__":
    main()
