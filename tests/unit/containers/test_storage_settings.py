"""What processes and files of configuration say of the place of containers/storage, and paths of other namespaces."""

from __future__ import annotations

import pytest

from acquirers.containers.records import MalformedError
from acquirers.containers.storage.processes import translate
from acquirers.containers.storage.settings import (
    Told,
    User,
    expand,
    parse_arguments,
    parse_config,
    parse_environment,
    parse_users,
)
from acquirers.mounts import parse_mountinfo

CONMON = (
    b"-c id -b /bundle --exit-command /usr/bin/podman --exit-command-arg --root --exit-command-arg /a "
    b"--exit-command-arg --runroot --exit-command-arg /b --root /not-this"
)


@pytest.mark.parametrize(
    ("command", "line", "told"),
    [
        (b"podman", b"--root /a --runroot=/b run x", Told(graph_root=b"/a", run_root=b"/b")),
        (b"podman", b"--storage-opt overlay.imagestore=/i,/j ps", Told(more_stores=(b"/i", b"/j"))),
        (b"podman", b"--storage-opt ignore_chown_errors=true --imagestore /i", Told(image_store=b"/i")),
        (b"podman", b"run -- --root /x", Told()),
        (b"podman", b"--root", Told()),
        (b"podman", b"--volumepath /v --tmpdir /t", Told(volume_path=b"/v", tmp_dir=b"/t")),
        (b"crio", b"-r /a -c /c --runroot /b", Told(graph_root=b"/a", run_root=b"/b", configs=(b"/c",))),
        (b"podman", b"-r /a", Told()),
        (
            b"conmon",
            CONMON,
            Told(graph_root=b"/a", run_root=b"/b"),
        ),
        (b"conmon", b"--exit-command-arg", Told()),
        (b"conmon", b"--exit-command-arg --root --exit-command-arg", Told()),
    ],
)  # fmt: skip
def test_arguments(command: bytes, line: bytes, told: Told) -> None:
    assert parse_arguments(command, line.split(b" ")) == told


def test_environment() -> None:
    told, data, config = parse_environment([b"HOME=/h", b"CONTAINERS_STORAGE_CONF=/c", b"nonsense", b"XDG_DATA_HOME="])
    assert (told.configs, data, config) == ((b"/c",), b"/h/.local/share", b"/h/.config")
    assert parse_environment([b"XDG_DATA_HOME=/d", b"XDG_CONFIG_HOME=/e"])[1:] == (b"/d", b"/e")


def test_configuration() -> None:
    text = b"""
[storage]
driver = "overlay"
graphroot = "/g"
runroot = "/r"
imagestore = "/i"
rootless_storage_path = "$HOME/x"
transient_store = true
[storage.options]
additionalimagestores = ["/a", "/b"]
"""
    assert parse_config(text) == Told(
        graph_root=b"/g", run_root=b"/r", image_store=b"/i", more_stores=(b"/a", b"/b"), rootless_root="$HOME/x",
        transient=True,
    )  # fmt: skip
    crio = (
        b'[crio]\nroot = "/g"\nstorage_option = ["overlay.imagestore=/a", "x=y"]\n[crio.runtime]\nroot = "/not-this"\n'
    )
    assert parse_config(crio) == Told(graph_root=b"/g", more_stores=(b"/a",))
    assert parse_config(b'[engine]\nvolume_path = "/v"\ntmp_dir = "/t"\n') == Told(volume_path=b"/v", tmp_dir=b"/t")
    assert not parse_config(b"")
    with pytest.raises(MalformedError):
        parse_config(b"[storage\n")
    with pytest.raises(MalformedError):
        parse_config(b'[storage]\ngraphroot = "\\u0000"\n')


def test_users() -> None:
    lines = ("root:x:0:0::/root:/bin/sh", "ann:x:1001:1::/home/ann/:", "bad", "bob:x:-1:1::/b:", "cat:x:5:5::rel:")
    data = "\n".join((*lines, "two:x:6:6::/home/ann:", "")).encode()
    assert [(user.name, user.uid, user.home) for user in parse_users(data)] == [
        (b"root", 0, b"/root"), (b"ann", 1001, b"/home/ann"),
    ]  # fmt: skip


def test_variables_of_a_rootless_path() -> None:
    user = User(b"ann", 1001, b"/home/ann")
    assert expand("$HOME/a/${USER}/$UID/$OTHER", user) == b"/home/ann/a/ann/1001/$OTHER"


def test_paths_of_another_mount_namespace() -> None:
    ours = parse_mountinfo(
        b"20 1 8:1 / / rw - ext4 /dev/a rw\n"
        b"21 20 8:2 / /srv rw - ext4 /dev/b rw\n"
    )  # fmt: skip
    theirs = parse_mountinfo(
        b"30 1 8:1 / / rw - ext4 /dev/a rw\n"
        b"31 30 8:2 /deep /data rw - ext4 /dev/b rw\n"
        b"32 30 0:99 / /private rw - tmpfs none rw\n"
    )  # fmt: skip
    assert translate(b"/var/lib/containers", theirs, ours) == b"/var/lib/containers"
    assert translate(b"/data/graph", theirs, ours) == b"/srv/deep/graph"
    assert translate(b"/private/graph", theirs, ours) is None
    assert translate(b"/data/../etc", theirs, ours) == b"/etc"
