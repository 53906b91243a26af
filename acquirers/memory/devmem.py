"""/dev/mem: diagnosed, never read.

With CONFIG_STRICT_DEVMEM, as every distribution has it, it refuses RAM above 1 MiB and gives silent zeros below; where
it is not strict, it also gives device registers, which a read can change. Since neither shows in what was read, it is
no source.
"""

from __future__ import annotations

import os
import re
import stat
import zlib
from typing import TYPE_CHECKING

from acquirers.host import MAX_CONFIG
from acquirers.memory.source import Candidate

if TYPE_CHECKING:
    from acquirers.host import Host

NAME = "devmem"
PATH = b"/dev/mem"
_RELEASE = re.compile(r"[\w.+~-]{1,100}", re.ASCII)


def diagnose(host: Host) -> Candidate:
    """Why it is not read: whether it is there at all, and whether it would give anything."""
    config = _config(host)
    try:
        fd = host.open_path(PATH)
    except OSError:
        built = _says(config, b"CONFIG_DEVMEM")
        return Candidate(NAME, None, "not there" + (": not built into this kernel" if built is False else ""))
    try:
        device = stat.S_ISCHR(os.fstat(fd).st_mode)
    finally:
        os.close(fd)
    if not device:
        return Candidate(NAME, None, "masked: not a device")
    if host.facts.lockdown in {"integrity", "confidentiality"}:
        return Candidate(NAME, None, f"never read; lockdown ({host.facts.lockdown}) refuses it as well")
    strict = {
        True: "this kernel refuses RAM there (STRICT_DEVMEM)",
        False: "not strict here: reading it can touch device registers",
        None: "whether this kernel is strict (STRICT_DEVMEM) is not known",
    }
    return Candidate(NAME, None, "never read; " + strict[_says(config, b"CONFIG_STRICT_DEVMEM")])


def _says(config: bytes, name: bytes) -> bool | None:
    """Whether a kernel's configuration has an option; None if there is no configuration."""
    if not config:
        return None
    return re.search(rb"^" + name + rb"=y$", config, re.MULTILINE) is not None


def _config(host: Host) -> bytes:
    """The running kernel's configuration: /proc/config.gz or /boot/config-RELEASE; empty if neither can be read."""
    try:
        return zlib.decompressobj(wbits=31).decompress(host.read_proc(b"config.gz", MAX_CONFIG), MAX_CONFIG)
    except (OSError, zlib.error):
        pass  # few kernels have it
    release = host.facts.kernel
    if not _RELEASE.fullmatch(release):
        return b""
    try:
        return host.read(b"/boot/config-" + release.encode())
    except OSError:
        return b""
