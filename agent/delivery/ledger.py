"""The controller's own log of a run: what it was told, and what it signed, before it signed it.

JSON Lines in the form of the custody log, each line chained to the one before (`agent.custody.log`), in a file that
only the controller has: `<state>/<run>/ledger.jsonl`, 0600, appended and synced to disk before anything is answered.
What a line says is one note (`agent.delivery.notes`), and what follows from all of them is the `LedgerState`: the same
after a restart as it was before. A controller that was killed while it wrote leaves a last line without an end, on
which nothing was answered; it is cut off when the ledger is opened again, and noted.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
import threading
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Self

import msgspec

from agent.custody.log import CustodyLog, Line, check
from agent.delivery.notes import NOTES, LedgerState, Torn
from agent.errors import DamagedError, ImpoundError, UsageError

if TYPE_CHECKING:
    from types import TracebackType

    from agent.delivery.notes import Note

LEDGER = "ledger.jsonl"
MAX_LINE = 1 << 20
MAX_LINES = 8_000_000


class Ledger:
    """One ledger, open for appending. `note` may be called by several threads; `state` is read under `lock`."""

    def __init__(self, fd: int, path: str, state: LedgerState, head: str = "", lines: int = 0) -> None:
        self._fd, self.path, self.state = fd, path, state
        self.lock = threading.RLock()
        self._log = CustodyLog(self._append)
        self._log.head, self._log.lines = head, lines
        self._broken = False

    @classmethod
    def create(cls, base: str, run: str) -> Self:
        """A new ledger below `base`. Raises `UsageError` where there is one of that run, or none can be."""
        directory = os.path.join(base, run)
        path = os.path.join(directory, LEDGER)
        try:
            os.makedirs(base, 0o700, exist_ok=True)
            os.mkdir(directory, 0o700)
            fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise UsageError(f"the controller's ledger {path!r} cannot be made: {error.strerror}") from error
        try:
            _lock(fd, path)
            for above in (directory, base):
                _sync_directory(above)
        except BaseException:
            os.close(fd)
            raise
        return cls(fd, path, LedgerState())

    @classmethod
    def reopen(cls, base: str, run: str) -> Self:
        """The ledger of a run that goes on. Raises `UsageError` or `DamagedError`."""
        path = os.path.join(base, run, LEDGER)
        fd = _open(path, os.O_RDWR | os.O_APPEND)
        try:
            _lock(fd, path)
            read = _Read(fd, path)
            if read.torn:
                os.ftruncate(fd, read.whole)
                os.fsync(fd)
            ledger = cls(fd, path, read.state, read.head, read.lines)
            if read.torn:
                ledger.note(Torn(len(read.torn), hashlib.sha256(read.torn).hexdigest()))
        except BaseException:
            os.close(fd)
            raise
        return ledger

    @staticmethod
    def load(path: str) -> tuple[LedgerState, str, int]:
        """What a ledger says, its head, and its length. Raises `UsageError`, or `DamagedError` for a broken chain."""
        fd = _open(path, os.O_RDONLY)
        try:
            read = _Read(fd, path)
        finally:
            os.close(fd)
        return read.state, read.head, read.lines

    @property
    def head(self) -> str:
        return self._log.head

    @property
    def lines(self) -> int:
        return self._log.lines

    def note(self, note: Note, *, sync: bool = True) -> None:
        """Adds a line; with `sync`, returns when it is on the disk. Raises `ImpoundError`: nothing is signed then."""
        with self.lock:
            if self._broken:
                raise ImpoundError("the controller's ledger could not be written before, and nothing is signed without")
            try:
                self._log.add(note.event, msgspec.to_builtins(note))
                if sync:
                    os.fdatasync(self._fd)
            except OSError as error:
                self._broken = True
                raise ImpoundError(f"the controller's ledger cannot be written: {error.strerror}") from error
            self.state.apply(note)

    def close(self) -> None:
        with self.lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd, self._broken = -1, True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: object, _trace: TracebackType | None) -> None:
        self.close()

    def _append(self, line: bytes) -> None:
        rest = memoryview(line)
        while rest:
            rest = rest[os.write(self._fd, rest) :]


class _Read:
    """A ledger, read whole and checked."""

    def __init__(self, fd: int, path: str) -> None:
        self.state = LedgerState()
        self.torn = b""
        self.whole = 0
        """Bytes of all lines that have an end."""
        with open(os.dup(fd), "rb") as file:
            file.seek(0)
            self.head, self.lines = check(self._each(file, path), path)

    def _each(self, file: IO[bytes], path: str) -> Iterator[bytes]:
        """Lines without their ends. Each is applied when the one after is asked for: the chain is checked by then."""
        count = 0
        while line := file.readline(MAX_LINE + 1):
            if not line.endswith(b"\n"):
                if len(line) > MAX_LINE:
                    raise DamagedError(f"{path}: line {count + 1} is longer than any that impound writes")
                self.torn = line
                return
            count += 1
            if count > MAX_LINES:
                raise DamagedError(f"{path}: more lines than impound writes")
            raw = line[:-1]
            yield raw
            self._apply(raw, count, path)
            self.whole += len(line)

    def _apply(self, raw: bytes, count: int, path: str) -> None:
        line = msgspec.json.decode(raw, type=Line)
        kind = NOTES.get(line.event)
        if kind is None:
            raise DamagedError(f"{path}: line {count} is of no kind that impound writes")
        try:
            self.state.apply(msgspec.convert(line.data, kind))
        except (msgspec.MsgspecError, ValueError, DamagedError) as error:
            raise DamagedError(f"{path}: line {count} is not one that impound wrote: {error}") from error


def state_directory() -> str:
    """Where ledgers lie unless a person says otherwise: `$XDG_STATE_HOME/impound/runs`."""
    home = os.environ.get("XDG_STATE_HOME", "")
    if not os.path.isabs(home):  # as the specification says: a relative one is not used
        home = os.path.expanduser("~/.local/state")
    return os.path.join(home, "impound", "runs")


def _open(path: str, flags: int) -> int:
    try:
        fd = os.open(path, flags | os.O_NOFOLLOW)
    except OSError as error:
        raise UsageError(f"the controller's ledger {path!r} cannot be opened: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise UsageError(f"the controller's ledger {path!r} is not a file")
    return fd


def _lock(fd: int, path: str) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise UsageError(f"another controller works on {path!r}") from None


def _sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
