"""What a daemon was told, in every form that dockerd itself takes."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acquirers.containers.docker.settings import Settings, parse_arguments, parse_daemon_json, parse_homes, parse_lines
from acquirers.containers.records import MalformedError


@pytest.mark.parametrize(
    ("arguments", "root", "config"),
    [
        (["dockerd"], None, None),
        (["dockerd", "--data-root", "/a"], b"/a", None),
        (["dockerd", "--data-root=/a"], b"/a", None),
        (["dockerd", "--graph", "/a"], b"/a", None),
        (["dockerd", "--graph=/a"], b"/a", None),
        (["dockerd", "-g", "/a"], b"/a", None),
        (["dockerd", "-g=/a"], b"/a", None),
        (["dockerd", "-g/a"], b"/a", None),
        (["dockerd", "-Dg", "/a"], b"/a", None),
        (["dockerd", "-D", "-H", "fd://", "--config-file", "/c.json"], None, b"/c.json"),
        (["dockerd", "--config-file=/c.json", "--data-root=/a"], b"/a", b"/c.json"),
        (["dockerd", "--data-root=/a", "--data-root", "/b"], b"/b", None),
        (["dockerd", "--data-root"], None, None),
        (["dockerd", "--data-root="], None, None),
        (["dockerd", "--data-rooted", "/a", "--group", "docker", "-G", "x"], None, None),
        (["dockerd", "--data-root=/with = and blank"], b"/with = and blank", None),
    ],
)
def test_arguments(arguments: list[str], root: bytes | None, config: bytes | None) -> None:
    assert parse_arguments([word.encode() for word in arguments]) == Settings(root, config)


def test_daemon_json() -> None:
    assert parse_daemon_json(b'{"data-root": "/a", "userns-remap": "default", "log-opts": {"x": [1]}}') == Settings(
        b"/a", None, "default"
    )
    assert parse_daemon_json(b'{"graph": "/old"}').data_root == b"/old"
    assert parse_daemon_json(b'{"graph": "/old", "data-root": "/new"}').data_root == b"/new"
    assert parse_daemon_json(b'{"data-root": "/d\\u00e4ta"}').data_root == "/däta".encode()
    assert (
        parse_daemon_json(b"  \n") == parse_daemon_json(b"{}") == parse_daemon_json(b'{"data-root":null}') == Settings()
    )


@pytest.mark.parametrize(
    "data",
    [
        b"[",
        b"[]",
        b"no json",
        b'{"data-root": 7}',
        b'{"data-root": "/a\\u0000"}',
        b'{"data-root": "/' + b"x" * 5000 + b'"}',
        b'{"x":' + b"[" * 200_000,
        b'{"data-root": "\xff"}',
    ],
)
def test_malformed_daemon_json_is_one_error(data: bytes) -> None:
    with pytest.raises(MalformedError):
        parse_daemon_json(data)


@pytest.mark.parametrize(
    ("text", "root"),
    [
        ("[Service]\nExecStart=/usr/bin/dockerd -H fd:// --data-root /a\n", b"/a"),
        ("[Service]\nExecStart=\nExecStart=/usr/bin/dockerd \\\n  -H fd:// \\\n  --data-root=/a\n", b"/a"),
        ('[Service]\nExecStart=/usr/bin/dockerd "--data-root=/a b"\n', b"/a b"),
        ('[Service]\nEnvironment="DOCKER_OPTS=--data-root /a -D"\n', b"/a"),
        ('DOCKER_OPTS="-D --graph=/a"\n', b"/a"),
        ("OPTIONS='--selinux-enabled -g /a'\n", b"/a"),
        ('export DOCKER_OPTS="--data-root=/a"\n', b"/a"),
        ("# DOCKER_OPTS=--data-root=/a\n", None),
        ("Description=Docker -g /a\n", None),
        ("DOCKER_OPTS='--data-root /a\n", None),
        ("ExecStart=dockerd --data-root /a\nExecStart=dockerd --data-root /b\n", b"/b"),
    ],
)
def test_units_and_variables(text: str, root: bytes | None) -> None:
    assert parse_lines(text.encode()).data_root == root


def test_homes() -> None:
    passwd = (
        b"root:x:0:0::/root:/bin/sh\na:x:1:1::/home/a:/bin/sh\nb:x:2:2::/home/a/:/bin/sh\nbad line\nc:x:3:3::rel:/\n"
    )
    assert parse_homes(passwd) == [b"/root", b"/home/a"]


@given(st.binary(max_size=300))
def test_no_input_raises_what_is_not_said(data: bytes) -> None:
    parse_arguments(data.split(b"\0"))
    parse_lines(data)
    parse_homes(data)
    try:
        parse_daemon_json(data)
    except MalformedError:
        pass


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=40))
def test_any_path_survives_both_forms(path: str) -> None:
    word = os.fsencode("/" + path)
    assert parse_arguments([b"dockerd", b"--data-root", word]).data_root == word
    assert parse_arguments([b"dockerd", b"--data-root=" + word]).data_root == word
