"""Records that cannot be read, as gaps: what is missing, why, and where."""

from __future__ import annotations

from typing import TYPE_CHECKING

from acquirers.base import Gap, Kind, Reason, reason_of
from acquirers.containers.records import MAX_NAMES, MalformedError, TooManyNamesError

if TYPE_CHECKING:
    import re

    from acquirers.containers.records import Records


def gap_of(what: str, error: OSError | MalformedError, where: bytes) -> Gap:
    """Of a record that another one leads to: that it is not there is a fault of the records."""
    if isinstance(error, OSError):
        reason = Reason.MALFORMED if isinstance(error, FileNotFoundError | NotADirectoryError) else reason_of(error)
        return Gap(reason, f"{what}: {error.strerror}", where)
    return Gap(Reason.MALFORMED, f"{what}: {error}", where)


def listed(
    records: Records,
    *parts: bytes,
    where: bytes,
    gaps: list[Gap],
    matching: re.Pattern[bytes] | None = None,
    limit: int = MAX_NAMES,
) -> list[tuple[bytes, Kind]]:
    """The names in a directory of records that match; that there is none is an empty one."""
    try:
        return records.names(*parts, matching=matching, limit=limit)
    except FileNotFoundError:
        return []
    except TooManyNamesError as error:
        detail = f"a directory with more than {len(error.first)} names: the rest was not looked at"
        gaps.append(Gap(Reason.LIMIT, detail, where))
        return error.first
    except (OSError, MalformedError) as error:
        reason = reason_of(error) if isinstance(error, OSError) else Reason.MALFORMED
        gaps.append(Gap(reason, f"a directory of records: {error}", where))
        return []
