"""`--layers upper`: of a container's root only what its writable layer holds, as the container sees it.

A directory is in the writable layer if anything below it is. What is mounted into the container is no layer of an
image, and is kept with the way that leads to it.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from acquirers.mounts import Mount

_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR})


class UpperOnly:
    """A filter of absolute paths. `upper` is the open writable layer, and stays the caller's."""

    def __init__(self, upper: int, mounts: Mapping[bytes, Mount]) -> None:
        self._upper = upper
        self._points = frozenset(mounts)
        ways = set()
        for point in mounts:
            here = point.rpartition(b"/")[0]
            while here:
                ways.add(here)
                here = here.rpartition(b"/")[0]
        self._ways = frozenset(ways)

    def __call__(self, path: bytes) -> bool:
        if path in self._points or path in self._ways or self._mounted(path):
            return True
        try:
            os.stat(path.lstrip(b"/"), dir_fd=self._upper, follow_symlinks=False)
        except OSError as error:
            return error.errno not in _ABSENT  # of a path that is too long, nothing is known
        return True

    def _mounted(self, path: bytes) -> bool:
        here = path.rpartition(b"/")[0]
        while here:
            if here in self._points:
                return True
            here = here.rpartition(b"/")[0]
        return False
