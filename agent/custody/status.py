"""How far a run is, by its own signed account: for whoever watches, before anything is verified."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

import msgspec

from agent.custody.records import items_of

if TYPE_CHECKING:
    from agent.custody.stored import StoredRun

SILENT_S = 180.0
"""A run under way says where it stands every half minute. Past six of them, nobody knows."""
RUNNING, SILENT, DAMAGED = "running", "silent", "damaged"


class RunStatus(msgspec.Struct, frozen=True):
    """What the account of one run says. Counts are of whole objects; `state` is one of

    running    no receipt of the last attempt yet, and a word of it not long ago
    silent     the same, and no word for `SILENT_S`: cut off, or out of reach of its store
    complete, gaps, stopped, failed    as the last attempt's receipt says
    damaged    the account contradicts itself, for the reason in `problem`
    """

    location: str
    state: str
    case: str = ""
    host: str = ""
    run: str = ""
    attempt: int = 0
    signer: str = ""
    started: str = ""
    """ISO 8601, by the clock of the machine."""
    last: str = ""
    """The last time that the account names."""
    items: int = 0
    size: int = 0
    """Bytes of the objects that are whole."""
    gaps: int = 0
    flags: int = 0
    countersigned: str = ""
    """By whom."""
    receipt_sha256: str = ""
    problem: str = ""

    @property
    def under_way(self) -> bool:
        return self.state in {RUNNING, SILENT}


def status_of(run: StoredRun, now: dt.datetime, heard: dt.datetime | None = None) -> RunStatus:
    """`heard`: when something new was last seen in the store, by the clock of whoever watches."""
    plans, whole = run.progress.plans, run.progress.whole
    location = run.source.location
    problem = run.progress.problem or run.receipt_problem or (run.contradiction() if plans or run.finished else "")
    problem = problem or run.countersign_problem
    if problem or not plans:
        return RunStatus(location, DAMAGED if problem else RUNNING, problem=problem)
    plan, last = plans[-1], run.receipts.get(len(plans))
    said = run.receipt.predicate if run.receipt is not None else last[0].predicate if last else None
    objects = {one.object: one for one in whole}
    told = max([plan.started, *(one.told for one in run.progress.heads)], key=_moment)
    if said is not None:
        state, told = said.outcome, said.ended
    else:
        latest = max(_moment(told), heard or _moment(told))
        state = RUNNING if (now - latest).total_seconds() < SILENT_S else SILENT
    return RunStatus(
        location=location,
        state=state,
        case=plan.case,
        host=plan.host,
        run=plan.run,
        attempt=plan.attempt,
        signer=run.signer,
        started=plans[0].started,
        last=told,
        items=items_of(objects),
        size=sum(one.size for one in objects.values()),
        gaps=said.gaps if said is not None else sum(one.gaps for one in objects.values()),
        flags=said.flags if said is not None else sum(one.flags for one in objects.values()),
        countersigned=run.countersigned.countersigner if run.countersigned is not None else "",
        receipt_sha256=run.receipt_sha256,
    )


def _moment(text: str) -> dt.datetime:
    """A time of the account; the beginning of all times where it is none."""
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        return dt.datetime.min.replace(tzinfo=dt.UTC)
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=dt.UTC)
