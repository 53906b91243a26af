"""boto3 clients for control calls. Parts are not sent through these (`wire.py`).

Two ways to make one. `standard` reads what any AWS tool reads: environment, profiles, the instance's role; for the
responder's and the analyst's verbs, and for `ambient`. `given` has credentials handed over and reads nothing that lies
on the machine: no environment, no file, no proxy, no configured endpoint.

Both have the deadlines and bounds of `agent.aws`.
"""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Any

from agent import aws
from agent.errors import UsageError
from agent.runtime import nameless

if TYPE_CHECKING:
    from agent.channel.messages import Credentials
    from agent.job import S3

CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 60
ATTEMPTS = 6
DEFAULT_REGION = "us-east-1"


def standard(s3: S3, service: str = "s3") -> Any:
    """A client with the standard AWS sources. Raises `UsageError` where there are no credentials."""
    return standard_with_credentials(s3, service)[0]


def standard_with_credentials(s3: S3, service: str = "s3") -> tuple[Any, Any]:
    """The same, and botocore's credentials behind it, which renew themselves where their source can."""
    from botocore.exceptions import BotoCoreError

    try:
        session = aws.session()
        credentials = session.get_credentials()
        if credentials is None:
            raise UsageError("there are no AWS credentials: give them as for any AWS tool (AWS_PROFILE, a role, …)")
        region = s3.region or session.region_name or DEFAULT_REGION
        verify = _certificates(s3.ca_bundle)
        made = session.client(service, region_name=region, verify=verify, config=_config(s3), **_endpoint(s3))
    except (BotoCoreError, ValueError) as error:
        raise UsageError(f"AWS cannot be used as it is configured: {error}") from error
    return made, credentials


def given(s3: S3, credentials: Credentials, service: str = "s3") -> Any:
    """A client with these credentials, which reads nothing else. Raises `UsageError`."""
    import boto3
    import botocore.session
    from botocore.exceptions import BotoCoreError
    from botocore.loaders import Loader

    aws.forget_debugging()
    try:
        core = botocore.session.Session(session_vars=_blind(botocore.session.Session.SESSION_VARIABLES))
        # botocore's own loader looks into ~/.aws/models first.
        models = Loader(extra_search_paths=[Loader.BUILTIN_DATA_PATH], include_default_search_paths=False)
        core.register_component("data_loader", models)
        session = boto3.Session(
            aws_access_key_id=credentials.access_key,
            aws_secret_access_key=credentials.secret_key,
            aws_session_token=credentials.token or None,
            region_name=s3.region or DEFAULT_REGION,
            botocore_session=core,
        )
        config = _config(s3, proxies={}, ignore_configured_endpoint_urls=True)
        # Not None: botocore would ask REQUESTS_CA_BUNDLE.
        verify = _certificates(s3.ca_bundle) or True
        return aws.with_deadlines(session.client(service, verify=verify, config=config, **_endpoint(s3)))
    except (BotoCoreError, ValueError) as error:
        raise UsageError(f"S3 cannot be used as the job says: {error}") from error


_NO_FILE = {"config_file": os.devnull, "credentials_file": os.devnull}
"""Whose defaults are files in the home directory."""


def _blind(variables: Any) -> dict[str, Any]:
    """Session variables that come from no file and no environment: only their defaults."""
    return {
        name: (None, None, _NO_FILE.get(name, default), convert) for name, (_, _, default, convert) in variables.items()
    }


def _endpoint(s3: S3) -> dict[str, str]:
    return {"endpoint_url": s3.endpoint_url} if s3.endpoint_url else {}


def _config(s3: S3, **more: Any) -> Any:
    from botocore.config import Config

    # "virtual" is "auto" (a name with dots goes into the path either way), but for signed URLs: with "auto" botocore
    # makes them for s3.amazonaws.com instead of the region's endpoint, which an endpoint of a VPC does not serve.
    style = "path" if s3.endpoint_url else "virtual"
    return Config(
        signature_version="s3v4",
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": style, "us_east_1_regional_endpoint": "regional"},
        **more,
    )


@functools.lru_cache(maxsize=8)
def _certificates(pem: str) -> str | None:
    """A path under which botocore finds the certificates, without a file on any disk; `None` for its own.

    botocore reads the path again for each connection pool that it makes, so the memory stays for the process.
    """
    if not pem:
        return None
    try:
        fd = nameless("ca")
    except OSError as error:
        raise UsageError(
            f"--ca-bundle cannot be held in memory here ({error.strerror}): use the single file"
        ) from error
    os.write(fd, pem.encode("utf-8"))
    return f"/proc/self/fd/{fd}"
