"""Which places belong to which item. Data only; paths are those of Amazon Linux, Bottlerocket, Debian, Ubuntu, RHEL,
k3s, rke2 and microk8s. Sources: amazon-ecs-agent, amazon-ssm-agent, amazon-eks-ami, kubelet, moby, bottlerocket.
"""

from __future__ import annotations

import msgspec

from acquirers.logs.places import Place, below, names, rotated, without_keys

POD_LOGS = b"/var/log/pods"
KUBELET = b"/var/lib/kubelet"


class Group(msgspec.Struct, frozen=True):
    """One item, `logs/<name>.tar`."""

    name: str
    places: tuple[Place, ...]


SESSIONS = Group(
    "sessions",
    (
        # The ECS agent deletes these with the task; the SSM agent cleans up behind itself.
        Place(b"/var/log/ecs", names(rb"exec")),
        Place(
            b"/var/lib/amazon/ssm",
            keep=below(b"*/document/orchestration", b"*/document/state", b"*/session"),
        ),
    ),
)
"""What people did through ECS Exec and Session Manager: who takes it should take it early."""

ECS = Group(
    "ecs",
    (
        Place(b"/var/log/ecs", names(rb"(?!exec\Z).*")),
        Place(
            b"/var/lib/ecs",
            keep=below(b"data", b"ecs.config", b"ecs.config.json", b"deps/execute-command/config"),
        ),
        Place(b"/etc/ecs", keep=without_keys),
        Place(b"/var/cache/ecs", names(rb"state|ecs\.config.*")),  # beside them lies the agent's image
    ),
)

SSM = Group("ssm", (Place(b"/var/log/amazon"), Place(b"/etc/amazon/ssm", keep=without_keys)))

RUNTIME = Group(
    "runtime",
    (
        Place(
            b"/var/log",
            rotated(
                b"docker", b"dockerd", b"containerd", b"cri-dockerd", b"crio", b"podman", b"buildkitd",
                b"soci-snapshotter", b"nodeadm",
            ),
        ),
        Place(b"/var/log/upstart", rotated(b"docker", b"containerd", b"ecs")),
        Place(b"/var/lib/rancher/k3s/agent/containerd", rotated(b"containerd")),
        Place(b"/var/lib/rancher/rke2/agent/containerd", rotated(b"containerd")),
        # Where log shippers keep how far they came.
        Place(b"/var/log", names(rb"flb_.*|.*\.pos")),
        Place(b"/var/fluent-bit/state"),
    ),
)  # fmt: skip

KUBERNETES = Group(
    "kubernetes",
    (
        Place(b"/var/log/containers"),
        Place(
            KUBELET,
            names(
                rb"config(?:\..*)?|kubeconfig|bootstrap-kubeconfig|pki|checkpoints|device-plugins|instance-config.*|"
                rb"kubeadm-flags\.env|[a-z_]+_state|[a-z_]+_state_file"
            ),
            keep=without_keys,
        ),
        Place(b"/etc/kubernetes", keep=without_keys),
        Place(b"/etc/eks", keep=without_keys),
        Place(b"/var/log", rotated(b"kubelet", b"kube-proxy", b"kubernetes", b"kube-apiserver")),
        Place(b"/var/lib/rancher/k3s/agent/logs"),
        Place(b"/var/lib/rancher/rke2/agent/logs"),
        Place(b"/etc/rancher/k3s", names(rb"config\.yaml(?:\.d)?")),
        Place(b"/etc/rancher/rke2", names(rb"config\.yaml(?:\.d)?")),
        Place(b"/var/snap/microk8s/current/args"),
    ),
)
"""Pod logs and the directories of pods go with it: see `pods`."""

CNI = Group(
    "cni",
    (
        Place(b"/var/log/aws-routed-eni"),
        Place(b"/etc/cni/net.d", keep=without_keys),
        Place(b"/var/lib/cni", names(rb"networks|results|cache|.*\.json")),
        Place(b"/run/aws-node"),
        Place(b"/var/log/calico"),
    ),
)

JOURNAL = Group("journal", (Place(b"/var/log/journal"), Place(b"/run/log/journal")))
"""Raw: `journalctl --file` or `--directory` opens them."""

BOTTLEROCKET = Group(
    "bottlerocket",
    (
        Place(b"/var/log/support"),  # what `logdog` left
        Place(b"/.bottlerocket/support"),
        Place(b"/local/host-containers", keep=below(b"*/user-data")),
        Place(b"/.bottlerocket/host-containers", keep=below(b"*/user-data")),
    ),
)

HOST = Group(
    "host",
    (
        Place(
            b"/var/log",
            rotated(
                b"messages", b"syslog", b"daemon.log", b"cloud-init.log", b"cloud-init-output.log", b"user-data.log",
                b"cloud-init", b"cloud-init-output",
            ),
        ),
        Place(b"/run/cloud-init", names(rb"(?:result|status|cloud-id.*|instance-data)(?:\.json)?|.*\.log")),
    ),
)  # fmt: skip
"""Only what carries the lines of runtimes and of their start; `host.artifacts` takes the rest."""

GROUPS = (ECS, SSM, RUNTIME, KUBERNETES, CNI, BOTTLEROCKET, HOST, JOURNAL)
"""In the order in which they are taken: the journal, which is large and rotates slowly, last."""

CONTAINER = Group(
    "container",
    (
        Place(b"/var/log", recursive=False),
        Place(b"/var/log/amazon/ssm"),  # ECS Exec mounts the host's directory of this container's sessions here
        Place(b"/", names(rb"ecs-execute-command-[0-9a-f-]{1,64}"), keep=below(b"*/configuration", b"*/config")),
        Place(b"/dev", names(rb"termination-log")),
    ),
)
"""Seen from inside of a container: its own files, and not what of the host's logs is mounted into it."""
