"""The tables in `/proc/<pid>/net`: one line, one socket. Parsers only: bytes in, records out.

Formats, by the kernel file that writes them: net/ipv4/tcp_ipv4.c, udp.c, raw.c, net/ipv6/…, net/unix/af_unix.c,
net/packet/af_packet.c, net/netlink/af_netlink.c. Addresses are words of 32 bits in the byte order of the machine.
"""

from __future__ import annotations

import re
import socket
import struct
import sys
from typing import TYPE_CHECKING

from acquirers.snapshot.encode import put

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

TABLES = (
    "tcp", "tcp6", "udp", "udp6", "udplite", "udplite6", "raw", "raw6", "icmp", "icmp6", "packet", "netlink", "unix",
)  # fmt: skip
"""In the order in which they are read: what ends soonest first."""

MAX_LINE = 1 << 16

_TCP = {
    1: "ESTABLISHED", 2: "SYN_SENT", 3: "SYN_RECV", 4: "FIN_WAIT1", 5: "FIN_WAIT2", 6: "TIME_WAIT", 7: "CLOSE",
    8: "CLOSE_WAIT", 9: "LAST_ACK", 10: "LISTEN", 11: "CLOSING", 12: "NEW_SYN_RECV",
}  # fmt: skip
_DATAGRAM = {1: "ESTABLISHED", 7: "UNCONNECTED"}
_UNIX = {0: "FREE", 1: "UNCONNECTED", 2: "CONNECTING", 3: "CONNECTED", 4: "DISCONNECTING"}
_TYPES = {1: "stream", 2: "dgram", 3: "raw", 4: "rdm", 5: "seqpacket", 10: "packet"}
_ACCEPTS = 0x10000  # include/linux/net.h: __SO_ACCEPTCON
_ETHERTYPES = {0x0003: "all", 0x0800: "ip", 0x0806: "arp", 0x86DD: "ipv6", 0x888E: "eapol", 0x88CC: "lldp"}

_INET = re.compile(
    rb" *\d{1,19}: ([0-9A-F]{8}|[0-9A-F]{32}):([0-9A-F]{4}) ([0-9A-F]{8}|[0-9A-F]{32}):([0-9A-F]{4}) ([0-9A-F]{2}) "
    rb"([0-9A-F]{8}):([0-9A-F]{8}) [0-9A-F]{2}:[0-9A-F]{8,16} [0-9A-F]{8} +(\d{1,10}) +-?(\d{1,10}) (\d{1,18})(?: |$)"
)
_UNIX_LINE = re.compile(
    rb"[0-9A-Za-z()]{1,20}: ([0-9A-F]{8}) [0-9A-F]{8} ([0-9A-F]{8}) ([0-9A-F]{4}) ([0-9A-F]{2}) +(\d{1,18})(?: (.*))?",
    re.DOTALL,
)
_PACKET = re.compile(
    rb"\S{1,20} +\d{1,10} +(\d{1,3}) +([0-9a-f]{4}) +(\d{1,10}) +(\d) +(\d{1,10}) +(\d{1,10}) +(\d{1,18}) *$"
)
_NETLINK = re.compile(rb"\S{1,20} +(\d{1,5}) +(\d{1,10}) +([0-9a-f]{8,}) .*? +(\d{1,18}) *$")


def address(text: bytes, byteorder: str = sys.byteorder) -> str:
    """`0100007F` is 127.0.0.1 on a little-endian machine; 32 digits are an IPv6 address."""
    words = struct.unpack(f">{len(text) // 8}I", bytes.fromhex(text.decode()))
    raw = struct.pack(f"{'<' if byteorder == 'little' else '>'}{len(words)}I", *words)
    return socket.inet_ntop(socket.AF_INET if len(raw) == 4 else socket.AF_INET6, raw)


def parse_inet(line: bytes, table: str, byteorder: str = sys.byteorder) -> dict[str, object] | None:
    """One line of tcp, udp, udplite, raw, icmp and their twins for IPv6. Ports in host order; queues in bytes.

    Of a raw socket the local port is its IP protocol; of a ping socket its identifier.
    """
    match = _INET.match(line)
    if match is None or len(match[1]) != len(match[3]) or (len(match[1]) == 32) != table.endswith("6"):
        return None
    state = int(match[5], 16)
    names = _TCP if table.startswith("tcp") else _DATAGRAM
    return {
        "family": table,
        "local": address(match[1], byteorder),
        "local_port": int(match[2], 16),
        "remote": address(match[3], byteorder),
        "remote_port": int(match[4], 16),
        "state": names.get(state, f"{state:#04x}"),
        "send_queue": int(match[6], 16),
        "receive_queue": int(match[7], 16),
        "uid": int(match[8]),
        "inode": int(match[10]),
    }


def parse_unix(line: bytes) -> dict[str, object] | None:
    """One line of unix. A path that starts with `@` is an abstract name, its NUL bytes shown as `@` by the kernel."""
    match = _UNIX_LINE.fullmatch(line)
    if match is None:
        return None
    kind, state = int(match[3], 16), int(match[4], 16)
    listens = bool(int(match[2], 16) & _ACCEPTS)
    record: dict[str, object] = {
        "family": "unix",
        "socket_type": _TYPES.get(kind, f"{kind:#06x}"),
        "state": "LISTEN" if listens else _UNIX.get(state, f"{state:#04x}"),
        "references": int(match[1], 16),
        "inode": int(match[5]),
    }
    if match[6]:
        put(record, "path", match[6])
    return record


def parse_packet(line: bytes) -> dict[str, object] | None:
    """One line of packet: who listens to raw frames. Interface 0 means all; `running` that it receives."""
    match = _PACKET.match(line)
    if match is None:
        return None
    kind, protocol = int(match[1]), int(match[2], 16)
    return {
        "family": "packet",
        "socket_type": _TYPES.get(kind, str(kind)),
        "ethertype": _ETHERTYPES.get(protocol, f"{protocol:#06x}"),
        "interface": int(match[3]),
        "running": match[4] == b"1",
        "uid": int(match[6]),
        "inode": int(match[7]),
    }


def parse_netlink(line: bytes) -> dict[str, object] | None:
    """One line of netlink: protocol number (include/uapi/linux/netlink.h), port id, multicast groups."""
    match = _NETLINK.match(line)
    if match is None:
        return None
    return {
        "family": "netlink",
        "netlink_protocol": int(match[1]),
        "port_id": int(match[2]),
        "groups": match[3].decode()[:32],
        "inode": int(match[4]),
    }


def parse(table: str, line: bytes) -> dict[str, object]:
    """One line of any table. A line that is not understood is kept as it stands under `raw`."""
    if table == "unix":
        record = parse_unix(line)
    elif table == "packet":
        record = parse_packet(line)
    elif table == "netlink":
        record = parse_netlink(line)
    else:
        record = parse_inet(line, table)
    if record is None:
        record = {"family": table}
        put(record, "raw", line)
    return record


def split(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """The lines of a stream, the heading left out. A line longer than `MAX_LINE` is cut into several."""
    rest = b""
    heading = True
    for block in blocks:
        lines = (rest + block).split(b"\n")
        rest = lines.pop()
        for line in lines:
            if heading:
                heading = False
            else:
                yield line
        while len(rest) > MAX_LINE:
            yield rest[:MAX_LINE]
            rest = rest[MAX_LINE:]
    if rest and not heading:
        yield rest


def join_unix(lines: Iterable[bytes]) -> Iterator[bytes]:
    """The lines of unix, with those put together that a newline in the path of a socket had parted.

    The kernel writes a path as it is. A path may so be made to look like a further line; that one holds an inode that
    no process has open.
    """
    held: bytes | None = None
    for line in lines:
        if held is None:
            held = line
        elif len(held) > 512 or _UNIX_LINE.fullmatch(line):
            yield held
            held = line
        else:
            held += b"\n" + line
    if held is not None:
        yield held
