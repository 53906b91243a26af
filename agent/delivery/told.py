"""What a controller knows at the end of a run, and what it says of it.

The host's result is a claim: it stands only where nothing that the controller saw speaks against it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from agent.custody.records import OUTCOMES, RECEIPT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.custody.records import Acquisition
    from agent.delivery.notes import LedgerState, Whole

PARTIAL = "partial"
_FINISHED = OUTCOMES[:2]


class Told(msgspec.Struct):
    """What the controller knows at the end, from its own ledger: for the result line, and for a countersignature."""

    verdict: str
    """complete, gaps, stopped or failed, as the host said and nothing speaks against; partial where the channel broke;
    refused where the host refused the job."""
    why: str
    """Why the channel ended otherwise than with a result, or why the host's result is not believed."""
    run: str
    case: str
    host: str
    attempt: int
    signer: str
    tool: str
    location: str
    authority: str
    objects: dict[str, Whole]
    unfinished: list[tuple[str, str, int]]
    """Uploads that were begun and not completed: name, upload, parts that were signed."""
    custody: str
    """The last head of the custody log that was told, and how many lines it had then."""
    custody_lines: int
    heads: int
    result: dict[str, Any]
    """What the host said last: a stranger's words."""
    findings: list[str]
    refused: int
    ledger: str
    ledger_head: str
    ledger_lines: int
    receipt_sha256: str = ""
    """Of the last receipt that the host handed over."""
    found: int = 0
    """Findings of this attempt; `findings` are those of the whole ledger."""

    def for_countersignature(self) -> dict[str, str]:
        """What a countersignature says that the controller was told (`Countersigned.told`)."""
        return {
            "authority": self.authority,
            "ledger_head": self.ledger_head,
            "ledger_lines": str(self.ledger_lines),
            "custody": self.custody,
            "custody_lines": str(self.custody_lines),
            "heads": str(self.heads),
        }


def receipt_of(state: LedgerState) -> str:
    """SHA-256 of the attempt's receipt, where it was handed over whole or completed of one part; else ""."""
    for name in (RECEIPT, f"attempt-{state.attempt}/{RECEIPT}"):
        if name in state.objects and state.objects[name].sure:
            return state.objects[name].sha256
    return ""


def judge(
    state: LedgerState,
    result: dict[str, Any] | None,
    why: str,
    *,
    greeted: bool,
    receipts: Mapping[str, Acquisition],
) -> tuple[str, str]:
    """The verdict, and what speaks against the host's own. `why`: why the channel ended otherwise than in order.

    `receipts`: what the sound ones say that the host stored, by name.
    """
    if not greeted:
        if result is None or why:
            return "failed", why
        return "refused" if result.get("verdict") == "refused" else "failed", str(result.get("error", ""))[:1000]
    if result is None or why:
        return PARTIAL, why
    if result.get("verdict") == "refused" and not (state.objects or state.uploads):
        return "refused", str(result.get("error", ""))[:1000]
    doubt = _doubt(state, result, receipts)
    if doubt:
        return "failed", doubt
    verdict = str(result["verdict"])
    if verdict in _FINISHED and state.uploads:
        return PARTIAL, f"{len(state.uploads)} uploads were begun and not completed"
    return verdict, ""


def _doubt(state: LedgerState, result: dict[str, Any], receipts: Mapping[str, Acquisition]) -> str:
    """What in the host's result is not so; "" where nothing is known against it."""
    verdict = result.get("verdict")
    if verdict not in OUTCOMES:
        return "the host gave a result without a verdict"
    said = {key: result.get(key) for key in ("run", "case", "host", "signer")}
    if said != {"run": state.run, "case": state.case, "host": state.host, "signer": state.signer}:
        return "the host gave the result of another run"
    receipt = state.objects.get(RECEIPT)
    if verdict in _FINISHED and (receipt is None or not receipt.sure):
        return "the host says that it has finished, and stored no receipt"
    known = receipt_of(state)
    if known and result.get("receipt_sha256") != known:
        return "the host names another receipt than the one it stored"
    if verdict in _FINISHED:
        said_there = receipts.get(RECEIPT)
        if said_there is None:
            return "the host says that it has finished, and the receipt that it stored is none"
        if not said_there.finished or (
            (said_there.signer, said_there.run, said_there.case, said_there.host)
            != (state.signer, state.run, state.case, state.host)
            or (said_there.attempt, said_there.outcome) != (state.attempt, verdict)
        ):
            return "the receipt that the host stored says something else than the host"
    return ""
