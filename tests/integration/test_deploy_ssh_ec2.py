"""`impound deploy ssh i-…`: the address from EC2, the host key from the console, a key that exists for one run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.delivery.ssh.ec2 import keys_of
from tests.integration.test_deploy_ssh import BINARY, OverSsh
from tests.rigs.ec2_api import ID, Ec2Api, console_of
from tests.rigs.sshd import SSHD, Sshd, make_key
from tests.rigs.strict_s3 import StrictS3
from tests.unit.delivery.deploys import BUCKET

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: the daemons log somebody in"),
    pytest.mark.skipif(SSHD is None, reason="needs sshd"),
    pytest.mark.skipif(not BINARY.exists(), reason="needs the binary"),
]


@pytest.fixture
def deploys(tmp_path: Path) -> Iterator[OverSsh]:
    with StrictS3(tmp_path, tls=True) as s3:
        s3.make_bucket(BUCKET)
        assert s3.certificates is not None
        options = ["--ca-bundle", str(s3.certificates.ca_file)]
        yield OverSsh(
            tmp_path, s3.endpoint_url, s3.region, s3.admin.access_key, s3.admin.secret_key, s3_options=options
        )


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Sshd]:
    """It takes what EC2 Instance Connect puts there, and nobody else."""
    with Sshd(tmp_path / "host", client_key=tmp_path / "connect") as daemon:
        yield daemon


def deploy(deploys: OverSsh, host: Sshd, api: Ec2Api, *more: str) -> tuple[int, dict[str, Any], str]:
    deploys.environment |= api.environment
    none = deploys.directory / "none"
    none.write_text("")
    given = ["--instance-connect", "--no-agent", "--known-hosts", str(none), *more]
    host.client_key, kept = none, host.client_key
    try:
        return deploys.deploy(host, *given, target=f"root@{ID}:{host.port}")
    finally:
        host.client_key = kept


@pytest.mark.parametrize("nitro", [True, False])
def test_with_nothing_but_an_id(deploys: OverSsh, host: Sshd, tmp_path: Path, nitro: bool) -> None:
    with Ec2Api(host.address, tmp_path / "connect.pub", console=console_of(host.public("ed25519"))) as api:
        api.latest = nitro
        command_key = tmp_path / "unused"
        make_key(command_key)
        deploys.environment |= api.environment
        (tmp_path / "none").write_text("")
        host.client_key = command_key  # it is offered as well, and taken nowhere
        code, result, stderr = deploys.deploy(
            host, "--instance-connect", "--no-agent", "--known-hosts", str(tmp_path / "none"),
            target=f"root@{ID}:{host.port}",
        )  # fmt: skip
        assert (code, result["verdict"]) == (0, "complete"), stderr
        ledger = Path(result["ledger"]).read_text()
        assert '"host_key_trust":"the console output"' in ledger
        assert f'"instance":"{ID}"' in ledger
        (sent,) = [said for action, said in api.asked if action == "SendSSHPublicKey"]
        assert (sent["InstanceId"], sent["InstanceOSUser"]) == (ID, "root")
        assert sent["SSHPublicKey"].startswith("ssh-ed25519 AAAA")


def test_a_host_that_is_not_the_one_on_the_console_is_shown_nothing(
    deploys: OverSsh, host: Sshd, tmp_path: Path
) -> None:
    make_key(tmp_path / "other")
    public = " ".join((tmp_path / "other.pub").read_text().split()[:2])
    with Ec2Api(host.address, tmp_path / "connect.pub", console=console_of(public)) as api:
        code, _, stderr = deploy(deploys, host, api)
        assert code == 2
        assert "the host key of 127.0.0.1 has changed" in stderr
        assert "the console output" in stderr
        assert "SendSSHPublicKey" not in {action for action, _ in api.asked}


@pytest.mark.parametrize(
    ("change", "code", "why"),
    [
        ({"console": "nothing of that kind"}, 2, "nothing is known of 127.0.0.1"),
        ({"state": "stopped"}, 2, "is stopped: SSH reaches one that is running"),
        ({"refuses": "DescribeInstances"}, 3, "EC2 refuses: UnauthorizedOperation"),
        ({"refuses": "GetConsoleOutput"}, 3, "EC2 refuses: UnauthorizedOperation"),
        ({"refuses": "SendSSHPublicKey"}, 3, "EC2 Instance Connect refuses: AuthException"),
    ],
)
def test_what_ec2_says_is_told(
    deploys: OverSsh, host: Sshd, tmp_path: Path, change: dict[str, str], code: int, why: str
) -> None:
    with Ec2Api(host.address, tmp_path / "connect.pub", console=console_of(host.public("ed25519"))) as api:
        for name, value in change.items():
            setattr(api, name, value)
        found, _, stderr = deploy(deploys, host, api)
        assert found == code, stderr
        assert why in stderr
        assert "Traceback" not in stderr


def test_options_of_an_instance_are_for_an_instance(deploys: OverSsh, host: Sshd) -> None:
    code, _, stderr = deploys.deploy(host, "--instance-connect", "--known-hosts", str(host.known_hosts))
    assert code == 2
    assert "are for an EC2 instance" in stderr


def test_keys_of_a_console_are_whole_or_none(host: Sshd) -> None:
    public = host.public("ed25519")
    kind, text = public.split()
    assert keys_of(console_of(public)) == [(kind, text)]
    assert keys_of(console_of(public) * 3) == [(kind, text)]
    for broken in (public[:-10], public.replace("ed25519", "rsa"), f"\x1b[31m{text}", "ssh-ed25519 " + "A" * 5000):
        assert keys_of(console_of(broken)) == []
    assert keys_of(console_of(public).replace("-----END SSH HOST KEY KEYS-----", "")) == []
    assert len(keys_of(console_of(*[f"ssh-ed25519 {text[:-4]}{number:04d}" for number in range(1000)]))) <= 32
