"""`impound open`: decrypts a run into a directory, every byte authenticated before it is kept."""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import os
from typing import TYPE_CHECKING

import msgspec

from agent.custody.plaintext import plaintext_of
from agent.custody.stored import read_run
from agent.custody.verify import digest
from agent.errors import DamagedError, OutOfReachError, SourceError, StoreError, StoreFullError, UsageError
from agent.sealing import Unsealed
from agent.stores.directory import DirectorySource, check_outside_runs
from agent.stores.s3.read_proven import ProvenBlob
from agent.stores.sealed import SUFFIX
from agent.stores.sources import SCHEME, find_runs, open_source

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from agent.custody.plaintext import Account
    from agent.custody.stored import StoredRun
    from agent.job import S3
    from agent.sealing import Identity
    from agent.stores.base import Blob, Source


class Opened(msgspec.Struct):
    """What was opened."""

    run: str = ""
    finished: bool = False
    gaps: int = 0
    objects: list[str] = msgspec.field(default_factory=list)
    bytes: int = 0
    damaged: list[tuple[str, str]] = msgspec.field(default_factory=list)
    """Object, problem. Nothing of these is left in the output."""
    part: tuple[int, int] | None = None
    """First and last byte of what a range gave: the object may end before the range does."""


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


@contextlib.contextmanager
def new_output(path: str) -> Iterator[int]:
    """A descriptor of a new or empty directory. One that was made for this goes again if an error leaves it empty.

    Raises `UsageError`.
    """
    made = not os.path.lexists(path)
    fd = prepare_output(path)
    try:
        yield fd
    except BaseException:
        if made:
            with contextlib.suppress(OSError):
                os.rmdir(path)
        raise
    finally:
        os.close(fd)


def sealed_objects(run: StoredRun) -> dict[str, str]:
    """What can be opened: plaintext name -> object name. Only what a signed record vouches for, there or missing."""
    return {
        name.removesuffix(SUFFIX): name
        for name in sorted(run.listed())
        if name.endswith(SUFFIX) and name not in run.strays
    }


def names_in(source: str, s3: S3 | None = None, *, told: Callable[[str], None] = lambda _note: None) -> list[str]:
    """The plaintext names of what lies in one run, sealed or opened. Raises `SourceError`.

    `told` gets what a person must know of how a bucket was read.
    """
    runs = find_runs(source, s3)
    if source.startswith(SCHEME) or (runs and os.path.isdir(os.path.join(runs[0].location, "progress"))):
        with contextlib.closing(open_source(runs[0])) as stored:
            run = read_run(stored)
            for name, problem in sorted(run.problems.items()):
                told(f"{name}: {problem}: its first version is read")
            if note := getattr(stored, "note", ""):
                told(note)
            return sorted(sealed_objects(run))
    with contextlib.closing(DirectorySource(source)) as opened:
        return sorted(one.name for one in opened.names() if one.regular)


def read_sound_run(source: Source, *, signers: Collection[str] = (), receipts: Collection[str] = ()) -> StoredRun:
    """A run whose account holds: by one of the signers where any are given, with one of the receipts where any are.

    Raises `DamagedError`, `SourceError`.
    """
    run = read_run(source)
    for problem in (run.progress.problem, run.receipt_problem):
        if problem:
            raise DamagedError(f"{source.location}: {problem}")
    if not run.progress.plans:
        raise SourceError(f"{source.location}: there is no run")
    if contradiction := run.contradiction():
        raise DamagedError(f"{source.location}: {contradiction}")
    known = {run.signer, run.countersigned.countersigner if run.countersigned is not None else run.signer}
    if signers and not known & set(signers):
        raise DamagedError(f"{source.location}: signed by {run.signer}, not as given")
    # A run that was stopped has the receipt of its last attempt, which lists all that was there before.
    last = run.receipts.get(len(run.progress.plans))
    receipt = run.receipt_sha256 or (last[2] if last is not None else "")
    if receipts and receipt not in receipts:
        raise DamagedError(f"{source.location}: its receipt is not as given by its SHA-256")
    return run


def check_object(run: StoredRun, name: str) -> None:
    """Whether an object is there in the very bytes that were signed. Raises `DamagedError`, `SourceError`."""
    size, sha256 = run.listed()[name]
    if name not in run.names:
        raise DamagedError(f"{name}: missing")
    if run.names[name] != size or digest(run.source, name) != sha256:
        raise DamagedError(f"{name}: changed: its bytes are not those that were signed")


def plaintext(run: StoredRun, name: str, identities: Sequence[Identity], account: Account) -> Iterator[bytes]:
    """The plaintext of the item that begins with this object, from all the objects that it goes on in.

    What each opens to is compared at its end with the signed record of it; what was given out until an error must not
    be kept. Raises `DamagedError`, `IdentityError`, `SourceError`.
    """
    for one in account.objects_of(name):
        yield from _object(run, one, identities, account)


def _object(run: StoredRun, name: str, identities: Sequence[Identity], account: Account) -> Iterator[bytes]:
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
    """Opens the items of a run below the directory `output`.

    `only` are patterns for plaintext names; `byte_range` (first, last) takes that part of one item through the seek
    tables of its objects. `after` is told each name that was written. An attempt that was killed left no manifest: what
    its progress records tell of its items is written as `attempt-N/items.jsonl`.
    """
    opened = Opened(run.progress.plans[0].run, run.finished, sum(one.gaps for one in run.progress.whole))
    there = {plain: name for plain, name in sealed_objects(run).items() if not account.continues(name)}
    chosen = {
        plain: name
        for plain, name in there.items()
        if not only or any(fnmatch.fnmatchcase(plain, pattern) for pattern in only)
    }
    if not chosen:
        more = f" and {len(there) - 20} more" if len(there) > 20 else ""
        raise UsageError(f"no object matches --only; there are {', '.join(sorted(there)[:20])}{more}")
    if byte_range is not None and len(chosen) != 1:
        raise UsageError(f"--range takes a part of one object, and {len(chosen)} match: name one with --only")
    if byte_range is None:
        run.source.prefetch(name for name in chosen.values() if name in run.names)
    for plain, name in chosen.items():
        if byte_range is None:
            chunks = plaintext(run, name, identities, account)
        else:
            try:
                opened.part = part = _within(run, name, identities, account, byte_range)
            except OutOfReachError:
                raise
            except (DamagedError, SourceError) as error:
                opened.damaged.append((name, str(error)))
                continue
            plain = f"{plain}.{part[0]}-{part[1]}"  # noqa: PLW2901 - the name of the part
            chunks = _part(run, name, identities, account, part)
        try:
            opened.bytes += write_below(output, plain, chunks)
        except OutOfReachError:
            raise
        except (DamagedError, SourceError) as error:
            opened.damaged.append((name, str(error)))
            continue
        opened.objects.append(plain)
        after(plain)
    for attempt, records in account.unlisted.items() if not only else ():
        name = f"attempt-{attempt}/items.jsonl"
        opened.bytes += write_below(output, name, iter(records))
        opened.objects.append(name)
    return opened


def _within(
    run: StoredRun, name: str, identities: Sequence[Identity], account: Account, part: tuple[int, int]
) -> tuple[int, int]:
    """What an item has of the bytes `part` (first, last). Raises `UsageError` where it has none of them."""
    recorded = [account.stored[one].plaintext_size for one in account.objects_of(name) if one in account.stored]
    if recorded:
        size = sum(recorded)
    else:
        with _unsealed(run, name, identities) as unsealed:
            size = unsealed.size
    if part[0] >= size:
        raise UsageError(f"--range begins beyond the end: {name.removesuffix(SUFFIX)} has {size} bytes")
    return part[0], min(part[1], size - 1)


def _part(
    run: StoredRun, name: str, identities: Sequence[Identity], account: Account, part: tuple[int, int]
) -> Iterator[bytes]:
    """Bytes `part` (first, last) of an item, which has them. Only the objects that hold them are read."""
    names = account.objects_of(name)
    begins = 0
    for one in names:
        size = account.stored[one].plaintext_size if len(names) > 1 else part[1] + 1
        if part[0] < begins + size and part[1] >= begins:
            with _unsealed(run, one, identities) as unsealed:
                first, end = max(part[0] - begins, 0), min(part[1] - begins + 1, size)
                if one in account.stored and unsealed.size != account.stored[one].plaintext_size:
                    raise DamagedError(f"{one} opens to other bytes than its record says")
                yield from unsealed.range(first, end)
        begins += size


@contextlib.contextmanager
def _unsealed(run: StoredRun, name: str, identities: Sequence[Identity]) -> Iterator[Unsealed]:
    """An object whose parts can be read: each is the signed one, or the whole object is."""
    parts = run.parts().get(name, []) if name in run.names else []
    if not parts:
        # A part opens to no digest that was signed: the whole object must be the signed one.
        check_object(run, name)
    blob: Blob = run.source.open(name)
    try:
        if parts:
            blob = ProvenBlob(blob, parts, name)
        yield Unsealed(blob, identities)
    finally:
        blob.close()


def write_below(output: int, name: str, chunks: Iterator[bytes]) -> int:
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
