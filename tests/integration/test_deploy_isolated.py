"""An isolated host: three machines in network namespaces, and nothing but SSH through the one in the middle."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.rigs.netns import Network
from tests.rigs.sshd import SSHD, Sshd
from tests.support.runs import ENVIRONMENT, impound, keygen
from tests.unit.delivery.deploys import make_disk

BINARY = Path(__file__).parents[2] / ".cache/binary/impound"
RESPONDER, JUMP, JUMP_INSIDE, HOST = "10.77.1.1", "10.77.1.2", "10.77.2.1", "10.77.2.2"
pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: namespaces of their own"),
    pytest.mark.skipif(SSHD is None, reason="needs sshd"),
    pytest.mark.skipif(shutil.which("iptables") is None, reason="needs iptables"),
    pytest.mark.skipif(shutil.which("ip") is None, reason="needs ip"),
    pytest.mark.skipif(not BINARY.exists(), reason="needs the binary"),
]


class Isolated:
    def __init__(self, directory: Path, net: Network, jump: Sshd, host: Sshd) -> None:
        self.directory, self.net, self.jump, self.host = directory, net, jump, host
        self.disk = make_disk(directory, 20 << 20)
        self.key, self.recipient = keygen(directory)
        known = directory / "known"
        known.write_text(jump.known_hosts.read_text() + host.known_hosts.read_text())
        (directory / "config").write_text(f"Host *\n  IdentityFile {jump.client_key}\n  UserKnownHostsFile {known}\n")

    def deploy(self, *more: str) -> tuple[int, dict[str, Any], str]:
        command = [
            *self.net.prefix("responder"), sys.executable, "-m", "agent", "deploy", "ssh", f"root@{HOST}", "--jump",
            f"root@{JUMP}", "--ssh-config", str(self.directory / "config"), "--case", "C-1", "--to",
            str(self.directory / "case"), "-r", self.recipient, "--root", str(self.disk), "--agent", str(BINARY),
            "--state", str(self.directory / "state"), "--no-agent", *more,
        ]  # fmt: skip
        environment = ENVIRONMENT | {"HOME": str(self.directory)}
        done = subprocess.run(command, env=environment, capture_output=True, timeout=240, check=False)
        lines = done.stdout.splitlines()
        return done.returncode, json.loads(lines[-1]) if lines else {}, done.stderr.decode("utf-8", "replace")


@pytest.fixture
def isolated(tmp_path: Path) -> Iterator[Isolated]:
    with Network("responder", "jump", "host") as net:
        net.join("responder", RESPONDER, "jump", JUMP)
        net.join("jump", JUMP_INSIDE, "host", HOST)
        # The jump host forwards no packet, and the host takes and sends nothing but SSH.
        net.run("jump", "sysctl", "-q", "-w", "net.ipv4.ip_forward=0")
        for chain, port in (("INPUT", "--dport"), ("OUTPUT", "--sport")):
            net.run("host", "iptables", "-A", chain, "-p", "tcp", port, "22", "-j", "ACCEPT")
            net.run("host", "iptables", "-P", chain, "DROP")
        with (
            Sshd(tmp_path / "jump", address=JUMP, prefix=net.prefix("jump")) as jump,
            Sshd(tmp_path / "host", address=HOST, prefix=net.prefix("host"), client_key=jump.client_key) as host,
        ):
            yield Isolated(tmp_path, net, jump, host)


def dropped(net: Network) -> int:
    """Packets that the host tried to send elsewhere."""
    told = net.run("host", "iptables", "-L", "OUTPUT", "-v", "-x", "-n").stdout.splitlines()[0]
    return int(told.split("policy DROP ")[1].split()[0])


def test_it_comes_back_whole_through_the_one_channel_that_is_open(isolated: Isolated) -> None:
    assert isolated.net.run("host", "ping", "-c", "1", "-W", "1", JUMP_INSIDE, check=False).returncode != 0
    tried = dropped(isolated.net)
    code, result, stderr = isolated.deploy("--relay")
    assert (code, result["verdict"], result["authority"]) == (0, "complete", "relay"), stderr
    code, verdict, _ = impound("verify", result["store"], "--receipt-sha256", result["receipt_sha256"])
    assert (code, verdict["verdict"]) == (0, "intact")
    out = isolated.directory / "out"
    assert impound("open", result["store"], "-i", isolated.key, "-o", out)[0] == 0
    big = (isolated.disk / "var/lib/docker/volumes/unused/_data/big").read_bytes()
    assert any(big in path.read_bytes() for path in out.rglob("*.tar"))
    how = json.loads(
        next(one for one in Path(result["ledger"]).read_text().splitlines() if '"event":"reached"' in one)
    )["data"]["how"]
    assert how["address"] == f"{HOST} port 22"
    assert how["jumps"].startswith(f"root@{JUMP} port 22 ssh-ed25519 {isolated.jump.fingerprint}")
    # Nothing of it even tries to leave by another way.
    assert dropped(isolated.net) == tried


def test_without_the_jump_host_it_says_that_it_cannot_be_reached(isolated: Isolated) -> None:
    isolated.jump.stop()
    code, _, stderr = isolated.deploy("--relay")
    assert code == 3
    assert f"{JUMP} port 22 cannot be reached: Connection refused" in stderr


def test_a_jump_host_that_may_not_forward_is_named(isolated: Isolated) -> None:
    isolated.jump.stop()
    config = isolated.jump.directory / "config"
    config.write_text(config.read_text() + "AllowTcpForwarding no\n")
    with isolated.jump:
        code, _, stderr = isolated.deploy("--relay")
    assert code == 3
    assert f"the host before it does not connect to {HOST} port 22" in stderr
