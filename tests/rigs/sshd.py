"""Real sshd processes on loopback, with keys of their own: a host, and others to jump through.

with Sshd(directory) as host:
    host.port, host.fingerprint, host.known_hosts, host.client_key
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
_PRIVILEGE = Path("/run/sshd")


def make_key(path: Path, kind: str = "ed25519", passphrase: str = "") -> str:
    """A key pair by ssh-keygen; its fingerprint."""
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-f", path, "-C", "test"], check=True, timeout=60)
    told = subprocess.run(["ssh-keygen", "-lf", f"{path}.pub"], check=True, timeout=60, capture_output=True, text=True)
    return told.stdout.split()[1]


def free_port(address: str = "127.0.0.1") -> int:
    with socket.socket() as one:
        one.bind((address, 0))
        port: int = one.getsockname()[1]
        return port


class Sshd:
    """One daemon, that takes one client key for root."""

    def __init__(
        self, directory: Path, *, kinds: tuple[str, ...] = ("ed25519",), address: str = "127.0.0.1",
        client_key: Path | None = None, more: str = "", prefix: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        """`prefix`: what the daemon is started by, such as `ip netns exec NAME`."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.directory, self.address, self.port = directory, address, free_port() if not prefix else 22
        self._prefix = prefix
        self.client_key = client_key or directory / "client"
        if client_key is None:
            make_key(self.client_key)
        self.fingerprints = {kind: make_key(directory / f"host_{kind}", kind) for kind in kinds}
        self.fingerprint = self.fingerprints[kinds[0]]
        self.known_hosts = directory / "known_hosts"
        self.name = address if self.port == 22 else f"[{address}]:{self.port}"
        self.known_hosts.write_text("".join(f"{self.name} {self.public(kind)}\n" for kind in kinds))
        keys = "".join(f"HostKey {directory}/host_{kind}\n" for kind in kinds)
        (directory / "config").write_text(
            f"Port {self.port}\nListenAddress {address}\n{keys}PidFile none\nUsePAM no\nStrictModes no\n"
            f"AuthorizedKeysFile {self.client_key}.pub\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
            f"PermitRootLogin prohibit-password\nPrintMotd no\n{more}"
        )

    def public(self, kind: str) -> str:
        return " ".join((self.directory / f"host_{kind}.pub").read_text().split()[:2])

    def __enter__(self) -> Self:
        assert SSHD is not None
        _PRIVILEGE.mkdir(mode=0o755, exist_ok=True)
        self._log = (self.directory / "log").open("wb")
        self._process = subprocess.Popen(
            [*self._prefix, SSHD, "-D", "-e", "-f", self.directory / "config"], stdin=subprocess.DEVNULL,
            stdout=self._log, stderr=self._log,
        )  # fmt: skip
        deadline = time.monotonic() + 30
        while "Server listening" not in (text := (self.directory / "log").read_text("utf-8", "replace")):
            assert self._process.poll() is None and time.monotonic() < deadline, text  # noqa: PT018 - one wait
            time.sleep(0.05)
        return self

    def stop(self) -> None:
        """The daemon, not the connections that it serves."""
        self._process.terminate()
        self._process.wait(10)
        self._log.close()

    def __exit__(self, _kind: type[BaseException] | None, _error: object, _trace: TracebackType | None) -> None:
        self.stop()
