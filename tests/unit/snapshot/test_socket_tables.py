"""The socket tables of the kernel, line by line."""

from __future__ import annotations

import ipaddress
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acquirers.snapshot.socket_tables import (
    MAX_LINE,
    TABLES,
    address,
    join_unix,
    parse,
    parse_inet,
    parse_netlink,
    parse_packet,
    parse_unix,
    split,
)

TAIL = b" 00000000:00000000 00:00000000 00000000  1000        0 33445 1 00000000eb3a50d8 100 0 0 10 0"
UNIX = b"00000000c920d3ff: 00000002 00000000 00010000 0001 01 12345"


def inet(local: bytes, remote: bytes, state: bytes = b"0A") -> bytes:
    return b"   0: " + local + b" " + remote + b" " + state + TAIL


def test_a_listener() -> None:
    assert parse_inet(inet(b"0100007F:1F90", b"00000000:0000"), "tcp", "little") == {
        "family": "tcp",
        "local": "127.0.0.1",
        "local_port": 8080,
        "remote": "0.0.0.0",  # noqa: S104
        "remote_port": 0,
        "state": "LISTEN",
        "send_queue": 0,
        "receive_queue": 0,
        "uid": 1000,
        "inode": 33445,
    }


def test_states_are_those_of_the_protocol() -> None:
    line = inet(b"0100007F:0035", b"00000000:0000", b"07")
    tcp, udp = parse_inet(line, "tcp", "little"), parse_inet(line, "udp", "little")
    assert tcp is not None
    assert udp is not None
    assert (tcp["state"], udp["state"]) == ("CLOSE", "UNCONNECTED")
    odd = parse_inet(inet(b"0100007F:0035", b"00000000:0000", b"3F"), "tcp")
    assert odd is not None
    assert odd["state"] == "0x3f"


@given(st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16), st.sampled_from(["little", "big"]))
def test_addresses_in_either_byte_order(raw: bytes, byteorder: str) -> None:
    """The kernel prints each word of 32 bits as a number of the machine (`%08X`)."""
    words = struct.unpack(f"{'<' if byteorder == 'little' else '>'}{len(raw) // 4}I", raw)
    text = "".join(f"{word:08X}" for word in words).encode()
    assert ipaddress.ip_address(address(text, byteorder)) == ipaddress.ip_address(raw)


def test_a_table_of_the_wrong_family_is_kept_as_it_stands() -> None:
    line = inet(b"0100007F:1F90", b"00000000:0000")
    assert parse("tcp6", line) == {"family": "tcp6", "raw": line.decode()}


def test_unix_sockets() -> None:
    assert parse_unix(UNIX + b" /run/a b\xff.sock") == {
        "family": "unix",
        "socket_type": "stream",
        "state": "LISTEN",
        "references": 2,
        "inode": 12345,
        "path": "/run/a b\\xff.sock",
        "path_b64": "L3J1bi9hIGL/LnNvY2s=",
    }
    unnamed = parse_unix(b"00000000c920d3ff: 00000003 00000000 00000000 0005 03  1586")
    assert unnamed is not None
    assert (unnamed["socket_type"], unnamed["state"], "path" in unnamed) == ("seqpacket", "CONNECTED", False)


def test_a_newline_in_a_path_does_not_tear_the_table() -> None:
    lines = [UNIX + b" /tmp/one", b"two", b"", b"three", UNIX]
    assert list(join_unix(lines)) == [UNIX + b" /tmp/one\ntwo\n\nthree", UNIX]


def test_packet_sockets_tell_a_sniffer() -> None:
    line = b"000000008c8e0c2b 3      3    0003   2     1 0      1001   77123 "
    assert parse_packet(line) == {
        "family": "packet",
        "socket_type": "raw",
        "ethertype": "all",
        "interface": 2,
        "running": True,
        "uid": 1001,
        "inode": 77123,
    }


def test_netlink_sockets() -> None:
    line = b"000000006655a66e 9   1373       00000001 0        0        0     2        0        1500    "
    assert parse_netlink(line) == {
        "family": "netlink",
        "netlink_protocol": 9,
        "port_id": 1373,
        "groups": "00000001",
        "inode": 1500,
    }


@pytest.mark.parametrize("table", TABLES)
@given(data=st.binary(max_size=200))
def test_any_line_of_any_table_is_a_record(table: str, data: bytes) -> None:
    record = parse(table, data)
    assert record["family"] == table
    assert "raw" in record or "inode" in record


@given(st.data())
def test_a_line_with_changed_bytes_is_a_record(data: st.DataObject) -> None:
    line = bytearray(inet(b"0100007F:1F90", b"0200007F:0016"))
    for _ in range(data.draw(st.integers(1, 4))):
        line[data.draw(st.integers(0, len(line) - 1))] = data.draw(st.integers(0, 255))
    record = parse("tcp", bytes(line))
    if "raw" not in record:
        assert socket.inet_aton(str(record["local"]))


@given(st.lists(st.binary(max_size=40).filter(lambda line: b"\n" not in line)), st.integers(1, 50))
def test_lines_are_the_same_however_they_are_cut(lines: list[bytes], size: int) -> None:
    stream = b"heading\n" + b"".join(line + b"\n" for line in lines)
    blocks = [stream[start : start + size] for start in range(0, len(stream), size)]
    assert list(split(blocks)) == lines


def test_a_line_without_end_does_not_fill_memory() -> None:
    found = list(split(iter([b"heading\n"] + [b"x" * 10_000] * 100)))
    assert b"".join(found) == b"x" * 1_000_000
    assert max(map(len, found)) <= MAX_LINE
