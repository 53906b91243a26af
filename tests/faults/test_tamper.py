"""Promise 7: a changed, missing, swapped, added, truncated or reordered byte or object fails `verify`, by name."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING

import pytest

from tests.support.runs import Script, acquire, impound, keygen, only_run, play

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path, dict[str, object]]:
    """A finished run with two items: its directory, the key file, the result of acquire."""
    play(monkeypatch, Script("snapshot/a.jsonl"), Script("containers/docker/b.tar", [b"x" * 70_000], gaps=1, flags=1))
    key, recipient = keygen(tmp_path)
    code, result, _ = acquire(tmp_path / "ev", recipient)
    assert code == 1
    return only_run(tmp_path / "ev"), key, result


def objects(run: Path) -> list[Path]:
    return sorted(path for path in run.rglob("*") if path.is_file())


def damaged(run: Path, *more: str) -> list[str]:
    """The names that verify finds damaged; it must exit 4 and say so."""
    code, result, _ = impound("verify", run, *more)
    assert (code, result["verdict"]) == (4, "damaged"), result
    findings = result["findings"]
    assert isinstance(findings, list)
    return [finding["name"] for finding in findings]


def test_an_untouched_run_is_intact_and_its_signer_unknown_until_it_is_given(
    stored: tuple[Path, Path, dict[str, object]],
) -> None:
    run, key, result = stored
    assert impound("verify", run)[1]["verdict"] == "intact, signer unknown"
    code, verdict, _ = impound("verify", run, "-i", key, "--signer", str(result["signer"]))
    assert (code, verdict["verdict"], verdict["plaintext_checked"]) == (0, "intact", True)
    code, verdict, _ = impound("verify", run, "--receipt-sha256", str(result["receipt_sha256"]))
    assert (code, verdict["verdict"]) == (0, "intact")
    assert impound("verify", run.parents[2], "-i", key)[0] == 0


@pytest.mark.parametrize("name", ["receipt.json", "attempt-1/receipt.json", "progress/000000.json"])
def test_every_single_byte_of_what_is_signed_counts(stored: tuple[Path, Path, dict[str, object]], name: str) -> None:
    run, _, _ = stored
    path = run / name
    data = path.read_bytes()
    for offset in range(0, len(data), 1 if name == "receipt.json" else 7):
        path.write_bytes(data[:offset] + bytes([data[offset] ^ (1 << offset % 8)]) + data[offset + 1 :])
        names = damaged(run)
        assert any(found in {name, "receipt.json", "attempt-1/receipt.json"} for found in names), (offset, names)
    path.write_bytes(data)
    assert impound("verify", run)[0] == 0


def test_a_flipped_byte_anywhere_in_any_object_is_named(stored: tuple[Path, Path, dict[str, object]]) -> None:
    run, _, _ = stored
    for path in objects(run):
        data = path.read_bytes()
        for offset in {0, 1, len(data) // 3, len(data) // 2, len(data) - 17, len(data) - 1}:
            path.write_bytes(data[:offset] + bytes([data[offset] ^ 0x10]) + data[offset + 1 :])
            names = damaged(run)
            assert str(path.relative_to(run)) in names or path.name == "receipt.json", (path, offset, names)
        path.write_bytes(data)


def test_a_cut_or_lengthened_object_is_named(stored: tuple[Path, Path, dict[str, object]]) -> None:
    run, _, _ = stored
    for path in objects(run):
        data = path.read_bytes()
        for wrong in (data[:-1], data[: len(data) // 2], b"", data + b"\n", data + data):
            path.write_bytes(wrong)
            names = damaged(run)
            assert any(name in {str(path.relative_to(run)), "receipt.json"} for name in names), (path, names)
        path.write_bytes(data)


def test_a_removed_object_is_named(stored: tuple[Path, Path, dict[str, object]]) -> None:
    run, _, _ = stored
    for path in objects(run):
        data = path.read_bytes()
        path.unlink()
        code, result, _ = impound("verify", run)
        assert code == 4
        text = json.dumps(result)
        assert str(path.relative_to(run)) in text, (path, text)
        path.write_bytes(data)


def test_added_objects_links_and_devices_are_named(stored: tuple[Path, Path, dict[str, object]]) -> None:
    run, _, _ = stored
    extra = run / "containers/docker/extra.tar.zst.age"
    extra.write_bytes(b"x")
    assert damaged(run) == ["containers/docker/extra.tar.zst.age"]
    extra.unlink()
    extra.symlink_to("/etc/passwd")
    assert damaged(run) == ["containers/docker/extra.tar.zst.age"]
    extra.unlink()
    os.mkfifo(extra)
    assert damaged(run) == ["containers/docker/extra.tar.zst.age"]
    extra.unlink()
    (run / "countersignature.json").write_bytes(b"{}")
    assert damaged(run) == ["countersignature.json"]
    (run / "countersignature.json").unlink()
    (run / "progress/000009.json").write_bytes(b"{}")
    assert "progress/000009.json" in damaged(run)


def test_an_object_replaced_by_a_link_to_itself_is_named(stored: tuple[Path, Path, dict[str, object]]) -> None:
    run, _, _ = stored
    path = run / "snapshot/a.jsonl.zst.age"
    shutil.move(path, run.parent / "elsewhere")
    path.symlink_to(run.parent / "elsewhere")
    assert "snapshot/a.jsonl.zst.age" in damaged(run)


def test_swapped_objects_are_named(stored: tuple[Path, Path, dict[str, object]]) -> None:
    run, _, _ = stored
    one, two = run / "snapshot/a.jsonl.zst.age", run / "containers/docker/b.tar.zst.age"
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    assert set(damaged(run)) >= {"snapshot/a.jsonl.zst.age", "containers/docker/b.tar.zst.age"}


def test_reordered_progress_records_are_named(stored: tuple[Path, Path, dict[str, object]]) -> None:
    run, _, _ = stored
    one, two = run / "progress/000001.json", run / "progress/000002.json"
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    assert "progress/000001.json" in damaged(run)


def test_swapped_receipts_and_whole_runs_are_found(
    stored: tuple[Path, Path, dict[str, object]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _, _ = stored
    play(monkeypatch, Script("snapshot/a.jsonl"))
    recipient = impound("keygen", "-y", tmp_path / "case.key")[1]["recipient"]
    acquire(tmp_path / "other", str(recipient))
    other = only_run(tmp_path / "other")
    mine = (run / "receipt.json").read_bytes()
    (run / "receipt.json").write_bytes((other / "receipt.json").read_bytes())
    assert damaged(run)
    (run / "receipt.json").write_bytes(mine)
    assert impound("verify", run)[0] == 0
    swapped = run.parent / other.name
    run.rename(swapped)
    assert "receipt.json" in damaged(swapped)


def test_a_run_that_somebody_re_made_fails_with_the_signer_and_with_the_receipt(
    stored: tuple[Path, Path, dict[str, object]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, result = stored
    play(monkeypatch, Script("snapshot/a.jsonl", [b"forged"]))
    recipient = impound("keygen", "-y", tmp_path / "case.key")[1]["recipient"]
    acquire(tmp_path / "forged", str(recipient))
    forged = only_run(tmp_path / "forged")
    assert impound("verify", forged)[1]["verdict"] == "intact, signer unknown"
    code, verdict, text = impound("verify", forged, "--signer", str(result["signer"]))
    assert (code, verdict["verdict"]) == (4, "not by the signer that was given")
    assert "(NOT as given)" in text
    (forged / "snapshot/a.jsonl.zst.age").write_bytes(b"")
    code, verdict, _ = impound("verify", forged, "--signer", str(result["signer"]))
    assert (code, verdict["verdict"]) == (4, "damaged, and not by the signer that was given")
    assert "receipt.json" in damaged(forged, "--receipt-sha256", str(result["receipt_sha256"]))


def test_a_stored_case_is_as_good_as_its_worst_run(
    stored: tuple[Path, Path, dict[str, object]], tmp_path: Path
) -> None:
    run, key, _ = stored
    recipient = impound("keygen", "-y", key)[1]["recipient"]
    acquire(tmp_path / "ev", str(recipient))
    code, verdict, _ = impound("verify", tmp_path / "ev")
    assert (code, verdict["count"]) == (0, 2)
    (run / "snapshot/a.jsonl.zst.age").write_bytes(b"")
    code, verdict, _ = impound("verify", tmp_path / "ev")
    assert (code, verdict["verdict"]) == (4, "damaged")


def test_open_refuses_what_is_damaged_and_keeps_nothing_of_it(
    stored: tuple[Path, Path, dict[str, object]], tmp_path: Path
) -> None:
    run, key, _ = stored
    path = run / "containers/docker/b.tar.zst.age"
    data = bytearray(path.read_bytes())
    data[-40] ^= 1
    path.write_bytes(data)
    code, result, _ = impound("open", run, "-i", key, "-o", tmp_path / "out")
    assert (code, result["verdict"]) == (4, "damaged")
    assert (tmp_path / "out/snapshot/a.jsonl").read_bytes() == b"hello" + b"world" * 1000
    assert not (tmp_path / "out/containers/docker/b.tar").exists()


def test_another_identity_opens_nothing(stored: tuple[Path, Path, dict[str, object]], tmp_path: Path) -> None:
    run, _, _ = stored
    (tmp_path / "x").mkdir()
    wrong, _ = keygen(tmp_path / "x")
    assert impound("open", run, "-i", wrong, "-o", tmp_path / "out")[0] == 4
    assert impound("verify", run, "-i", wrong)[0] == 3
