"""What S3 says when something cannot be read, as one line for a person: what was refused, and which right it needs."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from agent.errors import OutOfReachError, SourceError
from agent.stores.s3.control import store_error

if TYPE_CHECKING:
    from collections.abc import Iterator

    from botocore.exceptions import ClientError

_GONE = {"NoSuchKey", "NoSuchVersion", "404"}
_ELSEWHERE = {"PermanentRedirect", "AuthorizationHeaderMalformed", "301", "IllegalLocationConstraintException"}
_PASSING = {"SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout", "OperationAborted", "Throttling"}
_NOT_MADE = {"NotImplemented", "MethodNotAllowed", "501", "405"}


class NotAllowedError(OutOfReachError):
    """S3 refuses a call, or does not have it."""


@contextlib.contextmanager
def readable(what: str, needs: str, *, owner: str = "") -> Iterator[None]:
    """Turns what boto3 raises, and answers that are not S3's, into `SourceError`.

    `what` begins the line; `needs` is the permission, such as `s3:GetObject`; `owner` the account that was expected.
    """
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    try:
        yield
    except ClientError as error:
        raise refusal(error, what, needs, owner) from error
    except NoCredentialsError as error:
        raise OutOfReachError(f"{what}: there are no AWS credentials") from error
    except BotoCoreError as error:
        raise OutOfReachError(f"{what}: {_line(error)}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise SourceError(f"{what}: the answer is not one of S3") from error


def code_of(error: ClientError) -> tuple[str, int]:
    """S3's code and the HTTP status of an error, as far as the answer has them."""
    answer = error.response
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return str(answer.get("Error", {}).get("Code", "")), status if isinstance(status, int) else 0


def is_passing(error: ClientError) -> bool:
    """Whether it is worth asking again."""
    code, status = code_of(error)
    return code in _PASSING or status >= 500


def refusal(error: ClientError, what: str, needs: str, owner: str) -> SourceError:
    """The error for what S3 answered."""
    code, status = code_of(error)
    message = _line(error.response.get("Error", {}).get("Message", ""))
    if code.startswith("KMS.") or "kms:" in message or "KMS" in message:
        return OutOfReachError(
            f"{what}: KMS refuses to decrypt ({code}): this needs kms:Decrypt on the key of the bucket, and the key "
            f"enabled: {message}"
        )
    if code in {"PreconditionFailed", "412"} or status == 412:
        return SourceError(f"{what}: it was changed while it was read")
    if code in _GONE:
        return SourceError(f"{what}: it is no longer there")
    if code == "InvalidObjectState":
        return OutOfReachError(f"{what}: it lies in an archive tier of S3: restore it first ({message})")
    if code in _ELSEWHERE or status == 301:
        return OutOfReachError(f"{what}: the bucket is in another region: give it with --region ({message})")
    if code == "AccessDenied" or (status == 403 and not message):
        whose = f", and the bucket to be of {owner}" if owner else ""
        return NotAllowedError(f"{what}: S3 refuses it: this needs {needs}{whose} ({message or code or status})")
    if code in _NOT_MADE or status in {405, 501}:
        return NotAllowedError(f"{what}: this server does not have it ({code or status})")
    return OutOfReachError(str(store_error(what, code, message, status)))


def _line(text: object) -> str:
    return " ".join(str(text)[:300].split())
