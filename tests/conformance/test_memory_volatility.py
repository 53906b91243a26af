"""Volatility 3 reads what was acquired: with the symbols that impound makes of the run alone, and with those of DWARF.

Four levels of paging: Volatility 2.28 has no layer for five and finds nothing in such an image, however perfect.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agent.analysis.isf_table import TABLE
from tests.rigs.guest import Machine
from tests.rigs.guest_planted import CODE, NAME, OPEN_FILE, PORT, PROGRAM
from tests.rigs.guest_scenes import Acquired, acquired, dwarf_symbols, impound, needs_guest
from tests.rigs.volatility import Volatility

pytestmark = [needs_guest(), pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Acquired:
    return acquired(tmp_path_factory, Machine(memory=512))


@pytest.fixture(scope="module", params=["isf", pytest.param("dwarf", marks=pytest.mark.slow)])
def volatility(request: pytest.FixtureRequest, run: Acquired, tmp_path_factory: pytest.TempPathFactory) -> Volatility:
    directory = tmp_path_factory.mktemp("volatility")
    if request.param == "dwarf":
        symbols = dwarf_symbols(run)
    else:
        symbols = directory / "made.json"
        impound("export", "isf", str(run.opened), "--output", str(symbols))
    return Volatility(run.image, symbols, directory / "volatility")


def _flat(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [one for row in rows for one in (row, *_flat(row.get("__children", [])))]


def test_the_list_of_tasks_is_the_one_that_ps_gave(run: Acquired, volatility: Volatility) -> None:
    rows = volatility.run("linux.pslist")
    listed = {(row["PID"], row["COMM"]) for row in rows}
    assert (run.planted, NAME) in listed
    assert run.lasting <= listed
    parents = {row["PID"]: row["PPID"] for row in rows}
    assert [
        task for task in run.tasks if (task.pid, task.name) in run.lasting and parents[task.pid] != task.parent
    ] == []


def test_open_files_and_sockets(run: Acquired, volatility: Volatility) -> None:
    paths = {row["Path"] for row in volatility.run("linux.lsof", "--pid", str(run.planted))}
    assert OPEN_FILE in paths
    assert any(path.startswith("socket:") for path in paths)


def test_a_listening_socket(run: Acquired, volatility: Volatility) -> None:
    rows = volatility.run("linux.sockstat", "--pids", str(run.planted))
    found = {(row["Source Addr"], int(row["Source Port"]), row["State"]) for row in rows}
    assert ("127.0.0.1", PORT, "LISTEN") in found


def test_code_that_came_from_nowhere(run: Acquired, volatility: Volatility) -> None:
    (row,) = [row for row in _flat(volatility.run("linux.malfind")) if row["PID"] == run.planted]
    assert (row["Process"], row["Protection"]) == (NAME, "rwx")
    # Sixty-four bytes of the mapping, as text of hexadecimal numbers and characters.
    assert CODE[:16].hex(" ") in str(row["Hexdump"])


def test_the_program_is_deleted(run: Acquired, volatility: Volatility) -> None:
    rows = volatility.run("linux.proc.Maps", "--pid", str(run.planted))
    assert f"{PROGRAM} (deleted)" in {str(row["File Path"]).strip() for row in rows}


def test_the_symbols_name_only_this_run(run: Acquired, volatility: Volatility) -> None:
    """Nothing else may have helped: there is one file of symbols, and the image is the acquired one."""
    assert len(list(Path(volatility.directory / "symbols").rglob("*.json"))) == 1
    assert volatility.image.is_relative_to(run.opened)


@pytest.mark.slow
def test_variables_have_the_types_that_dwarf_gives_them(run: Acquired, tmp_path: Path) -> None:
    """Sizes, numbers of elements and what pointers lead to; DWARF may name a typedef where BTF names the structure."""
    made = tmp_path / "made.json"
    impound("export", "isf", str(run.opened), "--output", str(made))
    ours, theirs = json.loads(made.read_text()), json.loads(dwarf_symbols(run).read_text())
    names = [name for _, listed in TABLE for name in listed.split()]
    both = [
        name for name in names if "type" in ours["symbols"].get(name, {}) and "type" in theirs["symbols"].get(name, {})
    ]
    assert len(both) > 150
    wrong = {}
    for name in both:
        found, expected = (_shape(isf, isf["symbols"][name]["type"]) for isf in (ours, theirs))
        if not _agree(found, expected):
            wrong[name] = found, expected
    assert wrong == {}


def _shape(isf: dict[str, Any], kind: dict[str, Any]) -> tuple[Any, ...]:
    """(kind, size of one or number of elements, what follows)."""
    if kind["kind"] == "pointer":
        return ("pointer", 8, _shape(isf, kind["subtype"]))
    if kind["kind"] == "array":
        return ("array", kind["count"], _shape(isf, kind["subtype"]))
    if kind["kind"] in {"struct", "union", "class"}:
        known = isf["user_types"].get(kind["name"], {"size": 0})
        return ("structure", known["size"])
    if kind["kind"] in {"base", "enum"}:
        known = isf["base_types" if kind["kind"] == "base" else "enums"][kind["name"]]
        return ("void",) if kind["name"] == "void" else ("number", known["size"], known.get("signed"))
    return ("void",)  # a function


def _agree(found: tuple[Any, ...], expected: tuple[Any, ...]) -> bool:
    if found == expected or ("void",) in {found[:1], expected[:1]}:
        return True
    if found[0] != expected[0]:
        return False
    if found[0] == "structure":
        return 0 in {found[1], expected[1]}  # only declared
    if found[0] == "number":
        return False
    return (found[1] == expected[1] or not expected[1]) and _agree(found[2], expected[2])
