"""`impound deploy kubectl` on real containers: by exec into a container, by a Job of its own onto a node.

kubectl itself is a small program here that maps each call to a real dockerd; every option that it was given is held
against the help of the real kubectl.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.rigs.docker import PrivateDocker, why_not
from tests.rigs.kubectl_shim import KubectlShim
from tests.support.docker_disk import make_disk
from tests.support.runs import ENVIRONMENT, impound, keygen

BINARY = Path(__file__).parents[2] / ".cache/binary/impound"
REAL = shutil.which("kubectl")
pytestmark = [
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "nothing"),
    pytest.mark.skipif(not BINARY.exists(), reason="needs the binary"),
]
PYTHON = ["-v", "/usr:/usr:ro", "-v", "/lib:/lib:ro", "-v", "/lib64:/lib64:ro"]
"""glibc and a python3: those of this machine, read-only, where the image has none."""


class Cluster:
    """One dockerd, and what deploys into it."""

    def __init__(self, directory: Path, docker: PrivateDocker) -> None:
        self.directory, self.docker = directory, docker
        self.node = directory / "node"
        make_disk(self.node, containers=2, files=3, size=50_000)
        self.shim = KubectlShim(directory / "bin", docker, self.node)
        self.key, self.recipient = keygen(directory)
        self.environment = ENVIRONMENT | {"HOME": str(directory), "PATH": f"{directory}/bin:{os.environ['PATH']}"}

    def run_pod(self, name: str, *options: str, image: str = "base:1", labels: dict[str, str] | None = None) -> str:
        made = self.docker.docker(
            "run", "-d", "--network", "none", *options, image, "sh", "-c", "echo secret >/evidence.txt 2>/dev/null; "
            "exec sleep 3600",
        )  # fmt: skip
        self.shim.add_pod(name, made, labels=labels)
        return made

    def command(self, *target: str, image: bool = False) -> list[str]:
        agent = [] if image else ["--agent", str(BINARY)]
        return [
            sys.executable, "-m", "agent", "deploy", "kubectl", *target, "--relay", "--case", "C-1", "--to",
            str(self.directory / "case"), "-r", self.recipient, "--state", str(self.directory / "state"), *agent,
        ]  # fmt: skip

    def deploy(self, *target: str, image: bool = False) -> tuple[int, dict[str, Any], str]:
        done = subprocess.run(
            self.command(*target, image=image), env=self.environment, capture_output=True, timeout=240, check=False
        )
        lines = done.stdout.splitlines()
        assert len(lines) <= 1, done.stdout
        return done.returncode, json.loads(lines[0]) if lines else {}, done.stderr.decode("utf-8", "replace")

    def how(self, result: dict[str, Any]) -> dict[str, str]:
        lines = Path(result["ledger"]).read_text().splitlines()
        found: dict[str, str] = json.loads(next(one for one in lines if '"event":"reached"' in one))["data"]["how"]
        return found


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateDocker]:
    with PrivateDocker(tmp_path_factory.mktemp("k") / "d") as docker:
        docker.import_base()
        yield docker


@pytest.fixture
def cluster(daemon: PrivateDocker, tmp_path: Path) -> Iterator[Cluster]:
    yield Cluster(tmp_path, daemon)
    if ids := daemon.docker("ps", "--all", "--quiet").split():
        daemon.docker("rm", "--force", *ids)


ONLY = ("--only", "live.files")
SCRATCH = ("--tmpfs", "/scratch:exec,mode=1777")
PLACE = ("--place", "/scratch")


def changes(cluster: Cluster, container: str) -> set[str]:
    """What the container's writable layer holds, by Docker's own word."""
    return set(cluster.docker.docker("diff", container).splitlines())


def agents(cluster: Cluster, container: str) -> list[str]:
    told = cluster.docker.docker("top", container, "-eo", "pid,args").splitlines()
    return [line for line in told if "acquire" in line]


def test_a_container_with_python_is_entered_through_memory_and_nothing_is_written(cluster: Cluster) -> None:
    container = cluster.run_pod("web", *PYTHON)
    before = changes(cluster, container)
    # Not the files: this machine's own would be among them.
    code, result, stderr = cluster.deploy("pod/web", "-n", "shop", "-c", "app", "--only", "snapshot.processes")
    assert (code, result["verdict"], result["authority"]) == (0, "complete", "relay"), stderr
    how = cluster.how(result)
    assert (how["transport"], how["namespace"], how["pod"], how["node"]) == ("kubectl exec", "shop", "web", "node-1")
    assert (how["agent_way"], how["agent_checked"]) == ("memfd", "by the host")
    assert how["image"].startswith("docker.io/x@sha256:")
    code, verdict, _ = impound("verify", result["store"], "--receipt-sha256", result["receipt_sha256"])
    assert (code, verdict["verdict"]) == (0, "intact")
    assert changes(cluster, container) == before
    assert agents(cluster, container) == []


def test_without_a_place_in_memory_it_says_so_and_a_disk_must_be_named(cluster: Cluster) -> None:
    """Docker and containerd mount /dev/shm so that no program starts from it."""
    container = cluster.run_pod("web")
    code, _, stderr = cluster.deploy("pod/web", *ONLY)
    assert code == 2
    assert "no place in memory" in stderr
    before = changes(cluster, container)
    code, result, stderr = cluster.deploy("pod/web", "--place-on-disk", "/tmp", *ONLY)
    assert code == 0, stderr
    assert cluster.how(result)["agent_way"] == "disk:/tmp"
    assert changes(cluster, container) - before <= {"C /tmp", "A /tmp"}  # its times; nothing lies there


@pytest.mark.parametrize(
    "options", [(), ("--read-only",), ("--user", "65534:65534")], ids=["root", "read-only", "nobody"]
)
def test_a_tmpfs_that_is_named_is_enough(cluster: Cluster, options: tuple[str, ...]) -> None:
    container = cluster.run_pod("web", *SCRATCH, *options)
    code, result, stderr = cluster.deploy("pod/web", *PLACE, *ONLY)
    assert code == (1 if "--user" in options else 0), stderr
    out = cluster.directory / "out"
    assert impound("open", result["store"], "-i", cluster.key, "-o", out, "--extract")[0] == 0
    found = [path for path in out.rglob("evidence.txt") if path.read_text() == "secret\n"]
    assert found or options  # who may not write there has none
    assert cluster.how(result)["agent_way"] == "/scratch"
    assert cluster.docker.docker("exec", container, "ls", "-A", "/scratch") == ""


def test_one_without_a_shell_is_told_its_node(cluster: Cluster) -> None:
    """Nothing but one static program: distroless, or from scratch."""
    data = Path(shutil.which("busybox") or "").read_bytes()
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as archive:
        entry = tarfile.TarInfo("busybox")
        entry.size, entry.mode = len(data), 0o755
        archive.addfile(entry, io.BytesIO(data))
    cluster.docker.docker("import", "-", "scratch:1", stdin=layer.getvalue())
    made = cluster.docker.docker("run", "-d", "--network", "none", "scratch:1", "/busybox", "sleep", "3600")
    cluster.shim.add_pod("web", made)
    code, _, stderr = cluster.deploy("pod/web", *ONLY)
    assert code == 2
    assert "has no sh to be entered by" in stderr
    assert "impound deploy kubectl node/node-1 --container app" in stderr


def test_all_pods_with_a_label_one_after_the_other(cluster: Cluster) -> None:
    for name in ("web-1", "web-2"):
        cluster.run_pod(name, *SCRATCH, labels={"app": "web"})
    cluster.run_pod("other", *SCRATCH, labels={"app": "db"})
    code, result, stderr = cluster.deploy("-l", "app=web", *PLACE, *ONLY)
    assert (code, result["targets"], result["done"]) == (0, 2, 2), stderr
    assert [one["target"] for one in result["results"]] == ["pod/web-1", "pod/web-2"]
    for one in result["results"]:
        code, verdict, _ = impound("verify", one["store"], "--receipt-sha256", one["receipt_sha256"])
        assert (code, verdict["verdict"]) == (0, "intact")
    code, _, stderr = cluster.deploy("-l", "app=none", *ONLY)
    assert code == 2
    assert "no pod that runs has the labels 'app=none'" in stderr


def image_of(cluster: Cluster) -> str:
    """The agent's image, as `scripts/release` makes it: one file, from scratch."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as archive:
        for name in ("dev", "etc", "host", "proc", "sys"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
        entry = tarfile.TarInfo("impound")
        entry.size, entry.mode = BINARY.stat().st_size, 0o755
        with BINARY.open("rb") as file:
            archive.addfile(entry, file)
    made = cluster.docker.docker(
        "import", "--change", 'ENTRYPOINT ["/impound"]', "-", "impound:1", stdin=layer.getvalue()
    )
    return f"registry.example.org/impound@{made}"


def test_a_node_by_a_job_of_its_own(cluster: Cluster) -> None:
    image = image_of(cluster)
    code, result, stderr = cluster.deploy(
        "node/node-1", "-n", "forensics", "--image", image, "--only", "containers.docker", image=True
    )
    assert (code, result["verdict"]) == (0, "complete"), stderr
    how = cluster.how(result)
    assert (how["transport"], how["node"]) == ("kubectl attach", "node-1")
    code, verdict, _ = impound("verify", result["store"], "--receipt-sha256", result["receipt_sha256"])
    assert (code, verdict["verdict"]) == (0, "intact")
    assert len(list(Path(result["store"]).glob("containers/docker/*.age"))) >= 2
    spec = cluster.shim.job["spec"]["template"]["spec"]
    assert (spec["nodeName"], spec["hostPID"], spec["automountServiceAccountToken"]) == ("node-1", True, False)
    assert spec["containers"][0]["image"] == image
    assert spec["containers"][0]["volumeMounts"][0]["readOnly"] is True
    assert cluster.recipient not in json.dumps(cluster.shim.job)  # nothing of the job stands in the Job
    assert not cluster.shim.state["pods"]
    assert cluster.docker.docker("ps", "--all", "--quiet") == ""


def test_the_job_is_one_that_kubernetes_takes(cluster: Cluster) -> None:
    import kubernetes_validate

    from agent.delivery.kubernetes.nodes import job_of

    kubernetes_validate.validate(
        job_of("impound-1", "node-1", f"x@sha256:{'0' * 64}", ["acquire"]), "1.33", strict=True
    )


@pytest.mark.parametrize(
    ("options", "code", "why"),
    [
        (("node/node-1",), 2, "a node needs --image"),
        (("node/node-1", "--image", "impound:latest"), 2, "by digest"),
        (("node/node-9", "--image", f"x@sha256:{'0' * 64}"), 2, "the cluster has no such thing"),
        (("pod/none",), 2, "the cluster has no such thing"),
        (("pod/-x",), 2, "is no name of a pod"),
        (("service/web",), 2, "is neither node/NAME nor pod/NAME"),
        ((), 2, "name one of node/NAME, pod/NAME, or -l LABELS"),
        (("pod/web", "-c", "none"), 2, "has no container 'none', but app"),
        (("pod/web", "--place", "tmp"), 2, "the full path of a directory"),
        (("pod/gone",), 2, "does not run: it ended"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(cluster: Cluster, options: tuple[str, ...], code: int, why: str) -> None:
    cluster.run_pod("web")
    cluster.docker.docker("stop", "--time", "0", cluster.run_pod("gone"))
    found, _, stderr = cluster.deploy(*options, *ONLY, image="--image" in options or "node/node-1" in options)
    assert found == code, stderr
    assert why in stderr
    assert "Traceback" not in stderr


@pytest.mark.parametrize(
    ("says", "code", "why"),
    [
        ('Error from server (Forbidden): pods "web" is forbidden', 3, "the cluster does not allow `kubectl get`"),
        ("Unable to connect to the server: dial tcp \x1b[31m", 3, "`kubectl get` failed"),
    ],
)
def test_what_the_cluster_says_is_told_and_escaped(cluster: Cluster, says: str, code: int, why: str) -> None:
    cluster.shim.set(refuses="get", says=says)
    found, _, stderr = cluster.deploy("pod/web", *ONLY)
    assert found == code
    assert why in stderr
    assert "\x1b" not in stderr


def test_an_image_that_cannot_be_pulled_is_said_and_the_job_is_gone(cluster: Cluster) -> None:
    image = image_of(cluster)
    cluster.shim.set(waiting={"reason": "ErrImageNeverPull", "message": "not on the node"})
    code, _, stderr = cluster.deploy("node/node-1", "--image", image, "--only", "containers.docker", image=True)
    assert code == 3
    assert "ErrImageNeverPull not on the node" in stderr
    assert not cluster.shim.state["pods"]


def test_ctrl_c_ends_it_in_the_container_as_well(cluster: Cluster) -> None:
    container = cluster.run_pod("web", *SCRATCH)
    cluster.docker.docker("exec", container, "sh", "-c", "head -c 60000000 /dev/urandom >/big")
    process = subprocess.Popen(
        [*cluster.command("pod/web", *PLACE, *ONLY), "--max-mbit", "20", "--json"], env=cluster.environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if b'"item-started"' in line:
            break
    process.send_signal(signal.SIGINT)
    out, stderr = process.communicate(timeout=120)
    result = json.loads(out)
    assert (process.returncode, result["verdict"]) == (3, "stopped"), stderr
    assert impound("verify", result["store"], "--signer", result["signer"])[1]["verdict"] == "partial"
    assert agents(cluster, container) == []


def test_a_channel_that_breaks_comes_back(cluster: Cluster) -> None:
    container = cluster.run_pod("web", *SCRATCH)
    cluster.docker.docker("exec", container, "sh", "-c", "head -c 30000000 /dev/urandom >/big")
    command = cluster.command("pod/web", *PLACE, *ONLY)
    process = subprocess.Popen(
        [*command, "--max-mbit", "40", "--json"], env=cluster.environment, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    assert any(b'"item-started"' in line for line in process.stderr)
    (client,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(client), signal.SIGKILL)
    assert any(b"the channel is there again" in line for line in process.stderr)
    out, stderr = process.communicate(timeout=120)
    result = json.loads(out)
    assert (process.returncode, result["verdict"], result["attempt"]) == (0, "complete", 1), stderr
    code, verdict, _ = impound("verify", result["store"], "--receipt-sha256", result["receipt_sha256"])
    assert (code, verdict["verdict"]) == (0, "intact")


def test_every_option_is_one_that_kubectl_has(cluster: Cluster) -> None:
    if REAL is None:
        pytest.skip("needs kubectl")
    cluster.run_pod("web", *SCRATCH, labels={"app": "web"})
    more = ("-n", "shop", "--context", "c", "--kubeconfig", "/k")
    assert cluster.deploy("-l", "app=web", *more, *PLACE, *ONLY)[0] == 0
    image = image_of(cluster)
    assert cluster.deploy("node/node-1", "--image", image, "--only", "containers.docker", image=True)[0] == 0
    helps = {
        verb: subprocess.run([REAL, verb, "--help"], capture_output=True, text=True, timeout=60, check=False).stdout
        for verb in {call[0] for call in cluster.shim.calls}
    }
    common = subprocess.run([REAL, "options"], capture_output=True, text=True, timeout=60, check=False).stdout
    assert set(helps) == {"get", "exec", "create", "attach", "delete"}
    for verb, *call in cluster.shim.calls:
        own = call[: call.index("--")] if "--" in call else call
        for option in {one.partition("=")[0] for one in own if one.startswith("--")}:
            assert f"{option}=" in helps[verb] + common, (verb, option)
