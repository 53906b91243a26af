"""The rules of the house (DESIGN 3 and 6): who may import whom, what a start costs, and that the papers agree."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

from agent.cli.main import VERBS
from tests.support.runs import acquire, agent_command, keygen, only_run

HOUSE = Path(__file__).resolve().parents[2]

LAYERS: tuple[tuple[str, ...], ...] = (
    # From the roof down. What a unit does not name more closely belongs to the longest prefix that is named. A unit
    # imports from itself and from the layers below it: neither upwards nor from its neighbours.
    ("agent.__main__",),
    ("agent.start",),  # before anything is imported
    ("agent.cli",),  # what a person types and sees
    ("agent.run", "agent.analysis", "agent.delivery"),  # the three jobs: acquire, make sense of it, get there
    ("agent.taking",),  # one item: read, sealed, stored, recorded
    ("agent.report",),  # what an item tells while it is read
    ("agent.pieces",),  # an item as objects
    ("agent.destination",),  # from a destination to a store
    ("agent.limits",),  # what a run may cost
    ("agent.preparation", "agent.outcome"),  # from a job to a machine and its acquirers; what came of it
    ("agent.custody",),  # the account of a run
    ("agent.place",),  # whether a destination lies in what is evidence
    ("agent.stores",),  # where objects go
    ("agent.sealing",),  # what makes an object of a stream
    ("agent.channel",),  # what controller and host say to each other
    (
        "agent.job",
        "agent.events",
        "agent.ids",
        "agent.aws",
        "agent.cost",
        "agent.installation",
        "agent.runtime",
    ),  # documents and words; what every client of AWS gets
    ("agent.errors", "agent"),  # the tree of errors, the version
    ("acquirers.registry",),  # the ground floor: knows nothing of what stands on it
    ("acquirers.memory", "acquirers.containers", "acquirers.logs", "acquirers.live", "acquirers.artifacts"),
    ("acquirers.nameless",),  # files that processes hold and no name leads to
    ("acquirers.snapshot",),  # the first look; how processes are asked is shared with what looks longer
    ("acquirers",),  # the machine, the walker, the words: shared by all sources
)

MAX_LINES = 600
MANY_LINES = 400

SELDOM = {"boto3", "botocore", "urllib3", "paramiko", "rich", "jinja2", "dissect"}
"""Imported only where they are used: `acquire` to a directory, with nobody looking, is not such a place."""


def sources() -> list[Path]:
    return sorted(path for top in ("agent", "acquirers") for path in (HOUSE / top).rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(HOUSE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> frozenset[str]:
    return frozenset(module_of(path) for path in sources())


def imports(path: Path) -> set[str]:
    """Modules of the house that a file names in any import, also one for type checkers or inside a function."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            base = node.module or ""
            names = {f"{base}.{alias.name}" for alias in node.names}
            found |= {name if name in modules() else base for name in names}
    return {name for name in found if name.partition(".")[0] in {"agent", "acquirers"}}


def unit_of(module: str) -> tuple[int, str]:
    """(layer, prefix) of a module: the longest prefix that is named."""
    fitting = [
        (len(unit), layer, unit)
        for layer, units in enumerate(LAYERS)
        for unit in units
        if module == unit or module.startswith(unit + ".")
    ]
    assert fitting, f"{module} belongs to no layer: give it one in LAYERS"
    _, layer, unit = max(fitting)
    return layer, unit


def test_imports_run_downwards_only() -> None:
    wrong = []
    for path in sources():
        layer, unit = unit_of(module_of(path))
        for name in sorted(imports(path)):
            other_layer, other = unit_of(name)
            if other != unit and other_layer <= layer:
                wrong.append(f"{module_of(path)} imports {name}: {unit} may not know {other}")
    assert not wrong, "\n".join(wrong)


def test_acquirers_know_nothing_of_the_agent() -> None:
    ground = [path for path in sources() if module_of(path).startswith("acquirers")]
    assert ground
    assert [module_of(path) for path in ground if any(name.split(".")[0] == "agent" for name in imports(path))] == []


def test_no_file_is_too_long_to_read() -> None:
    lines = {str(path.relative_to(HOUSE)): len(path.read_text("utf-8").splitlines()) for path in sources()}
    many = [f"{name}: {count} lines" for name, count in lines.items() if count > MANY_LINES]
    assert max(lines.values()) <= MAX_LINES, "more than one concern? " + "; ".join(many)


def test_packaging_is_no_package() -> None:
    assert not (HOUSE / "packaging" / "__init__.py").exists(), "it would shadow the library of that name"
    assert not list((HOUSE / "packaging").rglob("__init__.py"))


def python(code: str, cwd: Path = HOUSE) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_folder_packaging_does_not_shadow_the_library() -> None:
    assert python("import packaging.version; print(packaging.version.Version('1.0') < packaging.version.Version('2'))")


def test_the_version_is_one() -> None:
    with (HOUSE / "pyproject.toml").open("rb") as file:
        version = tomllib.load(file)["project"]["version"]
    said = subprocess.run([*agent_command(), "--version"], cwd=HOUSE, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == f"impound {version}"
    assert f"\n## [{version}]" in (HOUSE / "CHANGELOG.md").read_text("utf-8")


def test_the_licence_is_apache_2() -> None:
    text = (HOUSE / "LICENSE").read_text("utf-8")
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    with (HOUSE / "pyproject.toml").open("rb") as file:
        assert tomllib.load(file)["project"]["license"] == "Apache-2.0"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_an_example_in_its_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    from agent.cli import main

    assert main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert "Example:" in text
    assert f"impound {verb} " in text or f"impound {verb}\n" in text


def test_acquire_to_a_directory_imports_no_library_that_it_does_not_need(tmp_path: Path) -> None:
    _, recipient = keygen(tmp_path)
    arguments = ["acquire", "--case", "C-1", "--to", str(tmp_path / "ev"), "-r", recipient]
    loaded = python(
        "import sys, json\n"
        "from agent.cli import main\n"
        f"code = main({[*arguments, '--only', 'snapshot.processes']!r})\n"
        f"print(json.dumps([code, sorted({SELDOM!r} & set(sys.modules))]))"
    )
    code, seldom = json.loads(loaded.splitlines()[-1])
    assert code in {0, 1}
    assert seldom == []


def test_the_verbs_are_imported_only_when_they_are_called() -> None:
    loaded = python("import sys, agent.cli; print(sorted(name for name in sys.modules if name.startswith('agent.')))")
    assert loaded == "['agent.cli', 'agent.cli.main', 'agent.cli.output', 'agent.errors']"


def test_no_byte_code_is_written(tmp_path: Path) -> None:
    """Python stores the byte code of the very first file before it runs it; from there on nothing is stored.

    `python -B` and a packaged agent do not even store that one (docs/side-effects.md).
    """
    for top in ("agent", "acquirers"):
        shutil.copytree(HOUSE / top, tmp_path / top, ignore=shutil.ignore_patterns("__pycache__"))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"PYTHONPATH": str(tmp_path)}
    for flags, expected in (["-B"], set()), ([], {f"agent/__pycache__/__init__.{sys.implementation.cache_tag}.pyc"}):
        for arguments in ["keygen", "-y", "/dev/null"], ["plan", "--only", "snapshot.processes"]:
            command = [sys.executable, *flags, "-m", "agent", *arguments]
            subprocess.run(command, cwd="/", env=environment, capture_output=True, check=False)
        written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.pyc")}
        assert written == expected


# -- the papers -------------------------------------------------------------------------------------------------------

_TEST_ID = re.compile(r"`(tests/[\w/.-]+\.py)(?:::(\w+))?(?:::(\w+))?`")


def test_acceptance_names_real_tests() -> None:
    named = _TEST_ID.findall((HOUSE / "ACCEPTANCE.md").read_text("utf-8"))
    assert named
    missing = []
    for name, first, second in named:
        path = HOUSE / name
        known: set[tuple[str, str]] = {("", "")}
        if path.is_file():
            for node in ast.parse(path.read_bytes()).body:
                if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                    known.add((node.name, ""))
                if isinstance(node, ast.ClassDef):
                    known |= {(node.name, inner.name) for inner in node.body if isinstance(inner, ast.FunctionDef)}
        if not path.is_file() or (first, second) not in known:
            missing.append("::".join(part for part in (name, first, second) if part))
    assert not missing, "ACCEPTANCE.md names tests that are not there:\n" + "\n".join(missing)


@pytest.mark.parametrize("name", ["README.md", "ARCHITECTURE.md", "ACCEPTANCE.md", "CHANGELOG.md", "docs"])
def test_links_between_the_papers_lead_somewhere(name: str) -> None:
    papers = sorted((HOUSE / name).glob("*.md")) if (HOUSE / name).is_dir() else [HOUSE / name]
    assert papers
    links = [
        (paper, target)
        for paper in papers
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", paper.read_text("utf-8"))
    ]
    assert [(paper.name, to) for paper, to in links if "://" not in to and not (paper.parent / to).exists()] == []


def test_the_papers_name_only_verbs_and_options_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    """`impound VERB …` in a code block or in backticks: the verb exists, and so does every option of it."""
    options = {verb: set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", help_of(verb, capsys))) for verb in VERBS}
    wrong = []
    for paper in [HOUSE / "README.md", *sorted((HOUSE / "docs").glob("*.md"))]:
        for line in re.findall(
            r"(?:^|[`$ ]|bin/)impound ([a-z][^`\n|]*)", paper.read_text("utf-8").replace("\\\n", " ")
        ):
            verb, *rest = line.split()
            if verb in VERBS:
                wrong += [
                    f"{paper.name}: {verb} {word}" for word in rest if word[:2] == "--" and word not in options[verb]
                ]
    assert not wrong


def help_of(verb: str, capsys: pytest.CaptureFixture[str]) -> str:
    from agent.cli import main

    main([verb, "--help"])
    return capsys.readouterr().out


def test_formats_md_checks_a_run_with_stock_tools(tmp_path: Path) -> None:
    """The commands of "Check everything without impound", on a run, and on one that was changed."""
    for program in ("age", "zstd", "jq", "openssl"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")
    disk = tmp_path / "disk"
    for name in ("containers", "image", "overlay2", "volumes/unused/_data"):
        (disk / "var/lib/docker" / name).mkdir(parents=True)
    (disk / "var/lib/docker/volumes/unused/_data/big").write_bytes(os.urandom(3_000_000))
    (disk / "etc/docker").mkdir(parents=True)
    (disk / "etc/docker/daemon.json").write_text("{}")
    key, recipient = keygen(tmp_path)
    assert acquire(tmp_path / "ev", recipient, "--root", str(disk))[0] == 0
    run = only_run(tmp_path / "ev")
    _, _, text = (HOUSE / "docs/formats.md").read_text("utf-8").partition("\n## Check everything without impound\n")
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 6
    environment = os.environ | {"RUN": str(run), "KEY": str(key), "ITEM": "containers/docker/runtime.tar"}

    def check() -> subprocess.CompletedProcess[str]:
        command = ["bash", "-c", "set -euo pipefail\n" + "".join(blocks)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    done = check()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Signature Verified Successfully" in done.stdout
    sealed = run / "containers/docker/runtime.tar.zst.age"
    content = sealed.read_bytes()
    sealed.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert check().returncode != 0
    sealed.write_bytes(content)
    assert check().returncode == 0
    (run / "added").write_bytes(b"")
    assert check().returncode != 0
