"""Every runtime's own knowledge, one after the other. A runtime that fails costs itself only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from acquirers.base import Gap, Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from acquirers.containers.known import Known
    from acquirers.host import Host

MAX_KNOWN = 50_000


def known(host: Host, gaps: list[Gap]) -> Iterator[Known]:
    """What all runtimes know; what cannot be said is a gap."""
    left = MAX_KNOWN
    for name, ask in _runtimes().items():
        try:
            for one in ask(host, gaps):
                left -= 1
                if left < 0:
                    gaps.append(Gap(Reason.LIMIT, f"more than {MAX_KNOWN} containers: the others are not listed"))
                    return
                yield one
        except Exception as error:  # noqa: BLE001 - one runtime must never cost the others
            detail = f"{name}: {type(error).__name__}: {str(error)[:200]}"
            gaps.append(Gap(Reason.INTERNAL, detail))


def _runtimes() -> dict[str, Callable[[Host, list[Gap]], Iterator[Known]]]:
    from acquirers.containers.containerd.known import known as containerd
    from acquirers.containers.docker.known import known as docker
    from acquirers.containers.storage import known as podman

    return {"docker": docker, "containerd": containerd, "podman": podman}
