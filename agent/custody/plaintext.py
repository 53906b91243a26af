"""The part of `verify` that needs a key: manifest, custody log, and every object's plaintext."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from agent.custody.canonical import decode_base64
from agent.custody.log import check
from agent.custody.manifest import lines_of, records
from agent.errors import DamagedError, OutOfReachError, SourceError
from agent.sealing import Unsealed, open_bytes
from agent.sealing.merkle import Tree
from agent.stores.sealed import SUFFIX

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from agent.custody.stored import StoredRun
    from agent.sealing import Identity

Damage = Callable[[str, str], None]
Watch = Callable[[str, int], None]


class Stored(msgspec.Struct, frozen=True):
    """What an item's record says of its object. Fields that are not needed here are ignored."""

    name: str = msgspec.field(name="object")
    plaintext_size: int = msgspec.field()
    plaintext_sha256: str = msgspec.field()
    item: str = ""
    gaps: int = 0
    first_gaps: list[dict[str, object]] = []
    piece: int = 1
    """Which of the item's objects this is, from 1, and how many there are."""
    pieces: int = 1
    begins: int = 0
    """Where in the item it begins."""


class Account(msgspec.Struct):
    """What manifest and progress records say, opened."""

    stored: dict[str, Stored] = msgspec.field(default_factory=dict)
    unlisted: dict[int, list[bytes]] = msgspec.field(default_factory=dict)
    """Of attempts that left no manifest: their items' records, as JSON lines."""

    def continues(self, name: str) -> bool:
        """Whether an object is what an item goes on in, not what it begins with."""
        return name in self.stored and self.stored[name].piece > 1

    def objects_of(self, name: str) -> list[str]:
        """The objects of the item that begins with this one, in order: all of them, or `DamagedError`."""
        first = self.stored.get(name)
        if first is None or first.pieces <= 1:
            return [name]
        others = sorted(
            (one.piece, one.name) for one in self.stored.values() if one.item == first.item and one.name != name
        )
        # How many there are is compared first: a record may say any number.
        if len(others) != first.pieces - 1 or [piece for piece, _ in others] != list(range(2, first.pieces + 1)):
            raise DamagedError(f"{name} goes on in {first.pieces - 1} others, and not all of them are recorded")
        names = [name, *(other for _, other in others)]
        begins = 0
        for one in (self.stored[each] for each in names):
            if (one.pieces, one.begins) != (first.pieces, begins):
                raise DamagedError(f"{one.name} is not where {name} goes on")
            begins += one.plaintext_size
        return names


def open_account(run: StoredRun, identities: Sequence[Identity]) -> Account:
    """The items' records of a run. Raises `DamagedError`, `IdentityError`, `SourceError`."""
    account = Account()
    manifests = attempts(run)
    for whole in run.progress.whole:
        what = f"the record of {whole.object}"
        sealed = open_bytes(decode_base64(whole.sealed, what), identities)
        try:
            stored = msgspec.json.decode(sealed, type=Stored)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise DamagedError(f"{what}: not one that impound wrote") from error
        if stored.name != whole.object:
            raise DamagedError(f"{what}: belongs to {stored.name}")
        account.stored[whole.object] = stored
        if whole.attempt not in manifests:
            account.unlisted.setdefault(whole.attempt, []).append(sealed + b"\n")
    return account


def attempts(run: StoredRun) -> list[int]:
    """The attempts that left a manifest which a signed record names."""
    listed = run.listed()
    return [
        number
        for number in range(1, len(run.progress.plans) + 1)
        if f"attempt-{number}/manifest.jsonl{SUFFIX}" in listed
    ]


def plaintext_of(run: StoredRun, name: str, identities: Sequence[Identity]) -> Iterator[bytes]:
    """The plaintext of one object, authenticated. Raises `DamagedError`, `IdentityError`, `SourceError`.

    At the end its frames are compared with the tree that was signed, where one was: what a range proof rests on.
    """
    said = run.trees().get(name)
    tree = Tree() if said is not None else None
    blob = run.source.open(name)
    try:
        yield from Unsealed(blob, identities).stream(tree)
        if tree is not None and (tree.size, tree.root().hex()) != said:
            raise DamagedError("its frames are not those of the tree that was signed")
    finally:
        blob.close()


def check_plaintext(run: StoredRun, identities: Sequence[Identity], damage: Damage, watch: Watch) -> None:
    """Opens everything and compares. Raises `IdentityError` when no identity opens the run."""
    try:
        account = open_account(run, identities)
    except DamagedError as error:
        damage("progress", str(error))
        return
    for number in attempts(run):
        _check_manifest(run, number, identities, account, damage)
        _check_custody(run, number, identities, damage)
    run.source.prefetch(name for name in account.stored if name in run.names)
    for name, stored in account.stored.items():
        if stored.piece == 1:
            try:
                account.objects_of(name)
            except DamagedError as error:
                damage(name, str(error))
        _check_object(run, name, stored, identities, damage, watch)


def _check_manifest(
    run: StoredRun, attempt: int, identities: Sequence[Identity], account: Account, damage: Damage
) -> None:
    name = f"attempt-{attempt}/manifest.jsonl{SUFFIX}"
    last: dict[str, object] = {}
    seen: set[str] = set()
    state = hashlib.sha256()
    try:
        for record in records(_digested(plaintext_of(run, name, identities), state), name):
            if last.get("type") == "end":
                damage(name, "goes on after its end")
            last = record
            if record.get("type") == "stored":
                stored = msgspec.convert(record, Stored)
                seen.add(stored.name)
                known = account.stored.get(stored.name)
                if known is None or known.plaintext_sha256 != stored.plaintext_sha256:
                    damage(name, f"disagrees with the progress record of {stored.name}")
    except OutOfReachError:
        raise
    except (DamagedError, SourceError, msgspec.ValidationError) as error:
        damage(name, str(error))
        return
    if last.get("type") != "end":
        damage(name, "was cut: it has no last line")
    missing = {one.object for one in run.progress.whole if one.attempt == attempt} - seen
    for one in sorted(missing):
        damage(name, f"does not name {one}")
    said = run.receipt.predicate if run.receipt is not None else None
    if said is not None and said.attempt == attempt:
        if state.hexdigest() != said.manifest_sha256:
            damage(name, "is not the manifest that the receipt names")
        if last.get("gaps") != said.gaps:
            damage(name, "counts other gaps than the receipt")


def _digested(chunks: Iterator[bytes], state: hashlib._Hash) -> Iterator[bytes]:
    for chunk in chunks:
        state.update(chunk)
        yield chunk


def _check_custody(run: StoredRun, attempt: int, identities: Sequence[Identity], damage: Damage) -> None:
    name = f"attempt-{attempt}/custody.jsonl{SUFFIX}"
    if name not in run.names:
        return
    try:
        head, count = check(lines_of(plaintext_of(run, name, identities), name), name)
    except OutOfReachError:
        raise
    except (DamagedError, SourceError) as error:
        damage(name, str(error))
        return
    said = run.receipt.predicate if run.receipt is not None else None
    if said is not None and said.attempt == attempt and (head, count) != (said.custody_head, said.custody_lines):
        damage(name, "is not the log that the receipt names")


def _check_object(
    run: StoredRun, name: str, stored: Stored, identities: Sequence[Identity], damage: Damage, watch: Watch
) -> None:
    state, size = hashlib.sha256(), 0
    try:
        for chunk in plaintext_of(run, name, identities):
            state.update(chunk)
            size += len(chunk)
            watch(name, len(chunk))
    except OutOfReachError:
        raise
    except (DamagedError, SourceError) as error:
        damage(name, str(error))
        return
    if (size, state.hexdigest()) != (stored.plaintext_size, stored.plaintext_sha256):
        damage(name, "opens to other bytes than its record says")
