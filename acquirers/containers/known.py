"""What a runtime's own records and directories tell of one container, in the same words for every runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from acquirers.base import Gap, Layers, Reason

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from acquirers.base import Scope

UNCLAIMED = "unclaimed"
"""The state of a writable layer that no container claims."""
RUNNING = frozenset({"running", "paused", "restarting"})


_FEWER = frozenset({Reason.LIMIT, Reason.DENIED, Reason.NOT_CROSSED})


def unknown(denied: Iterable[bytes] = (), found: Iterable[Gap] = (), store: Iterable[Gap] = ()) -> Iterator[Gap]:
    """What keeps containers from being known: of a search for data roots, and of what one of them holds."""
    yield from (Gap(Reason.DENIED, "this user may not look at it", path) for path in denied)
    yield from found
    yield from (gap for gap in store if gap.reason in _FEWER)


def counted(number: int, what: str) -> str:
    """`1 home`, `2 homes`."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def limits_of(scope: Scope, places: int) -> str:
    """What a probe says where only Docker's layers can be proved, and where `places` could not be looked at."""
    told = [f"{counted(places, 'further place')} could not be looked at"] if places else []
    if scope.layers is Layers.CHANGED:
        told.append("its image layers are all taken: only those of Docker's own store can be proved on the machine")
    return "; ".join(told)


class Known(msgspec.Struct, frozen=True):
    """One container, or a layer that looks like one. Paths are native and absolute; nothing here is believed."""

    runtime: str
    """docker, containerd, podman, crio."""
    id: str
    name: str = ""
    state: str = ""
    pid: int = 0
    image: str = ""
    pod: str = ""
    namespace: str = ""
    """Of Kubernetes, or of containerd."""
    pod_uid: str = ""
    task: str = ""
    """ARN of an ECS task."""
    root: bytes = b""
    """The data root whose records say so."""
    upper: bytes = b""
    """The writable layer."""
    lowers: tuple[bytes, ...] = ()
    """The layers below it, the topmost first."""
    logs: tuple[bytes, ...] = ()
    other: tuple[bytes, ...] = ()
    """Further directories that are its own: records, volumes."""
    record: bool = True
    """The runtime's records know it."""
    disk: bool = True
    """Its writable layer was found on disk."""
    sandbox: bool = False
    """It only holds a pod's namespaces."""
