"""What is released, as its users get it: `scripts/release` makes it, each system's own tools install and remove it."""

from __future__ import annotations

import base64
import json
import os
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import zstandard
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from tests.rigs import podman
from tests.rigs.docker import PrivateDocker, why_not
from tests.rigs.strict_s3 import StrictS3
from tests.support.copies import COPY, IN_ITS_OWN
from tests.support.runs import impound, keygen

HOUSE = Path(__file__).parents[2]
VERSION = "0.1.0"
NEXT = "0.1.1"
OWN = {"agent", "acquirers", "--phello--"}  # the last one is Python's

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


class Release:
    def __init__(self, directory: Path, signer: str) -> None:
        self.directory, self.signer = directory, signer
        self.binary = directory / f"impound-{VERSION}-linux-x86_64"
        self.deb = directory / f"impound_{VERSION}_amd64.deb"
        self.rpm = directory / f"impound-{VERSION}-1.x86_64.rpm"
        self.image = directory / f"impound-{VERSION}-amd64.oci.tar"
        self.wheel = directory / f"impound-{VERSION}-py3-none-any.whl"


def run(*command: str | Path, code: int = 0, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | (environment or {}),
        check=False,
        cwd=HOUSE,
    )
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def make(key: Path, directory: Path) -> None:
    run("scripts/release", "--sign", key, "--machine", "x86_64", "-o", directory)


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    path = tmp_path_factory.mktemp("key") / "release.key"
    code, result, _ = impound("keygen", "--signing", "-o", path)
    assert code == 0
    return path, str(result["signer"])


@pytest.fixture(scope="module")
def release(key: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Release:
    for program in ("dpkg-deb", "rpmbuild", "umoci"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")
    directory = tmp_path_factory.mktemp("release") / "made"
    make(key[0], directory)
    return Release(directory, key[1])


@pytest.fixture(scope="module")
def newer(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Release:
    """The next version, with a file that the first has not and without one that it has."""
    directory = tmp_path_factory.mktemp("newer")
    root = directory / "root"
    run("dpkg-deb", "--extract", release.deb, root)
    (root / "opt/impound/share/doc/NEWS").write_text("new\n")
    (root / "opt/impound/share/completions/impound.fish").unlink()
    made = Release(directory, release.signer)
    made.deb, made.rpm = directory / "next.deb", directory / "next.rpm"
    script = (
        "import sys; from pathlib import Path; sys.path.insert(0, 'packaging/release'); import deb, rpm\n"
        f"about = {{'version': {NEXT!r}, 'maintainer': 'Somebody <s@example.org>', 'home': 'https://example.org'}}\n"
        "deb.build(Path(sys.argv[1]), 'x86_64', about, 1700000000, Path(sys.argv[2]))\n"
        "rpm.build(Path(sys.argv[1]), 'x86_64', about, 1700000000, Path(sys.argv[3]))\n"
    )
    run(sys.executable, "-c", script, root, made.deb, made.rpm)
    return made


def contents(directory: Path) -> dict[str, bytes]:
    """By name from there."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


# -- the release itself ----------------------------------------------------------------------------------------------


def test_two_releases_are_the_same_bytes(release: Release, key: tuple[Path, str], tmp_path: Path) -> None:
    make(key[0], tmp_path / "again")
    ours = contents(release.directory)
    again = contents(tmp_path / "again")
    assert ours.keys() == again.keys()
    assert [name for name in ours if ours[name] != again[name]] == []
    assert len(ours) >= 11


def test_what_is_listed_is_what_is_there_and_who_signed_it(release: Release) -> None:
    check = ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"]
    subprocess.run(check, cwd=release.directory, check=True, timeout=60)
    listed = {line.split()[1] for line in (release.directory / "SHA256SUMS").read_text().splitlines()}
    others = {"SHA256SUMS", "SHA256SUMS.sig", "signer.pem"}
    assert contents(release.directory).keys() == listed | others
    sums, signature = release.directory / "SHA256SUMS", release.directory / "SHA256SUMS.sig"
    given: list[str | Path] = ["--sums", sums, "--signature", signature, "--signer", release.signer]
    result = json.loads(run(release.binary, "self-check", *given).splitlines()[-1])
    states = {check["name"]: check["state"] for check in result["checks"]}
    assert (states["file"], states["signature"]) == ("good", "good")
    raw = release.directory.parent / "raw"
    raw.write_bytes(base64.b64decode(signature.read_text()))
    openssl: list[str | Path] = [
        "openssl",
        "pkeyutl",
        "-verify",
        "-pubin",
        "-inkey",
        release.directory / "signer.pem",
        "-rawin",
    ]
    assert "Successfully" in run(*openssl, "-in", sums, "-sigfile", raw)


def test_the_bill_of_materials(release: Release) -> None:
    text = Path(f"{release.binary}.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    told = json.loads(text)
    parts = {part["name"].lower().replace("_", "-"): part for part in told["components"]}
    assert parts["libc6"]["purl"].startswith("pkg:deb/debian/libc6@")
    inside = {part["name"]: part["version"] for part in parts["zstandard"]["components"]}
    assert inside == {"zstd": ".".join(map(str, zstandard.ZSTD_VERSION))}
    assert "openssl" in {part["name"] for part in parts["cryptography"]["components"]}
    with zipfile.ZipFile(release.binary) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0].removesuffix(".pyc") for name in names if "/" in name and name.endswith(".pyc")}
    renamed = {"dateutil": "python-dateutil", "markdown-it": "markdown-it-py"}
    python = {renamed.get(name.replace("_", "-"), name.replace("_", "-")) for name in tops} - OWN
    standard = set(sys.stdlib_module_names)
    assert {name for name in python if name not in standard} <= set(parts)
    required = {part["name"] for part in told["components"] if part["scope"] == "required"}
    assert {"libc6", "libssl3", "boto3", "psutil"} <= required
    assert not {"linux-libc-dev", "pycparser"} & required


def test_the_licence_of_everything_is_there(release: Release) -> None:
    text = Path(f"{release.binary}.licences.txt").read_text()
    told = json.loads(Path(f"{release.binary}.cdx.json").read_text())
    headings = [line for line in text.splitlines() if any(part["version"] in line for part in told["components"])]
    for part in told["components"]:
        if part["scope"] == "required":
            assert any(f"{part['name']} {part['version']}" in line for line in headings), part["name"]
    assert "Apache License" in text
    assert "GNU LESSER GENERAL PUBLIC LICENSE" in text.upper()


# -- deb ---------------------------------------------------------------------------------------------------------------

ON_A_COPY = (
    COPY
    + r"""
mkdir /mnt/root/packages
cp "$1" /mnt/root/packages/1.deb
cp "$2" /mnt/root/packages/2.deb
changed() { (cd /mnt/upper && find . -path ./packages -prune -o ! -type d -print | sort); }
in_it() { chroot /mnt/root env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive "$@"; }
in_it dpkg -i /packages/1.deb > /dev/null
echo "== installed"; changed
echo "== verified"; in_it dpkg --verify impound
in_it /opt/impound/bin/impound self-check --package --signer "$3" || echo "exit $?"
in_it dpkg -i /packages/2.deb > /dev/null
echo "== upgraded"; changed
echo "== version"; in_it dpkg-query -W -f '${Version} ${Status}\n' impound
in_it dpkg --remove impound > /dev/null 2>&1
echo "== removed"; changed
in_it dpkg --purge impound > /dev/null 2>&1 || true
echo "== known"; in_it dpkg-query -W impound 2>&1 || true
echo "== left"; (cd /mnt/root && find opt/impound etc/impound 2>/dev/null || true)
"""
)
DPKG = ("./var/lib/dpkg/", "./var/log/dpkg.log", "./var/cache/man/", "./var/log/alternatives.log")
"""dpkg's own accounts."""


def sections(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    name = ""
    for line in text.splitlines():
        if line.startswith("== "):
            name = line[3:]
            found[name] = []
        elif name:
            found[name].append(line)
    return found


@needs_root
def test_deb_leaves_the_system_as_it_was(release: Release, newer: Release, tmp_path: Path) -> None:
    """On a copy-on-write copy of this very system: everything that changes is seen."""
    if shutil.which("dpkg") is None:
        pytest.skip("needs dpkg")
    script = tmp_path / "script"
    script.write_text(ON_A_COPY)
    command: list[str | Path] = [*IN_ITS_OWN, script]
    seen = sections(run(*command, release.deb, newer.deb, release.signer))
    others = {name: [line for line in lines if not line.startswith(DPKG)] for name, lines in seen.items()}
    installed = others["installed"]
    assert "./opt/impound/bin/impound" in installed
    assert [line for line in installed if not line.startswith(("./opt/impound/", "./etc/impound/"))] == []
    result = json.loads(next(line for line in seen["verified"] if line.startswith("{")))
    states = {check["name"]: check["state"] for check in result["checks"]}
    assert (result["exit"], states["package"], states["signature"], states["file"]) == (0, "good", "good", "good")
    assert "./opt/impound/share/doc/NEWS" in others["upgraded"]
    assert "./opt/impound/share/completions/impound.fish" not in others["upgraded"]
    assert seen["version"] == [f"{NEXT} install ok installed"]
    assert others["removed"] == []
    assert "no packages found matching impound" in seen["known"][0]
    assert seen["left"] == []


def test_deb_runs_nothing_when_it_is_installed(release: Release, tmp_path: Path) -> None:
    run("dpkg-deb", "--control", release.deb, tmp_path / "control")
    assert sorted(path.name for path in (tmp_path / "control").iterdir()) == ["control"]
    listed = run("dpkg-deb", "--contents", release.deb).splitlines()
    assert {line.split()[1] for line in listed} == {"root/root"}
    assert not [line for line in listed if line[0] not in "d-" or "s" in line[:10]]


# -- SSM Distributor ---------------------------------------------------------------------------------------------------

IN_ITS_PLACE = (
    COPY
    + r"""
mkdir -p /mnt/root/var/lib/amazon/ssm/packages
cp -a "$1" /mnt/root/var/lib/amazon/ssm/packages/impound
in_it() { chroot /mnt/root sh -c "cd /var/lib/amazon/ssm/packages/impound && $1"; }
changed() { (cd /mnt/upper && find . -path ./var/lib/amazon -prune -o ! -type d -print | sort); }
in_it "sh install.sh"
echo "== installed"; changed
in_it "sh uninstall.sh"
echo "== removed"; changed
in_it "printf x >> impound; sh install.sh" || echo "== refused"
echo "== after"; changed
"""
)


@needs_root
def test_what_ssm_distributor_installs(release: Release, tmp_path: Path) -> None:
    place = release.directory / "distributor"
    manifest = json.loads((place / "manifest.json").read_text())
    file = manifest["packages"]["_any"]["_any"]["x86_64"]["file"]
    assert manifest["files"][file]["checksums"]["sha256"] == run("sha256sum", place / file).split()[0]
    with zipfile.ZipFile(place / file) as archive:
        archive.extractall(tmp_path / "package")
    script = tmp_path / "script"
    script.write_text(IN_ITS_PLACE)
    seen = sections(run(*IN_ITS_OWN, script, tmp_path / "package"))
    assert seen == {"installed": ["./opt/impound/bin/impound"], "removed": [], "refused": [], "after": []}


# -- rpm ---------------------------------------------------------------------------------------------------------------


@needs_root
def test_rpm_leaves_the_system_as_it_was(release: Release, newer: Release, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc/somebodys").write_text("file\n")
    rpm: list[str | Path] = ["rpm", "--root", root, "--dbpath", "/var/lib/rpm"]
    run(*rpm, "--initdb")

    def tree() -> dict[str, tuple[int, int, int]]:
        found = {}
        for path in sorted(root.rglob("*")):
            status = path.lstat()
            if not str(path.relative_to(root)).startswith(("var", "dev")):
                found[str(path.relative_to(root))] = (status.st_mode, status.st_uid, status.st_gid)
        return found

    before = tree()
    run(*rpm, "--install", release.rpm)
    new = tree().keys() - before.keys()
    assert all(name == "opt" or name.startswith(("opt/impound", "etc/impound")) for name in new), new
    assert run(*rpm, "--verify", "impound") == ""
    place = root / "opt/impound"
    assert stat.S_IMODE((place / "bin/impound").stat().st_mode) == 0o755
    checked = run(place / "bin/impound", "self-check", "--package", place, "--signer", release.signer)
    assert json.loads(checked.splitlines()[-1])["exit"] == 0
    run(*rpm, "--upgrade", newer.rpm)
    assert run(*rpm, "--query", "impound").strip() == f"impound-{NEXT}-1.x86_64"
    assert (place / "share/doc/NEWS").exists()
    assert not (place / "share/completions/impound.fish").exists()
    run(*rpm, "--erase", "impound")
    assert {name: what for name, what in tree().items() if name != "opt"} == before


def test_rpm_runs_nothing_when_it_is_installed(release: Release) -> None:
    assert run("rpm", "--query", "--scripts", "--triggers", "--package", release.rpm) == ""
    names = run("rpm", "--query", "--list", "--package", release.rpm).splitlines()
    assert all(f"{name}/".startswith(("/opt/impound/", "/etc/impound/")) for name in names)
    needs = run("rpm", "--query", "--requires", "--package", release.rpm).splitlines()
    assert all(one.startswith("rpmlib(") for one in needs), needs


# -- what somebody changed is told ------------------------------------------------------------------------------------


@needs_root
def test_an_installation_that_was_changed_is_told(release: Release, tmp_path: Path) -> None:
    """Also where the list beside it was made to fit: then the signature is not right."""
    run("dpkg-deb", "--extract", release.deb, tmp_path)
    place = tmp_path / "opt/impound"

    def states(code: int) -> dict[str, str]:
        told = run(release.binary, "self-check", "--package", place, "--signer", release.signer, code=code)
        return {check["name"]: check["state"] for check in json.loads(told.splitlines()[-1])["checks"]}

    tmp_path.chmod(0o755)
    assert set(states(0).values()) == {"good"}
    notes = place / "share/doc/licences.txt"
    notes.write_text("none\n")
    assert states(1)["package"] == "bad"
    sums = place / "SHA256SUMS"
    lines = [line for line in sums.read_text().splitlines() if not line.endswith("licences.txt")]
    digest = run("sha256sum", notes).split()[0]
    sums.write_text("\n".join([*lines, f"{digest}  share/doc/licences.txt"]) + "\n")
    found = states(1)
    assert (found["package"], found["signature"]) == ("good", "bad")


# -- container image --------------------------------------------------------------------------------------------------


def test_the_image_runs_under_docker(release: Release, tmp_path: Path) -> None:
    if reason := why_not():
        pytest.skip(reason)
    key_file, recipient = keygen(tmp_path)
    (tmp_path / "evidence").mkdir(mode=0o777)
    (tmp_path / "evidence").chmod(0o777)
    with PrivateDocker(tmp_path / "rig") as rig:
        for tag in (VERSION, f"{VERSION}-root"):
            archive = tmp_path / f"{tag}.tar"
            run("skopeo", "copy", f"oci-archive:{release.image}:{tag}", f"docker-archive:{archive}:impound:{tag}")
            rig.docker("load", "--input", str(archive))
        always = ("run", "--rm", "--network", "none", "--read-only")
        assert rig.docker(*always, f"impound:{VERSION}", "--version") == f"impound {VERSION}"
        checked = json.loads(
            rig.docker(*always, "--cap-drop", "ALL", f"impound:{VERSION}", "self-check").splitlines()[-1]
        )
        assert checked["exit"] == 0
        inside = ("--volume", f"{tmp_path}/evidence:/evidence", f"impound:{VERSION}", "acquire", "--case", "C")
        taken = rig.docker(*always, *inside, "--to", "/evidence/own", "-r", recipient, "--only", "live.files")
        assert json.loads(taken.splitlines()[-1])["exit"] == 0
        assert impound("verify", tmp_path / "evidence/own", "-i", key_file)[0] == 0
        rig.import_base()
        container = rig.run("web", "base:1", "sleep", "100000")
        with StrictS3(tmp_path) as server:
            server.make_bucket("evidence", lock=True)
            host, analyst = server.add_user("host"), server.add_user("analyst")
            where = ("--endpoint-url", server.endpoint_url, "--region", server.region)
            node = (
                "run", "--rm", "--read-only", "--network", "host", "--pid", "host", "--volume", "/:/host:ro",
                # What --privileged would give beyond these, a machine that is a container itself has not to give.
                "--cap-add", "SYS_ADMIN", "--cap-add", "SYS_PTRACE", "--cap-add", "DAC_READ_SEARCH",
                "--security-opt", "seccomp=unconfined",
                "--env", f"AWS_ACCESS_KEY_ID={host.access_key}", "--env", f"AWS_SECRET_ACCESS_KEY={host.secret_key}",
                f"impound:{VERSION}-root", "acquire", "--case", "C", "--live-root", "/host", "--to", "s3://evidence/n",
                "--authority", "ambient", *where, "-r", recipient,
                "--only", "containers.docker", "--container", container,
            )  # fmt: skip
            taken = rig.docker(*node, timeout=300)
            assert json.loads(taken.splitlines()[-1])["exit"] == 0
            credentials = {"AWS_ACCESS_KEY_ID": analyst.access_key, "AWS_SECRET_ACCESS_KEY": analyst.secret_key}
            run(
                sys.executable,
                "-m",
                "agent",
                "verify",
                "s3://evidence/n",
                *where,
                "-i",
                key_file,
                environment=credentials,
            )


def test_the_image_runs_under_podman(release: Release) -> None:
    if reason := podman.why_not():
        pytest.skip(reason)
    with podman.PrivatePodman() as rig:
        archive = rig.directory / "impound.tar"
        run("skopeo", "copy", f"oci-archive:{release.image}:{VERSION}", f"oci-archive:{archive}:{VERSION}")
        loaded = rig.podman("load", "--input", str(archive), timeout=300)
        name = loaded.rpartition(": ")[2]
        told = rig.podman("run", "--rm", "--network", "none", "--read-only", name, "self-check")
        assert json.loads(told.splitlines()[-1])["exit"] == 0
        about = json.loads(rig.podman("image", "inspect", name))[0]
        assert about["Config"]["User"] == "65532:65532"
        assert about["Labels"]["org.opencontainers.image.version"] == VERSION


# -- the responder's side ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def installed(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("venv")
    run(sys.executable, "-m", "venv", directory)
    run(directory / "bin/python", "-m", "pip", "install", "--quiet", release.wheel)
    return directory / "bin/impound"


def test_the_wheel_installs_and_works(installed: Path, tmp_path: Path) -> None:
    assert run(installed, "--version") == f"impound {VERSION}\n"
    assert (installed.parent / "age-plugin-impoundkms").exists()
    result: dict[str, Any] = json.loads(run(installed, "keygen", "-o", tmp_path / "key").splitlines()[-1])
    assert result["recipient"].startswith("age1")


def test_bash_completes_it(installed: Path, release: Release, tmp_path: Path) -> None:
    run("dpkg-deb", "--extract", release.deb, tmp_path)
    script = tmp_path / "script"
    script.write_text(
        f"PATH={installed.parent}:$PATH\n. {tmp_path}/opt/impound/share/completions/impound.bash\n"
        'COMP_WORDS=(impound acq); COMP_CWORD=1; _impound_completion impound; echo "${COMPREPLY[*]}"\n'
        "COMP_WORDS=(impound acquire --prof); COMP_CWORD=2; COMPREPLY=(); _impound_completion impound; "
        'echo "${COMPREPLY[*]}"\n'
    )
    assert run("bash", script).splitlines() == ["acquire", "--profile"]
