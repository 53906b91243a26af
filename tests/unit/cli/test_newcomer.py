"""What somebody meets who has read the README and no more: mistakes get one line that says what to do instead."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click
import pytest

from acquirers.near import did_you_mean, near
from agent.cli.main import VERBS, main
from tests.support.docker_disk import make_disk
from tests.support.runs import ENVIRONMENT, acquire, agent_command, impound, keygen, only_run

if TYPE_CHECKING:
    from pathlib import Path

NOBODY = "ed25519:" + "a" * 64


@dataclass(frozen=True)
class Case:
    """A disk with three containers, a run of it, the key that opens it, and one that does not."""

    root: Path
    disk: Path
    run: Path
    key: Path
    recipient: str
    other: Path
    others: str
    result: dict[str, object]
    text: str

    def acquire(self, to: str | Path, *more: str | Path) -> tuple[int, dict[str, object], str]:
        arguments = ["--case", "C-1", "--to", to, "-r", self.recipient, "--root", self.disk, *more]
        return impound("acquire", *arguments)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    root = tmp_path_factory.mktemp("newcomer")
    (root / "disk").mkdir()
    make_disk(root / "disk", files=2, size=1000)
    key, recipient = keygen(root)
    (root / "stranger").mkdir()
    other, others = keygen(root / "stranger")
    code, result, text = acquire(root / "ev", recipient, "--root", str(root / "disk"))
    assert code == 0, text
    return Case(root, root / "disk", only_run(root / "ev"), key, recipient, other, others, result, text)


def one_line(result: tuple[int, dict[str, object], str], code: int, *words: str) -> str:
    """The one line of a refusal."""
    text = result[2]
    assert result[0] == code, result
    assert len(text.splitlines()) == 1, text
    assert "Traceback" not in text
    assert "fault of impound" not in text
    for word in words:
        assert word in text, (word, text)
    return text


# -- destinations -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("to", "words"),
    [
        ("-", "not part of this version"),
        ("-r", "looks like an option"),
        ("--json", "looks like an option"),
        ("s3:", "s3://BUCKET/PREFIX"),
        ("s3:/evidence/x", "s3://BUCKET/PREFIX"),
        ("S3://evidence/x", "s3://BUCKET/PREFIX"),
        ("s3://", "names no bucket"),
        ("s3:///x", "names no bucket"),
        ("https://evidence.example/x", "neither a directory nor"),
        ("web-1:evidence", "neither a directory nor"),
    ],
)
def test_what_is_no_place_makes_no_directory(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    one_line(case.acquire(to), 2, words)
    assert os.listdir(tmp_path) == []


def test_two_answers_to_one_question_are_none(case: Case, tmp_path: Path) -> None:
    one_line(case.acquire(tmp_path / "a", "--to", tmp_path / "b"), 2, "--to was given 2 times")
    one_line(case.acquire(tmp_path / "a", "--case", "D"), 2, "--case was given 2 times")
    assert os.listdir(tmp_path) == []


def test_a_file_of_recipients_is_named_where_it_is_wrong(case: Case, tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("# nobody\n")
    one_line(case.acquire(tmp_path / "ev", "-R", tmp_path / "empty"), 2, "holds no key", "empty")
    (tmp_path / "wrong").write_text("age1wrong\n")
    one_line(case.acquire(tmp_path / "ev", "-R", tmp_path / "wrong"), 2, "wrong'")
    one_line(impound("acquire", "--case", "C", "--to", tmp_path / "ev", "-r", "age1..."), 2, "keygen")
    assert not (tmp_path / "ev").exists()


@pytest.mark.parametrize(
    "limit", [("--max-memory", "1048577"), ("--max-cpu", "100001"), ("--pid", "99999999999999999999")]
)
def test_what_no_plan_may_hold_is_refused(case: Case, tmp_path: Path, limit: tuple[str, str]) -> None:
    """Else the run is stored with a plan that whoever verifies it takes for damage."""
    one_line(case.acquire(tmp_path / "ev", *limit), 2)
    assert not (tmp_path / "ev").exists()


def test_the_most_that_a_plan_may_hold_is_intact(case: Case, tmp_path: Path) -> None:
    assert (
        case.acquire(tmp_path / "ev", "--max-memory", "1048576", "--max-cpu", "100000", "--deadline", "9999999h")[0]
        == 0
    )
    assert impound("verify", tmp_path / "ev")[0] == 0


# -- keys -------------------------------------------------------------------------------------------------------------


def test_another_key_is_not_called_damage(case: Case, tmp_path: Path) -> None:
    code, result, text = impound("verify", case.run, "-i", case.other)
    assert (code, result["verdict"]) == (3, "unreadable")
    for word in (case.recipient, case.others, "what is stored is as it was signed"):
        assert word in text
    assert not [line for line in text.splitlines() if line.strip().startswith("damaged")]
    assert result["signer"] == case.result["signer"]
    for verb in (("open",), ("export", "host"), ("export", "logs"), ("export", "tree", "--container", "c0")):
        refused = impound(*verb, case.run, "-i", case.other, "-o", tmp_path / "out")
        one_line(refused, 4, case.recipient, case.others, "no key that was given opens it")
    assert os.listdir(tmp_path) == []


def test_another_key_hides_no_damage(case: Case, tmp_path: Path) -> None:
    import shutil

    run = tmp_path / "ev" / case.run.name
    shutil.copytree(case.run, run)
    with (run / "containers/census.jsonl.zst.age").open("ab") as file:
        file.write(b"x")
    code, result, text = impound("verify", run, "-i", case.other)
    assert (code, result["verdict"]) == (4, "damaged")
    assert "census.jsonl" in text


def test_an_identity_file_is_named_where_it_is_wrong(case: Case, tmp_path: Path) -> None:
    (tmp_path / "public").write_text(case.recipient + "\n")
    one_line(impound("verify", case.run, "-i", case.key, "-i", tmp_path / "public"), 2, "public'", "private one")


def test_a_plan_of_another_signer_is_named_with_both(case: Case) -> None:
    line = one_line(impound("resume", case.run, "--signer", NOBODY), 4, NOBODY, str(case.result["signer"]))
    assert "signed by another key than the one given" in line
    assert "damaged" not in line
    code, result, text = impound("verify", case.run, "--signer", NOBODY)
    assert (code, result["verdict"]) == (4, "not by the signer that was given")
    assert "  damaged" not in text


# -- places without evidence ------------------------------------------------------------------------------------------

READERS: list[tuple[str, ...]] = [
    ("verify",),
    ("open", "-o", "OUT"),
    ("export", "host", "-o", "OUT"),
    ("export", "logs", "-o", "OUT"),
    ("export", "lime", "-o", "OUT"),
    ("export", "tree", "--container", "web", "-o", "OUT"),
    ("export", "proof", "--only", "a", "--range", "0-1", "-o", "OUT"),
    ("resume",),
    ("finish",),
]


def _ask(case: Case, verb: tuple[str, ...], source: str | Path, out: Path) -> tuple[int, dict[str, object], str]:
    words: list[str | Path] = [out if word == "OUT" else word for word in verb]
    if verb[0] not in {"resume", "finish"}:
        words += ["-i", case.key]
    return impound(*words, source)


@pytest.mark.parametrize("verb", READERS, ids=lambda verb: "-".join(verb[:2]))
def test_where_no_evidence_is_it_is_said(case: Case, tmp_path: Path, verb: tuple[str, ...]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("notes\n")
    out = tmp_path / "out"
    for source in (tmp_path / "empty", tmp_path / "notes.txt", case.disk, tmp_path / "nothing"):
        line = one_line(_ask(case, verb, source, out), 3)
        assert "no evidence" in line or "no proof" in line
        assert "damaged" not in line
    one_line(_ask(case, verb, case.root / "evv", out), 3, "did you mean 'ev'")
    one_line(_ask(case, verb, case.run / "containers", out), 3, "part of the run", str(case.run))
    one_line(_ask(case, verb, case.run / "receipt.json", out), 3, "part of the run", str(case.run))
    one_line(_ask(case, verb, tmp_path / ("x" * 300), out), 3, "cannot be read: File name too long")
    one_line(_ask(case, verb, "", out), 2, "SRC is empty")
    one_line(_ask(case, verb, "s3:/x", out), 2, "s3://BUCKET/PREFIX")
    one_line(_ask(case, verb, "s3://", out), 2, "names no bucket")
    assert not out.exists()


def test_what_open_wrote_is_not_taken_for_a_run(case: Case, tmp_path: Path) -> None:
    assert impound("open", case.run, "-i", case.key, "-o", tmp_path / "opened")[0] == 0
    one_line(impound("verify", tmp_path / "opened"), 3, "what `open` wrote", "sealed run")
    assert impound("export", "host", tmp_path / "opened", "-o", tmp_path / "host.tar")[0] == 0
    assert impound("export", "logs", tmp_path / "opened", "-o", tmp_path / "logs")[0] == 0


# -- names ------------------------------------------------------------------------------------------------------------


def test_near_names() -> None:
    known = ["memory.physical", "memory.process", "containers.docker", "live.files", "memory", "web", "worker"]
    assert near("memroy", known) == ["memory"]
    assert near("docker", known) == ["containers.docker"]
    assert near("WBE", known) == ["web"]
    assert near("nope", known) == near("", known) == []
    assert did_you_mean("nope", known) == ""
    assert len(near("m", ["m" * 1000] * 1_000_000)) <= 3


def test_misspelt_names_are_answered_with_near_ones(case: Case, tmp_path: Path) -> None:
    plan = ("plan", "--root", case.disk)
    one_line(impound(*plan, "--only", "memroy"), 2, "no acquirer 'memroy'", "did you mean 'memory'")
    one_line(impound(*plan, "--only", "docker"), 2, "did you mean 'containers.docker'")
    one_line(impound(*plan, "--skip", "memory.phisical"), 2, "did you mean 'memory.physical'")
    one_line(impound(*plan, "--only", "memory,logs"), 2, "one name each")
    one_line(impound(*plan, "--only", ""), 2, "--only is empty")
    one_line(impound(*plan, "--container", "c00"), 2, "did you mean 'c0'", "containers here: c0 (")
    one_line(impound(*plan, "--container", "c0", "--only", "logs"), 2, "container 'c0' is here", "logs")
    one_line(impound(*plan, "--profile", "trige"), 2, "triage")
    one_line(impound(*plan, "--layers", "some"), 2, "--layers")
    one_line(impound(*plan, "--sikp", "memory"), 2, "--skip")
    one_line(impound("plna"), 2, "did you mean 'plan'")
    one_line(impound("help"), 2, "impound --help")
    one_line(impound("report", case.run), 2, "not part of this version")
    one_line(impound("deploy", "ssm", "i-0abc"), 2, "not part of this version", "deploy command")
    one_line(impound("export", "lgs", case.run, "-o", tmp_path / "o"), 2, "did you mean 'logs'")
    skips = [word for name in ("snapshot", "memory", "containers", "live", "logs") for word in ("--skip", name)]
    one_line(impound(*plan, *skips), 2, "nothing is left to acquire")


def test_logs_of_a_misspelt_container(case: Case, tmp_path: Path) -> None:
    command = ("export", "logs", case.run, "-i", case.key, "-o", tmp_path / "logs", "--container")
    line = one_line(impound(*command, "c11"), 2, "no container matches", "'c11' (did you mean 'c1'?)", "c0, c1, c2")
    assert "none" not in line
    one_line(impound(*command, ""), 2)
    assert impound(*command, "c1")[0] == 0


def test_one_container_where_one_is_taken(case: Case, tmp_path: Path) -> None:
    command = (
        "export",
        "tree",
        case.run,
        "-i",
        case.key,
        "-o",
        tmp_path / "t",
        "--container",
        "c0",
        "--container",
        "c1",
    )
    one_line(impound(*command), 2, "takes one --container")


def test_a_word_of_any_length_leaves_the_message_readable(case: Case) -> None:
    for option in ("--only", "--container", "--profile", "--root", "--known-layers"):
        assert len(one_line(impound("plan", option, "x" * 5000), 2)) < 1500


# -- options that nothing heeds ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", [("--freeze",), ("--fault-in",), ("--remote",), ("--pid", "1")])
def test_an_option_that_nothing_heeds_is_refused(case: Case, tmp_path: Path, option: tuple[str, ...]) -> None:
    one_line(impound("plan", "--only", "logs", *option), 2, f"{option[0]} is for ", "leave")
    one_line(case.acquire(tmp_path / "ev", *option), 2, option[0], "mounted disk")
    assert not (tmp_path / "ev").exists()


def test_an_option_that_something_heeds_is_not() -> None:
    for words in (["memory.process", "--freeze", "--fault-in"], ["snapshot"]):
        command = [*agent_command(), "plan", "--pid", str(os.getpid()), "--only", *words]
        subprocess.run(command, env=ENVIRONMENT, capture_output=True, timeout=60, check=True)
    one_line(impound("plan", "--only", "memory.process", "--pid", str(os.getpid())), 2, "impound itself")
    one_line(impound("plan", "--only", "snapshot", "--pid", "999999999"), 2, "no process 999999999 to take")


# -- what is not here -------------------------------------------------------------------------------------------------


def test_what_is_not_here_is_named_in_words(case: Case) -> None:
    lines = [line for line in case.text.splitlines() if line.startswith("  not here")]
    assert any("no containerd found here" in line for line in lines)
    assert any("no podman, buildah or CRI-O found here" in line for line in lines)
    assert any("snapshot.processes, memory.process" in line and "no processes" in line for line in lines)
    assert "not in this version: " in case.text
    told = case.result["not_here"]
    assert isinstance(told, list)
    assert any("no containerd found here" in one for one in told)
    assert {"containers.containerd", "memory.physical"} <= set(case.result["absent"])  # type: ignore[call-overload]


def test_a_plan_gives_reasons_and_a_sum(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--root", str(case.disk)]) == 0
    head, *rows = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert head.startswith("disk: a mounted disk, of which nothing runs, as ")
    assert "memory.physical not here a mounted disk has no memory" in rows
    assert any(row.startswith("containers.containerd not here no containerd found here") for row in rows)
    assert any(
        row.startswith("container ") and "c0 docker ? known by its record and its files on disk" in row for row in rows
    )
    reasons = [row for row in rows if " not here" in row and row.endswith("not here")]
    assert not reasons, "each says why"
    assert "how much it is will be known when it is read" in rows
    assert main(["plan", "--only", "snapshot"]) == 0
    assert "to read: " in capsys.readouterr().out


# -- help -------------------------------------------------------------------------------------------------------------


def commands(command: click.Command, path: tuple[str, ...]) -> list[tuple[str, ...]]:
    found = [path]
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            found += commands(below, (*path, name))
    return found


def test_every_verb_shows_an_example_that_its_own_parser_takes(capsys: pytest.CaptureFixture[str]) -> None:
    import shlex

    from agent.cli.main import impound as root

    paths = commands(root, ())
    assert len(paths) > len(VERBS)
    parsed = 0
    for path in paths:
        assert main([*path, "--help"]) == 0
        text = capsys.readouterr().out
        examples = [line.strip() for line in text.splitlines() if line.strip().startswith("impound ")]
        assert examples, path
        for example in examples:
            words = shlex.split(example.partition("&&")[0].partition(" > ")[0], comments=True)[1:]
            words = [word for word in words if word != "..."]
            _parse(root, words)
            parsed += 1
    assert parsed > 30


def _parse(command: click.Command, words: list[str]) -> None:
    """Every word of a command line has a place. Raises what click does."""
    with click.Context(command) as context:
        while isinstance(command, click.Group):
            name, *words = words
            below = command.get_command(context, name)
            assert below is not None, name
            command = below
        command.make_context(command.name, list(words), resilient_parsing=False)
