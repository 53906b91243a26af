"""Signature Version 4 in the headers, for one part. What is signed: host, length, SHA-256 twice, owner, token.

The SHA-256 stands as `x-amz-content-sha256`, which binds the signature to these bytes, and as `x-amz-checksum-sha256`,
which the bucket keeps; an Object-Lock bucket takes no part without.
"""

from __future__ import annotations

import base64
import threading
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from agent.stores.s3.authority import SignedRequest
from agent.stores.s3.control import explained

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.stores.base import Part
    from agent.stores.s3.control import Control

_KEPT_URLS = 64


class PartSigner:
    """Signs parts of objects below one place. For any number of threads."""

    def __init__(self, control: Control, credentials: Callable[[], Any]) -> None:
        """`credentials` gives botocore's, frozen, at the moment of signing. URLs are those of the control's client."""
        self._control, self._credentials = control, credentials
        self._region = str(control.client.meta.region_name)
        self._urls: dict[str, str] = {}
        self._lock = threading.Lock()

    def sign(self, name: str, upload_id: str, number: int, part: Part) -> SignedRequest:
        """Raises `StoreError`."""
        from botocore.auth import S3SigV4Auth
        from botocore.awsrequest import AWSRequest

        digest = part.sha256

        class Auth(S3SigV4Auth):  # type: ignore[misc]
            def payload(self, _request: Any) -> str:
                return digest.hex()

        headers = {
            "content-length": str(part.size),
            "x-amz-checksum-sha256": base64.b64encode(digest).decode("ascii"),
        }
        if self._control.s3.bucket_owner:
            headers["x-amz-expected-bucket-owner"] = self._control.s3.bucket_owner
        with explained(f"part {number} of {name} could not be signed"):
            url = f"{self._url(name)}?partNumber={number}&uploadId={quote(upload_id, safe='-_.~')}"
            request = AWSRequest("PUT", url, headers=headers)
            Auth(self._credentials(), "s3", self._region).add_auth(request)
        return SignedRequest("PUT", url, {str(key).lower(): str(value) for key, value in request.headers.items()})

    def _url(self, name: str) -> str:
        """Scheme, host and path of an object, as the client has them: its rules of endpoints are botocore's."""
        with self._lock:
            known = self._urls.get(name)
        if known is None:
            arguments = {**self._control.arguments(name), "UploadId": "0", "PartNumber": 1}
            whole = self._control.client.generate_presigned_url("upload_part", Params=arguments)
            parts = urlsplit(str(whole))
            known = f"{parts.scheme}://{parts.netloc}{parts.path}"
            with self._lock:
                if len(self._urls) >= _KEPT_URLS:
                    self._urls.clear()
                self._urls[name] = known
        return known
