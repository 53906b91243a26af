"""From inside a container: which of its mounts are the machine's, told by what its own root is made of.

There is no list of the machine's mounts in there. But the root's own options name the writable layer as the machine
has it, and a directory of the machine that is mounted into the container and holds that layer is the machine, or all of
its containers: it would be read once more, with this container in it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from acquirers.files.deadline import Deadlined
from acquirers.live import calls
from acquirers.live.verdicts import Judged, Judgement, Verdict, judged

if TYPE_CHECKING:
    from acquirers.live.entering import Entered

_SECONDS = 5.0
_NEVER = frozenset({b"overlay", b"tmpfs", b"ramfs"})


def own_layers(entered: Entered, judgement: Judgement) -> None:
    """Marks such mounts as the machine's."""
    upper = judgement.root.option(b"upperdir") if judgement.root.fstype == b"overlay" else None
    if not upper:
        return
    guard = Deadlined(_SECONDS)
    try:
        for point, mount in list(judgement.mounts.items()):
            if mount.local and mount.fstype not in _NEVER and _holds(guard, entered, mount, upper):
                why = "a directory of the machine that holds the layers of this container"
                judgement.mounts[point] = judged(mount, Verdict.MACHINE, why)
    finally:
        guard.close()


def _holds(guard: Deadlined, entered: Entered, mount: Judged, upper: bytes) -> bool:
    """Whether the layer is found in it. Where its filesystem begins in the machine's tree is not known."""
    root = mount.root.rstrip(b"/")
    parts = upper.split(b"/")
    if root and upper.startswith(root + b"/"):
        return _is_there(guard, entered.fd, mount.point + upper[len(root) :])
    # The whole of a filesystem, mounted on the machine at any of the directories above the layer.
    tails = [b"/" + b"/".join(parts[start:]) for start in range(1, len(parts) - 1)]
    return not root and any(_is_there(guard, entered.fd, mount.point + tail) for tail in tails)


def _is_there(guard: Deadlined, root: int, path: bytes) -> bool:
    try:
        os.close(guard.call(calls.open_below, root, path))
    except OSError:
        return False
    return True
