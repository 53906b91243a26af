"""What `open` and `export host` say of what they did: who signed, what a range held, what is not in the file."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from agent.analysis.hosttar import not_joined
from tests.support.runs import Script, acquire, impound, keygen, only_run, play

ONE = "containers/docker/one.tar"
DATA = bytes(range(256)) * 600  # 153,600 bytes


class Case:
    """A run with one item, and its key."""

    def __init__(self, top: Path, *scripts: Script) -> None:
        self.key, recipient = keygen(top)
        with pytest.MonkeyPatch.context() as patch:
            play(patch, *scripts)
            code, self.result, _ = acquire(top / "ev", recipient)
        assert code == 0
        self.run = only_run(top / "ev")

    def open(self, output: Path, *more: str) -> tuple[int, dict[str, object], str]:
        return impound("open", self.run, "-i", self.key, "-o", output, *more)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("case"), Script(ONE, [DATA]))


def test_open_says_who_signed_and_whether_anybody_vouches_for_that(case: Case, tmp_path: Path) -> None:
    signer, receipt = str(case.result["signer"]), str(case.result["receipt_sha256"])
    code, result, text = case.open(tmp_path / "one")
    assert (code, result["signer"], result["signer_known"]) == (0, signer, False)
    assert f"{signer} (nobody vouches for it" in text
    for number, pin in enumerate((("--signer", signer), ("--receipt-sha256", receipt))):
        code, result, text = case.open(tmp_path / str(number), *pin)
        assert (code, result["signer"], result["signer_known"]) == (0, signer, True)
        assert f"{signer} (as given)" in text


def test_a_range_is_named_by_what_it_holds(case: Case, tmp_path: Path) -> None:
    code, result, text = case.open(tmp_path / "cut", "--only", ONE, "--range", "100000-9999999999")
    assert (code, result["range"]) == (0, {"first": 100000, "last": 153599, "cut": True})
    assert "cut: the object ends with byte 153599" in text
    assert (tmp_path / f"cut/{ONE}.100000-153599").read_bytes() == DATA[100000:]
    code, result, text = case.open(tmp_path / "whole", "--only", ONE, "--range", "100000-153599")
    assert (code, result["range"]) == (0, {"first": 100000, "last": 153599, "cut": False})
    assert "cut" not in text.replace(str(tmp_path), "")


def test_a_range_of_what_no_record_tells_the_size_of(case: Case, tmp_path: Path) -> None:
    name = "attempt-1/manifest.jsonl"
    assert case.open(tmp_path / "all", "--only", name)[0] == 0
    whole = (tmp_path / "all" / name).read_bytes()
    code, result, _ = case.open(tmp_path / "part", "--only", name, "--range", "10-99999999")
    assert (code, result["range"]) == (0, {"first": 10, "last": len(whole) - 1, "cut": True})
    assert (tmp_path / f"part/{name}.10-{len(whole) - 1}").read_bytes() == whole[10:]


@pytest.mark.parametrize(
    "wrong", [("--only", ONE, "--range", "153600-153601"), ("--only", "nothing/*"), ("--range", "0-1")]
)
def test_what_is_refused_leaves_no_directory(case: Case, tmp_path: Path, wrong: tuple[str, ...]) -> None:
    made, mine = tmp_path / "made", tmp_path / "mine"
    mine.mkdir()
    for output in (made, mine):
        code, _, text = case.open(output, *wrong)
        assert (code, len(text.splitlines())) == (2, 1), text
    assert not made.exists()
    assert list(mine.iterdir()) == []


def test_a_damaged_object_has_no_part(case: Case, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    for path in case.run.rglob("*"):
        if path.is_file():
            (copy / path.relative_to(case.run)).parent.mkdir(parents=True, exist_ok=True)
            (copy / path.relative_to(case.run)).write_bytes(path.read_bytes())
    sealed = bytearray((copy / f"{ONE}.zst.age").read_bytes())
    sealed[-1] ^= 1
    (copy / f"{ONE}.zst.age").write_bytes(sealed)
    out = tmp_path / "out"
    code, result, _ = impound("open", copy, "-i", case.key, "-o", out, "--only", ONE, "--range", "0-9")
    assert (code, result["verdict"]) == (4, "damaged")
    assert [path for path in out.rglob("*") if path.is_file()] == []


def tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("[root]/etc/hostname"))
    return out.getvalue()


def test_export_host_says_what_is_not_in_it(tmp_path: Path) -> None:
    names = ["snapshot/processes.jsonl", "snapshot/executables/1.bin", "memory/physical.lime"]
    case = Case(tmp_path, *(Script(name) for name in names))
    code, result, text = impound("export", "host", case.run, "-i", case.key, "-o", tmp_path / "host.tar")
    assert (code, result["archives"], result["left_out_count"]) == (0, 0, 3)
    assert result["left_out"] == ["memory/physical.lime", "snapshot/processes.jsonl", "snapshot/executables/1.bin"]
    assert "memory/physical.lime, snapshot/processes.jsonl" in text
    assert "no archive of the host" in text


def test_export_host_of_archives_leaves_nothing_out(tmp_path: Path) -> None:
    case = Case(tmp_path, Script(ONE, [tar()]))
    opened = tmp_path / "opened"
    assert case.open(opened, "--extract")[0] == 0
    for number, source in enumerate((case.run, opened)):
        code, result, text = impound("export", "host", source, "-i", case.key, "-o", tmp_path / f"{number}.tar")
        assert (code, result["archives"], result["left_out"]) == (0, 1, []), text
        assert "left out" not in text


def test_what_is_no_item_is_not_called_left_out() -> None:
    many = [f"snapshot/executables/{number}.bin" for number in range(20)]
    names = ["a.tar", "a.tar.0002", "a/[root]/etc/passwd", "attempt-1/manifest.jsonl", "live/1.tar", "b.0002", *many]
    assert not_joined(names) == sorted(["b.0002", "live/1.tar", *many], key=lambda name: (name.count("/"), name))
