"""What the live machine says of a container that its record calls running."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from acquirers.host import Host

RUNNING = frozenset({"running", "paused", "stopping"})
_MAX_PID = 1 << 22  # PID_MAX_LIMIT, include/linux/threads.h


def verified_state(host: Host, state: str, pid: int, container_id: str) -> tuple[str, str]:
    """The state of the record, held against /proc where there is one, and what does not fit together.

    It is believed when its process is there and names the container in its cgroup or in what is mounted for it.
    """
    if state not in RUNNING or host.proc is None:
        return state, ""
    if not 0 < pid <= _MAX_PID:
        return f"{state} (stale record)", f"the record says {state}, without a process"
    for name in (b"cgroup", b"mountinfo"):
        try:
            if container_id.encode() in host.read_proc(b"%d/%s" % (pid, name)):
                return state, ""
        except OSError:
            continue
    return f"{state} (stale record)", f"the record says {state}, but process {pid} is none of this container"
