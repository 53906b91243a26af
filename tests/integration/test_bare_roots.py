"""The one file in roots that have nothing, or something evil: it checks itself, and acquires to a name, over TLS.

`scripts/roots.sh` makes the root filesystems of real distributions; an empty one is always there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.rigs.bare import CONDITIONS

REPOSITORY = Path(__file__).parents[2]
BINARY = REPOSITORY / ".cache/binary/impound"
ROOTS = REPOSITORY / ".cache/roots"
NAMES = ("bookworm", "bullseye", "rpm", "musl", "distroless")

pytestmark = [
    pytest.mark.skipif(not BINARY.exists(), reason="needs the binary: scripts/build-binary could not make it"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.timeout(600),
]


def run(directory: Path, cases: list[tuple[str, list[str]]]) -> dict[str, list[tuple[int, str, str]]]:
    """(root, conditions) -> what `self-check`, `acquire` and `verify` said, by a name for both."""
    asked = [
        {"name": f"{root or 'nothing'}: {' '.join(conditions)}", "root": str(ROOTS / root) if root else "",
         "conditions": conditions}
        for root, conditions in cases
    ]  # fmt: skip
    done = subprocess.run(
        ["unshare", "--net", "--mount", sys.executable, "-m", "tests.rigs.bare", directory, BINARY],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=580,
        cwd=REPOSITORY,
    )
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(told) == len(cases)
    return {one["name"]: one["steps"] for one in told}


def judge(name: str, steps: list[tuple[int, str, str]]) -> str:
    """What is wrong with a case; nothing: "". Who is nobody cannot read everything, and says so."""
    for code, _, said in steps[:2]:
        if "EVIL" in said or code not in {0, 1}:
            return f"{name}: {code}: {said[-500:]}"
    (checked, told, said), (acquired, result, _), (verified, verdict, why) = steps
    checks = {one["name"]: one["state"] for one in last(told)["checks"]}
    if checked or set(checks.values()) - {"good", "unknown"}:
        return f"{name}: self-check: {said}"
    run = last(result)
    if (run["verdict"], acquired) != (("gaps", 1) if "nobody" in name else ("complete", 0)):
        return f"{name}: acquire: {run}"
    if run["items"] < (1 if "nobody" in name else 3) or not run["read_bytes"]:
        return f"{name}: nothing was acquired: {run}"
    if verified or last(verdict)["run"] != run["run"] or not last(verdict)["plaintext_checked"]:
        return f"{name}: verify: {why}"
    return ""


def last(out: str) -> dict[str, Any]:
    return json.loads(out.splitlines()[-1])  # type: ignore[no-any-return]


def stage(steps: list[tuple[int, str, str]]) -> str:
    return str(last(steps[0][1])["stage"])


def test_with_nothing_at_all(tmp_path: Path) -> None:
    evil = ["preload", "environment", "openssl", "nsswitch", "aws"]
    cases = [("", ["plain"]), ("", evil), ("", ["no-memfd"]), ("", ["old-seccomp", "nobody"])]
    told = run(tmp_path, cases)
    assert [wrong for name, steps in told.items() if (wrong := judge(name, steps))] == []
    assert [stage(steps) for steps in told.values()] == ["memfd", "memfd", "tmpfs", "memfd"]


def test_where_nothing_is_left_it_says_so(tmp_path: Path) -> None:
    """No anonymous memory, no right to mount, no directory: there is no way to run without writing to the machine."""
    (steps,) = run(tmp_path, [("", ["no-memfd", "nobody"])]).values()
    for code, out, said in steps[:2]:
        assert (code, out) == (70, "")
        assert said.startswith("impound: there is no way to run here")


@pytest.mark.slow
@pytest.mark.parametrize("root", ["", *NAMES])
def test_each_condition_in_each_root(tmp_path: Path, root: str) -> None:
    if root and not (ROOTS / root).is_dir():
        pytest.skip("needs root filesystems: scripts/roots.sh makes them")
    told = run(tmp_path, [(root, [condition]) for condition in CONDITIONS])
    assert [wrong for name, steps in told.items() if (wrong := judge(name, steps))] == []
    refused = {name for name, steps in told.items() if stage(steps) != "memfd"}
    assert {name.rpartition(" ")[2] for name in refused} == {"no-memfd", "memfd-noexec"}
