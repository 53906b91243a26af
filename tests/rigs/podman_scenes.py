"""What a private podman is filled with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.rigs.docker_scenes import plant_everything

if TYPE_CHECKING:
    from tests.rigs.podman import PrivatePodman

_FOREVER = ("sleep", "1000000")


@dataclass(slots=True)
class Scene:
    """Container name -> id, pod name -> id."""

    podman: PrivatePodman
    ids: dict[str, str] = field(default_factory=dict)
    pods: dict[str, str] = field(default_factory=dict)


def build_scene(podman: PrivatePodman) -> Scene:
    """`rich` holds whatever a writable layer and a volume can hold; two pods, with and without an infra container."""
    podman.import_base()
    scene = Scene(podman)
    ids = scene.ids
    ids["maker"] = podman.run("maker", "base:1", *_FOREVER)
    podman.exec("maker", "sh", "-c", "mkdir /opt/layer && echo second > /opt/layer/file && rm /etc/os-release")
    podman.podman("commit", "maker", "two:1")
    ids["rich"] = podman.run(
        "rich", "two:1", "sh", "-c", "echo line one; echo error >&2; exec sleep 1000000",
        options=("--volume", "shared:/data", "--volume", "/anonymous", "--env", "PASSWORD=hunter2", "--label", "a=b"),
    )  # fmt: skip
    ids["second"] = podman.run("second", "base:1", *_FOREVER, options=("--volume", "shared:/data"))
    ids["ended"] = podman.run("ended", "two:1", "sh", "-c", "echo bye; echo left > /tmp/left; exit 7")
    ids["never"] = podman.create("never", "base:1", "true")
    scene.pods["bare"] = podman.podman("pod", "create", "--infra=false", "--name", "bare")
    ids["inbare"] = podman.podman("create", "--pod", "bare", "--network", "none", "--name", "inbare", "base:1", "true")
    scene.pods["crew"] = podman.podman(
        "pod", "create", "--infra-image", "base:1", "--infra-command", "sleep 1000000", "--network", "none",
        "--name", "crew",
    )  # fmt: skip
    ids["member"] = podman.run("member", "base:1", *_FOREVER, options=("--pod", "crew"))
    infra = podman.podman("pod", "inspect", "--format", "{{.InfraContainerID}}", "crew")
    ids[podman.inspect(infra)["Name"]] = infra
    podman.wait("ended")
    root = podman.root_of("rich")
    plant_everything(root)
    plant_everything(root / "data", base=False)
    (root / "anonymous/note").write_text("in the anonymous volume\n")
    (root / "dev/shm/implant").write_bytes(b"only in memory" * 100)
    podman.podman("volume", "create", "idle")
    podman.settle()
    return scene
