"""The census: every container by three views that do not know of each other, and where they disagree.

processes   what runs: control groups, mounts and mount namespaces
runtimes    what runtimes have written down, and what lies on disk for it
table       the join, and its findings
acquirer    `containers.census`: the table as an item, and in the plan
where       which container, pod and layer a path of the host belongs to
"""

from __future__ import annotations

from acquirers.containers.census.acquirer import Census

__all__ = ["Census"]
