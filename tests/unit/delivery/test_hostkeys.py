"""Which host keys are taken: held against files that ssh-keygen wrote, and against keys that it made."""

from __future__ import annotations

import subprocess
from pathlib import Path

import paramiko
import pytest

from agent.delivery.ssh.hostkeys import HostKeyError, KnownHosts, fingerprint_of
from agent.errors import UsageError
from tests.rigs.sshd import make_key


def public(path: Path) -> str:
    return " ".join(Path(f"{path}.pub").read_text().split()[:2])


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("keys")
    for name, kind in (("a", "ed25519"), ("b", "ed25519"), ("r", "rsa")):
        make_key(directory / name, kind)
    return directory


def load(path: Path) -> paramiko.PKey:
    kind = paramiko.RSAKey if path.name == "r" else paramiko.Ed25519Key
    return kind.from_private_key_file(str(path))


def known(tmp_path: Path, text: str, *fingerprints: str) -> KnownHosts:
    (tmp_path / "known_hosts").write_text(text)
    return KnownHosts([str(tmp_path / "known_hosts")], fingerprints)


def test_a_known_key_is_taken_and_it_says_from_where(tmp_path: Path, keys: Path) -> None:
    hosts = known(tmp_path, f"# comment\n\nweb-1,10.0.0.7 {public(keys / 'a')} somebody\n")
    for name in ("web-1", "WEB-1", "10.0.0.7"):
        found = hosts.check(name, 22, load(keys / "a"))
        assert (found.kind, found.trust) == ("ssh-ed25519", f"{tmp_path}/known_hosts line 3")
        assert not found.differs


def test_an_unknown_one_is_refused_and_nothing_is_added(tmp_path: Path, keys: Path) -> None:
    hosts = known(tmp_path, f"web-1 {public(keys / 'a')}\n")
    before = (tmp_path / "known_hosts").read_bytes()
    with pytest.raises(HostKeyError, match=r"nothing is known of web-2: it shows ssh-ed25519 SHA256:.{43}\. Compare"):
        hosts.check("web-2", 22, load(keys / "a"))
    assert (tmp_path / "known_hosts").read_bytes() == before


@pytest.mark.parametrize("shown", ["b", "r"])
def test_a_changed_one_is_refused_also_where_it_is_of_another_type(tmp_path: Path, keys: Path, shown: str) -> None:
    hosts = known(tmp_path, f"web-1 {public(keys / 'a')}\n")
    with pytest.raises(HostKeyError, match="the host key of web-1 has changed"):
        hosts.check("web-1", 22, load(keys / shown))


def test_only_a_fingerprint_given_by_hand_stands_above_the_files(tmp_path: Path, keys: Path) -> None:
    key = load(keys / "b")
    given = fingerprint_of(key.asbytes())
    text = f"web-1 {public(keys / 'a')}\n"
    taken = known(tmp_path, text, given).check("web-1", 22, key)
    assert taken.trust == "a fingerprint given by hand"
    assert "has changed" in taken.differs
    assert known(tmp_path, "", f"{given}=").check("web-9", 22, key).differs == ""
    with pytest.raises(HostKeyError):  # it is the last host's fingerprint, not a jump host's
        known(tmp_path, text, given).check("web-1", 22, key, given=False)
    # A fingerprint that was given is also one that must be: what the files say is not enough then.
    with pytest.raises(HostKeyError, match="not the fingerprint that you gave"):
        known(tmp_path, text, given).check("web-1", 22, load(keys / "a"))


def test_a_revoked_one_is_refused_wherever_else_it_stands(tmp_path: Path, keys: Path) -> None:
    key = load(keys / "a")
    text = f"web-1 {public(keys / 'a')}\n@revoked * {public(keys / 'a')}\n"
    with pytest.raises(HostKeyError, match="is revoked"):
        known(tmp_path, text, fingerprint_of(key.asbytes())).check("web-1", 22, key)


def test_an_authority_vouches_for_nobody_here(tmp_path: Path, keys: Path) -> None:
    hosts = known(tmp_path, f"@cert-authority * {public(keys / 'a')}\n")
    with pytest.raises(HostKeyError, match="nothing is known"):
        hosts.check("web-1", 22, load(keys / "a"))


def test_hashed_names_and_ports_are_found_as_ssh_keygen_writes_them(tmp_path: Path, keys: Path) -> None:
    (tmp_path / "hashed").write_text(f"web-1 {public(keys / 'a')}\n[web-2]:2222 {public(keys / 'b')}\n")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", tmp_path / "hashed"], check=True, capture_output=True, timeout=60)
    assert "web" not in (tmp_path / "hashed").read_text()
    hosts = KnownHosts([str(tmp_path / "hashed")])
    assert hosts.check("web-1", 22, load(keys / "a")).kind == "ssh-ed25519"
    assert hosts.check("web-2", 2222, load(keys / "b")).kind == "ssh-ed25519"
    for name, port in (("web-2", 22), ("web-1", 2222)):
        with pytest.raises(HostKeyError, match="nothing is known"):
            hosts.check(name, port, load(keys / "a"))


@pytest.mark.parametrize(
    ("pattern", "name", "port", "found"),
    [
        ("*.example.org", "a.example.org", 22, True),
        ("*.example.org,!bad.example.org", "bad.example.org", 22, False),
        ("!bad.example.org,*.example.org", "bad.example.org", 22, False),
        ("web-?", "web-1", 22, True),
        ("web-?", "web-12", 22, False),
        ("[web-1]:2222", "web-1", 2222, True),
        ("[web-1]:2222", "web-1", 22, False),
        ("web-1", "web-1", 2222, False),
        ("[ab]:2222", "a", 2222, False),
    ],
)
def test_patterns(tmp_path: Path, keys: Path, pattern: str, name: str, port: int, found: bool) -> None:
    hosts = known(tmp_path, f"{pattern} {public(keys / 'a')}\n")
    assert bool(hosts.kinds(name, port)) is found


def test_what_is_known_is_asked_for_first(tmp_path: Path, keys: Path) -> None:
    hosts = known(tmp_path, f"web-1 {public(keys / 'r')}\nweb-1 {public(keys / 'a')}\n")
    assert hosts.kinds("web-1", 22) == ["ssh-rsa", "ssh-ed25519"]


def test_a_damaged_line_is_none_and_a_missing_file_is_said(tmp_path: Path, keys: Path) -> None:
    hosts = known(
        tmp_path, f"web-1 ssh-ed25519 !!!\nweb-1\n|1|x|y ssh-ed25519 AAAA\nweb-1 {public(keys / 'a')}\n\x00\n"
    )
    assert hosts.check("web-1", 22, load(keys / "a")).trust.endswith("line 4")
    with pytest.raises(UsageError, match="cannot be read"):
        KnownHosts([str(tmp_path / "none")])
    with pytest.raises(UsageError, match="a fingerprint is SHA256:"):
        KnownHosts([], ["MD5:00:11"])
