"""Who the machine says it is: the EC2 identity document with its signature, ECS task metadata, Kubernetes data.

Nothing here ever asks for credentials. The instance metadata service is asked only where the firmware says EC2, so that
a run on any other machine sends no packet; every request has a short deadline, and answers are bounded.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from acquirers.root import Root

IMDS = ("169.254.169.254", 80)
DEADLINE_S = 0.5
"""For all requests to one service together."""
MAX_ANSWER = 256 * 1024
_DMI = ("sys_vendor", "board_vendor", "bios_vendor")


def on_ec2() -> bool:
    """Whether the firmware names Amazon EC2 (Nitro: DMI; Xen: the hypervisor uuid starts with ec2)."""
    for path in (*(f"/sys/class/dmi/id/{name}" for name in _DMI), "/sys/hypervisor/uuid"):
        try:
            with open(path, encoding="ascii", errors="replace") as file:
                text = file.read(100).strip().lower()
        except OSError:
            continue
        if "amazon ec2" in text or (path.endswith("uuid") and text.startswith("ec2")):
            return True
    return False


def _ask(address: tuple[str, int], method: str, path: str, headers: Mapping[str, str], until: float) -> bytes | None:
    """One bounded HTTP answer, or None. Follows no redirect and reads no proxy setting."""
    left = until - time.monotonic()
    if left <= 0:
        return None
    connection = http.client.HTTPConnection(*address, timeout=left)
    try:
        connection.request(method, path, headers=dict(headers))
        answer = connection.getresponse()
        body = answer.read(MAX_ANSWER + 1)
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    return body if answer.status == 200 and len(body) <= MAX_ANSWER else None


def ec2(address: tuple[str, int] = IMDS, deadline_s: float = DEADLINE_S) -> dict[str, object]:
    """The identity document as it was sent, its RSA-2048 signature (PKCS#7, base64), and what the document names.

    IMDSv2 only. The document carries no nonce: it proves which instance once asked, not that this one did now.
    """
    until = time.monotonic() + deadline_s
    token = _ask(address, "PUT", "/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"}, until)
    if not token or not re.fullmatch(rb"[\x21-\x7e]{1,200}", token):
        return {}
    headers = {"X-aws-ec2-metadata-token": token.decode("ascii")}
    document = _ask(address, "GET", "/latest/dynamic/instance-identity/document", headers, until)
    signature = _ask(address, "GET", "/latest/dynamic/instance-identity/rsa2048", headers, until)
    if document is None:
        return {}
    found: dict[str, object] = {"document": document, "rsa2048": signature or b""}
    parsed = _object(document)
    for ours, theirs, pattern in (
        ("instance_id", "instanceId", r"i-[0-9a-f]{8,32}"),
        ("region", "region", r"[a-z0-9-]{4,32}"),
        ("account_id", "accountId", r"\d{12}"),
        ("instance_type", "instanceType", r"[A-Za-z0-9.-]{1,40}"),
        ("image_id", "imageId", r"ami-[0-9a-f]{8,32}"),
    ):
        value = parsed.get(theirs)
        if isinstance(value, str) and re.fullmatch(pattern, value):
            found[ours] = value
    return found


def _object(data: bytes) -> dict[str, object]:
    try:
        parsed = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return parsed if isinstance(parsed, dict) else {}


def ecs(environ: Mapping[str, str], deadline_s: float = DEADLINE_S) -> dict[str, object]:
    """Task metadata (version 4), asked only at the link-local or loopback address that ECS itself uses."""
    uri = urlsplit(environ.get("ECS_CONTAINER_METADATA_URI_V4", ""))
    if uri.scheme != "http" or uri.hostname not in {"169.254.170.2", "127.0.0.1"}:
        return {}
    until = time.monotonic() + deadline_s
    address = (uri.hostname, uri.port or 80)
    task = _ask(address, "GET", uri.path.rstrip("/") + "/task", {}, until)
    container = _ask(address, "GET", uri.path, {}, until)
    found: dict[str, object] = {}
    if task is not None:
        found["task"] = task
        arn = _object(task).get("TaskARN")
        if isinstance(arn, str):
            found["task_id"] = arn.rpartition("/")[2][:64]
    if container is not None:
        found["container"] = container
    return found


def kubernetes(root: Root, environ: Mapping[str, str]) -> dict[str, object]:
    """Namespace and downward data where a pod was given them; the service-account token is never opened."""
    found: dict[str, object] = {}
    for key, names in (("node", ("NODE_NAME",)), ("pod", ("POD_NAME",)), ("namespace", ("POD_NAMESPACE",))):
        for name in names:
            if value := environ.get(name):
                found[key] = value[:256]
    for key, path in (
        ("namespace", b"/var/run/secrets/kubernetes.io/serviceaccount/namespace"),
        ("labels", b"/etc/podinfo/labels"),
        ("annotations", b"/etc/podinfo/annotations"),
    ):
        try:
            found.setdefault(key, root.read(path, 65536).decode("utf-8", "replace").strip())
        except OSError:
            continue
    return found


def read(root: Root, *, inside: bool) -> dict[str, object]:
    """Everything that is known, by source. Empty where nothing is."""
    found: dict[str, object] = {}
    if on_ec2() and (document := ec2()):
        found["ec2"] = document
    if task := ecs(os.environ):
        found["ecs"] = task
        if isinstance(task.get("task_id"), str):
            found["ecs_task"] = task["task_id"]
    if inside or "KUBERNETES_SERVICE_HOST" in os.environ:
        pod = kubernetes(root, os.environ)
        if pod:
            found["kubernetes"] = pod
            if isinstance(pod.get("node"), str):
                found["kubernetes_node"] = pod["node"]
    return found
