"""Docker from disk alone: the classic store (overlay2, fuse-overlayfs), its containers, layers, volumes and logs.

`settings`, `daemons` and `roots` find where it lies; `areas`, `config`, `layers`, `live` and `container` read what the
records say; `store` is the survey of them that is kept; `contents`, `about`, `items` and `acquirer` turn that into
items.
"""

from __future__ import annotations

from acquirers.containers.docker.acquirer import Docker, container_names

__all__ = ["Docker", "container_names"]
