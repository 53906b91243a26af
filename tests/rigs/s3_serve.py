"""The strict S3 in a process of its own, so that its CPU and memory are not those of what is measured.

    with ServedS3(tls=True, keep_bodies=False) as s3:            # needs the checkout as working directory
        s3.endpoint_url, s3.ca_pem, s3.access_key, s3.secret_key, s3.region      # an administrator; bucket `evidence`
        s3.pid                                                    # /proc/PID/stat tells what the server cost

It ends when its standard input is closed, so it does not outlive who started it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.rigs.s3_process import RigError
from tests.rigs.strict_s3 import StrictS3

_CHECKOUT = Path(__file__).resolve().parents[2]


class ServedS3:
    """The server as seen from outside. No faults and no log: for those it must be in the same process."""

    def __init__(self, *, tls: bool = False, keep_bodies: bool = True, lock: bool = True) -> None:
        options = {"--tls": tls, "--sparse": not keep_bodies, "--lock": lock}
        self._options = [name for name, given in options.items() if given]
        self.endpoint_url = self.ca_pem = self.access_key = self.secret_key = self.region = ""
        self.pid = 0
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._child = subprocess.Popen(
            [sys.executable, "-m", "tests.rigs.s3_serve", *self._options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=_CHECKOUT,
        )
        assert self._child.stdout
        line = self._child.stdout.readline()
        if not line:
            self.__exit__(None, None, None)
            raise RigError("the strict S3 did not start")
        told: dict[str, Any] = json.loads(line)
        self.pid = self._child.pid
        for name, value in told.items():
            setattr(self, name, value)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._child:
            with self._child:  # closes its standard input, and waits
                assert self._child.stdin
                self._child.stdin.close()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._child.wait(15)
                self._child.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description="serves until standard input ends")
    for name in ("--tls", "--sparse", "--lock"):
        parser.add_argument(name, action="store_true")
    options = parser.parse_args()
    with StrictS3(tls=options.tls, keep_bodies=not options.sparse) as server:
        server.make_bucket("evidence", lock=options.lock)
        told = {
            "endpoint_url": server.endpoint_url,
            "ca_pem": server.ca_pem,
            "access_key": server.admin.access_key,
            "secret_key": server.admin.secret_key,
            "region": server.region,
        }
        sys.stdout.write(f"{json.dumps(told)}\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    main()
