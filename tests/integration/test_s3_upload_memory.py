"""Promise 4 in S3: memory does not grow with what is sent. Measured from outside, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rigs.strict_s3 import StrictS3
from tests.support.s3_uploads import BUCKET, MIB, s3_of

UPLOADER = r"""
import json, os, re, sys
from agent.channel.messages import Credentials
from agent.job import S3
from agent.stores.s3.place import parse_place
from agent.stores.s3.session import session
from agent.stores.s3.store import S3Store

def peak():
    # Not ru_maxrss, which begins with that of whoever forked.
    return int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1])

told = json.loads(sys.stdin.read())
s3, place = S3(**told["s3"]), parse_place("s3://evidence/run")
store = S3Store(place, s3, session(place, s3, Credentials(*told["credentials"], 4e9)), memory=told["memory"])
manifest, custody = store.begin("manifest", estimate=0), store.begin("custody", estimate=0)
upload = store.begin("item")
before = peak()
block = bytearray(os.urandom(1 << 20))
for number in range(told["size"] >> 20):
    block[:8] = number.to_bytes(8, "big")
    upload.write(block)
    manifest.write(block[:1000])
    custody.write(block[:100])
    if upload.capacity - upload.size < 1 << 20:
        raise SystemExit("the object is full")
parts = upload.commit()
for small in (custody, manifest):
    small.commit()
store.close()
after = peak()
print(json.dumps({"before": before, "after": after, "parts": len(parts), "size": upload.size}))
"""


@pytest.mark.parametrize(
    ("gib", "memory"),
    [
        (2, 64 * MIB),
        pytest.param(24, 128 * MIB, marks=[pytest.mark.slow, pytest.mark.timeout(1800)]),
    ],
)
def test_resident_memory_is_bounded(tmp_path: Path, gib: int, memory: int) -> None:
    with StrictS3(tmp_path, tls=True, keep_bodies=False) as server:
        server.make_bucket(BUCKET, lock=True)
        host = server.add_session("host")
        s3 = s3_of(server)
        told = {
            "s3": {"endpoint_url": s3.endpoint_url, "region": s3.region, "ca_bundle": s3.ca_bundle},
            "credentials": [host.access_key, host.secret_key, host.token],
            "memory": memory,
            "size": gib << 30,
        }
        run = subprocess.run(
            [sys.executable, "-c", UPLOADER],
            input=json.dumps(told),
            capture_output=True,
            text=True,
            timeout=1800,
            cwd=Path(__file__).parents[2],
        )
        assert run.returncode == 0, run.stderr
        (item,) = [upload for upload in server.uploads(BUCKET) if upload.key == "run/item"]
        assert sum(blob.size for blob, _ in item.parts.values()) == gib << 30
    found = json.loads(run.stdout)
    assert found["size"] == gib << 30
    grown = (found["after"] - found["before"]) * 1024
    # The blocks, a small object joined to be put, and buffers of eight connections and their threads.
    assert grown < memory + 24 * MIB, f"{grown / MIB:.0f} MiB"
    assert found["after"] * 1024 < memory + 112 * MIB, f"{found['after'] / 1024:.0f} MiB resident"
