"""Records of containers/storage: whatever stands in them, nothing but the errors that are foreseen comes out."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from acquirers.containers.records import MalformedError
from acquirers.containers.storage.libpod import parse_record
from acquirers.containers.storage.lists import Oversized, elements
from acquirers.containers.storage.model import parse_container, parse_image, parse_layer
from acquirers.containers.storage.settings import parse_arguments, parse_config, parse_users
from acquirers.containers.storage.spec import parse_crio_state, parse_spec, pod_log

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=5),
    max_leaves=20,
)
OBJECTS = st.dictionaries(st.text(max_size=8), JSON, max_size=6)
KEYS = st.sampled_from(
    "id names image layer metadata created flags parent diff-digest diff-size mapped-layers spec name pod namedVolumes "
    "labels state pid startedTime exitCode root mounts annotations status volumeName".split()
)


def cut(text: bytes, sizes: list[int]) -> list[bytes]:
    pieces, position = [], 0
    for size in sizes:
        pieces.append(text[position : position + size])
        position += size
    return [*pieces, text[position:]]


@given(st.lists(OBJECTS, max_size=8), st.lists(st.integers(0, 40), max_size=20), st.booleans())
def test_elements_are_what_json_says(objects: list[object], sizes: list[int], pretty: bool) -> None:
    """However the text is cut into pieces."""
    text = json.dumps(objects, ensure_ascii=not pretty, indent=2 if pretty else None).encode("utf-8", "surrogatepass")
    found = list(elements(cut(text, sizes)))
    assert [json.loads(one) for one in found if isinstance(one, bytes)] == objects


@given(st.lists(OBJECTS, max_size=8), st.integers(2, 60))
def test_long_elements_are_passed_over(objects: list[object], limit: int) -> None:
    texts = [json.dumps(one).encode() for one in objects]
    found = list(elements([b"[" + b",".join(texts) + b"]"], limit))
    assert [None if isinstance(one, Oversized) else one for one in found] == [
        text if len(text) <= limit else None for text in texts
    ]


@given(st.binary(max_size=300) | st.lists(st.sampled_from(b'[]{}",\\: a1'), max_size=300).map(bytes))
def test_anything_instead_of_a_list(data: bytes) -> None:
    try:
        found = list(elements([data]))
    except MalformedError:
        return
    assert all(isinstance(one, bytes) and one.startswith(b"{") for one in found)


@given(st.binary(max_size=300) | st.dictionaries(KEYS, JSON, max_size=10).map(lambda one: json.dumps(one).encode()))
def test_anything_instead_of_a_record(data: bytes) -> None:
    for parse in (parse_container, parse_layer, parse_image, parse_spec, parse_crio_state):
        try:
            parse(data)
        except MalformedError:
            continue
    try:
        parse_record(data, data)
    except MalformedError:
        return


@given(st.binary(max_size=300))
def test_anything_instead_of_a_configuration(data: bytes) -> None:
    try:
        parse_config(data)
    except MalformedError:
        pass
    parse_users(data)
    for command in (b"conmon", b"crio", b"podman"):
        parse_arguments(command, data.split(b" "))


@given(st.text() | st.from_regex(r"/var/log/pods/[^/]*/[^/]*/[0-9]*\.log", fullmatch=True))
def test_a_pod_log_never_leads_out(path: str) -> None:
    told = pod_log(path)
    if told is not None:
        assert not {b".", b"..", b""} & set(told)
        assert not any(b"/" in part or b"\0" in part for part in told)
