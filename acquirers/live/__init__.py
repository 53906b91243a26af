"""The acquirer `live.files`: a running container as it sees itself, volumes, tmpfs and secrets included.

acquirer               which containers, and one item for each
groups                 the containers that run, found from processes alone
entering, calls        their mounts, cloned in their namespace and handed over
verdicts, surroundings what is done with each mount, and what of it is the machine's own
inside                 the same, where impound itself is in the container
trees, upper           the files
kernel                 what the kernel says of the first process
archive                one item
"""

from __future__ import annotations

from acquirers.live.acquirer import LiveFiles

__all__ = ["LiveFiles"]
