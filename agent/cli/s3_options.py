"""The options that say how an evidence bucket is reached."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import click

from agent.cli.options import read_key_file
from agent.job import S3, check_s3

if TYPE_CHECKING:
    from collections.abc import Callable

F = TypeVar("F", bound="Callable[..., Any]")


def s3_options(function: F) -> F:
    """How a bucket is reached, for verbs of which DEST or SRC can be `s3://…`."""
    for option in reversed(
        (
            click.option("--endpoint-url", default="", metavar="URL", help="S3: another endpoint than AWS's own."),
            click.option("--region", default="", metavar="NAME", help="S3: the region of the bucket."),
            click.option("--ca-bundle", default="", metavar="FILE", help="S3: certificates (PEM) of the endpoint."),
            click.option("--bucket-owner", default="", metavar="ID", help="S3: the account that must own the bucket."),
        )
    ):
        function = option(function)
    return function


def make_s3(values: dict[str, Any], *, sse_kms_key: str = "", authority: str = "") -> S3:
    """Takes the options of `s3_options` out of a verb's values. Raises `UsageError`."""
    bundle = values.pop("ca_bundle")
    return check_s3(
        S3(
            endpoint_url=values.pop("endpoint_url"),
            region=values.pop("region"),
            ca_bundle=read_key_file(bundle, "certificates file") if bundle else "",
            bucket_owner=values.pop("bucket_owner"),
            sse_kms_key=sse_kms_key,
            authority=authority,
        )
    )
