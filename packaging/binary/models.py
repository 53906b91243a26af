"""botocore's descriptions of services, cut to what impound calls: 28 MB would be read and kept otherwise."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

OPERATIONS = {
    "s3": (
        "AbortMultipartUpload", "CompleteMultipartUpload", "CreateMultipartUpload", "GetBucketEncryption",
        "GetBucketLocation", "GetBucketOwnershipControls", "GetBucketPolicy", "GetBucketPolicyStatus",
        "GetBucketVersioning", "GetObject", "GetObjectAttributes", "GetObjectLockConfiguration", "GetObjectRetention",
        "GetPublicAccessBlock", "HeadBucket", "HeadObject", "ListMultipartUploads", "ListObjectVersions",
        "ListObjectsV2", "ListParts", "PutObject", "UploadPart", "DeleteObject", "GetBucketLogging",
        "GetBucketLifecycleConfiguration", "GetBucketReplication", "GetBucketAcl", "GetObjectLegalHold",
    ),
    "sts": ("AssumeRole", "GetCallerIdentity", "AssumeRoleWithWebIdentity"),
    "kms": ("Decrypt", "DescribeKey", "DeriveSharedSecret", "GetPublicKey", "Sign"),
    "sso": ("GetRoleCredentials",),
}  # fmt: skip
"""`sso` and the web identity belong to how a person's own credentials are found."""
_PLAIN = ("endpoints.json", "partitions.json", "sdk-default-configuration.json", "_retry.json")


def trimmed(data: Path) -> dict[str, bytes]:
    """Members of the archive, from the folder `botocore/data`: name -> content."""
    found = {}
    for name in _PLAIN:
        raw = _read(data / name)
        if name == "endpoints.json":
            raw = _endpoints(raw)
        found[name] = _dump(raw)
    for service, operations in OPERATIONS.items():
        for version in sorted(path for path in (data / service).iterdir() if path.is_dir()):
            for path in sorted(version.iterdir()):
                kind = path.name.removesuffix(".gz").removesuffix(".json")
                if kind.startswith("examples"):
                    continue
                content = _read(path)
                if kind == "service-2":
                    content = _service(content, set(operations))
                elif key := next((key for key in ("pagination", "waiters") if key in content), ""):
                    kept = {
                        name: one
                        for name, one in content[key].items()
                        if (name if key == "pagination" else one.get("operation")) in operations
                    }
                    content = {**content, key: kept}
                found[f"{service}/{version.name}/{kind}.json"] = _dump(content)
    return found


def _read(path: Path) -> Any:
    for candidate in (path, path.with_name(f"{path.name}.gz")):
        if candidate.exists():
            raw = candidate.read_bytes()
            return json.loads(gzip.decompress(raw) if candidate.suffix == ".gz" else raw)
    raise SystemExit(f"{path}: botocore has no such file")


def _dump(content: Any) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()


def _endpoints(content: Any) -> Any:
    for partition in content["partitions"]:
        partition["services"] = {name: one for name, one in partition["services"].items() if name in OPERATIONS}
    return content


def _service(content: Any, operations: set[str]) -> Any:
    """Without documentation, other operations, and shapes that none of these leads to."""
    missing = operations - set(content["operations"])
    if missing:
        raise SystemExit(f"botocore knows no {', '.join(sorted(missing))}")
    content["operations"] = {name: one for name, one in content["operations"].items() if name in operations}
    wanted = {shape for one in content["operations"].values() for shape in _shapes(one)}
    todo = list(wanted)
    while todo:
        for shape in _shapes(content["shapes"][todo.pop()]):
            if shape not in wanted:
                wanted.add(shape)
                todo.append(shape)
    content["shapes"] = {name: one for name, one in content["shapes"].items() if name in wanted}
    # botocore asks for the documentation of these by its name.
    context = content.get("clientContextParams")
    content = _undocumented(content)
    if context is not None:
        content["clientContextParams"] = context
    return content


def _shapes(node: Any) -> set[str]:
    if isinstance(node, dict):
        own = {node["shape"]} if isinstance(node.get("shape"), str) else set()
        return own.union(*(_shapes(value) for value in node.values()))
    if isinstance(node, list):
        return set[str]().union(*(_shapes(value) for value in node))
    return set()


def _undocumented(node: Any) -> Any:
    if isinstance(node, dict):
        return {
            name: _undocumented(value)
            for name, value in node.items()
            if not (name == "documentation" and isinstance(value, str)) and name != "documentationUrl"
        }
    if isinstance(node, list):
        return [_undocumented(value) for value in node]
    return node
