"""What SSM, image builders and Dockerfiles run, run as they run it, with the binary and servers that are real."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.rigs import tls
from tests.rigs.docker import PrivateDocker, RigError, why_not
from tests.rigs.strict_s3 import StrictS3
from tests.support.copies import COPY, IN_ITS_OWN
from tests.support.docker_disk import make_disk
from tests.support.runs import ENVIRONMENT, agent_command, keygen

PACKAGING = Path(__file__).resolve().parents[2] / "packaging"
BINARY = PACKAGING.parent / ".cache/binary/impound"
IMAGE_PATH = "/opt/impound/bin/impound"

pytestmark = [
    pytest.mark.skipif(not BINARY.exists(), reason="needs the binary: scripts/build-binary could not make it"),
    pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl"),
]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def sha256() -> str:
    return digest(BINARY)


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """An https server with the binary and another file; its address, and the authority to trust."""
    directory = tmp_path_factory.mktemp("web")
    certificates = tls.make_certificates(directory / "tls")
    (directory / "files").mkdir()
    shutil.copyfile(BINARY, directory / "files/impound")
    (directory / "files/other").write_bytes(b"#!/bin/sh\ntouch /tmp/it-was-run\n")

    class Files(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, directory=str(directory / "files"), **named)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Files)
    server.socket = tls.server_context(certificates).wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"https://127.0.0.1:{server.server_address[1]}", certificates.ca_file
    server.shutdown()
    server.server_close()
    thread.join(20)


# -- SSM ---------------------------------------------------------------------------------------------------------------


def rendered(values: dict[str, str], agent: str) -> tuple[str, dict[str, str]]:
    """The script and its environment as an agent of SSM makes them: an old one puts each value in its place."""
    told = yaml.safe_load((PACKAGING / "ssm/ImpoundAcquire.yaml").read_text("utf-8"))
    for name, about in told["parameters"].items():
        values.setdefault(name, about.get("default", ""))
        assert re.fullmatch(about["allowedPattern"], values[name]), name
    script: str = told["mainSteps"][0]["inputs"]["runCommand"][0]
    if agent == "new":
        return script, {f"SSM_{name}": values[name] for name in told["parameters"]}
    return re.sub(r"\{\{ (\w+) \}\}", lambda match: values[match[1]], script), {}


class Job:
    """A machine's disk, a bucket and a key: what one command of SSM is about."""

    def __init__(self, directory: Path, server: StrictS3) -> None:
        self._directory, self._server = directory, server
        make_disk(directory / "disk", containers=1, files=3, size=10_000)
        self.key, self.recipient = keygen(directory)
        server.make_bucket("evidence", lock=True)
        self.host, self.analyst = server.add_user("host"), server.add_user("analyst")
        self.where = ["--endpoint-url", server.endpoint_url, "--region", server.region]

    def values(self, sha256: str, **more: str) -> dict[str, str]:
        options = ["--root", str(self._directory / "disk"), *self.where]
        return {
            "Sha256": sha256, "CaseId": "INC-42", "Destination": "s3://evidence/ssm",
            "Recipients": f"{self.recipient},{self.recipient}", "Options": " ".join(options), **more,
        }  # fmt: skip

    def run(self, values: dict[str, str], agent: str = "new", **environment: str) -> subprocess.CompletedProcess[str]:
        script, given = rendered(values, agent)
        credentials = {"AWS_ACCESS_KEY_ID": self.host.access_key, "AWS_SECRET_ACCESS_KEY": self.host.secret_key}
        return subprocess.run(
            ["sh", "-c", script],
            capture_output=True, text=True, timeout=120, check=False,
            env={"PATH": os.environ["PATH"], **credentials, **given, **environment},
        )  # fmt: skip

    def verified(self) -> dict[str, Any]:
        credentials = {"AWS_ACCESS_KEY_ID": self.analyst.access_key, "AWS_SECRET_ACCESS_KEY": self.analyst.secret_key}
        command: list[str | Path] = [*agent_command(), "verify", "s3://evidence/ssm", *self.where, "-i", self.key]
        done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT | credentials, check=False)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    def stored(self) -> int:
        return len(self._server.keys("evidence"))


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    with StrictS3(tmp_path) as server:
        yield Job(tmp_path, server)


def test_without_its_parameters_ssm_runs_nothing(job: Job) -> None:
    """An agent that neither puts values into the text nor gives them as variables."""
    told = yaml.safe_load((PACKAGING / "ssm/ImpoundAcquire.yaml").read_text("utf-8"))
    script = told["mainSteps"][0]["inputs"]["runCommand"][0]
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, job.stored()) == (2, 0)
    assert "nothing was run" in done.stderr


def in_memory() -> set[str]:
    return {str(path) for place in ("/dev/shm", "/run") for path in Path(place).iterdir()}


@needs_root
@pytest.mark.parametrize("how", ["mode", "owner", "path"])
def test_ssm_runs_nothing_that_others_may_change(how: str, job: Job, sha256: str, tmp_path: Path) -> None:
    binary = tmp_path / "binary"
    shutil.copyfile(BINARY, binary)
    binary.chmod(0o777 if how == "mode" else 0o755)
    os.chown(binary, 1000 if how == "owner" else 0, 0)
    (tmp_path / "sha256sum").write_text(f"#!/bin/sh\necho {'0' * 64}\n")
    (tmp_path / "sha256sum").chmod(0o755)
    given = {"PATH": f"{tmp_path}:{os.environ['PATH']}"} if how == "path" else {}
    done = job.run(job.values("0" * 64 if how == "path" else sha256, Binary=str(binary)), **given)
    assert (done.returncode, job.stored()) == (2, 0)
    assert {"mode": "others than root", "owner": "not belong", "path": "another SHA-256"}[how] in done.stderr


@needs_root
@pytest.mark.parametrize("agent", ["old", "new"])
def test_ssm_runs_what_the_image_holds(agent: str, job: Job, sha256: str) -> None:
    done = job.run(job.values(sha256, Binary=str(BINARY)), agent)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["verdict"], result["case"], result["authority"]) == ("complete", "INC-42", "ambient")
    assert job.verified()["verdict"].startswith("intact")


@needs_root
def test_ssm_fetches_it_into_memory_and_leaves_nothing(job: Job, sha256: str, web: tuple[str, Path]) -> None:
    address, authority = web
    before = in_memory()
    done = job.run(job.values(sha256, Url=f"{address}/impound?X-Amz-Signature=a%2Fb"), CURL_CA_BUNDLE=str(authority))
    assert done.returncode == 0, done.stderr
    assert job.verified()["verdict"].startswith("intact")
    assert in_memory() == before


@pytest.mark.parametrize("kind", ["installed", "fetched", "missing", "not there", "not trusted"])
def test_ssm_runs_nothing_else(kind: str, job: Job, sha256: str, web: tuple[str, Path], tmp_path: Path) -> None:
    address, authority = web
    other = tmp_path / "other"
    other.write_text(f"#!/bin/sh\ntouch {tmp_path}/it-was-run\n")
    other.chmod(0o755)
    more = {
        "installed": {"Binary": str(other)}, "fetched": {"Url": f"{address}/other"}, "missing": {"Binary": "/nowhere"},
        "not there": {"Url": f"{address}/nowhere"}, "not trusted": {"Url": f"{address}/impound"},
    }[kind]  # fmt: skip
    before = in_memory()
    trusted = {} if kind == "not trusted" else {"CURL_CA_BUNDLE": str(authority)}
    done = job.run(job.values(sha256, **more), **trusted)
    assert done.returncode == 2
    assert "nothing was run" in done.stderr
    assert not (tmp_path / "it-was-run").exists()
    assert job.stored() == 0
    assert in_memory() == before


# -- machine images ----------------------------------------------------------------------------------------------------

ON_A_COPY = (
    COPY
    + r"""
mount -t tmpfs none /mnt/root/run
cp "$BINARY" /mnt/root/run/binary
printf 'not it' > /mnt/root/run/other
cp "$AUTHORITY" /mnt/root/run/ca.pem
cp "$SCRIPT" /mnt/root/run/script
chmod 700 /mnt/root/run/script
export CURL_CA_BUNDLE=/run/ca.pem
set +e
chroot /mnt/root "$@"
echo "exit $?"
cd /mnt/upper && find . ! -type d -print | sort
"""
)


def on_a_copy(script: Path, authority: Path, *command: str) -> tuple[int, list[str]]:
    """Runs /run/script on a copy-on-write copy of this system: its exit code, and what it wrote."""
    words = {"BINARY": str(BINARY), "AUTHORITY": str(authority), "SCRIPT": str(script), "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [*IN_ITS_OWN, "-c", ON_A_COPY, "sh", *command],
        env=words, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    said, _, rest = done.stdout.rpartition("exit ")
    assert rest, said + done.stderr
    code, *written = rest.splitlines()
    return int(code), written


@needs_root
def test_install_sh_puts_it_there_or_fails(sha256: str, web: tuple[str, Path], tmp_path: Path) -> None:
    address, authority = web
    script = PACKAGING / "images/install.sh"
    other = hashlib.sha256(b"not it").hexdigest()
    for given in (f"{address}/impound", "/run/binary"):
        assert on_a_copy(script, authority, "/run/script", sha256, given) == (0, [f".{IMAGE_PATH}"])
    for arguments in (
        ["0" * 64, "/run/binary"], [sha256, "/run/other"], [sha256, f"{address}/nowhere"], [sha256, "/nowhere"],
        [sha256], ["no digest", "/run/binary"], [],
    ):  # fmt: skip
        code, written = on_a_copy(script, authority, "/run/script", *arguments)
        assert (code, written) == (1, []), arguments
    # Pinned by mistake, and no program: it is there, and the build fails.
    assert on_a_copy(script, authority, "/run/script", other, "/run/other")[0] == 1


@needs_root
@pytest.mark.parametrize("good", [True, False])
def test_the_steps_of_image_builder(good: bool, sha256: str, web: tuple[str, Path], tmp_path: Path) -> None:
    address, authority = web
    told = yaml.safe_load((PACKAGING / "images/image-builder.yaml").read_text("utf-8"))
    values = {"Url": f"{address}/{'impound' if good else 'other'}", "Sha256": sha256}
    steps = [step for phase in told["phases"] for step in phase["steps"]]
    commands = [command for step in steps for command in step["inputs"]["commands"]]
    script = tmp_path / "script"
    text = "\n".join(commands).replace("{{ Url }}", values["Url"]).replace("{{ Sha256 }}", values["Sha256"])
    script.write_text(f"#!/bin/bash\nset -e\n{text}\n")
    code, written = on_a_copy(script, authority, "/run/script")
    assert (code == 0) == good
    assert written == [f".{IMAGE_PATH}" if good else f".{IMAGE_PATH}.new"]


@needs_root
@pytest.mark.parametrize("good", [True, False])
def test_the_script_of_cloud_init(good: bool, sha256: str, web: tuple[str, Path], tmp_path: Path) -> None:
    address, authority = web
    told = yaml.safe_load((PACKAGING / "images/cloud-init.yaml").read_text("utf-8"))
    (file,) = told["write_files"]
    assert told["runcmd"] == [[file["path"]]]
    text = file["content"].replace("0" * 64, sha256)
    text = re.sub(r"^url=.*$", f"url={address}/{'impound' if good else 'other'}", text, flags=re.MULTILINE)
    (tmp_path / "script").write_text(text)
    code, written = on_a_copy(tmp_path / "script", authority, "/run/script")
    assert (code == 0) == good
    assert written == ([f".{IMAGE_PATH}"] if good else [])


@needs_root
def test_the_lines_of_the_dockerfile(sha256: str, tmp_path: Path) -> None:
    if reason := why_not():
        pytest.skip(reason)
    text = (PACKAGING / "images/Dockerfile").read_text("utf-8")
    with PrivateDocker(tmp_path / "rig") as rig:
        rig.import_base()
        (tmp_path / "context").mkdir()
        shutil.copy(BINARY, tmp_path / "context/impound")
        (tmp_path / "context/Dockerfile").write_text("FROM scratch\nCOPY impound /impound\n")
        rig.docker("build", "--quiet", "--tag", "impound:1", str(tmp_path / "context"))
        (tmp_path / "context/Dockerfile").write_text(text)
        given = ("--build-arg", "IMPOUND=impound:1", "--build-arg", "BASE=base:1")
        build = ("build", "--quiet", "--network", "none", *given)
        rig.docker(*build, "--build-arg", f"SHA256={sha256}", "--tag", "made:1", str(tmp_path / "context"))
        assert rig.docker("run", "--rm", "--network", "none", "made:1", IMAGE_PATH, "--version").startswith("impound ")
        with pytest.raises(RigError):
            rig.docker(*build, "--build-arg", f"SHA256={'0' * 64}", str(tmp_path / "context"))


@needs_root
@pytest.mark.slow
@pytest.mark.parametrize("good", [True, False])
@pytest.mark.parametrize("kind", ["file", "address"])
def test_the_role_of_ansible(good: bool, kind: str, sha256: str, web: tuple[str, Path], tmp_path: Path) -> None:
    playbook = shutil.which("ansible-playbook")
    if playbook is None:
        pytest.skip("needs ansible-playbook")
    address, authority = web
    name = "impound" if good else "other"
    source = f"{address}/{name}" if kind == "address" else f"/run/{'binary' if good else 'other'}"
    values = {"impound_source": source, "impound_sha256": sha256}
    play = [{"hosts": "localhost", "connection": "local", "gather_facts": False, "vars": values, "roles": ["impound"]}]
    (tmp_path / "play.yml").write_text(json.dumps(play))
    words = f"SSL_CERT_FILE=/run/ca.pem HOME=/run ANSIBLE_ROLES_PATH={PACKAGING}/images/ansible"
    script = tmp_path / "script"
    script.write_text(f"#!/bin/sh\nexport {words} LC_ALL=C.UTF-8\nexec {playbook} {tmp_path}/play.yml\n")
    code, written = on_a_copy(script, authority, "/run/script")
    assert (code == 0) == good
    own = ("/ansible", "/libuuid/")  # Ansible's own traces
    assert [line for line in written if not any(word in line for word in own)] == ([f".{IMAGE_PATH}"] if good else [])
