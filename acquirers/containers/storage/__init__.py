"""containers/storage from disk alone: what podman, buildah and CRI-O keep, of root and of everybody else.

`settings`, `processes` and `roots` find where it lies; `lists`, `model`, `libpod` and `databases` are its records;
`areas`, `layers`, `spec`, `live` and `container` read what they say; `survey` makes the `store`, which is what is kept
of them; `contents`, `about`, `items` and `acquirer` turn that into items.
"""

from __future__ import annotations

from acquirers.containers.storage.acquirer import Podman, container_names
from acquirers.containers.storage.known import known

__all__ = ["Podman", "container_names", "known"]
