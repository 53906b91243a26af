"""`impound open`: decrypts a run into a directory, every byte authenticated before it is kept."""

from __future__ import annotations

import fnmatch
import hashlib
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agent.custody.plaintext import plaintext_of
from agent.custody.stored import read_run
from agent.custody.verify import digest
from agent.errors import DamagedError, SourceError, StoreError, StoreFullError, UsageError
from agent.sealing import Unsealed
from agent.stores.directory import check_outside_runs
from agent.stores.sealed import SUFFIX

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from agent.custody.plaintext import Account
    from agent.custody.stored import StoredRun
    from agent.sealing import Identity
    from agent.stores.base import Source


@dataclass(slots=True)
class Opened:
    """What was opened."""

    run: str = ""
    finished: bool = False
    gaps: int = 0
    objects: list[str] = field(default_factory=list)
    bytes: int = 0
    damaged: list[tuple[str, str]] = field(default_factory=list)
    """Object, problem. Nothing of these is left in the output."""


def prepare_output(path: str) -> int:
    """A descriptor of a new or empty directory. Raises `UsageError`."""
    check_outside_runs(path)
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise UsageError(f"the output {path!r} cannot be made: {error.strerror}") from error
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(f"the output {path!r} is not a directory that can be used: {error.strerror}") from error
    if os.listdir(fd):
        os.close(fd)
        raise UsageError(f"the output {path!r} is not empty")
    return fd


def sealed_objects(run: StoredRun) -> dict[str, str]:
    """What can be opened: plaintext name -> object name. Only what a signed record vouches for, there or missing."""
    return {
        name.removesuffix(SUFFIX): name
        for name in sorted(run.listed())
        if name.endswith(SUFFIX) and name not in run.strays
    }


def read_sound_run(source: Source, *, signers: Collection[str] = (), receipts: Collection[str] = ()) -> StoredRun:
    """A run whose account holds, by one of the signers or receipts where they are given.

    Raises `DamagedError`, `SourceError`.
    """
    run = read_run(source)
    for problem in (run.progress.problem, run.receipt_problem):
        if problem:
            raise DamagedError(f"{source.location}: {problem}")
    if not run.progress.plans:
        raise SourceError(f"{source.location}: there is no run")
    if (signers or receipts) and run.signer not in signers and run.receipt_sha256 not in receipts:
        raise DamagedError(f"{source.location}: signed by {run.signer}, not as given")
    return run


def check_object(run: StoredRun, name: str) -> None:
    """Whether an object is there in the very bytes that were signed. Raises `DamagedError`, `SourceError`."""
    size, sha256 = run.listed()[name]
    if name not in run.names:
        raise DamagedError(f"{name}: missing")
    if run.names[name] != size or digest(run.source, name) != sha256:
        raise DamagedError(f"{name}: changed: its bytes are not those that were signed")


def plaintext(run: StoredRun, name: str, identities: Sequence[Identity], account: Account) -> Iterator[bytes]:
    """The plaintext of an object that a signed record names; what it opens to is compared with that record at its end.

    Raises `DamagedError`, `IdentityError`, `SourceError`.
    """
    stored = account.stored.get(name)
    if stored is None or name not in run.names or run.names[name] != run.listed()[name][0]:
        # An attempt's own account, of which no record tells the plaintext: then the ciphertext must be the signed one.
        check_object(run, name)
    state = hashlib.sha256()
    for chunk in plaintext_of(run, name, identities):
        state.update(chunk)
        yield chunk
    if stored is not None and state.hexdigest() != stored.plaintext_sha256:
        raise DamagedError(f"{name} opens to other bytes than its record says")


def open_run(
    run: StoredRun,
    account: Account,
    identities: Sequence[Identity],
    output: int,
    *,
    only: Sequence[str] = (),
    byte_range: tuple[int, int] | None = None,
    after: Callable[[str], None] = lambda _name: None,
) -> Opened:
    """Opens the objects of a run below the directory `output`.

    `only` are patterns for plaintext names; `byte_range` (first, last) takes that part of one object through its seek
    table. `after` is told each name that was written. An attempt that was killed left no manifest: what its progress
    records tell of its items is written as `attempt-N/items.jsonl`.
    """
    opened = Opened(run.progress.plans[0].run, run.finished, sum(one.gaps for one in run.progress.whole))
    chosen = {
        plain: name
        for plain, name in sealed_objects(run).items()
        if not only or any(fnmatch.fnmatchcase(plain, pattern) for pattern in only)
    }
    if not chosen:
        there = sorted(sealed_objects(run))
        more = f" and {len(there) - 20} more" if len(there) > 20 else ""
        raise UsageError(f"no object matches --only; there are {', '.join(there[:20])}{more}")
    if byte_range is not None and len(chosen) != 1:
        raise UsageError(f"--range takes a part of one object, and {len(chosen)} match: name one with --only")
    for plain, name in chosen.items():
        if byte_range is None:
            chunks = plaintext(run, name, identities, account)
        else:
            plain = f"{plain}.{byte_range[0]}-{byte_range[1]}"  # noqa: PLW2901 - the name of the part
            chunks = _part(run, name, identities, byte_range)
        try:
            opened.bytes += _write(output, plain, chunks)
        except (DamagedError, SourceError) as error:
            opened.damaged.append((name, str(error)))
            continue
        opened.objects.append(plain)
        after(plain)
    for attempt, records in account.unlisted.items() if not only else ():
        name = f"attempt-{attempt}/items.jsonl"
        opened.bytes += _write(output, name, iter(records))
        opened.objects.append(name)
    return opened


def _part(run: StoredRun, name: str, identities: Sequence[Identity], part: tuple[int, int]) -> Iterator[bytes]:
    check_object(run, name)  # a part opens to no digest that was signed: the whole object must be the signed one
    blob = run.source.open(name)
    try:
        unsealed = Unsealed(blob, identities)
        if part[0] >= unsealed.size:
            raise UsageError(f"--range begins beyond the end: {name.removesuffix(SUFFIX)} has {unsealed.size} bytes")
        yield from unsealed.range(part[0], min(part[1] + 1, unsealed.size))
    finally:
        blob.close()


def _write(output: int, name: str, chunks: Iterator[bytes]) -> int:
    """Writes a new file below `output`; what fails is not left there. Raises `StoreError` and what `chunks` raises."""
    *parts, leaf = name.split("/")
    directory = os.dup(output)
    written = 0
    try:
        for part in parts:
            try:
                os.mkdir(part, 0o700, dir_fd=directory)
            except FileExistsError:
                pass
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
            os.close(directory)
            directory = below
        fd = os.open(leaf, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=directory)
        try:
            for chunk in chunks:
                view = memoryview(chunk)
                while view:
                    view = view[os.write(fd, view) :]
                written += len(chunk)
        except BaseException:
            os.unlink(leaf, dir_fd=directory)
            raise
        finally:
            os.close(fd)
    except OSError as error:
        kind = StoreFullError if error.errno == 28 else StoreError
        raise kind(f"{name} could not be written: {error.strerror}") from error
    finally:
        os.close(directory)
    return written
