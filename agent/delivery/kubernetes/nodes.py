"""A node: a Job of its own that runs there, with the machine's root read-only and its processes in sight.

It has no token, asks the API server nothing, is started once, and is deleted at the end. Its agent is the container
image of the release, by digest; job, evidence and authority go over the channel that `kubectl attach` makes.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from agent.delivery.kubernetes.kubectl import check_name
from agent.delivery.kubernetes.pods import PodList, State, why_not_running
from agent.errors import AuthorityError, StoreError, UnreachableError, UsageError

if TYPE_CHECKING:
    from agent.delivery.kubernetes.kubectl import Kubectl
    from agent.delivery.kubernetes.pods import Pod

START_S = 300.0
"""Until the pod runs: an image may have to be pulled."""
LOOK_S = 1.0
CONTAINER = "impound"
HOST = "/host"
_IMAGE = re.compile(r"[a-z0-9][A-Za-z0-9._:/-]{0,400}@sha256:[0-9a-f]{64}")
_HOPELESS = {"ErrImageNeverPull", "InvalidImageName", "CreateContainerConfigError", "CreateContainerError"}
_PATIENCE = {"ErrImagePull", "ImagePullBackOff"}
PATIENCE_S = 60.0
"""Kubernetes tries to pull again; after so long it will not come."""


def check_image(image: str) -> str:
    """Raises `UsageError` for an image that is not named by its digest: others can change their meaning."""
    if not _IMAGE.fullmatch(image):
        raise UsageError(f"--image is REGISTRY/NAME@sha256:DIGEST, by digest, not {image[:200]!r}")
    return image


def job_of(name: str, node: str, image: str, arguments: list[str]) -> dict[str, Any]:
    """The Job, as Kubernetes takes it."""
    container = {
        "name": CONTAINER,
        "image": image,
        "args": arguments,
        "stdin": True,
        "stdinOnce": True,
        "securityContext": {"privileged": True, "readOnlyRootFilesystem": True, "runAsUser": 0, "runAsGroup": 0},
        "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"memory": "1Gi"}},
        "volumeMounts": [{"name": "host", "mountPath": HOST, "readOnly": True, "mountPropagation": "HostToContainer"}],
    }
    spec = {
        "nodeName": node,
        "hostPID": True,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 60,
        "tolerations": [{"operator": "Exists"}],
        "containers": [container],
        "volumes": [{"name": "host", "hostPath": {"path": "/", "type": "Directory"}}],
    }
    labels = {"app.kubernetes.io/name": "impound", "impound/run": name}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "labels": labels},
        "spec": {"backoffLimit": 0, "template": {"metadata": {"labels": labels}, "spec": spec}},
    }


def start(kubectl: Kubectl, name: str, node: str, image: str, arguments: list[str]) -> Pod:
    """Makes the Job and waits until its pod runs. Raises `StoreError`, `UsageError`; then the Job is gone again."""
    job = job_of(check_name(name, "a Job"), check_name(node, "a node"), check_image(image), arguments)
    with contextlib.suppress(AuthorityError):  # who may not look at nodes is told later, if there is no such one
        kubectl.get(_Named, "node", node)
    kubectl.run("create", "--filename", "-", given=msgspec.json.encode(job))
    try:
        return _running(kubectl, name)
    except BaseException:
        delete(kubectl, name)
        raise


def delete(kubectl: Kubectl, name: str, warn: Callable[[str], object] = lambda _line: None) -> None:
    """Deletes the Job and its pod. `warn` is told where that failed: somebody has to do it by hand."""
    try:
        kubectl.run("delete", "job", name, "--cascade=foreground", "--ignore-not-found", "--wait=false")
    except StoreError as error:
        warn(f"the Job {name} could not be deleted, do it by hand: {error}")


class _Named(msgspec.Struct, frozen=True):
    metadata: dict[str, Any]


def _running(kubectl: Kubectl, name: str) -> Pod:
    """Raises `UnreachableError` where it does not run in time, with what Kubernetes says."""
    began, why = time.monotonic(), "there is no pod of it"
    while (waited := time.monotonic() - began) < START_S:
        for pod in kubectl.get(PodList, "pods", "--selector", f"impound/run={name}").items:
            state = next((one.state for one in pod.status.container_statuses if one.name == CONTAINER), State())
            if state.running is not None:
                return pod
            why = _why(pod, state)
            reason = state.waiting.reason if state.waiting is not None else ""
            if reason in _HOPELESS or state.terminated is not None or pod.status.phase == "Failed":
                raise UnreachableError(f"the pod on the node does not run: {why!r}")
            if reason in _PATIENCE and waited > PATIENCE_S:
                raise UnreachableError(f"the image cannot be pulled on the node: {why!r}")
        time.sleep(LOOK_S)
    raise UnreachableError(f"the pod on the node did not run in {START_S:.0f} s: {why!r}")


def _why(pod: Pod, state: State) -> str:
    scheduled = next(
        (one for one in pod.status.conditions if one.type == "PodScheduled" and one.status == "False"), None
    )
    if scheduled is not None:
        return f"{scheduled.reason[:100]} {scheduled.message[:300]}"
    return why_not_running(state)
