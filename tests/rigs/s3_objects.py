"""Objects and multipart uploads on the strict S3."""

from __future__ import annotations

import re
import secrets
import time
from typing import Any
from urllib.parse import unquote

from tests.rigs.s3_bodies import ALGORITHMS
from tests.rigs.s3_calls import Call, boolean, parse_xml, xml
from tests.rigs.s3_errors import S3Error
from tests.rigs.s3_http import Response
from tests.rigs.s3_state import (
    MAX_PART,
    MAX_PARTS,
    Bucket,
    Upload,
    Version,
    complete,
    etag_of,
    iso,
    parse_iso,
)

_KEPT = ("content-type", "content-encoding", "cache-control", "content-disposition", "content-language", "expires")
Lock = tuple[str, float, bool]


def _kept(call: Call) -> dict[str, str]:
    found = {name: call.headers[name] for name in _KEPT if name in call.headers}
    if "aws-chunked" in found.get("content-encoding", ""):
        del found["content-encoding"]
    return found | {name: value for name, value in call.headers.items() if name.startswith("x-amz-meta-")}


def _lock(call: Call, bucket: Bucket) -> Lock:
    """The lock that the request asks for. Raises `S3Error`."""
    mode = call.headers.get("x-amz-object-lock-mode", "")
    until = call.headers.get("x-amz-object-lock-retain-until-date", "")
    hold = call.headers.get("x-amz-object-lock-legal-hold", "") == "ON"
    if (mode or until or hold) and not bucket.locked:
        raise S3Error("InvalidRequest", "Bucket is missing Object Lock Configuration")
    if bool(mode) != bool(until):
        raise S3Error("InvalidArgument", "x-amz-object-lock-retain-until-date and x-amz-object-lock-mode must both be "
                      "supplied")  # fmt: skip
    if mode:
        call.authorize("s3:PutObjectRetention")
        if mode not in {"GOVERNANCE", "COMPLIANCE"}:
            raise S3Error("InvalidArgument", "Unknown wormMode directive.")
    if hold:
        call.authorize("s3:PutObjectLegalHold")
    return mode, _future(until, call) if until else 0.0, hold


def _future(text: str, call: Call) -> float:
    until = parse_iso(text)
    if until <= call.world.now():
        raise S3Error("InvalidArgument", "The retain until date must be in the future!")
    return until


def _needs_checksum(call: Call, bucket: Bucket) -> None:
    """What real S3 asks of writes to a bucket with Object Lock, and other servers do not."""
    has = "content-md5" in call.headers or any(
        name.startswith(("x-amz-checksum-", "x-amz-trailer")) for name in call.headers
    )
    if bucket.locked and not has:
        what = "Put Part" if call.operation == "UploadPart" else "Put Object"
        raise S3Error(
            "InvalidRequest",
            f"Content-MD5 OR x-amz-checksum- HTTP header is required for {what} requests with Object Lock parameters",
        )


def _one_checksum(call: Call) -> str:
    """The algorithm whose checksum the request carries, or "". Raises `S3Error` for two."""
    trailer = call.headers.get("x-amz-trailer", "").lower()
    found = [name for name in ALGORITHMS if f"x-amz-checksum-{name.lower()}" in {*call.headers, trailer}]
    if len(found) > 1:
        raise S3Error("InvalidRequest", "Expecting a single x-amz-checksum- header")
    return found[0] if found else ""


def _conditions(call: Call, bucket: Bucket) -> None:
    none, match = call.headers.get("if-none-match"), call.headers.get("if-match")
    current = bucket.current(call.key)
    if none is not None:
        if none != "*":
            raise S3Error("NotImplemented", "A header you provided implies functionality that is not implemented",
                          more={"Header": "If-None-Match"})  # fmt: skip
        if current is not None:
            raise S3Error("PreconditionFailed", more={"Condition": "If-None-Match"})
    if match is not None and (current is None or current.etag != match.strip('"')):
        raise S3Error("PreconditionFailed" if current else "NoSuchKey", more={"Condition": "If-Match"})


def _about(version: Version, call: Call, *, checksum: bool) -> dict[str, str]:
    """The headers that tell of a version."""
    found = {"ETag": f'"{version.etag}"', **version.sealed_by}
    if call.bucket.versioning:
        found["x-amz-version-id"] = version.version_id
    if checksum and version.checksum:
        found[f"x-amz-checksum-{version.checksum[0].lower()}"] = version.checksum[1]
        found["x-amz-checksum-type"] = "COMPOSITE" if "-" in version.checksum[1] else "FULL_OBJECT"
    return found


def put_object(call: Call) -> Response:
    with call.world.lock:
        bucket = call.bucket
        lock, algorithm, sealed_by = _lock(call, bucket), _one_checksum(call), call.sealed_by()
        call.authorize_key(sealed_by, "kms:GenerateDataKey")
        _needs_checksum(call, bucket)
        _conditions(call, bucket)
        if len(call.key.encode("utf-8", "surrogateescape")) > 1024:
            raise S3Error("InvalidArgument", "Your key is too long")
    if (call.request.body.length or 0) > MAX_PART:
        raise S3Error("EntityTooLarge", "Your proposed upload exceeds the maximum allowed size")
    random = sealed_by["x-amz-server-side-encryption"] != "AES256"
    blob = call.world.bodies.receive(call.request, call.signed.payload, random_etag=random)
    version = Version(call.key, "", call.world.now(), [blob], blob.etag, _kept(call), sealed_by=sealed_by)
    version.owner = call.principal
    if algorithm:
        version.checksum = (algorithm, blob.sums[algorithm])
    with call.world.lock:
        try:
            # Again: another one may have come while the body did.
            bucket = call.bucket
            _conditions(call, bucket)
        except S3Error:
            blob.forget()
            raise
        bucket.add(version, call.world.now(), lock)
        return Response(200, _about(version, call, checksum=True))


def copy_object(call: Call) -> Response:
    source = unquote(call.headers["x-amz-copy-source"]).lstrip("/")
    name, _, key = source.partition("?")[0].partition("/")
    call.authorize("s3:GetObject", f"arn:aws:s3:::{name}/{key}")
    with call.world.lock:
        from_bucket = call.world.buckets.get(name)
        found = from_bucket.current(key) if from_bucket else None
        if found is None:
            raise S3Error("NoSuchKey", more={"Key": key})
        lock, bucket = _lock(call, call.bucket), call.bucket
        _conditions(call, bucket)
        copy = Version(call.key, "", call.world.now(), found.parts, found.etag, found.headers, found.checksum)
        copy.sealed_by, copy.owner = call.sealed_by(), call.principal
        bucket.add(copy, call.world.now(), lock)
        answer = xml("CopyObjectResult", [("ETag", f'"{copy.etag}"'), ("LastModified", iso(copy.modified))])
        answer.headers.update(_about(copy, call, checksum=False))
        return answer


def get_object(call: Call) -> Response:
    """GetObject and HeadObject: a single range, conditions on the ETag."""
    with call.world.lock:
        try:
            version = call.bucket.version(call.key, call.query.get("versionId", ""))
        except S3Error as error:
            if error.code == "NoSuchKey" and not call.may("s3:ListBucket", f"arn:aws:s3:::{call.bucket_name}"):
                raise S3Error("AccessDenied") from None
            raise
        if version.marker:
            named = "versionId" in call.query
            raise S3Error("MethodNotAllowed" if named else "NoSuchKey", more={"Key": call.key})
        call.authorize_key(version.sealed_by, "kms:Decrypt")
        match = call.headers.get("if-match")
        if match is not None and match.strip('"') != version.etag:
            raise S3Error("PreconditionFailed", more={"Condition": "If-Match"})
        if call.headers.get("if-none-match", "").strip('"') == version.etag:
            return Response(304, {"ETag": f'"{version.etag}"'})
        size = version.size
        headers = {
            "Last-Modified": time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(version.modified)),
            "Accept-Ranges": "bytes",
            "Content-Type": version.headers.get("content-type", "binary/octet-stream"),
            **{name: value for name, value in version.headers.items() if name != "content-type"},
        }
        start, end, status = 0, size, 200
        wanted = call.headers.get("range", "")
        if wanted:
            start, end = _range(wanted, size)
            status, headers["Content-Range"] = 206, f"bytes {start}-{end - 1}/{size}"
        headers |= _about(version, call, checksum=call.headers.get("x-amz-checksum-mode") == "ENABLED" and not wanted)
        if version.mode:
            headers["x-amz-object-lock-mode"] = version.mode
            headers["x-amz-object-lock-retain-until-date"] = iso(version.until)
        if version.hold:
            headers["x-amz-object-lock-legal-hold"] = "ON"
    if len(version.parts) > 1 and "partNumber" in call.query:
        raise S3Error("NotImplemented", "one part of an object")
    if call.operation == "HeadObject":
        return Response(status, headers, [], length=end - start)
    for part in version.parts:
        if part.size and part.data is None and part.file is None:
            next(part.read(0, 1), None)  # says that it was not kept, before anything is answered
    return Response(status, headers, version.read(start, end), length=end - start)


def _range(text: str, size: int) -> tuple[int, int]:
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", text.strip())
    if not found or not any(found.groups()):
        raise S3Error("InvalidArgument", "one range in bytes is understood here")
    first, last = found.groups()
    start = int(first) if first else max(0, size - int(last))
    end = min(size, int(last) + 1) if first and last else size
    if start >= size or start >= end:
        raise S3Error("InvalidRange", "The requested range is not satisfiable", more={"ActualObjectSize": str(size)})
    return start, end


def delete_object(call: Call) -> Response:
    version_id = call.query.get("versionId", "")
    call.authorize("s3:DeleteObjectVersion" if version_id else "s3:DeleteObject")
    with call.world.lock:
        headers = remove(call, call.key, version_id)
    return Response(204, headers)


def remove(call: Call, key: str, version_id: str) -> dict[str, str]:
    """Deletes one version, or puts a delete marker. Raises `S3Error` where a lock holds it."""
    bucket = call.bucket
    if version_id:
        try:
            version = bucket.version(key, version_id)
        except S3Error:
            return {"x-amz-version-id": version_id}
        held = version.hold or (version.mode and version.until > call.world.now())
        if held and not _may_bypass(call, version):
            raise S3Error("AccessDenied", "Access Denied because object protected by object lock.")
        bucket.objects[key].remove(version)
        if not bucket.objects[key]:
            del bucket.objects[key]
        return {"x-amz-version-id": version_id, **({"x-amz-delete-marker": "true"} if version.marker else {})}
    if bucket.versioning:
        marker = Version(key, "", call.world.now(), marker=True, owner=call.principal)
        bucket.add(marker, call.world.now(), ("", 0.0, False))
        return {"x-amz-version-id": marker.version_id, "x-amz-delete-marker": "true"}
    bucket.objects.pop(key, None)
    return {}


def _may_bypass(call: Call, version: Version) -> bool:
    asked = call.headers.get("x-amz-bypass-governance-retention", "").lower() == "true"
    return bool(
        asked and version.mode == "GOVERNANCE" and not version.hold and call.may("s3:BypassGovernanceRetention")
    )


def delete_objects(call: Call) -> Response:
    if "content-md5" not in call.headers and not _one_checksum(call):
        raise S3Error("InvalidRequest", "Missing required header for this request: Content-MD5 OR x-amz-checksum-*")
    answer: list[tuple[str, Any]] = []
    for element in parse_xml(call.document()).findall("Object"):
        key, version_id = element.findtext("Key", ""), element.findtext("VersionId", "")
        action = "s3:DeleteObjectVersion" if version_id else "s3:DeleteObject"
        try:
            call.authorize(action, f"arn:aws:s3:::{call.bucket_name}/{key}")
            with call.world.lock:
                remove(call, key, version_id)
            answer.append(("Deleted", [("Key", key)]))
        except S3Error as error:
            answer.append(("Error", [("Key", key), ("Code", error.code), ("Message", error.message)]))
    return xml("DeleteResult", answer)


# -- retention and hold -----------------------------------------------------------------------------------------------


def get_retention(call: Call) -> Response:
    with call.world.lock:
        version = call.bucket.version(call.key, call.query.get("versionId", ""))
        if not version.mode:
            message = "The specified object does not have a ObjectLock configuration"
            raise S3Error("NoSuchObjectLockConfiguration", message)
        return xml("Retention", [("Mode", version.mode), ("RetainUntilDate", iso(version.until))])


def put_retention(call: Call) -> Response:
    root = parse_xml(call.document())
    with call.world.lock:
        if not call.bucket.locked:
            raise S3Error("InvalidRequest", "Bucket is missing Object Lock Configuration")
        version = call.bucket.version(call.key, call.query.get("versionId", ""))
        mode, text = root.findtext("Mode", ""), root.findtext("RetainUntilDate", "")
        until = _future(text, call) if text else 0.0
        locked = version.mode and version.until > call.world.now()
        weaker = until < version.until or (version.mode == "COMPLIANCE" and mode != "COMPLIANCE")
        if locked and weaker and not _may_bypass(call, version):
            raise S3Error("AccessDenied", "Access Denied because object protected by object lock.")
        version.mode, version.until = mode, until
        return Response(200)


def get_legal_hold(call: Call) -> Response:
    with call.world.lock:
        version = call.bucket.version(call.key, call.query.get("versionId", ""))
        return xml("LegalHold", [("Status", "ON" if version.hold else "OFF")])


def put_legal_hold(call: Call) -> Response:
    root = parse_xml(call.document())
    with call.world.lock:
        if not call.bucket.locked:
            raise S3Error("InvalidRequest", "Bucket is missing Object Lock Configuration")
        call.bucket.version(call.key, call.query.get("versionId", "")).hold = root.findtext("Status") == "ON"
        return Response(200)


# -- multipart --------------------------------------------------------------------------------------------------------


def create_upload(call: Call) -> Response:
    algorithm = call.headers.get("x-amz-checksum-algorithm", "").upper()
    if algorithm and algorithm not in ALGORITHMS:
        raise S3Error("InvalidRequest", "Checksum algorithm provided is unsupported.")
    default = "FULL_OBJECT" if algorithm == "CRC64NVME" else "COMPOSITE"
    kind = call.headers.get("x-amz-checksum-type", default).upper()
    if kind == "FULL_OBJECT" and algorithm in {"SHA256", "SHA1"}:
        raise S3Error("InvalidRequest", f"The FULL_OBJECT checksum type cannot be used with the {algorithm} algorithm")
    with call.world.lock:
        bucket = call.bucket
        lock, sealed_by = _lock(call, bucket), call.sealed_by()
        call.authorize_key(sealed_by, "kms:GenerateDataKey")
        upload = Upload(
            call.key,
            secrets.token_urlsafe(48),
            call.world.now(),
            call.principal,
            algorithm,
            kind == "COMPOSITE",
            _kept(call),
            sealed_by,
            lock,
        )
        bucket.uploads[upload.upload_id] = upload
    answer = xml(
        "InitiateMultipartUploadResult",
        [("Bucket", call.bucket_name), ("Key", call.key), ("UploadId", upload.upload_id)],
    )
    answer.headers.update(sealed_by)
    if algorithm:
        answer.headers |= {"x-amz-checksum-algorithm": algorithm, "x-amz-checksum-type": kind}
    return answer


def upload_part(call: Call) -> Response:
    text = call.query["partNumber"]
    if not text.isdecimal() or not 1 <= int(text) <= MAX_PARTS:
        raise S3Error("InvalidArgument", "Part number must be an integer between 1 and 10000, inclusive")
    number = int(text)
    if "if-none-match" in call.headers or "if-match" in call.headers:
        raise S3Error("NotImplemented", "A header you provided implies functionality that is not implemented")
    given = _one_checksum(call)
    with call.world.lock:
        upload = call.bucket.upload(call.key, call.query["uploadId"])
        call.authorize_key(upload.sealed_by, "kms:Decrypt")
        _needs_checksum(call, call.bucket)
        if (given or upload.algorithm) and given != upload.algorithm:
            names = [name.lower() or "null" for name in (upload.algorithm, given)]
            raise S3Error(
                "InvalidRequest",
                f"Checksum Type mismatch occurred, expected checksum Type: {names[0]}, "
                f"actual checksum Type: {names[1]}",
            )
    if (call.request.body.length or 0) > MAX_PART:
        raise S3Error("EntityTooLarge", "Your proposed upload exceeds the maximum allowed size")
    random = upload.sealed_by["x-amz-server-side-encryption"] != "AES256"
    blob = call.world.bodies.receive(call.request, call.signed.payload, random_etag=random)
    with call.world.lock:
        try:
            upload = call.bucket.upload(call.key, call.query["uploadId"])
        except S3Error:
            blob.forget()
            raise
        old = upload.parts.get(number)
        if old:
            old[0].forget()
            upload.replaced += 1
        upload.parts[number] = (blob, call.world.now())
    headers = {"ETag": f'"{blob.etag}"', **upload.sealed_by}
    if given:
        headers[f"x-amz-checksum-{given.lower()}"] = blob.sums[given]
    return Response(200, headers)


def complete_upload(call: Call) -> Response:
    root = parse_xml(call.document())
    listed = []
    for element in root.findall("Part"):
        sums = {name: element.findtext(f"Checksum{name}", "") for name in ALGORITHMS}
        number = element.findtext("PartNumber", "")
        if not number.isdecimal() or not element.findtext("ETag"):
            raise S3Error("MalformedXML", "The XML you provided was not well-formed")
        listed.append((int(number), element.findtext("ETag", ""), {k: v for k, v in sums.items() if v}))
    with call.world.lock:
        bucket = call.bucket
        upload = bucket.upload(call.key, call.query["uploadId"])
        call.authorize_key(upload.sealed_by, "kms:Decrypt")
        blobs, composite = complete(upload, listed, call.world.min_part)
        size = call.headers.get("x-amz-mp-object-size")
        if size is not None and size != str(sum(blob.size for blob in blobs)):
            raise S3Error("InvalidRequest", "The provided 'x-amz-mp-object-size' header value does not match what was "
                          "computed")  # fmt: skip
        claimed = call.headers.get(f"x-amz-checksum-{upload.algorithm.lower()}") if composite else None
        if claimed is not None and claimed.partition("-")[0] != composite.partition("-")[0]:
            raise S3Error("BadDigest", f"The {upload.algorithm.lower()} you specified did not match what we received.")
        _conditions(call, bucket)
        version = Version(call.key, "", call.world.now(), blobs, etag_of(blobs), upload.headers)
        version.sealed_by, version.owner = upload.sealed_by, upload.initiator
        if composite:
            version.checksum = (upload.algorithm, composite)
        bucket.add(version, call.world.now(), upload.lock)
        del bucket.uploads[upload.upload_id]
        used = {entry[0] for entry in listed}
        for stored, (blob, _) in upload.parts.items():
            if stored not in used:
                blob.forget()
        fields: list[tuple[str, Any]] = [
            ("Location", f"http://{call.headers['host']}{call.request.path}"),
            ("Bucket", call.bucket_name),
            ("Key", call.key),
            ("ETag", f'"{version.etag}"'),
        ]
        if composite:
            fields += [(f"Checksum{upload.algorithm}", composite), ("ChecksumType", "COMPOSITE")]
        answer = xml("CompleteMultipartUploadResult", fields)
        answer.headers.update(_about(version, call, checksum=False))
        return answer


def abort_upload(call: Call) -> Response:
    with call.world.lock:
        upload = call.bucket.upload(call.key, call.query["uploadId"])
        del call.bucket.uploads[upload.upload_id]
        for blob, _ in upload.parts.values():
            blob.forget()
    return Response(204)


def list_parts(call: Call) -> Response:
    marker, most = call.number("part-number-marker", 0, highest=MAX_PARTS), call.number("max-parts", 1000)
    with call.world.lock:
        upload = call.bucket.upload(call.key, call.query["uploadId"])
        numbers = [number for number in sorted(upload.parts) if number > marker]
        shown = numbers[:most]
        who = [("ID", upload.initiator), ("DisplayName", upload.initiator)]
        fields: list[tuple[str, Any]] = [
            ("Bucket", call.bucket_name),
            ("Key", call.key),
            ("UploadId", upload.upload_id),
            ("Initiator", who),
            ("Owner", who),
            ("StorageClass", "STANDARD"),
            ("PartNumberMarker", marker),
            ("NextPartNumberMarker", shown[-1] if shown else marker),
            ("MaxParts", most),
            ("IsTruncated", boolean(len(shown) < len(numbers))),
        ]
        if upload.algorithm:
            kind = "COMPOSITE" if upload.composite else "FULL_OBJECT"
            fields += [("ChecksumAlgorithm", upload.algorithm), ("ChecksumType", kind)]
        for number in shown:
            blob, modified = upload.parts[number]
            part = [
                ("PartNumber", number),
                ("LastModified", iso(modified)),
                ("ETag", f'"{blob.etag}"'),
                ("Size", blob.size),
            ]
            if upload.algorithm:
                part.append((f"Checksum{upload.algorithm}", blob.sums[upload.algorithm]))
            fields.append(("Part", part))
        return xml("ListPartsResult", fields)
