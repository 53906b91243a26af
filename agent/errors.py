"""The one tree of errors. Each class knows its exit code (DESIGN 4.1) and, where there is one, its advice.

ImpoundError                 3   failed
├── UsageError               2   a wrong command line, job, key or place: nothing was read, nothing created
├── StoreError               3   the store refused or lost something
│   ├── StoreFullError       3   no room left
│   ├── ObjectExistsError    3   an object of that name is there already; nothing is ever overwritten
│   ├── UnreachableError     3   nothing answers, or nothing goes through, however often it is tried
│   └── AuthorityError       3   what was asked is not allowed: credentials expired, a policy, another owner
├── SourceError              3   a SRC that cannot be read
│   └── OutOfReachError      3   it cannot be reached now, or not by whoever asks: says nothing of what lies there
├── StoppedError             3   SIGTERM, SIGINT
├── DamagedError             4   bytes that are not as they were sealed or signed
└── IdentityError            4   none of the identities opens it

What belongs to one file or page is never an exception here: it is a `Gap` (acquirers.base).
"""

from __future__ import annotations

from typing import ClassVar


class ImpoundError(Exception):
    """Something that ends the command. The message is one line for a person."""

    exit_code: ClassVar[int] = 3
    advice: ClassVar[str] = ""

    def __str__(self) -> str:
        message = super().__str__()
        return f"{message}. {self.advice}" if self.advice else message


class UsageError(ImpoundError):
    """A wrong command line, job, key or place. Nothing was read and nothing was created."""

    exit_code = 2


class StoreError(ImpoundError):
    """The store refused or lost something."""


class StoreFullError(StoreError):
    """No room is left."""


class ObjectExistsError(StoreError):
    """An object of that name is there already. Nothing is ever overwritten."""


class UnreachableError(StoreError):
    """Nothing answers, or nothing goes through, however often it is tried."""


class AuthorityError(StoreError):
    """What was asked is not allowed: credentials that expired, a policy, another owner."""


class SourceError(ImpoundError):
    """A SRC that cannot be read."""


class OutOfReachError(SourceError):
    """It cannot be reached now, or not by whoever asks. That says nothing of what lies there: it is no damage."""


class StoppedError(ImpoundError):
    """The run was told to stop."""


class DamagedError(ImpoundError):
    """Bytes that are not as they were sealed or signed."""

    exit_code = 4


class IdentityError(ImpoundError):
    """None of the identities opens it."""

    exit_code = 4
