"""Pods, as far as their status says whether and how a container of theirs is reached."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from agent.delivery.kubernetes.kubectl import check_name
from agent.errors import UsageError

if TYPE_CHECKING:
    from agent.delivery.kubernetes.kubectl import Kubectl

MAX_PODS = 500


class Metadata(msgspec.Struct, frozen=True):
    name: str
    namespace: str = ""
    uid: str = ""


class Container(msgspec.Struct, frozen=True):
    name: str
    image: str = ""


class Spec(msgspec.Struct, frozen=True, rename="camel"):
    node_name: str = ""
    containers: list[Container] = []


class Waiting(msgspec.Struct, frozen=True):
    reason: str = ""
    message: str = ""


class Terminated(msgspec.Struct, frozen=True, rename="camel"):
    reason: str = ""
    exit_code: int = 0


class State(msgspec.Struct, frozen=True):
    """One of the three: Kubernetes writes `running` with the time when it began."""

    running: dict[str, str] | None = None
    waiting: Waiting | None = None
    terminated: Terminated | None = None


class ContainerStatus(msgspec.Struct, frozen=True, rename="camel"):
    name: str
    state: State = State()
    image_id: str = msgspec.field(name="imageID", default="")


class Condition(msgspec.Struct, frozen=True):
    type: str
    status: str = ""
    reason: str = ""
    message: str = ""


class Status(msgspec.Struct, frozen=True, rename="camel"):
    phase: str = ""
    container_statuses: list[ContainerStatus] = []
    conditions: list[Condition] = []


class Pod(msgspec.Struct, frozen=True):
    metadata: Metadata
    spec: Spec = Spec()
    status: Status = Status()

    def container(self, named: str) -> str:
        """The container that is meant, which runs. Raises `UsageError`."""
        names = [one.name for one in self.spec.containers]
        if named and named not in names:
            raise UsageError(f"the pod {self.metadata.name} has no container {named!r}, but {', '.join(names)[:300]}")
        if not named and len(names) != 1:
            raise UsageError(
                f"the pod {self.metadata.name} has several containers, name one with -c: {', '.join(names)[:300]}"
            )
        chosen = check_name(named or names[0], "a container")
        state = next((one.state for one in self.status.container_statuses if one.name == chosen), State())
        if state.running is None:
            raise UsageError(f"the container {chosen} of {self.metadata.name} does not run: {why_not_running(state)}")
        return chosen

    def image(self, container: str) -> str:
        """By its digest, where the node says it."""
        return next((one.image_id for one in self.status.container_statuses if one.name == container), "")[:300]


class PodList(msgspec.Struct, frozen=True):
    items: list[Pod]


def why_not_running(state: State) -> str:
    if state.waiting is not None:
        return f"{state.waiting.reason[:100]} {state.waiting.message[:300]}".strip() or "it waits"
    if state.terminated is not None:
        return f"it ended ({state.terminated.reason[:100]}, {state.terminated.exit_code})"
    return "it was not started"


def one_pod(kubectl: Kubectl, name: str) -> Pod:
    """Raises `UsageError` where there is none, `StoreError`."""
    return kubectl.get(Pod, "pod", check_name(name, "a pod"))


def selected_pods(kubectl: Kubectl, selector: str) -> list[Pod]:
    """Those that run and have the labels, by name. Raises `UsageError` where there is none, `StoreError`."""
    found = kubectl.get(PodList, "pods", "--selector", selector, "--field-selector", "status.phase=Running").items
    if not found:
        raise UsageError(f"no pod that runs has the labels {selector[:200]!r}")
    if len(found) > MAX_PODS:
        raise UsageError(f"{len(found)} pods have the labels {selector[:200]!r}: choose fewer than {MAX_PODS}")
    return sorted(found, key=lambda pod: pod.metadata.name)
