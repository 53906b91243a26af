"""Logs that belong to no one container: of runtimes, of the agents of AWS, of Kubernetes, and what is held unlinked.

`places` says what a place is and which of its names are taken, `groups` which places there are (data only), `pods`
which directories of `/var/log/pods` are nobody else's, `archive` makes one archive of the places of a group, `unlinked`
finds logs that have no name any more, and `acquirer` turns that into items. Raw bytes only: `impound export logs`
decodes them, elsewhere and later.
"""

from __future__ import annotations

from acquirers.logs.acquirer import RuntimeLogs, SessionLogs

__all__ = ["RuntimeLogs", "SessionLogs"]
