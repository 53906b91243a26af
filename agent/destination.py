"""From a job's destination to a store: a directory, or a bucket by one of three authorities."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from agent.errors import StoreError, StoreFullError, UsageError
from agent.stores.directory import DirectoryStore
from agent.stores.relay import RELAY, RelayStore
from agent.stores.throttle import Throttle

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.channel.host import HostEnd
    from agent.channel.messages import Credentials
    from agent.job import Job
    from agent.limits import Budget
    from agent.stores.base import Store
    from agent.stores.s3.authority import Authority
    from agent.stores.s3.place import Place

SCHEME = "s3://"


def is_relay(to: str) -> bool:
    """Whether a destination means the other end of the channel."""
    return to == RELAY


def is_bucket(to: str) -> bool:
    """Whether a destination means S3."""
    return to.startswith(SCHEME)


def check_authority(job: Job, *, channel: bool) -> None:
    """Whether somebody gave this run the right to store. Raises `UsageError`."""
    authority = job.s3.authority
    if is_relay(job.to) and not channel:
        raise UsageError("--to - goes over the channel of a controller: use `impound deploy … --relay`")
    if not is_bucket(job.to):
        if authority:
            raise UsageError("--authority is for a bucket: --to s3://…")
        return
    if authority == "ambient":
        return
    if authority in {"session", "broker"}:
        if not channel:
            raise UsageError(
                f"--authority {authority} comes from a controller, over its channel: use `impound deploy`, or "
                "--authority ambient for the role of this machine"
            )
        return
    raise UsageError(
        "an s3:// destination needs --authority ambient: impound uses the credentials of the machine it examines only "
        "when it is told to, since whoever owns the machine has them as well"
    )


class Given(msgspec.Struct, frozen=True):
    """What a controller gave a run to store with."""

    end: HostEnd
    """The channel, which has said hello."""
    credentials: Credentials | None = None
    """Of a session that does without the channel: `impound finish` completes what it leaves."""
    delivered: dict[str, str] = {}
    """How the controller says that it reached this machine."""


def open_store(job: Job, path: str, budget: Budget, given: Given | None, hurry: Callable[[], bool]) -> Store:
    """The place of one run: `path` is `<case>/<host>/<run>` below the destination.

    `given` is the right to store where the authority is session or broker. `hurry` says whether
    the run was told to stop: then a bucket that does not answer is not waited for. Raises `UsageError` where the
    destination cannot be used, and `StoreFullError`.
    """
    resume = job.earlier is not None
    throttle = Throttle(job.limits.max_mbit) if job.limits.max_mbit is not None else None
    if is_relay(job.to):
        if given is None:
            raise UsageError("--to - goes over the channel of a controller")
        return RelayStore(given.end, throttle)
    try:
        if is_bucket(job.to):
            return _bucket(job, path, budget, throttle, given, hurry)
        return DirectoryStore(job.to, path, resume=resume, throttle=throttle)
    except (StoreFullError, UsageError):
        raise
    except StoreError as error:
        raise UsageError(f"the destination {job.to!r} cannot be used: {error}") from error


def _bucket(
    job: Job,
    path: str,
    budget: Budget,
    throttle: Throttle | None,
    given: Given | None,
    hurry: Callable[[], bool],
) -> Store:
    from agent.stores.s3.check import check_bucket
    from agent.stores.s3.place import parse_place
    from agent.stores.s3.store import S3Store

    place = parse_place(job.to).below(path)
    authority = _authority(job, place, given)
    try:
        check_bucket(job.s3, place, authority)
        return S3Store(place, job.s3, authority, memory=budget.parts, throttle=throttle, hurry=hurry)
    except BaseException:
        authority.close()
        raise


def _authority(job: Job, place: Place, given: Given | None) -> Authority:
    if job.s3.authority == "ambient":
        from agent.stores.s3.ambient import ambient

        return ambient(place, job.s3)
    if given is None:
        raise UsageError(f"--authority {job.s3.authority} comes from a controller, over its channel")
    if job.s3.authority == "broker":
        from agent.stores.s3.broker import Broker

        return Broker(given.end)
    from agent.stores.s3.session import session

    return session(place, job.s3, given.credentials, None if given.credentials else given.end)
