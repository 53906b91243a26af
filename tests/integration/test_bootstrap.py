"""The agent's binary goes into the memory of a machine by the script that is shipped, in shells that machines have."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from agent.delivery import bootstrap, released
from agent.delivery.released import Agent
from agent.errors import ImpoundError, UnreachableError, UsageError

BINARY = Path(__file__).parents[2] / ".cache/binary/impound"
pytestmark = pytest.mark.skipif(not BINARY.exists(), reason="needs the binary")
TOOLS = {
    "python": ["sh", "uname", "python3"],
    "perl": ["sh", "uname", "perl"],
    "coreutils": ["sh", "uname", "head", "sha256sum", "chmod", "rm"],
    "openssl": ["sh", "uname", "head", "openssl", "chmod", "rm"],
    "unchecked": ["sh", "uname", "head", "chmod", "rm"],
}


def choose(architecture: str) -> Agent:
    return released.find(architecture, str(BINARY))


def always(agent: Agent) -> Callable[[str], Agent]:
    return lambda _architecture: agent


def tools(directory: Path, names: Sequence[str], *, busybox: bool = False) -> str:
    """A PATH with nothing else on it."""
    directory.mkdir()
    for name in names:
        # The system's own: what a person put before it on PATH may be a script.
        found = shutil.which("busybox" if busybox else name, path="/usr/bin:/bin:/usr/local/bin")
        if found is None and name == "python3":
            found = sys.executable
        if found is None:
            pytest.skip(f"needs {name}: to be the host's")
        (directory / name).symlink_to(os.path.realpath(found))
    return str(directory)


@contextmanager
def host(path: str, ways: Sequence[str], command: Sequence[str] = ("--version",)) -> Iterator[subprocess.Popen[bytes]]:
    shell, *rest = bootstrap.argv(command, ways)
    process = subprocess.Popen(
        [f"{path}/{shell}", *rest], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0,
        env={"PATH": path},
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=30)


def pipes(process: subprocess.Popen[bytes]) -> tuple[int, int]:
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin.fileno(), process.stdout.fileno()


def left_in_memory() -> set[str]:
    return {name for place in ("/dev/shm", "/run") for name in os.listdir(place) if name.startswith(".impound")}


@pytest.mark.parametrize(
    ("have", "way", "checked"),
    [("python", "memfd", True), ("perl", "memfd", True), ("coreutils", "/dev/shm", True), ("openssl", "/dev/shm", True),
     ("unchecked", "/dev/shm", False)],
)  # fmt: skip
def test_it_starts_from_memory_with_what_a_host_has(tmp_path: Path, have: str, way: str, checked: bool) -> None:
    with host(tools(tmp_path / "bin", TOOLS[have]), bootstrap.WAYS) as process:
        brought = bootstrap.bring(*pipes(process), choose)
        assert (brought.way, brought.checked, brought.architecture) == (way, checked, os.uname().machine)
        assert brought.sha256 == released.find(os.uname().machine, str(BINARY)).sha256
        assert not left_in_memory()
        out, error = process.communicate(timeout=60)
    assert (process.returncode, out.startswith(b"impound "), error) == (0, True, b"")


def test_busybox_is_enough(tmp_path: Path) -> None:
    """Its `head` reads ahead: nothing may be sent behind the file until it has ended."""
    path = tools(tmp_path / "bin", TOOLS["coreutils"], busybox=True)
    with host(path, ["/dev/shm"], ("acquire", "--job", "-", "--channel")) as process:
        assert bootstrap.bring(*pipes(process), choose).way == "/dev/shm"
        out, _ = process.communicate(b'{"no":"job"}\n', timeout=60)  # arrives whole, and is refused by the agent
    assert process.returncode == 2
    assert not out


def test_what_a_shell_prints_before_it_is_passed_over(tmp_path: Path) -> None:
    path = tools(tmp_path / "bin", TOOLS["coreutils"])
    shell, dash, script, *rest = bootstrap.argv(["--version"], ["/dev/shm"])
    noise = "echo Welcome; echo; echo 'impound-0 is nothing';"
    process = subprocess.Popen(
        [f"{path}/{shell}", dash, noise + script, *rest], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
        env={"PATH": path},
    )  # fmt: skip
    assert bootstrap.bring(*pipes(process), choose).way == "/dev/shm"
    assert process.communicate(timeout=60)[0].startswith(b"impound ")


@pytest.mark.parametrize("place", ["a directory of a disk", "a tmpfs that allows no programs", "none"])
def test_it_takes_no_place_that_is_not_memory(tmp_path: Path, place: str) -> None:
    directory = tmp_path / "place"
    if place != "none":
        directory.mkdir()
    if place.startswith("a tmpfs"):
        if os.geteuid() != 0:
            pytest.skip("needs root")
        subprocess.run(["mount", "-t", "tmpfs", "-o", "noexec", "none", directory], check=True, timeout=30)
    try:
        with (
            host(tools(tmp_path / "bin", TOOLS["coreutils"]), [str(directory)]) as process,
            pytest.raises(UsageError, match="no place in memory"),
        ):
            bootstrap.bring(*pipes(process), choose)
        assert place == "none" or not list(directory.iterdir())
    finally:
        if place.startswith("a tmpfs"):
            subprocess.run(["umount", directory], check=True, timeout=30)


def test_one_that_arrives_damaged_is_not_started(tmp_path: Path) -> None:
    for have in ("python", "perl", "coreutils"):
        wrong = Agent(str(BINARY), os.uname().machine, BINARY.stat().st_size, "0" * 64, released=False)
        with (
            host(tools(tmp_path / have, TOOLS[have]), bootstrap.WAYS) as process,
            pytest.raises(UnreachableError, match=r"not the agent that it should start: SHA-256 [0-9a-f]{64}"),
        ):
            bootstrap.bring(*pipes(process), always(wrong))
        assert process.communicate(timeout=30)[0] == b""
        assert process.returncode != 0
    assert not left_in_memory()


def test_one_that_stops_arriving_leaves_nothing(tmp_path: Path) -> None:
    short = msgspec.structs.replace(choose(os.uname().machine), size=BINARY.stat().st_size + 1)
    for have in ("python", "perl", "coreutils"):
        with (
            host(tools(tmp_path / have, TOOLS[have]), bootstrap.WAYS) as process,
            pytest.raises(UsageError, match="became shorter"),
        ):
            bootstrap.bring(*pipes(process), always(short))
        process.communicate(timeout=30)
        assert process.returncode != 0
    assert not left_in_memory()


def test_an_installed_one_is_started_only_where_it_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tools(tmp_path / "bin", TOOLS["coreutils"])
    installed = tmp_path / "impound"
    way = f"installed:{installed}"
    monkeypatch.setattr(bootstrap, "INSTALLED", way)
    installed.write_bytes(BINARY.read_bytes())
    installed.chmod(0o755)
    with host(path, [way]) as process:
        assert bootstrap.bring(*pipes(process), choose, installed=True).way == way
        assert process.communicate(timeout=60)[0].startswith(b"impound ")
    with installed.open("ab") as file:
        file.write(b"x")
    for why in ("not the agent that it should start", "closed the channel"):
        with host(path, [way]) as process, pytest.raises(UnreachableError, match=why):
            bootstrap.bring(*pipes(process), choose, installed=True)
        assert process.communicate(timeout=30)[0] == b""
        installed.unlink(missing_ok=True)


# -- a host that lies -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("says", "why"),
    [
        (b"", "closed the channel before it said what kind"),
        (b"x" * 5000, "a line of more than 4096"),
        (b"noise\n" * 12_000, "did not say what kind of machine it is, but: 'noise'"),
        (b"impound-1 is \x1b[31mred\n", "did not say what kind"),
        (b"impound-1 is mips\n", "there is no agent for mips"),
        (b"impound-1 is x86_64\nimpound-1 have memfd " + b"0" * 64 + b"\n", "did not say that it is ready"),
        (b"impound-1 is x86_64\nimpound-1 want\nimpound-1 have memfd " + b"0" * 64 + b"\n", "its digest differs"),
        (b"impound-1 is x86_64\nimpound-1 want\nimpound-1 have a b c\n", "did not say what it has"),
        (
            b"impound-1 is x86_64\nimpound-1 want\nimpound-1 have \x1b[31m " + b"0" * 64 + b"\n",
            "did not say what it has",
        ),
        (b"impound-1 is x86_64\nimpound-1 cannot\n", "no place in memory"),
    ],
)
def test_a_host_that_does_not_play_along_is_refused_with_a_reason(tmp_path: Path, says: bytes, why: str) -> None:
    (tmp_path / "says").write_bytes(says)
    process = subprocess.Popen(
        ["sh", "-c", f"cat {tmp_path}/says; exec cat >/dev/null"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        bufsize=0,
    )  # fmt: skip
    reads, writes = pipes(process)
    if not says:
        process.kill()
    try:
        with pytest.raises(ImpoundError, match=why) as caught:
            bootstrap.bring(reads, writes, choose)
        assert "\x1b" not in str(caught.value)
    finally:
        process.kill()
        process.communicate(timeout=30)


def test_a_host_that_stalls_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "DEADLINE_S", 0.3)
    monkeypatch.setattr(bootstrap, "STALLED_S", 0.3)
    for script, why in (
        ("exec sleep 60", "did not say what kind of machine it is in"),
        ("echo impound-1 is x86_64; read -r line; echo impound-1 want; exec sleep 60", "takes nothing of the agent"),
    ):
        process = subprocess.Popen(["sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        try:
            with pytest.raises(UnreachableError, match=why):
                bootstrap.bring(*pipes(process), choose)
        finally:
            process.kill()
            process.communicate(timeout=30)
