"""Promise 7 in a bucket: what somebody with rights to it did to a run is named by `verify`, with exit 4."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.rigs.strict_s3 import StrictS3
from tests.support.runs import Script, acquire, keygen, only_run, play
from tests.support.s3_reading import BUCKET, Bucket, log_in

OBJECT = "containers/docker/b.tar.zst.age"
OTHER = "snapshot/a.jsonl.zst.age"


@dataclass
class Stored:
    bucket: Bucket
    run: Path
    place: str
    key: Path
    result: dict[str, object]

    def key_of(self, name: str) -> str:
        return f"{self.place.removeprefix(f's3://{BUCKET}/')}/{name}"

    def data(self, name: str) -> bytes:
        return (self.run / name).read_bytes()

    def replace(self, name: str, data: bytes) -> None:
        """As if it had always been so: the one version is another one."""
        self.remove(name)
        self.bucket.put(self.key_of(name), data)

    def remove(self, name: str) -> None:
        """Every version of it, as one with all rights can."""
        with self.bucket.server.world.lock:
            self.bucket.server.bucket(BUCKET).objects.pop(self.key_of(name), None)

    def damaged(self, *more: str | Path) -> dict[str, str]:
        """What verify finds damaged, with its words; it must exit 4 and say so."""
        code, result, _ = self.bucket.impound("verify", self.place, *more)
        assert (code, result["verdict"]) == (4, "damaged"), result
        findings = result["findings"]
        assert isinstance(findings, list)
        return {finding["name"]: finding["problem"] for finding in findings}


@pytest.fixture(params=["versions", "plain"])
def stored(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stored]:
    """A finished run with two items, copied into a bucket with versions, and into one without."""
    play(monkeypatch, Script("snapshot/a.jsonl"), Script("containers/docker/b.tar", [b"x" * 70_000], gaps=1, flags=1))
    key, recipient = keygen(tmp_path)
    code, result, _ = acquire(tmp_path / "ev", recipient)
    assert code == 1
    run = only_run(tmp_path / "ev")
    with StrictS3(tmp_path) as server:
        server.make_bucket(BUCKET, versioning=request.param == "versions")
        log_in(monkeypatch, server.admin)
        bucket = Bucket(server, tmp_path, server.client("s3"))
        yield Stored(bucket, run, bucket.copy(run, tmp_path / "ev"), key, result)


def test_a_copied_run_verifies_as_the_one_it_was_copied_from(stored: Stored) -> None:
    from tests.support.runs import impound

    there = impound("verify", stored.run, "-i", stored.key, "--signer", str(stored.result["signer"]))
    here = stored.bucket.impound("verify", stored.place, "-i", stored.key, "--signer", str(stored.result["signer"]))
    assert here[:2] == there[:2]
    assert (here[0], here[1]["verdict"], here[1]["plaintext_checked"]) == (0, "intact", True)


def test_a_flipped_byte_in_any_object_is_named(stored: Stored) -> None:
    names = sorted(str(path.relative_to(stored.run)) for path in stored.run.rglob("*") if path.is_file())
    for name in names:
        data = stored.data(name)
        for offset in (0, len(data) // 2, len(data) - 1):
            stored.replace(name, data[:offset] + bytes([data[offset] ^ 0x10]) + data[offset + 1 :])
            found = stored.damaged()
            assert name in found or name == "receipt.json", (name, offset, found)
        stored.replace(name, data)
    assert stored.bucket.impound("verify", stored.place)[0] == 0


@pytest.mark.parametrize("change", [lambda d: d[:-1], lambda d: d[:0], lambda d: d + b"\n", lambda d: d + d])
def test_a_cut_or_lengthened_object_is_named(stored: Stored, change: object) -> None:
    assert callable(change)
    stored.replace(OBJECT, change(stored.data(OBJECT)))
    assert "bytes, not" in stored.damaged()[OBJECT]


def test_a_removed_object_is_named(stored: Stored) -> None:
    stored.remove(OBJECT)
    assert stored.damaged() == {OBJECT: "missing"}


@pytest.mark.parametrize(
    "name", ["containers/docker/extra.tar.zst.age", "x", "containers/docker/", "a//b", "../up", "\u202ereversed"]
)
def test_an_added_object_is_named(stored: Stored, name: str) -> None:
    stored.bucket.put(stored.key_of(name), b"x")
    [(found, problem)] = stored.damaged().items()
    assert found == name
    assert problem.startswith("added: ")


def test_swapped_objects_are_named(stored: Stored) -> None:
    stored.replace(OBJECT, stored.data(OTHER))
    stored.replace(OTHER, stored.data(OBJECT))
    assert set(stored.damaged()) == {OBJECT, OTHER}


def test_an_object_that_was_overwritten_is_named_and_its_first_version_still_opens(
    stored: Stored, tmp_path: Path
) -> None:
    if not stored.bucket.server.bucket(BUCKET).versioning:
        stored.bucket.put(stored.key_of(OBJECT), b"another")
        assert OBJECT in stored.damaged()
        return
    stored.bucket.put(stored.key_of(OBJECT), b"another")
    stored.bucket.put(stored.key_of(OBJECT), b"one more")
    [(name, problem)] = stored.damaged().items()
    assert name == OBJECT
    assert "has 3 versions: something was put over it on 20" in problem
    code, result, error = stored.bucket.impound("open", stored.place, "-i", stored.key, "-o", tmp_path / "out")
    assert code == 0, error
    notes = result["notes"]
    assert isinstance(notes, list)
    [note] = notes
    assert note.startswith(f"{OBJECT}: has 3 versions: ")
    assert note.endswith("its first version is opened")
    assert note in error
    assert (tmp_path / "out/containers/docker/b.tar").read_bytes() == b"x" * 70_000


def test_an_object_that_was_marked_deleted_is_named_and_is_still_there(stored: Stored) -> None:
    stored.bucket.client.delete_object(Bucket=BUCKET, Key=stored.key_of(OBJECT))
    found = stored.damaged()
    if stored.bucket.server.bucket(BUCKET).versioning:
        assert list(found) == [OBJECT]
        assert "was marked deleted on 20" in found[OBJECT]
    else:
        assert found == {OBJECT: "missing"}


def test_a_run_that_was_marked_deleted_as_a_whole_is_found_and_named(stored: Stored) -> None:
    if not stored.bucket.server.bucket(BUCKET).versioning:
        return
    names = [str(path.relative_to(stored.run)) for path in stored.run.rglob("*") if path.is_file()]
    for name in names:
        stored.bucket.client.delete_object(Bucket=BUCKET, Key=stored.key_of(name))
    assert set(stored.damaged()) == set(names)
    code, result, error = stored.bucket.impound("verify", f"s3://{BUCKET}")
    assert result, error
    assert (code, result["verdict"]) == (4, "damaged")


def test_even_bytes_that_are_the_same_count_where_they_were_put_again(stored: Stored) -> None:
    stored.bucket.put(stored.key_of(OBJECT), stored.data(OBJECT))
    if stored.bucket.server.bucket(BUCKET).versioning:
        assert list(stored.damaged()) == [OBJECT]
    else:
        assert stored.bucket.impound("verify", stored.place)[0] == 0  # the same bytes: nothing to be seen


def test_another_run_in_its_place_is_found_by_the_signer(stored: Stored, tmp_path: Path) -> None:
    from tests.support.runs import impound

    recipient = str(impound("keygen", "-y", stored.key)[1]["recipient"])
    acquire(tmp_path / "other", recipient)
    other = only_run(tmp_path / "other")
    place = stored.bucket.copy(other, tmp_path / "other", "forged")
    code, result, _ = stored.bucket.impound("verify", place, "--signer", str(stored.result["signer"]))
    assert (code, result["verdict"]) == (4, "not by the signer that was given")


@pytest.mark.parametrize(("status", "code"), [(400, "ExpiredToken"), (403, "AccessDenied"), (404, "NoSuchBucket")])
def test_what_cannot_be_reached_is_not_called_damaged(stored: Stored, tmp_path: Path, status: int, code: str) -> None:
    stored.bucket.server.faults.refuse(10_000, status=status, code=code, where=stored.key_of(OBJECT))
    for verb in (("verify",), ("verify", "-i", stored.key)):
        exit_code, result, _ = stored.bucket.impound(verb[0], stored.place, *verb[1:])
        assert (exit_code, result["verdict"]) == (3, "unreadable"), result
    exit_code, _, _ = stored.bucket.impound("open", stored.place, "-i", stored.key, "-o", tmp_path / "opened")
    assert exit_code == 3
