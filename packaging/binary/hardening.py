"""The loader and OpenSSL, made to look at no file of the machine.

Of the loader these are the list of libraries to preload, its cache and its default directories. Of each OpenSSL, and
there are two, the directories of its configuration, which can name a library to be loaded, and of engines and modules.
The strings stand in read-only data; others of the same length, which name nothing that can exist, take their place.
"""

from __future__ import annotations

import re

# A directory below a device, which no kernel resolves.
_NOWHERE = b"/dev/null/"
_DIRECTORIES = re.compile(rb'(?:OPENSSLDIR|ENGINESDIR|MODULESDIR): "(/[^"]{10,200})"')
_COUNTS = (1, 2)
"""The default directories stand there twice: for the search, and for the list of what is known."""
_ALWAYS = (b"/etc/ld.so.preload\0", b"/etc/ld.so.cache\0", b"/lib/\0/usr/lib/\0")
_MACHINE = {
    "x86_64": (b"/lib/x86_64-linux-gnu/\0/usr/lib/x86_64-linux-gnu/\0",),
    "aarch64": (b"/lib/aarch64-linux-gnu/\0/usr/lib/aarch64-linux-gnu/\0",),
}


def loader(data: bytes, machine: str) -> bytes:
    """The loader's file with these strings replaced. Ends the build where one is not there."""
    out = data
    for old in (*_ALWAYS, *_MACHINE[machine]):
        if out.count(old) not in _COUNTS:
            raise SystemExit(f"the loader holds {old!r} {out.count(old)} times: look at what has changed in it")
        new = b"\0".join(_nowhere(part) for part in old.split(b"\0"))
        out = out.replace(old, new)
    return out


def openssl(data: bytes, name: str) -> bytes:
    """A shared object with the directories of the OpenSSL in it replaced. Ends the build where they are not told."""
    found = set(_DIRECTORIES.findall(data))
    if not found:
        if b"openssl.cnf" in data:
            raise SystemExit(f"{name} holds an OpenSSL that does not tell its directories: look at what has changed")
        return data
    for directory in sorted(found, key=len, reverse=True):
        data = data.replace(directory, _nowhere(directory))
    return data


def _nowhere(path: bytes) -> bytes:
    """Of the same length; ends with a slash where it did."""
    if not path:
        return path
    long = (_NOWHERE + b"x" * len(path))[: len(path)]
    return long[:-1] + path[-1:]
