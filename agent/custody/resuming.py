"""What `resume` needs to know: the plan of a run that was cut off, what of it is whole, and what else lies there."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from agent.custody.stored import read_run
from agent.custody.verify import Verdict, digest, verify
from agent.errors import DamagedError, UsageError
from agent.job import S3, Earlier, Stored, WholeObject
from agent.sealing import parse_recipient
from agent.stores.directory import sweep_partials
from agent.stores.s3.place import SCHEME, is_s3

if TYPE_CHECKING:
    from collections.abc import Collection

    from acquirers.host import Host
    from agent.custody.stored import StoredRun
    from agent.job import Job
    from agent.stores.base import Source


def machine_of(host: Host) -> str:
    """Which machine: SHA-256 over its machine id, or over its name where it has none."""
    return hashlib.sha256((host.facts.machine_id or host.facts.hostname).encode("utf-8", "replace")).hexdigest()


def next_attempt(
    source: Source,
    *,
    signers: Collection[str],
    recipients: Collection[str],
    s3: S3 | None = None,
    warn: Callable[[str], None] = lambda _line: None,
) -> Job:
    """The job that completes a stored run. Raises `UsageError`, `DamagedError`.

    `s3` says how its bucket is reached, and by whose right: the plan's own word on it comes from the bucket, and is not
    followed. `warn` is told where it differs.
    """
    verdict = verify(source, signers=signers)
    if verdict.verdict is Verdict.INTACT:
        raise UsageError(f"the run {verdict.run} is finished: there is nothing to resume")
    if verdict.verdict is Verdict.DAMAGED:
        first = verdict.findings[0]
        raise DamagedError(f"{source.location} is damaged and is not added to: {first.name}: {first.problem}")
    if not is_s3(source.location):
        sweep_partials(source.location)
    run = read_run(source)
    ahead = f"attempt-{len(run.progress.plans) + 1}/"
    for name in sorted(run.names):
        if name.startswith(ahead):
            raise DamagedError(f"{source.location}: {name} is there, although no such attempt began")
    first_plan = run.progress.plans[0]
    job = first_plan.job
    if recipients and {parse_recipient(text).text for text in recipients} != set(job.recipients):
        raise UsageError("the plan is sealed to other recipients than those given")
    to, where = _split(source.location)
    if where != (first_plan.case, first_plan.host, first_plan.run):
        raise UsageError("the run was moved: resume it where it lay, below <case>/<host>/<run>")
    given = s3 or S3()
    for name, planned, here in _differences(job.s3, given) if is_s3(to) else ():
        warn(f"the plan stored there was made with {name} {planned}; {here}")
    return msgspec.structs.replace(job, to=to, s3=given, earlier=_earlier(run))


def _split(location: str) -> tuple[str, tuple[str, ...]]:
    """A destination, and what of case, host and run lies below it. Of a bucket, its name is never one of the three."""
    scheme = SCHEME if is_s3(location) else ""
    parts = location.removeprefix(scheme).rstrip("/").split("/")
    if len(parts) < 4:
        return location, ()
    return scheme + ("/".join(parts[:-3]) or "/"), tuple(parts[-3:])


def _differences(planned: S3, given: S3) -> list[tuple[str, str, str]]:
    """Options that the plan was made with and that were given otherwise: option, as planned, as it is now."""
    found = []
    for name in ("endpoint_url", "region", "bucket_owner", "sse_kms_key", "authority"):
        before, now = getattr(planned, name), getattr(given, name)
        if before and before != now:
            here = f"now it is {now}" if now else "it was not given now, and is not used"
            found.append((f"--{name.replace('_', '-')}", before[:200], here))
    if planned.ca_bundle and planned.ca_bundle != given.ca_bundle:
        found.append(("--ca-bundle", "of its own", "that is not used"))
    return found


def _earlier(run: StoredRun) -> Earlier:
    plans = run.progress.plans
    trees = run.trees()
    whole = [
        WholeObject(
            object=one.object,
            size=one.size,
            sha256=one.sha256,
            attempt=one.attempt,
            gaps=one.gaps,
            flags=one.flags,
            members=one.members,
            sealed=one.sealed,
            tree=one.tree,
            frames=one.frames,
        )
        for one in run.progress.whole
    ]
    taken = {one.object for one in whole}
    vouched = run.listed()
    listed = [
        Stored(name, size, sha256, tree=tree, frames=frames)
        for name, (size, sha256) in sorted(vouched.items())
        for frames, tree in (trees.get(name, (0, "")),)
        if name not in taken
    ]
    strays = [
        Stored(name, size, digest(run.source, name)) for name, size in sorted(run.names.items()) if name not in vouched
    ]
    return Earlier(
        run=plans[0].run,
        host=plans[0].host,
        machine=plans[0].machine,
        attempt=len(plans),
        signers=[plan.signer for plan in plans],
        whole=whole,
        listed=listed,
        strays=strays,
        progress=len(run.progress.digests),
        progress_head=run.progress.head,
    )
