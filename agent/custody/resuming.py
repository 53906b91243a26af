"""What `resume` needs to know: the plan of a run that was cut off, what of it is whole, and what else lies there."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

import msgspec

from agent.custody.stored import read_run
from agent.custody.verify import Verdict, digest, verify
from agent.errors import DamagedError, UsageError
from agent.job import Earlier, Stored, WholeObject
from agent.sealing import parse_recipient
from agent.stores.directory import sweep_partials

if TYPE_CHECKING:
    from collections.abc import Collection

    from acquirers.host import Host
    from agent.custody.stored import StoredRun
    from agent.job import Job
    from agent.stores.base import Source


def machine_of(host: Host) -> str:
    """Which machine: SHA-256 over its machine id, or over its name where it has none."""
    return hashlib.sha256((host.facts.machine_id or host.facts.hostname).encode("utf-8", "replace")).hexdigest()


def next_attempt(source: Source, *, signers: Collection[str], recipients: Collection[str]) -> Job:
    """The job that completes a stored run. Raises `UsageError`, `DamagedError`."""
    verdict = verify(source, signers=signers)
    if verdict.verdict is Verdict.INTACT:
        raise UsageError(f"the run {verdict.run} is finished: there is nothing to resume")
    if verdict.verdict is Verdict.DAMAGED:
        first = verdict.findings[0]
        raise DamagedError(f"{source.location} is damaged and is not added to: {first.name}: {first.problem}")
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
    above, own = os.path.split(source.location.rstrip("/"))
    above, host = os.path.split(above)
    above, case = os.path.split(above)
    if (case, host, own) != (first_plan.case, first_plan.host, first_plan.run):
        raise UsageError("the run was moved: resume it where it lay, below <case>/<host>/<run>")
    return msgspec.structs.replace(job, to=above, earlier=_earlier(run))


def _earlier(run: StoredRun) -> Earlier:
    plans = run.progress.plans
    whole = [
        WholeObject(one.object, one.size, one.sha256, one.attempt, one.gaps, one.flags, one.members, one.sealed)
        for one in run.progress.whole
    ]
    taken = {one.object for one in whole}
    vouched = run.listed()
    listed = [Stored(name, size, sha256) for name, (size, sha256) in sorted(vouched.items()) if name not in taken]
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
