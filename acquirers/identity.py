"""Who the machine says it is: the EC2 identity document with its signature, ECS task metadata, Kubernetes data.

Nothing here ever asks for credentials. The instance metadata service is asked only where the firmware says EC2, so that
a run on any other machine sends no packet; every request has a short deadline, and answers are bounded.
"""

from __future__ import annotations

import errno
import io
import json
import os
import re
import socket
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
    """The body of one bounded HTTP answer, or None. Follows no redirect and reads no proxy setting.

    The deadline is of the whole exchange: a service that sends a byte now and then gains nothing.
    """
    from http.client import HTTPException, HTTPResponse

    lines = [f"{method} {path} HTTP/1.1", f"Host: {address[0]}", "Connection: close"]
    lines += [f"{key}: {value}" for key, value in headers.items()]
    try:
        data = _exchange(address, ("\r\n".join(lines) + "\r\n\r\n").encode("ascii"), until)
        answer = HTTPResponse(_Received(data))  # type: ignore[arg-type]
        answer.begin()
        return answer.read() if answer.status == 200 else None
    except (OSError, ValueError, HTTPException):
        return None


def _exchange(address: tuple[str, int], request: bytes, until: float) -> bytes:
    """What is answered until the other side closes. Raises `OSError` beyond `until` and `MAX_ANSWER`."""
    with socket.create_connection(address, timeout=_left(until)) as connection:
        connection.settimeout(_left(until))
        connection.sendall(request)
        data = b""
        while True:
            connection.settimeout(_left(until))
            piece = connection.recv(65536)
            if not piece:
                return data
            data += piece
            if len(data) > MAX_ANSWER:
                raise OSError(errno.EFBIG, "an answer that is too long")


def _left(until: float) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError(errno.ETIMEDOUT, "the deadline has passed")
    return left


class _Received:
    """What `http.client` reads an answer from, once it is there as a whole."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, _mode: str) -> io.BytesIO:
        return io.BytesIO(self._data)


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
