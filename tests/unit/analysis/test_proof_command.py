"""A range proof from the command line: made from a run, checked and opened by somebody who has nothing else."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from agent.custody import attempt
from agent.custody.records import Size, Whole
from tests.support.runs import Script, acquire, impound, keygen, only_run, play

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20
DATA = random.Random(5).randbytes(MIB + 9) + b"evidence " * (2 * MIB // 9) + bytes(MIB)
FIRST, LAST = MIB - 3, 2 * MIB + 4
ONE = "containers/docker/one.tar"


class Case:
    """A run, its key, and a proof from it."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.key, recipient = keygen(top)
        code, self.result, _ = acquire(top / "ev", recipient)
        assert code == 0
        self.run = only_run(top / "ev")

    def prove(self, output: Path, *more: str | Path, only: str = ONE, part: str = f"{FIRST}-{LAST}") -> Any:
        return impound(
            "export", "proof", self.run, "-i", self.key, "--only", only, "--range", part, "-o", output, *more
        )


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    with pytest.MonkeyPatch.context() as patch:
        play(patch, Script(ONE, [DATA]), Script("containers/docker/two.tar", [DATA[::-1]]))
        yield Case(tmp_path_factory.mktemp("case"))


@pytest.fixture
def proof(case: Case, tmp_path: Path) -> Path:
    path = tmp_path / "proof.json"
    code, result, _ = case.prove(path)
    assert (code, result["verdict"], result["bytes"]) == (0, "done", path.stat().st_size)
    return path


def test_the_bytes_come_out(case: Case, proof: Path, tmp_path: Path) -> None:
    code, result, text = impound("verify", proof)
    assert (code, result["verdict"], result["signer_known"]) == (0, "intact, signer unknown", False)
    assert (result["object"], result["first"], result["last"]) == (f"{ONE}.zst.age", FIRST, LAST)
    for name in ("run", "signer", "receipt_sha256"):
        assert result[name] == case.result[name]
    assert str(result["sha256"]) in text
    code, result, _ = impound("verify", proof, "--signer", str(case.result["signer"]))
    assert (code, result["verdict"]) == (0, "intact")
    code, result, _ = impound("verify", proof, "--receipt-sha256", str(case.result["receipt_sha256"]))
    assert (code, result["verdict"]) == (0, "intact")
    code, result, _ = impound("open", proof, "--output", tmp_path / "part")
    assert (code, result["verdict"], result["bytes"]) == (0, "opened", LAST + 1 - FIRST)
    assert (tmp_path / f"part/{ONE}.{FIRST}-{LAST}").read_bytes() == DATA[FIRST : LAST + 1]
    assert len([path for path in (tmp_path / "part").rglob("*") if path.is_file()]) == 1


def test_manifest_and_custody_log_can_be_shown_in_part(case: Case, tmp_path: Path) -> None:
    for name in ("manifest", "custody"):
        assert case.prove(tmp_path / name, only=f"attempt-1/{name}.jsonl", part="0-9")[0] == 0
        assert impound("open", tmp_path / name, "-o", tmp_path / f"{name}.opened")[0] == 0
        assert (tmp_path / f"{name}.opened/attempt-1/{name}.jsonl.0-9").read_bytes().startswith(b"{")


def test_damage_is_named_and_nothing_is_written(case: Case, proof: Path, tmp_path: Path) -> None:
    content = proof.read_bytes()
    for changed in (content.replace(b'"first":', b'"first": ', 1), content[:-1], b"", bytes(100)):
        proof.write_bytes(changed)
        code, result, _ = impound("verify", proof)
        assert (code, result["verdict"]) == (4, "damaged")
        assert impound("open", proof, "-o", tmp_path / "part")[0] == 4
        assert not (tmp_path / "part").exists()
    proof.write_bytes(content)
    code, result, text = impound("verify", proof, "--signer", "ed25519:" + "0" * 64)
    assert (code, result["verdict"]) == (4, "damaged")
    assert "not as given" in text
    assert "\\x0a" not in text
    assert impound("open", proof, "-o", tmp_path / "part", "--receipt-sha256", "0" * 64)[0] == 4
    assert impound("verify", proof)[0] == 0


def test_what_is_asked_wrongly(case: Case, proof: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    base = ["export", "proof", str(case.run), "-o", str(new)]
    assert impound(*base, "--only", ONE, "--range", "0-1")[0] == 2
    assert impound(*base, "-i", case.key, "--range", "0-1")[0] == 2
    assert impound(*base, "-i", case.key, "--only", ONE)[0] == 2
    assert case.prove(new, part=f"0-{len(DATA)}")[0] == 2
    assert case.prove(new, part="9-8")[0] == 2
    assert case.prove(new, only="*")[0] == 2
    assert case.prove(proof)[0] == 2
    assert case.prove(case.run / "proof.json")[0] == 2
    assert case.prove(new, "--signer", "ed25519:" + "0" * 64)[0] == 4
    assert impound("export", "host", case.run, "-i", case.key, "-o", new, "--range", "0-1")[0] == 2
    assert impound("open", proof, "-o", new, "--range", "0-1")[0] == 2
    assert not new.exists()


def test_an_object_that_was_changed_is_not_proved(case: Case, tmp_path: Path) -> None:
    run = tmp_path / "ev" / case.run.name
    shutil.copytree(case.run, run)
    sealed = run / f"{ONE}.zst.age"
    sealed.chmod(0o600)
    content = bytearray(sealed.read_bytes())
    content[-70_000] ^= 1  # not in a frame that is shown
    sealed.write_bytes(content)
    arguments: list[str | Path] = ["-i", case.key, "--only", ONE, "--range", "0-9", "-o", tmp_path / "new"]
    assert impound("export", "proof", run, *arguments)[0] == 4
    shutil.copyfile(case.run / "containers/docker/two.tar.zst.age", sealed)  # whole, and another object
    code, _, text = impound("export", "proof", run, *arguments)
    assert code == 4
    assert "not those of the tree that was signed" in text
    assert not (tmp_path / "new").exists()


def test_a_run_from_before_there_was_a_tree(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is as valid; only no part of it can be proved."""

    def older(**fields: Any) -> Whole:
        return Whole(**{name: value for name, value in fields.items() if name not in ("tree", "frames")})

    play(monkeypatch)
    key, recipient = keygen(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(attempt, "Size", lambda size, parts=(), _tree="", _frames=0: Size(size, list(parts)))
        patch.setattr(attempt, "Whole", older)
        assert acquire(tmp_path / "ev", recipient)[0] == 0
    run = only_run(tmp_path / "ev")
    assert b"tree" not in (run / "progress/000001.json").read_bytes()
    code, result, _ = impound("verify", run, "-i", key)
    assert (code, result["verdict"]) == (0, "intact, signer unknown")
    code, _, text = impound("export", "proof", run, "-i", key, "--only", ONE, "--range", "0-1", "-o", tmp_path / "new")
    assert code == 2
    assert "no receipt signs the frames" in text


def test_court_md_checks_a_proof_with_stock_tools(case: Case, proof: Path, tmp_path: Path) -> None:
    """The commands of "Showing a part", on a proof, and on ones that were changed."""
    for program in ("zstd", "jq", "openssl"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")
    text = (Path(__file__).parents[3] / "docs/court.md").read_text("utf-8")
    section = text.partition("\n## Showing a part\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```sh\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 2

    def check(path: Path) -> subprocess.CompletedProcess[str]:
        command = ["bash", "-c", "set -euo pipefail\n" + "".join(blocks)]
        environment = os.environ | {"PROOF": str(path), "TMPDIR": str(tmp_path)}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    whole = tmp_path / "whole.json"
    assert case.prove(whole, part=f"0-{len(DATA) - 1}")[0] == 0
    for path, wanted in ((proof, DATA[FIRST : LAST + 1]), (whole, DATA)):
        done = check(path)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Signature Verified Successfully" in done.stdout
        assert str(case.result["signer"]) in done.stdout
        assert str(case.result["receipt_sha256"]) in done.stdout
        assert Path(done.stdout.split()[-1]).read_bytes() == wanted
    document = json.loads(proof.read_bytes())
    frames = document["frames"]
    changes: list[dict[str, Any]] = [
        {"object": "containers/docker/two.tar.zst.age"},
        {"first": FIRST + 1},
        {"last": LAST + MIB},
        {"frames": frames[::-1]},
        {"frames": [frames[0] | {"salt": frames[1]["salt"]}, *frames[1:]]},
        {"frames": [frames[0] | {"path": frames[1]["path"]}, *frames[1:]]},
        {"frames": [frames[0] | {"frame": frames[1]["frame"]}, *frames[1:]]},
    ]
    for change in changes:
        proof.write_text(json.dumps(document | change))
        done = check(proof)
        assert done.returncode != 0
        assert "refused" in done.stdout, done.stdout + done.stderr
