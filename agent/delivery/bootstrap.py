"""Brings the agent into the memory of a machine over a channel of bytes, and starts it there.

What is run on the far side is one fixed script of POSIX sh, which the far side's own shell gets as an argument; nothing
in it is secret, and nothing of the job. It and the controller take turns, so that no program reads ahead of what is
meant for the next:

    host -> controller   impound-1 is ARCHITECTURE
    controller -> host   LENGTH SHA256
    host -> controller   impound-1 want
    controller -> host   the agent's file, just these bytes
    host -> controller   impound-1 have WAY DIGEST

and from there on the agent's own channel. Where a python3 or perl of the host can make one, the file stands in a memfd;
else in a file in /dev/shm or /run that loses its name before a byte of it is written. Neither touches a disk. The
digest is that of what arrived: it tells of a channel that damaged it. A host that lies can lie about that as well.
"""

from __future__ import annotations

import os
import re
import select
import time
from typing import TYPE_CHECKING

import msgspec

from agent.errors import UnreachableError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agent.delivery.released import Agent

WAYS = ("memfd", "/dev/shm", "/run")  # noqa: S108 - on the host, and checked there to be memory
INSTALLED = "installed:/opt/impound/bin/impound"
"""What a package put on the host: it is started where its digest is that of the agent, which is not sent."""
ON_DISK = "disk:"
"""Before a directory that is no memory: only where a person names it. The file there has no name either."""
DEADLINE_S = 60.0
"""For each word of the host."""
STALLED_S = 60.0
"""So long may the host take nothing of the file."""
MAX_NOISE = 64 << 10
"""Bytes that a host may say before its first word: what its shell's start-up files print."""
MAX_LINE = 4096
_CHUNK = 1 << 18

_PYTHON = """\
import os, sys, hashlib
def new():
    try:
        return os.memfd_create("impound", 17)
    except OSError:
        return os.memfd_create("impound", 1)
file = new()
if sys.argv[1] == "try":
    sys.exit(0)
left, digest = int(sys.argv[1]), hashlib.sha256()
os.write(1, b"impound-1 want" + bytes([10]))
while left:
    data = os.read(0, min(left, 1 << 18))
    if not data:
        sys.exit(3)
    left -= len(data)
    digest.update(data)
    while data:
        data = data[os.write(file, data):]
if digest.hexdigest() != sys.argv[2]:
    os.write(1, b"impound-1 wrong " + digest.hexdigest().encode() + bytes([10]))
    sys.exit(3)
os.write(1, b"impound-1 have memfd " + digest.hexdigest().encode() + bytes([10]))
os.execv("/proc/self/fd/%d" % file, sys.argv[3:])
"""
"""Without a quote of the other kind or a backslash: it stands in the script below. 17: MFD_CLOEXEC and MFD_EXEC, the
latter of which kernels before 6.3 do not know."""

_PERL = """\
$number = shift; $name = "impound";
$fd = syscall($number, $name, 17); $fd = syscall($number, $name, 1) if $fd < 0; exit 9 if $fd < 0;
eval { require Digest::SHA; 1 } or exit 9;
exit 0 if $ARGV[0] eq "try";
($left, $wanted) = splice(@ARGV, 0, 2); $digest = Digest::SHA->new(256); $end = chr(10); $| = 1;
syswrite(STDOUT, "impound-1 want$end");
open($file, "+<&=", $fd) or exit 3; binmode($file); binmode(STDIN);
while ($left > 0) {
  $got = sysread(STDIN, $data, $left < 262144 ? $left : 262144); exit 3 if not $got;
  $left -= $got; $digest->add($data);
  for ($at = 0; $at < $got; $at += $put) { $put = syswrite($file, $data, $got - $at, $at); exit 3 if not $put; }
}
$found = $digest->hexdigest;
if ($found ne $wanted) { syswrite(STDOUT, "impound-1 wrong $found$end"); exit 3; }
syswrite(STDOUT, "impound-1 have memfd $found$end");
exec { "/proc/self/fd/$fd" } @ARGV; exit 3;
"""

SCRIPT = f"""\
umask 077
ways=$1; shift
is=$(uname -m) || is=unknown
echo "impound-1 is $is"
read -r size sum || exit 3
case $size in ""|*[!0-9]*) exit 3;; esac
case $is in x86_64) call=319;; aarch64) call=279;; *) call=;; esac
py='{_PYTHON}'
pl='{_PERL}'
memory() {{
  type= how=
  while read -r device at kind options rest; do
    if [ "$at" = "$1" ]; then type=$kind how=$options; fi
  done </proc/mounts
  case $type in tmpfs|ramfs) ;; *) return 1;; esac
  case ,$how, in *,noexec,*|*,ro,*) return 1;; esac
}}
sum_of_8() {{
  found=$(sha256sum </proc/self/fd/8 2>/dev/null || openssl dgst -sha256 -r </proc/self/fd/8 2>/dev/null) || return 1
  echo "${{found%% *}}"
}}
for way in $ways; do
  if [ "$way" = memfd ]; then
    for python in python3 /usr/libexec/platform-python; do
      if command -v $python >/dev/null 2>&1 && $python -I -S -c "$py" try >/dev/null 2>&1 </dev/null; then
        exec $python -I -S -c "$py" "$size" "$sum" "$@"
      fi
    done
    if [ -n "$call" ] && command -v perl >/dev/null 2>&1 && perl -e "$pl" $call try >/dev/null 2>&1 </dev/null; then
      exec perl -e "$pl" $call "$size" "$sum" "$@"
    fi
    continue
  fi
  case $way in installed:*)
    exec 8<"${{way#*:}}" || exit 3
    found=$(sum_of_8) || found=
    if [ "$found" != "$sum" ]; then echo "impound-1 wrong ${{found:-unchecked}}"; exit 3; fi
    echo "impound-1 have $way $found"
    shift
  exec /proc/self/fd/8 "$@";;
  esac
  directory=${{way#disk:}}
  [ "$directory" != "$way" ] || memory "$way" || continue
  command -v head >/dev/null 2>&1 || continue
  file=$directory/.impound-$$
  (set -C; : >"$file") 2>/dev/null || continue
  chmod 700 "$file" && exec 8<"$file" 9>>"$file"
  rm -f "$file"
  echo "impound-1 want"
  head -c "$size" >&9 || exit 3
  exec 9>&-
  found=$(sum_of_8) || found=
  if [ -n "$found" ] && [ "$found" != "$sum" ]; then echo "impound-1 wrong $found"; exit 3; fi
  echo "impound-1 have $way ${{found:-unchecked}}"
  shift
  exec /proc/self/fd/8 "$@"
done
echo "impound-1 cannot"
exit 3
"""

_IS = re.compile(r"impound-1 is ([A-Za-z0-9_]{1,32})")
_HAVE = re.compile(r"impound-1 have ([!-~]{1,200}) ([0-9a-f]{64}|unchecked)")
_WRONG = re.compile(r"impound-1 wrong ([0-9a-f]{64}|unchecked)")


class Brought(msgspec.Struct, frozen=True):
    """How the agent came into the host's memory."""

    architecture: str
    way: str
    sha256: str
    """Of the agent's file, as the controller has it."""
    checked: bool
    """Whether the host could compute it as well."""


def argv(command: Sequence[str], ways: Sequence[str] = WAYS) -> list[str]:
    """What is run on the host: ends as `impound` with the arguments `command`."""
    return ["sh", "-c", SCRIPT, "impound", " ".join(ways), "impound", *command]


def bring(reads: int, writes: int, choose: Callable[[str], Agent], *, installed: bool = False) -> Brought:
    """Speaks with the script behind two descriptors, and brings the agent that `choose` gives for an architecture.

    `reads`: what the host reads; `writes`: what it writes. `installed`: it has the agent already. Raises
    `UnreachableError` where the host does not play along, `UsageError` where it cannot, and what `choose` raises.
    """
    words = _Words(writes)
    found = words.expect(_IS, "what kind of machine it is", noise=MAX_NOISE)
    agent = choose(found[1])
    _send(reads, memoryview(f"{agent.size} {agent.sha256}\n".encode("ascii")))
    if installed:
        have = words.expect(_HAVE, f"that its {INSTALLED.partition(':')[2]} is the agent")
    else:
        words.expect(re.compile("impound-1 want"), "that it is ready for the agent")
        _send_file(reads, agent)
        have = words.expect(_HAVE, "what it has")
    if have[2] not in {agent.sha256, *([] if installed else ["unchecked"])}:
        raise UnreachableError("the host has something else than the agent that it should start: its digest differs")
    return Brought(found[1], have[1], agent.sha256, have[2] != "unchecked")


def _send_file(reads: int, agent: Agent) -> None:
    left = agent.size
    with open(agent.path, "rb") as file:
        while left and (data := file.read(min(left, _CHUNK))):
            _send(reads, memoryview(data))
            left -= len(data)
    if left:
        raise UsageError(f"{agent.path} became shorter while it was sent")


class _Words:
    """Lines that the script says: read byte by byte, for what follows the last one is the agent's."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._said = ""
        """The end of what came and was none of them."""

    def expect(self, pattern: re.Pattern[str], what: str, *, noise: int = 0) -> re.Match[str]:
        """The next line, or the next one that is of this protocol where `noise` bytes of others may come before."""
        deadline, skipped = time.monotonic() + DEADLINE_S, 0
        while True:
            line = self._line(deadline, what)
            text = line.decode("ascii", "replace").rstrip("\r")
            if match := pattern.fullmatch(text):
                return match
            if text == "impound-1 cannot":
                raise UsageError(
                    "the host has no place in memory that the agent could start from: no python3 or perl that makes a "
                    f"memfd, and none of {', '.join(WAYS[1:])} is a tmpfs that is writable and allows programs. "
                    "Name another tmpfs with --place"
                )
            if wrong := _WRONG.fullmatch(text):
                raise UnreachableError(f"what the host has is not the agent that it should start: SHA-256 {wrong[1]}")
            skipped += len(line) + 1
            self._said = text[-200:]
            if text.startswith("impound-1 ") or skipped > noise:
                raise UnreachableError(f"the host did not say {what}, but: {text[:200]!r}")

    def _line(self, deadline: float, what: str) -> bytes:
        line = bytearray()
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        while True:
            left = deadline - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000 + 1):
                raise UnreachableError(f"the host did not say {what} in {DEADLINE_S:.0f} s")
            byte = os.read(self._fd, 1)
            if not byte:
                said = line.decode("ascii", "replace")[-200:] or self._said
                also = f", and after it had said {said!r}" if said else ""
                raise UnreachableError(f"the host closed the channel before it said {what}{also}")
            if byte == b"\n":
                return bytes(line)
            line += byte
            if len(line) > MAX_LINE:
                raise UnreachableError(f"the host said a line of more than {MAX_LINE} bytes before it said {what}")


def _send(fd: int, data: memoryview) -> None:
    """Raises `UnreachableError` where nobody takes it."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    os.set_blocking(fd, False)  # else a pipe with room for a little waits until it has taken all
    while data:
        if not poll.poll(STALLED_S * 1000):
            raise UnreachableError(f"the host takes nothing of the agent for {STALLED_S:.0f} s")
        try:
            data = data[os.write(fd, data[:_CHUNK]) :]
        except BlockingIOError:
            continue
        except OSError as error:
            raise UnreachableError(f"the host went away while it was sent the agent: {error.strerror}") from error
