"""An item that is longer than one object may be goes on in the next, and is one item to whoever opens it."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
from typing import TYPE_CHECKING

import pytest

from agent import pieces
from agent.custody.manifest import records
from agent.errors import StoppedError, StoreError
from agent.pieces import Names
from agent.stores import directory
from agent.stores.sealed import SealedObject
from tests.support.runs import Script, acquire, impound, keygen, only_run, play

if TYPE_CHECKING:
    from pathlib import Path

LIMIT = 3_000_000
DATA = b"".join(hashlib.sha256(number.to_bytes(4, "big")).digest() for number in range(250_000))  # 8,000,000 bytes
CHUNK = 700_001
ITEM = "memory/physical.lime"


@pytest.fixture(autouse=True)
def _short_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "MAX_PIECE", LIMIT)


@pytest.fixture
def recipient(tmp_path: Path) -> str:
    return keygen(tmp_path)[1]


def cut(data: bytes, size: int = CHUNK) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def open_run(tmp_path: Path, *more: str, out: str = "out") -> tuple[int, dict[str, object], str]:
    return impound("open", tmp_path / "ev", "-i", tmp_path / "case.key", "-o", tmp_path / out, *more)


def sizes(run: Path) -> dict[str, int]:
    """What stock tools open each object of the item to."""
    found = {}
    for path in sorted(run.glob("memory/*.zst.age")):
        age = subprocess.run(
            ["age", "-d", "-i", run.parents[3] / "case.key", path], capture_output=True, check=True, timeout=60
        )
        plain = subprocess.run(["zstd", "-d", "-c"], input=age.stdout, capture_output=True, check=True, timeout=60)
        found[path.name] = len(plain.stdout)
    return found


def test_a_long_item_is_several_whole_objects_and_opens_as_one(
    tmp_path: Path, recipient: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, Script(ITEM, cut(DATA), gaps=2), Script("a/short.tar", [b"x"]))
    code, result, error = acquire(tmp_path / "ev", recipient)
    assert (code, result["items"], result["gaps"], result["read_bytes"]) == (1, 2, 4 - 2, len(DATA) + 1), error
    run = only_run(tmp_path / "ev")
    assert sizes(run) == {
        "physical.lime.zst.age": LIMIT,
        "physical.lime.0002.zst.age": LIMIT,
        "physical.lime.0003.zst.age": len(DATA) - 2 * LIMIT,
    }
    code, verdict, error = impound("verify", run, "-i", tmp_path / "case.key")
    assert (code, verdict["items"], verdict["members"], verdict["gaps"]) == (0, 2, 2, 2), error
    code, opened, error = open_run(tmp_path)
    assert (code, opened["gaps"]) == (0, 2), error
    assert (tmp_path / "out" / ITEM).read_bytes() == DATA
    assert sorted(path.name for path in (tmp_path / "out/memory").iterdir()) == ["physical.lime"]


def test_each_object_has_a_record_that_says_which_it_is(
    tmp_path: Path, recipient: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, Script(ITEM, cut(DATA), gaps=1))
    acquire(tmp_path / "ev", recipient)
    open_run(tmp_path)
    lines = records([(tmp_path / "out/attempt-1/manifest.jsonl").read_bytes()], "manifest")
    stored = [line for line in lines if line["type"] == "stored"]
    fields = ("item", "object", "piece", "pieces", "begins", "plaintext_size", "members", "gaps")
    assert [tuple(line[field] for field in fields) for line in stored] == [
        (ITEM, f"{ITEM}.zst.age", 1, 3, 0, LIMIT, 0, 0),
        (ITEM, f"{ITEM}.0002.zst.age", 2, 3, LIMIT, LIMIT, 0, 0),
        (ITEM, f"{ITEM}.0003.zst.age", 3, 3, 2 * LIMIT, len(DATA) - 2 * LIMIT, 1, 1),
    ]
    assert [line["plaintext_sha256"] for line in stored] == [
        hashlib.sha256(DATA[at : at + LIMIT]).hexdigest() for at in range(0, len(DATA), LIMIT)
    ]


@pytest.mark.parametrize("size", [0, 1, LIMIT - 1, LIMIT, LIMIT + 1, 2 * LIMIT, 2 * LIMIT + 1])
@pytest.mark.parametrize("chunk", [LIMIT, 8_000_000, 999_999])
def test_the_edges(tmp_path: Path, recipient: str, monkeypatch: pytest.MonkeyPatch, size: int, chunk: int) -> None:
    play(monkeypatch, Script(ITEM, cut(DATA[:size], chunk)))
    assert acquire(tmp_path / "ev", recipient)[0] == 0
    run = only_run(tmp_path / "ev")
    assert len(list(run.glob("memory/*"))) == max(1, -(-size // LIMIT))
    assert open_run(tmp_path)[0] == 0
    assert (tmp_path / "out" / ITEM).read_bytes() == DATA[:size]


@pytest.mark.parametrize(
    ("first", "last"),
    [
        (0, 9),
        (LIMIT - 3, LIMIT + 3),
        (LIMIT, LIMIT),
        (5, 2 * LIMIT + 5),
        (2 * LIMIT + 7, 10**12),
        (7_999_999, 7_999_999),
    ],
)
def test_a_range_goes_over_the_edges(
    tmp_path: Path, recipient: str, monkeypatch: pytest.MonkeyPatch, first: int, last: int
) -> None:
    play(monkeypatch, Script(ITEM, cut(DATA)))
    acquire(tmp_path / "ev", recipient)
    code, _, error = open_run(tmp_path, "--only", ITEM, "--range", f"{first}-{last}")
    assert code == 0, error
    there = min(last, len(DATA) - 1)
    assert (tmp_path / f"out/{ITEM}.{first}-{there}").read_bytes() == DATA[first : last + 1]


def test_a_range_beyond_the_end_is_refused(tmp_path: Path, recipient: str, monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch, Script(ITEM, cut(DATA)))
    acquire(tmp_path / "ev", recipient)
    code, _, error = open_run(tmp_path, "--only", ITEM, "--range", "8000000-8000001")
    assert code == 2
    assert "8000000 bytes" in error


@pytest.mark.parametrize("lost", ["physical.lime.zst.age", "physical.lime.0002.zst.age", "physical.lime.0003.zst.age"])
def test_an_item_that_lost_an_object_is_damaged_and_never_looks_whole(
    tmp_path: Path, recipient: str, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    play(monkeypatch, Script(ITEM, cut(DATA)))
    acquire(tmp_path / "ev", recipient)
    run = only_run(tmp_path / "ev")
    (run / "memory" / lost).unlink()
    assert impound("verify", run, "-i", tmp_path / "case.key")[0] == 4
    assert open_run(tmp_path)[0] == 4
    assert not (tmp_path / "out" / ITEM).exists()
    assert open_run(tmp_path, "--only", ITEM, "--range", "0-7999999", out="part")[0] == 4
    assert not list((tmp_path / "part/memory").iterdir())


@pytest.mark.parametrize("fail_at", [2, 3])
def test_an_item_that_was_cut_off_is_taken_again_whole(
    tmp_path: Path, recipient: str, monkeypatch: pytest.MonkeyPatch, fail_at: int
) -> None:
    """The store refuses what an item goes on in: what it began stays, and is nobody's evidence."""
    play(monkeypatch, Script("a/before.tar", [b"y"]), Script(ITEM, cut(DATA)))
    with monkeypatch.context() as patch:
        commit = directory.DirectoryUpload.commit

        def refuse(upload: directory.DirectoryUpload) -> tuple[()]:
            if upload._name.endswith(f".{fail_at:04d}.zst.age"):
                raise StoreError("no")
            return commit(upload)

        patch.setattr(directory.DirectoryUpload, "commit", refuse)
        assert acquire(tmp_path / "ev", recipient)[0] == 3
    check_that_it_resumes(tmp_path, fail_at - 1)


def test_an_item_that_was_stopped_is_taken_again_whole(
    tmp_path: Path, recipient: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, Script("a/before.tar", [b"y"]), Script(ITEM, cut(DATA)))
    with monkeypatch.context() as patch:
        begin = SealedObject

        def stop(store: object, name: str, *rest: object, **more: object) -> object:
            if name.endswith(".0003"):
                raise StoppedError("stopped by SIGTERM")
            return begin(store, name, *rest, **more)  # type: ignore[arg-type]

        patch.setattr("agent.taking.SealedObject", stop)
        code, result, _ = acquire(tmp_path / "ev", recipient)
    assert (code, result["verdict"]) == (3, "stopped")
    check_that_it_resumes(tmp_path, 2)


@pytest.mark.parametrize("kept", [1, 2])
def test_killed_between_the_records_of_an_items_objects(
    tmp_path: Path, recipient: str, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    """Some objects of the item are recorded, the first one is not: the item is not whole."""
    play(monkeypatch, Script("a/before.tar", [b"y"]), Script(ITEM, cut(DATA)))
    acquire(tmp_path / "ev", recipient)
    run = only_run(tmp_path / "ev")
    for path in (run / "receipt.json", *(run / "attempt-1").iterdir()):
        path.unlink()
    for number in range(2 + kept, 5):  # 0 the plan, 1 the item before, 2 to 4 the objects, the last of them first
        (run / f"progress/{number:06d}.json").unlink()
    check_that_it_resumes(tmp_path, 3)


def check_that_it_resumes(tmp_path: Path, left: int) -> None:
    run = only_run(tmp_path / "ev")
    before = {path.name: path.read_bytes() for path in run.glob("memory/*")}
    assert len(before) == left
    code, verdict, error = impound("verify", run, "-i", tmp_path / "case.key")
    assert (code, verdict["verdict"]) == (4, "partial"), error
    code, _, error = open_run(tmp_path, out="partial")
    assert code == 0, error
    assert not (tmp_path / "partial/memory").exists()  # what there is of the item is opened by nobody
    code, result, error = impound("resume", run)
    assert (code, result["verdict"]) == (0, "complete"), error
    assert before.items() <= {path.name: path.read_bytes() for path in run.glob("memory/*")}.items()
    code, verdict, error = impound("verify", run, "-i", tmp_path / "case.key")
    assert (code, verdict["verdict"]) == (0, "intact, signer unknown"), error
    code, _, error = open_run(tmp_path)
    assert code == 0, error
    assert [path.name for path in (tmp_path / "out/memory").iterdir()] == ["physical-2.lime"]
    assert (tmp_path / "out/memory/physical-2.lime").read_bytes() == DATA


def test_what_is_whole_in_several_objects_is_not_taken_again(
    tmp_path: Path, recipient: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, Script(ITEM, cut(DATA)))
    acquire(tmp_path / "ev", recipient)
    run = only_run(tmp_path / "ev")
    (run / "receipt.json").unlink()
    for path in (run / "attempt-1").iterdir():
        path.unlink()
    code, verdict, _ = impound("verify", run)
    assert (code, verdict["verdict"], verdict["items"]) == (4, "partial", 1)
    code, result, _ = impound("resume", run)
    assert (code, result["items"]) == (0, 1)
    assert len(list(run.glob("memory/*"))) == 3
    assert impound("verify", run, "-i", tmp_path / "case.key")[0] == 0
    assert open_run(tmp_path)[0] == 0
    assert (tmp_path / "out" / ITEM).read_bytes() == DATA


def test_an_archive_that_goes_on_is_extracted_and_exported(
    tmp_path: Path, recipient: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for number in range(4):
            info = tarfile.TarInfo(f"[root]/var/lib/file{number}")
            info.size = 2_000_000
            tar.addfile(info, io.BytesIO(DATA[number * 1000 :][:2_000_000]))
    play(monkeypatch, Script("host/files.tar", cut(archive.getvalue())))
    assert acquire(tmp_path / "ev", recipient)[0] == 0
    code, _, error = open_run(tmp_path, "--extract")
    assert code == 0, error
    assert (tmp_path / "out/host/files/[root]/var/lib/file3").read_bytes() == DATA[3000:2_003_000]
    code, _, error = impound(
        "export", "host", tmp_path / "ev", "-i", tmp_path / "case.key", "-o", tmp_path / "host.tar"
    )
    assert code == 0, error
    with tarfile.open(tmp_path / "host.tar") as joined:
        member = joined.extractfile("[root]/var/lib/file3")
        assert member is not None
        assert member.read() == DATA[3000:2_003_000]


def test_names_of_items_never_look_like_what_another_goes_on_in(
    tmp_path: Path, recipient: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, Script("m/x.0002", [b"native"]), Script("m/x", cut(DATA)), Script("m/x.0003", [b"later"]))
    assert acquire(tmp_path / "ev", recipient)[0] == 0
    assert open_run(tmp_path)[0] == 0
    contents = {path.name: path.read_bytes() for path in (tmp_path / "out/m").iterdir()}
    assert sorted(contents.values()) == sorted([DATA, b"native", b"later"])


def test_a_name_is_free_only_where_nothing_seems_to_go_on_from_it() -> None:
    names = Names(done=[], taken=["m/x.lime.0002.zst.age"])
    assert names.take("m/x.lime") == "m/x-2.lime"
    assert names.continuation("m/x-2.lime", 2) == "m/x-2.lime.0002"
    assert names.continuation("m/x-2.lime", 2) == "m/x-2.lime.0002-2"


def test_the_name_of_a_continuation_is_an_object_name_however_long_the_items() -> None:
    from agent.custody.records import is_object_name

    for length in (150, 187, 188, 192):
        plain = "a/" + "n" * length
        assert is_object_name(plain + ".zst.age")
        assert is_object_name(Names([], []).continuation(plain, 2) + ".zst.age")


def test_the_manifest_of_a_stopped_item_says_so(
    tmp_path: Path, recipient: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, Script(ITEM, cut(DATA)))
    begin = SealedObject

    def stop(store: object, name: str, *rest: object, **more: object) -> object:
        if name.endswith(".0002"):
            raise StoppedError("stopped by SIGTERM")
        return begin(store, name, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr("agent.taking.SealedObject", stop)
    acquire(tmp_path / "ev", recipient)
    open_run(tmp_path)
    log = [json.loads(line) for line in (tmp_path / "out/attempt-1/custody.jsonl").read_text().splitlines()]
    told = {line["event"]: line["data"] for line in log}
    assert told["item-continues"]["object"] == f"{ITEM}.zst.age"
    assert told["item-unfinished"] == {"item": ITEM, "objects": [f"{ITEM}.zst.age"]}
