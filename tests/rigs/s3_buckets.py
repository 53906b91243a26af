"""Buckets on the strict S3: their documents, and lists of what is in them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from tests.rigs.s3_calls import NAMESPACE, Call, boolean, parse_xml, xml
from tests.rigs.s3_errors import S3Error
from tests.rigs.s3_http import Response
from tests.rigs.s3_state import Bucket, Version, iso
from tests.rigs.strict_iam import PolicyError, check, is_public

DOCUMENTS: dict[str, tuple[str, str, str, str]] = {
    # name in the API -> subresource, action to read, action to write, error where there is none ("" is an empty one)
    "BucketVersioning": ("versioning", "s3:GetBucketVersioning", "s3:PutBucketVersioning", ""),
    "ObjectLockConfiguration": (
        "object-lock",
        "s3:GetBucketObjectLockConfiguration",
        "s3:PutBucketObjectLockConfiguration",
        "ObjectLockConfigurationNotFoundError",
    ),
    "BucketEncryption": (
        "encryption",
        "s3:GetEncryptionConfiguration",
        "s3:PutEncryptionConfiguration",
        "ServerSideEncryptionConfigurationNotFoundError",
    ),
    "BucketPolicy": ("policy", "s3:GetBucketPolicy", "s3:PutBucketPolicy", "NoSuchBucketPolicy"),
    "BucketPolicyStatus": ("policyStatus", "s3:GetBucketPolicyStatus", "", "NoSuchBucketPolicy"),
    "PublicAccessBlock": (
        "publicAccessBlock",
        "s3:GetBucketPublicAccessBlock",
        "s3:PutBucketPublicAccessBlock",
        "NoSuchPublicAccessBlockConfiguration",
    ),
    "BucketOwnershipControls": (
        "ownershipControls",
        "s3:GetBucketOwnershipControls",
        "s3:PutBucketOwnershipControls",
        "OwnershipControlsNotFoundError",
    ),
    "BucketLifecycleConfiguration": (
        "lifecycle",
        "s3:GetLifecycleConfiguration",
        "s3:PutLifecycleConfiguration",
        "NoSuchLifecycleConfiguration",
    ),
    "BucketLogging": ("logging", "s3:GetBucketLogging", "s3:PutBucketLogging", ""),
    "BucketTagging": ("tagging", "s3:GetBucketTagging", "s3:PutBucketTagging", "NoSuchTagSet"),
    "BucketAcl": ("acl", "s3:GetBucketAcl", "s3:PutBucketAcl", ""),
    "BucketReplication": (
        "replication",
        "s3:GetReplicationConfiguration",
        "s3:PutReplicationConfiguration",
        "ReplicationConfigurationNotFoundError",
    ),
    "BucketNotificationConfiguration": ("notification", "s3:GetBucketNotification", "s3:PutBucketNotification", ""),
}
_EMPTY = {
    "versioning": "VersioningConfiguration",
    "logging": "BucketLoggingStatus",
    "acl": "AccessControlPolicy",
    "notification": "NotificationConfiguration",
}
_SETTINGS = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")


def new_bucket(name: str, owner: str, region: str, created: float, *, lock: bool = False) -> Bucket:
    """A bucket as S3 makes one since April 2023: nothing public, no ACLs, SSE-S3."""
    if not re.fullmatch(r"(?!.*\.\.)[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", name):
        raise S3Error("InvalidBucketName", "The specified bucket is not valid.")
    bucket = Bucket(name, owner, region, created, locked=lock, versioning="Enabled" if lock else "")
    bucket.documents = {
        "publicAccessBlock": _document("PublicAccessBlockConfiguration", [(word, "true") for word in _SETTINGS]),
        "ownershipControls": _document("OwnershipControls", [("Rule", [("ObjectOwnership", "BucketOwnerEnforced")])]),
        "encryption": _document(
            "ServerSideEncryptionConfiguration",
            [
                (
                    "Rule",
                    [
                        ("ApplyServerSideEncryptionByDefault", [("SSEAlgorithm", "AES256")]),
                        ("BucketKeyEnabled", "false"),
                    ],
                )
            ],
        ),
    }
    if lock:
        bucket.documents["versioning"] = _document("VersioningConfiguration", [("Status", "Enabled")])
        bucket.documents["object-lock"] = _document("ObjectLockConfiguration", [("ObjectLockEnabled", "Enabled")])
    return bucket


def _document(root: str, fields: list[tuple[str, Any]]) -> bytes:
    body = xml(root, fields).body
    assert isinstance(body, bytes)
    return body


# -- buckets ----------------------------------------------------------------------------------------------------------


def create_bucket(call: Call) -> Response:
    document = call.document()
    if document:
        place = parse_xml(document).findtext("LocationConstraint", "")
        if place and place != call.world.region:
            raise S3Error("InvalidRequest", f"The {place} location constraint is incompatible with this endpoint")
    with call.world.lock:
        known = call.world.buckets.get(call.bucket_name)
        if known and not known.vanished:
            raise S3Error("BucketAlreadyOwnedByYou", "Your previous request to create the named bucket succeeded")
        lock = call.headers.get("x-amz-bucket-object-lock-enabled", "").lower() == "true"
        owner = call.signed.credential.account if call.signed.credential else call.world.account
        bucket = new_bucket(call.bucket_name, owner, call.world.region, call.world.now(), lock=lock)
        call.world.buckets[call.bucket_name] = bucket
    return Response(200, {"Location": f"/{call.bucket_name}"})


def delete_bucket(call: Call) -> Response:
    with call.world.lock:
        if call.bucket.objects or call.bucket.uploads:
            raise S3Error("BucketNotEmpty", "The bucket you tried to delete is not empty")
        del call.world.buckets[call.bucket_name]
    return Response(204)


def head_bucket(call: Call) -> Response:
    return Response(200, {"x-amz-bucket-region": call.bucket.region})


def get_location(call: Call) -> Response:
    region = "" if call.bucket.region == "us-east-1" else call.bucket.region
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n<LocationConstraint xmlns="{NAMESPACE}">{region}'
    return Response(200, {"Content-Type": "application/xml"}, f"{body}</LocationConstraint>".encode())


def list_buckets(call: Call) -> Response:
    with call.world.lock:
        buckets = [
            ("Bucket", [("Name", bucket.name), ("CreationDate", iso(bucket.created))])
            for bucket in call.world.buckets.values()
            if not bucket.vanished
        ]
    return xml("ListAllMyBucketsResult", [("Owner", [("ID", call.world.account)]), ("Buckets", buckets)])


# -- documents --------------------------------------------------------------------------------------------------------


def get_document(call: Call, word: str) -> Response:
    subresource, _, _, missing = DOCUMENTS[word]
    with call.world.lock:
        bucket = call.bucket
        if subresource == "policyStatus":
            if bucket.policy is None:
                raise S3Error(missing, "The bucket policy does not exist")
            return xml("PolicyStatus", [("IsPublic", "true" if is_public(bucket.policy) else "false")])
        found = bucket.documents.get(subresource)
        if found is None:
            if missing:
                raise S3Error(missing, more={"BucketName": bucket.name})
            found = _document(_EMPTY[subresource], [])
    return Response(200, {"Content-Type": "application/json" if word == "BucketPolicy" else "application/xml"}, found)


def put_document(call: Call, word: str) -> Response:
    subresource, _, action, _ = DOCUMENTS[word]
    if not action:
        raise S3Error("MethodNotAllowed", "The specified method is not allowed against this resource.")
    document = call.document()
    with call.world.lock:
        bucket = call.bucket
        if subresource == "policy":
            _put_policy(bucket, document)
        else:
            root = parse_xml(document)
            if subresource == "versioning":
                status = root.findtext("Status", "")
                if bucket.locked and status != "Enabled":
                    message = "An Object Lock configuration is present on this bucket, so the versioning state "
                    raise S3Error("InvalidBucketState", f"{message}cannot be changed.")
                bucket.versioning = status
            elif subresource == "object-lock":
                if bucket.versioning != "Enabled":
                    raise S3Error("InvalidBucketState", "Versioning must be 'Enabled' on the bucket to apply a Object "
                                  "Lock configuration")  # fmt: skip
                bucket.locked = True
                default = root.find("Rule/DefaultRetention")
                bucket.default_mode = default.findtext("Mode", "") if default is not None else ""
                days = default.findtext("Days", "") if default is not None else ""
                years = default.findtext("Years", "") if default is not None else ""
                if default is not None and bool(days) == bool(years):
                    raise S3Error("MalformedXML", "The XML you provided was not well-formed")
                bucket.default_days = int(days or 0) + 365 * int(years or 0)
        bucket.documents[subresource] = document
    return Response(204 if subresource == "policy" else 200)


def _put_policy(bucket: Bucket, document: bytes) -> None:
    try:
        policy = json.loads(document)
        check(policy, of_resource=True)
    except (ValueError, PolicyError, AttributeError, TypeError) as error:
        raise S3Error("MalformedPolicy", str(error) or "This policy contains invalid Json") from None
    if len(document) > 20 * 1024:
        raise S3Error("MalformedPolicy", "Policies must be smaller than 20 KB")
    blocked = bucket.documents.get("publicAccessBlock", b"")
    if is_public(policy) and re.search(rb"<BlockPublicPolicy>\s*true", blocked):
        raise S3Error(
            "AccessDenied", "public policies are blocked by the BlockPublicPolicy block public access setting."
        )
    bucket.policy = policy


def delete_document(call: Call, word: str) -> Response:
    subresource = DOCUMENTS[word][0]
    if subresource in {"versioning", "object-lock", "policyStatus", "logging", "acl", "notification"}:
        raise S3Error("MethodNotAllowed", "The specified method is not allowed against this resource.")
    with call.world.lock:
        call.bucket.documents.pop(subresource, None)
        if subresource == "policy":
            call.bucket.policy = None
    return Response(204)


# -- lists ------------------------------------------------------------------------------------------------------------


def _coder(call: Call) -> Callable[[str], str]:
    if call.query.get("encoding-type") == "url":
        return lambda key: quote(key, safe="/-._~*", errors="surrogateescape")
    return lambda key: key


def _grouped(keys: list[str], prefix: str, delimiter: str) -> list[tuple[str, bool]]:
    """Keys and common prefixes, in order; True marks a common prefix."""
    found: dict[str, bool] = {}
    for key in keys:
        rest = key[len(prefix) :]
        if delimiter and delimiter in rest:
            found.setdefault(prefix + rest[: rest.index(delimiter) + len(delimiter)], True)
        else:
            found[key] = False
    return sorted(found.items())


def list_objects(call: Call) -> Response:
    """ListObjects and ListObjectsV2."""
    second = call.operation == "ListObjectsV2"
    prefix, delimiter = call.query.get("prefix", ""), call.query.get("delimiter", "")
    after = call.query.get("start-after" if second else "marker", "")
    token = call.query.get("continuation-token", "")
    if token:
        if not token.startswith("after-"):
            raise S3Error("InvalidArgument", "The continuation token provided is incorrect")
        after = bytes.fromhex(token.removeprefix("after-")).decode()
    most, code = call.number("max-keys", 1000), _coder(call)
    with call.world.lock:
        bucket = call.bucket
        keys = [key for key in bucket.objects if key.startswith(prefix) and bucket.current(key)]
        entries = [entry for entry in _grouped(keys, prefix, delimiter) if entry[0] > after]
        shown = entries[:most]
        cut = len(shown) < len(entries) and bool(shown)
        fields: list[tuple[str, Any]] = [
            ("Name", bucket.name),
            ("Prefix", code(prefix)),
            ("Delimiter", code(delimiter)),
            ("MaxKeys", most),
            ("EncodingType", call.query.get("encoding-type", "")),
            ("IsTruncated", boolean(cut)),
        ]
        if second:
            fields.append(("KeyCount", len(shown)))
        if cut:
            last = shown[-1][0]
            name, value = ("NextContinuationToken", f"after-{last.encode().hex()}") if second else ("NextMarker", last)
            fields.append((name, value))
        for key, common in shown:
            version = None if common else bucket.current(key)
            if version is None:
                fields.append(("CommonPrefixes", [("Prefix", code(key))]))
            else:
                fields.append(("Contents", [("Key", code(key)), *_facts(version)]))
    return xml("ListBucketResult", [field for field in fields if field[1] != ""])


def _facts(version: Version) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = [
        ("LastModified", iso(version.modified)),
        ("ETag", f'"{version.etag}"'),
        ("Size", version.size),
        ("StorageClass", "STANDARD"),
    ]
    if version.checksum:
        found.append(("ChecksumAlgorithm", version.checksum[0]))
    return found


def list_versions(call: Call) -> Response:
    prefix, most, code = call.query.get("prefix", ""), call.number("max-keys", 1000), _coder(call)
    after, after_id = call.query.get("key-marker", ""), call.query.get("version-id-marker", "")
    with call.world.lock:
        bucket = call.bucket
        entries: list[tuple[Version, bool]] = []
        for key in sorted(key for key in bucket.objects if key.startswith(prefix) and key >= after):
            newest = bucket.objects[key][::-1]
            if key == after:
                ids = [version.version_id for version in newest]
                newest = newest[ids.index(after_id) + 1 :] if after_id in ids else []
            entries += [(version, version is bucket.objects[key][-1]) for version in newest]
        shown = entries[:most]
        cut = len(shown) < len(entries) and bool(shown)
        fields: list[tuple[str, Any]] = [
            ("Name", bucket.name),
            ("Prefix", code(prefix)),
            ("MaxKeys", most),
            ("EncodingType", call.query.get("encoding-type", "")),
            ("IsTruncated", boolean(cut)),
        ]
        if cut:
            fields.append(("NextKeyMarker", code(shown[-1][0].key)))
            fields.append(("NextVersionIdMarker", shown[-1][0].version_id))
        for version, latest in shown:
            about = [
                ("Key", code(version.key)),
                ("VersionId", version.version_id),
                ("IsLatest", boolean(latest)),
                ("Owner", [("ID", bucket.owner)]),
            ]
            if version.marker:
                fields.append(("DeleteMarker", [*about, ("LastModified", iso(version.modified))]))
            else:
                fields.append(("Version", [*about, *_facts(version)]))
    return xml("ListVersionsResult", [field for field in fields if field[1] != ""])


def list_uploads(call: Call) -> Response:
    prefix, most, code = call.query.get("prefix", ""), call.number("max-uploads", 1000), _coder(call)
    marker = (call.query.get("key-marker", ""), call.query.get("upload-id-marker", ""))
    with call.world.lock:
        uploads = sorted(
            (upload for upload in call.bucket.uploads.values() if upload.key.startswith(prefix)),
            key=lambda upload: (upload.key, upload.initiated, upload.upload_id),
        )
        if marker[0]:
            at = [number for number, upload in enumerate(uploads) if (upload.key, upload.upload_id) == marker]
            uploads = uploads[at[0] + 1 :] if at else [upload for upload in uploads if upload.key > marker[0]]
        shown = uploads[:most]
        fields: list[tuple[str, Any]] = [
            ("Bucket", call.bucket_name),
            ("Prefix", code(prefix)),
            ("MaxUploads", most),
            ("EncodingType", call.query.get("encoding-type", "")),
            ("IsTruncated", boolean(len(shown) < len(uploads))),
        ]
        if shown:
            fields += [("NextKeyMarker", code(shown[-1].key)), ("NextUploadIdMarker", shown[-1].upload_id)]
        for upload in shown:
            who = [("ID", upload.initiator), ("DisplayName", upload.initiator.rpartition("/")[2])]
            about = [
                ("UploadId", upload.upload_id),
                ("Key", code(upload.key)),
                ("Initiated", iso(upload.initiated)),
                ("StorageClass", "STANDARD"),
                ("Initiator", who),
                ("Owner", [("ID", call.bucket.owner)]),
            ]
            if upload.algorithm:
                about.append(("ChecksumAlgorithm", upload.algorithm))
            fields.append(("Upload", about))
    return xml("ListMultipartUploadsResult", [field for field in fields if field[1] != ""])
