"""bbolt databases, read without a lock and without a daemon: those of containerd, Docker, the ECS agent, libpod.

    with bolt.open_file(host, b"/var/lib/containerd/io.containerd.metadata.v1.bolt/meta.db") as source:
        reading = bolt.read(source, take)          # `take(database)` may be called again: see `read`

`source` reads bytes; `meta` finds the roots; `pages` checks and caches pages; `bucket` walks the tree; `database` joins
them and copes with a daemon that writes meanwhile; `carve` looks at what no root leads to. Everything in such a file
is hostile: whatever it holds, memory and time are bounded by its size, and nothing but `BoltError` is raised.
"""

from __future__ import annotations

from acquirers.bolt.bucket import Bucket
from acquirers.bolt.carve import Carved, carve
from acquirers.bolt.database import Database, Reading, open_database, read
from acquirers.bolt.errors import BoltError, Fault
from acquirers.bolt.source import BytesSource, FileSource, Source, open_file

__all__ = [
    "BoltError",
    "Bucket",
    "BytesSource",
    "Carved",
    "Database",
    "Fault",
    "FileSource",
    "Reading",
    "Source",
    "carve",
    "open_database",
    "open_file",
    "read",
]
