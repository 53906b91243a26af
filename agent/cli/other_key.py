"""What is said where no key that a person gave opens a run: whose it is, which says nothing of damage."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from agent.errors import IdentityError, ImpoundError
from agent.sealing import KeyIdentity

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from agent.custody.stored import StoredRun
    from agent.job import S3
    from agent.sealing import Identity
    from agent.stores.base import Source

_SHOWN = 70
"""Characters of a key: `age1…` is 62 long, a post-quantum one 2000."""
_NAMED = 4


def explain(run: StoredRun, keys: Sequence[Identity]) -> str:
    """Which keys open a run and which were given, or nothing where a right one is among those."""
    plans = run.progress.plans
    sealed_to = plans[-1].job.recipients if plans else []
    own = [key.recipient.text for key in keys if isinstance(key, KeyIdentity)]
    if not sealed_to or not own or len(own) < len(keys) or set(sealed_to) & set(own):
        return ""
    given = f"the key given is that of {_named(own)}" if len(own) == 1 else f"the keys given are those of {_named(own)}"
    return (
        f"no key that was given opens it: it is sealed to {_named(sealed_to)}, and {given}. "
        "Give the private key of that recipient; nothing here says that the evidence is damaged"
    )


def explain_stored(source: Source, keys: Sequence[Identity], error: IdentityError) -> str:
    """The same of a run that is read for it, or what the error says."""
    from agent.custody.stored import read_run

    with contextlib.suppress(ImpoundError):
        return explain(read_run(source), keys) or str(error)
    return str(error)


@contextlib.contextmanager
def explained(source: str, s3: S3 | None, keys: Sequence[Identity]) -> Iterator[None]:
    """Makes an `IdentityError` say whose key opens the one run in `source`."""
    try:
        yield
    except IdentityError as error:
        from agent.cli.options import one_run

        said = str(error)
        with contextlib.suppress(ImpoundError), contextlib.closing(one_run(source, s3)) as stored:
            said = explain_stored(stored, keys, error)
        raise IdentityError(said) from error


def _named(recipients: Collection[str]) -> str:
    named = [text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]}…" for text in recipients]
    return " and ".join(named[:_NAMED]) + (f" and {len(named) - _NAMED} more" if len(named) > _NAMED else "")
