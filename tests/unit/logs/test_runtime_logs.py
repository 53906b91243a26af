"""`logs.runtime` and `logs.sessions` on disks made by hand: what is taken, as what, and what is said of it."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from acquirers.base import FlagKind, Item, Reason, Scope, State
from acquirers.host import Host, Mode
from acquirers.logs import RuntimeLogs, SessionLogs
from acquirers.logs import groups as all_groups
from tests.rigs.trees import Recorder

UID = "01234567-89ab-cdef-0123-456789abcdef"
POD = f"shop_web-7d9f_{UID}"
ORPHAN = f"kube-system_gone_{'0123456789abcdef' * 2}"


def put(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"content of {name}\n")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    put(tmp_path, "etc/hostname")
    return tmp_path


def dead(root: Path) -> Host:
    return Host(Mode.DEAD, os.fsencode(root))


def read(item: Item) -> tuple[dict[str, bytes], Recorder]:
    """Files and links of one item with their content."""
    report = Recorder()
    data = b"".join(bytes(chunk) for chunk in item.read(report))
    found = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for member in tar:
            if member.issym():
                found[member.name] = os.fsencode(member.linkname)
            elif member.isfile():
                file = tar.extractfile(member)
                assert file is not None
                found[member.name] = file.read()
    return found, report


def take(
    host: Host, scope: Scope | None = None, logs: RuntimeLogs | SessionLogs | None = None
) -> dict[str, tuple[dict[str, bytes], Recorder]]:
    items = (logs or RuntimeLogs()).items(host, scope or Scope())
    return {item.path: read(item) for item in items}


def names(taken: dict[str, tuple[dict[str, bytes], Recorder]], item: str) -> set[str]:
    return {name.removeprefix("[root]/") for name in taken[item][0]}


TAKEN = {
    "logs/sessions.tar": {
        "var/log/ecs/exec/0123abcd/web/amazon-ssm-agent.log",
        "var/lib/amazon/ssm/i-0abc/document/orchestration/x/awsrunShellScript/stdout",
        "var/lib/amazon/ssm/i-0abc/session/orchestration/y/ipcTempFile.log",
    },
    "logs/ecs.tar": {
        "var/log/ecs/ecs-agent.log", "var/log/ecs/audit.log.2026-01-01", "var/lib/ecs/data/agent.db",
        "var/lib/ecs/ecs.config", "var/lib/ecs/deps/execute-command/config/amazon-ssm-agent-1.json",
        "etc/ecs/ecs.config", "var/cache/ecs/state",
    },
    "logs/ssm.tar": {"var/log/amazon/ssm/amazon-ssm-agent.log", "etc/amazon/ssm/seelog.xml"},
    "logs/runtime.tar": {
        "var/log/docker", "var/log/containerd.log.1", "var/log/crio/pods.log", "var/log/flb_kube.db",
        "var/lib/rancher/k3s/agent/containerd/containerd.log",
    },
    "logs/kubernetes.tar": {
        f"var/log/pods/{POD}/web/0.log", f"var/log/pods/{POD}/web/0.log.20260101-000000.gz",
        f"var/log/pods/{ORPHAN}/c/3.log", "var/log/kubelet.log", "var/lib/kubelet/config.yaml",
        "var/lib/kubelet/cpu_manager_state", "var/lib/kubelet/checkpoints/checkpoint-web.tar",
        f"var/lib/kubelet/pods/{UID}/etc-hosts", f"var/lib/kubelet/pods/{UID}/containers/web/1a2b3c4d",
        "etc/kubernetes/manifests/etcd.yaml", "etc/eks/bootstrap.sh",
    },
    "logs/cni.tar": {"var/log/aws-routed-eni/ipamd.log", "etc/cni/net.d/10-aws.conflist", "run/aws-node/ipam.json"},
    "logs/bottlerocket.tar": {"var/log/support/bottlerocket-logs.tar.gz", "local/host-containers/admin/user-data"},
    "logs/host.tar": {"var/log/messages", "var/log/syslog.1.gz", "var/log/cloud-init-output.log"},
    "logs/journal.tar": {"var/log/journal/0123/system.journal", "run/log/journal/0123/user-1000.journal"},
}  # fmt: skip
LEFT = {
    "var/lib/amazon/ssm/Vault/Store/RegistrationKey", "var/lib/amazon/ssm/i-0abc/inventory/x", "var/log/wtmp",
    "var/cache/ecs/ecs-agent.tar", "var/lib/ecs/deps/execute-command/bin/agent", "var/log/dockerfile",
    f"var/lib/kubelet/pods/{UID}/volumes/kubernetes.io~secret/s/token", "var/lib/kubelet/plugins/x",
    "var/log/audit/audit.log", "etc/kubernetes/pki/ca.key", "var/lib/kubelet/pki/kubelet-client-current.pem",
    "local/host-containers/admin/big",
}  # fmt: skip


def test_everything_has_its_item_and_nothing_else_is_taken(root: Path) -> None:
    put(root, *LEFT, *(name for some in TAKEN.values() for name in some))
    taken = take(dead(root))
    assert list(taken) == list(TAKEN)
    assert {item: names(taken, item) for item in taken} == TAKEN
    for files, report in taken.values():
        assert report.gaps == []
        for name, content in files.items():
            assert content == f"content of {name.removeprefix('[root]/')}\n".encode()
    keys = [flag for _, report in taken.values() for flag in report.flags if flag.kind is FlagKind.ELSEWHERE]
    assert {flag.where for flag in keys} == {
        b"/etc/kubernetes/pki/ca.key", b"/var/lib/kubelet/pki/kubelet-client-current.pem",
    }  # fmt: skip


def test_what_is_not_there_is_no_item_and_no_gap(root: Path) -> None:
    put(root, "var/log/wtmp", "var/log/dockerfile")
    availability = RuntimeLogs().probe(dead(root), Scope())
    assert availability.state is State.ABSENT
    assert take(dead(root)) == {}
    assert SessionLogs().probe(dead(root), Scope()).state is State.ABSENT
    put(root, "var/log/syslog")
    availability = RuntimeLogs().probe(dead(root), Scope())
    assert (availability.state, availability.reads) == (State.AVAILABLE, ())
    assert list(take(dead(root))) == ["logs/host.tar"]


def test_a_plan_says_how_big_and_where_no_destination_may_lie(root: Path) -> None:
    put(root, f"var/log/pods/{POD}/web/0.log")
    (root / "var/log/journal").mkdir()
    (root / "var/log/journal/system.journal").write_bytes(bytes(100_000))
    availability = RuntimeLogs().probe(dead(root), Scope())
    assert availability.estimate is not None
    assert 100_000 <= availability.estimate < 110_000
    assert set(availability.reads) == {os.fsencode(root / "var/log/journal"), os.fsencode(root / "var/log/pods")}
    assert [(one.kind, one.id, one.name) for one in availability.subjects] == [("pod-logs", UID, b"shop/web-7d9f")]


def test_sessions_are_taken_early_or_else_with_the_rest(root: Path) -> None:
    put(root, "var/log/ecs/exec/0123abcd/web/x.log", "var/log/ecs/ecs-agent.log")
    sessions = SessionLogs()
    both = RuntimeLogs(sessions=sessions)
    assert list(take(dead(root), logs=both)) == ["logs/sessions.tar", "logs/ecs.tar"]
    assert list(take(dead(root), logs=sessions)) == ["logs/sessions.tar"]
    assert list(take(dead(root), logs=both)) == ["logs/ecs.tar"]


def claiming(*paths: str) -> Callable[[], set[bytes]]:
    return lambda: {os.fsencode(path) for path in paths}


def test_pod_logs_that_a_container_claims_are_left_to_it(root: Path) -> None:
    put(root, *(f"var/log/pods/{POD}/web/{name}" for name in ("0.log", "1.log", "0.log.20260101-000000.gz")))
    put(root, f"var/log/pods/{POD}/side/0.log", f"var/log/pods/{ORPHAN}/c/0.log")
    logs = RuntimeLogs(claiming(f"/var/log/pods/{POD}/web/1.log", f"/var/log/pods/{POD}/side"))
    taken = take(dead(root), logs=logs)
    assert names(taken, "logs/kubernetes.tar") == {
        f"var/log/pods/{POD}/web/0.log", f"var/log/pods/{POD}/web/0.log.20260101-000000.gz",
        f"var/log/pods/{ORPHAN}/c/0.log",
    }  # fmt: skip
    flags = [flag.where for flag in taken["logs/kubernetes.tar"][1].flags if flag.kind is FlagKind.ELSEWHERE]
    assert sorted(flags) == [f"/var/log/pods/{POD}/{name}".encode() for name in ("side", "web/1.log")]


def test_claims_hold_where_the_pod_logs_are_moved_to_another_disk(root: Path) -> None:
    put(root, f"mnt/k8s/pods/{POD}/web/0.log", f"mnt/k8s/pods/{ORPHAN}/c/0.log")
    (root / "var/log").mkdir(parents=True)
    (root / "var/log/pods").symlink_to("/mnt/k8s/pods")
    files, report = take(dead(root), logs=RuntimeLogs(claiming(f"/var/log/pods/{POD}")))["logs/kubernetes.tar"]
    assert files["[root]/var/log/pods"] == b"/mnt/k8s/pods"
    assert set(files) == {"[root]/var/log/pods", f"[root]/mnt/k8s/pods/{ORPHAN}/c/0.log"}
    assert report.gaps == []


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("shop/web-7d9f", {"web", "side"}), ("web-7d9f", {"web", "side"}), ("shop/web-7d9f/side", {"side"}),
        ("side", {"side"}),
    ],
)  # fmt: skip
def test_one_pod_alone(root: Path, selector: str, expected: set[str]) -> None:
    put(root, *(f"var/log/pods/{POD}/{name}/0.log" for name in ("web", "side")), f"var/log/pods/{ORPHAN}/c/0.log")
    put(root, f"var/lib/kubelet/pods/{UID}/etc-hosts", "var/lib/kubelet/pods/fedcba/etc-hosts")
    scope = Scope(containers=(selector, "nobody"))
    availability = RuntimeLogs().probe(dead(root), scope)
    assert availability.matched == {selector}
    assert [one.selected for one in availability.subjects if one.id == UID] == [True]
    assert names(take(dead(root), scope), "logs/kubernetes.tar") == {
        *(f"var/log/pods/{POD}/{name}/0.log" for name in expected),
        f"var/lib/kubelet/pods/{UID}/etc-hosts",
    }


def test_links_do_not_lead_out_and_only_files_are_read(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    secret = tmp_path_factory.mktemp("outside")
    put(secret, "ecs/data/secret", "0.log")
    put(root, f"var/log/pods/{POD}/web/1.log", "etc/shadow")
    (root / f"var/log/pods/{POD}/web/0.log").symlink_to(secret / "0.log")
    (root / f"var/log/pods/{POD}/web/2.log").symlink_to("/etc/shadow")
    os.mkfifo(root / f"var/log/pods/{POD}/web/3.log")
    (root / "var/log/journal").symlink_to(secret)
    (root / "var/log/containers").symlink_to("../" * 20 + str(secret))
    (root / "var/lib").mkdir()
    (root / "var/lib/kubelet").symlink_to("kubelet")
    (root / "var/log/messages").mkdir()
    (root / "etc/ecs").write_text("a file, where a directory should be")
    taken = take(dead(root))
    assert list(taken) == ["logs/kubernetes.tar", "logs/host.tar"]
    files, report = taken["logs/kubernetes.tar"]
    assert files == {
        f"[root]/var/log/pods/{POD}/web/1.log": f"content of var/log/pods/{POD}/web/1.log\n".encode(),
        f"[root]/var/log/pods/{POD}/web/0.log": os.fsencode(secret / "0.log"),
        f"[root]/var/log/pods/{POD}/web/2.log": b"/etc/shadow",
    }
    assert report.gaps == []


def test_odd_names_among_the_pods_are_taken_as_they_are(root: Path) -> None:
    base = os.fsencode(root) + b"/var/log/pods/"
    os.makedirs(base + b"\xff\n_x_y/c")
    (root / "var/log/pods/stray").write_text("no directory")
    with open(base + b"\xff\n_x_y/c/0.log", "wb") as file:
        file.write(b"odd")
    files, _ = take(dead(root))["logs/kubernetes.tar"]
    assert sorted(files.values()) == [b"no directory", b"odd"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_what_this_user_may_not_look_at_is_unavailable_and_not_absent(root: Path) -> None:
    put(root, "var/log/ecs/ecs-agent.log")
    (root / "var/log/ecs").chmod(0o700)
    root.chmod(0o755)
    code = (
        "import os\nfrom acquirers.base import Scope\nfrom acquirers.host import Host, Mode\n"
        "from acquirers.logs import RuntimeLogs\n"
        f"host = Host(Mode.DEAD, {os.fsencode(root)!r})\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "found = RuntimeLogs().probe(host, Scope())\nprint(found.state, found.remedy)\n"
        "print([item.path for item in RuntimeLogs().items(host, Scope())])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=Path.cwd())
    assert done.stdout.splitlines() == ["unavailable run as root", "['logs/sessions.tar', 'logs/ecs.tar']"], done.stderr


def test_inside_of_a_container_only_its_own(root: Path) -> None:
    put(
        root, "var/log/nginx/error.log", "var/log/amazon/ssm/amazon-ssm-agent.log", "dev/termination-log",
        "ecs-execute-command-0123abcd/configuration/seelog.xml", "ecs-execute-command-0123abcd/bin/agent",
        "var/lib/kubelet/config.yaml", "etc/cni/net.d/x",
    )  # fmt: skip
    host = Host(Mode.INSIDE, os.fsencode(root))
    taken = {item.path: read(item) for item in RuntimeLogs().items(host, Scope()) if item.path != "logs/deleted.tar"}
    assert list(taken) == ["logs/container.tar"]
    assert names(taken, "logs/container.tar") == {
        "var/log/nginx/error.log", "var/log/amazon/ssm/amazon-ssm-agent.log", "dev/termination-log",
        "ecs-execute-command-0123abcd/configuration/seelog.xml",
    }  # fmt: skip
    assert list(SessionLogs().items(host, Scope())) == []


def test_no_two_groups_take_the_same_directory_whole() -> None:
    whole = [
        place.path
        for group in (all_groups.SESSIONS, *all_groups.GROUPS)
        for place in group.places
        if place.names is None
    ]
    assert len(whole) == len(set(whole))


def test_a_fault_of_one_place_costs_no_other(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(root, "var/log/ecs/ecs-agent.log", "etc/ecs/ecs.config")
    real = Host.tree

    def tree(self: Host, path: bytes, *, recursive: bool = False) -> object:
        if path == b"/var/log/ecs":
            raise OSError(5, "the disk is bad")
        return real(self, path, recursive=recursive)

    host = dead(root)
    items = list(RuntimeLogs().items(host, Scope()))
    monkeypatch.setattr(Host, "tree", tree)
    files, report = next(read(item) for item in items if item.path == "logs/ecs.tar")
    assert list(files) == ["[root]/etc/ecs/ecs.config"]
    assert [(gap.reason, gap.where) for gap in report.gaps] == [(Reason.IO_ERROR, b"/var/log/ecs")]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_no_access_time_moves(root: Path) -> None:
    put(root, *(name for some in TAKEN.values() for name in some))
    (root / "var/log/moved").symlink_to("ecs")
    (root / "run/aws-node").rename(root / "elsewhere")
    (root / "run/aws-node").symlink_to("/elsewhere")
    paths = [root, *sorted(root.rglob("*"))]
    for path in paths:
        os.utime(path, ns=(1_000_000_000, 2_000_000_000), follow_symlinks=False)
    before = {path: path.lstat() for path in paths}
    RuntimeLogs().probe(dead(root), Scope(containers=("web",)))
    assert len(take(dead(root))) == len(TAKEN)
    moved = [path for path in paths if path.lstat() != before[path]]
    assert moved == []


def test_the_live_host_seen_from_a_pod(root: Path) -> None:
    put(root, "var/log/messages")
    host = Host(Mode.LIVE_ROOT, os.fsencode(root), b"/proc")
    assert "[root]/var/log/messages" in take(host)["logs/host.tar"][0]
