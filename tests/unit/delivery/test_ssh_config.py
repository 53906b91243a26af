"""Where a host is and by which way, held against `ssh -G`."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from agent.delivery.ssh.config import parse_target, route
from agent.errors import UsageError

CONFIG = """\
Host web
  HostName web-1.example.org
  User ec2-user
  Port 2222
  IdentityFile /keys/web
  IdentitiesOnly yes
  ProxyJump me@bastion:2200,inner
Host inner
  HostName 10.0.0.2
  HostKeyAlias the-inner-one
Host loop
  ProxyJump loop2
Host loop2
  ProxyJump loop
Host through
  ProxyCommand nc %h %p
"""


@pytest.fixture
def config(tmp_path: Path) -> str:
    (tmp_path / "config").write_text(CONFIG)
    return str(tmp_path / "config")


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("web-1", ("", "web-1", None)),
        ("root@web-1:2222", ("root", "web-1", 2222)),
        ("ssh://root@web-1", ("root", "web-1", None)),
        ("[fe80::1%eth0]:22", ("", "fe80::1%eth0", 22)),
        ("[::1]", ("", "::1", None)),
    ],
)
def test_a_target(text: str, parsed: tuple[str, str, int | None]) -> None:
    assert parse_target(text) == parsed


@pytest.mark.parametrize("text", ["", "-oProxyCommand=x", "a b", "a:0", "a:65536", "a:b", "::1", "root@-x", "a@b@c"])
def test_what_is_no_target(text: str) -> None:
    with pytest.raises(UsageError):
        parse_target(text)


def test_a_host_of_the_configuration_is_where_ssh_would_find_it(config: str) -> None:
    hops = route("web", [], config=config)
    told = subprocess.run(["ssh", "-G", "-F", config, "web"], capture_output=True, text=True, timeout=30, check=True)
    said = dict(line.split(" ", 1) for line in told.stdout.splitlines() if " " in line)
    assert [said["hostname"], said["port"], said["user"]] == [hops[-1].address, str(hops[-1].port), hops[-1].user]
    assert said["proxyjump"] == "me@bastion:2200,inner"
    assert (hops[0].user, hops[0].address, hops[0].port) == ("me", "bastion", 2200)
    assert (hops[1].address, hops[1].known_as) == ("10.0.0.2", "the-inner-one")
    assert (hops[-1].keys, hops[-1].only_these) == (("/keys/web",), True)


def test_what_a_person_says_stands_above_it(config: str) -> None:
    hops = route("root@web:22", ["other:1022"], ["/keys/mine"], config)
    assert [(hop.address, hop.port) for hop in hops] == [("other", 1022), ("web-1.example.org", 22)]
    assert (hops[-1].user, hops[-1].keys) == ("root", ("/keys/mine",))
    assert hops[0].keys == ()
    assert route("through", ["other"], config=config)[-1].proxy == ""
    assert route("through", [], config=config)[-1].proxy == "nc through 22"
    assert len(route("web", [], config="")) == 1


def test_a_circle_ends(config: str) -> None:
    with pytest.raises(UsageError, match="more than 8 hosts"):
        route("loop", [], config=config)
