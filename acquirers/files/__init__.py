"""Reading files so that nothing about them changes and nothing about them is lost.

`tree` opens a directory of the examined machine as a read-only, no-access-time clone; `walk` goes through it by
directory descriptors; `content` reads one regular file with its holes; `pax` and `archive` write what was read as a
PAX tar stream. Nothing is re-exported here: `acquirers.host` stands on `tree` and below the rest.
"""

from __future__ import annotations
