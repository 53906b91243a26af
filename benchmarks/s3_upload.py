"""What it costs to send parts to S3 over TLS: our own wire beside boto3, on the same data, against the strict fake.

`python -m benchmarks.s3_upload [--mib 512] [--rounds 5] [--part-mib 16]`: CPU-seconds per GB of the client alone (the
server is another process, and so is each measurement), interleaved, medians, and ratios to boto3's.

    part   one part after the other over one connection
           ours              sending alone: the digest is known
           ours+sha256       with the SHA-256 that the checksum needs
           boto3             `upload_part` as boto3 does it by default (CRC-32, or what the version prefers)
           boto3+sha256      `upload_part(ChecksumAlgorithm="SHA256")`, the same protection as ours
           boto3+known       `upload_part(ChecksumSHA256=…)` of a digest that is known: sending alone
    object a whole object in parts of the same size, begun and completed by the client itself
           ours              S3Store with authority ambient
           boto3             `upload_fileobj`, of the same parts and with as many threads
           boto3+sha256      the same with ChecksumAlgorithm="SHA256"
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from agent.job import S3
from agent.stores.base import Part
from agent.stores.s3.ambient import Ambient
from agent.stores.s3.place import Place
from agent.stores.s3.store import S3Store
from agent.stores.s3.wire import Wire

MIB = 1 << 20
BUCKET = "evidence"
VARIANTS = (
    ("part", "ours"),
    ("part", "ours+sha256"),
    ("part", "boto3"),
    ("part", "boto3+sha256"),
    ("part", "boto3+known"),
    ("object", "ours"),
    ("object", "boto3"),
    ("object", "boto3+sha256"),
)


def serve() -> None:
    """The server, in a process of its own: prints how to reach it, and ends with its standard input."""
    from tests.rigs.strict_s3 import StrictS3

    with tempfile.TemporaryDirectory() as directory, StrictS3(Path(directory), tls=True, keep_bodies=False) as server:
        server.make_bucket(BUCKET)
        assert server.certificates is not None
        who = server.admin
        print(
            json.dumps(
                {
                    "url": server.endpoint_url,
                    "region": server.region,
                    "ca": server.ca_pem,
                    "ca_file": str(server.certificates.ca_file),
                    "access_key": who.access_key,
                    "secret_key": who.secret_key,
                }
            ),
            flush=True,
        )
        sys.stdin.read()


class Client:
    """One measurement."""

    def __init__(self, where: dict[str, str], mib: int, part_mib: int) -> None:
        os.environ.update(
            AWS_ACCESS_KEY_ID=where["access_key"],
            AWS_SECRET_ACCESS_KEY=where["secret_key"],
            AWS_EC2_METADATA_DISABLED="true",
            AWS_CONFIG_FILE="/dev/null",
            AWS_SHARED_CREDENTIALS_FILE="/dev/null",
        )
        self.where, self.size, self.part = where, mib * MIB, part_mib * MIB
        self.s3 = S3(endpoint_url=where["url"], region=where["region"], ca_bundle=where["ca"])
        self.name = f"{os.getpid()}.bin"
        self.data = os.urandom(self.part)

    def boto3(self) -> Any:
        import boto3
        from botocore.config import Config

        config = Config(s3={"addressing_style": "path"})
        return boto3.client(
            "s3",
            region_name=self.where["region"],
            endpoint_url=self.where["url"],
            verify=self.where["ca_file"],
            config=config,
        )

    def part_ours(self, *, digest: bool) -> Any:
        authority = Ambient(Place(BUCKET, "run"), self.s3)
        wire = Wire(self.s3.ca_bundle)
        upload_id = authority.begin(self.name)
        view = memoryview(self.data)
        blocks = [view[start : start + MIB] for start in range(0, len(view), MIB)]
        known = hashlib.sha256(self.data).digest()

        def send(number: int) -> None:
            sha256 = known
            if digest:
                running = hashlib.sha256()
                for block in blocks:
                    running.update(block)
                sha256 = running.digest()
            request = authority.sign(self.name, upload_id, number, Part(len(view), sha256))
            answer = wire.exchange(request, blocks, seconds=60)
            assert answer.status == 200, answer

        return send

    def part_boto3(self, way: str) -> Any:
        client = self.boto3()
        algorithm = "CRC32" if way == "boto3" else "SHA256"
        known = base64.b64encode(hashlib.sha256(self.data).digest()).decode("ascii")
        more = {"boto3+sha256": {"ChecksumAlgorithm": "SHA256"}, "boto3+known": {"ChecksumSHA256": known}}.get(way, {})
        key = f"run/{self.name}"
        upload_id = client.create_multipart_upload(Bucket=BUCKET, Key=key, ChecksumAlgorithm=algorithm)["UploadId"]

        def send(number: int) -> None:
            client.upload_part(Bucket=BUCKET, Key=key, UploadId=upload_id, PartNumber=number, Body=self.data, **more)

        return send

    def object_ours(self) -> Any:
        place = Place(BUCKET, "run")
        store = S3Store(place, self.s3, Ambient(place, self.s3), memory=8 * self.part)
        view = memoryview(self.data)

        def send(size: int) -> None:
            # The schedule of an estimate, since the parts shall be of one size.
            upload = store.begin(f"{size}-{self.name}", estimate=self.part * 9_000)
            for _ in range(size // self.part):
                for start in range(0, self.part, MIB):
                    upload.write(view[start : start + MIB])
            upload.commit()

        return send

    def object_boto3(self, *, digest: bool) -> Any:
        from boto3.s3.transfer import TransferConfig

        config = TransferConfig(
            multipart_chunksize=self.part, multipart_threshold=self.part, max_concurrency=8, use_threads=True
        )
        more: dict[str, Any] = {"ExtraArgs": {"ChecksumAlgorithm": "SHA256"}} if digest else {}
        client = self.boto3()

        def send(size: int) -> None:
            stream = _Repeated(self.data, size)
            client.upload_fileobj(stream, BUCKET, f"run/{size}-{self.name}", Config=config, **more)

        return send

    def measure(self, what: str, way: str) -> dict[str, float]:
        """Of the client alone. Connections, imports and caches are not what is measured: they are made before."""
        ours, digest = way.startswith("ours"), way.endswith("+sha256")
        if what == "part":
            send = self.part_ours(digest=digest) if ours else self.part_boto3(way)
            work = range(2, 2 + self.size // self.part)
            send(1)
        else:
            send = self.object_ours() if ours else self.object_boto3(digest=digest)
            work = range(self.size, self.size + 1)
            send(4 * self.part)
        before, began = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
        for one in work:
            send(one)
        after, took = resource.getrusage(resource.RUSAGE_SELF), time.monotonic() - began
        gigabytes = self.size / 1e9
        user, system = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
        return {
            "cpu_s_per_gb": (user + system) / gigabytes,
            "user_s_per_gb": user / gigabytes,
            "mb_per_s": self.size / 1e6 / took,
            "rss_mib": _peak_kib() / 1024,
        }


def _peak_kib() -> int:
    """Not ru_maxrss, which begins with that of whoever forked."""
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text("ascii"))
    assert found
    return int(found[1])


class _Repeated(io.RawIOBase):
    """A stream of so many bytes that costs nothing to read."""

    def __init__(self, data: bytes, size: int) -> None:
        self._data, self._left = memoryview(data), size

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        count = min(self._left, len(self._data), size if size >= 0 else self._left)
        self._left -= count
        return bytes(self._data[:count])


def child(arguments: argparse.Namespace) -> None:
    where = json.loads(sys.stdin.read())
    what, way = arguments.measure.split("/")
    print(json.dumps(Client(where, arguments.mib, arguments.part_mib).measure(what, way)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--part-mib", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--measure", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        return serve()
    if arguments.measure:
        return child(arguments)
    variants = [one for one in VARIANTS if arguments.only in "/".join(one)]
    found: dict[tuple[str, str], list[dict[str, float]]] = {one: [] for one in variants}
    command = [sys.executable, "-m", "benchmarks.s3_upload"]
    with subprocess.Popen([*command, "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        where = server.stdout.readline()
        try:
            for _ in range(arguments.rounds):
                for what, way in variants:
                    run = subprocess.run(
                        [
                            *command,
                            f"--measure={what}/{way}",
                            f"--mib={arguments.mib}",
                            f"--part-mib={arguments.part_mib}",
                        ],
                        input=where,
                        stdout=subprocess.PIPE,
                        text=True,
                        check=True,
                        timeout=600,
                    )
                    found[what, way].append(json.loads(run.stdout))
        finally:
            server.stdin.close()
            server.wait(30)
    print(f"{arguments.mib} MiB in parts of {arguments.part_mib} MiB over TLS, medians of {arguments.rounds} rounds")
    print(f"{'':24}{'CPU-s/GB':>10}{'user':>8}{'MB/s':>8}{'RSS MiB':>9}   CPU to boto3, boto3+sha256, boto3+known")
    medians = {
        one: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for one, runs in found.items()
    }
    for (what, way), row in medians.items():
        cpu = row["cpu_s_per_gb"]
        ratios = [
            f"{cpu / medians[what, peer]['cpu_s_per_gb']:.2f}" if (what, peer) in medians else "-"
            for peer in ("boto3", "boto3+sha256", "boto3+known")
        ]
        print(
            f"{what + ' ' + way:24}{cpu:10.2f}{row['user_s_per_gb']:8.2f}{row['mb_per_s']:8.0f}{row['rss_mib']:9.0f}"
            f"   {'  '.join(ratios)}"
        )
    return None


if __name__ == "__main__":
    main()
