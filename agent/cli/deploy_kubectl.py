"""`impound deploy kubectl`: into a container by `exec`, or onto a node by a Job of its own."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import click

from agent.cli.deploy import ACQUIRE, ATTACH, lasting
from agent.cli.deploy_job import job_options
from agent.cli.deploy_run import perform_each
from agent.cli.deploy_ssh import check_agent, check_directories
from agent.cli.output import say
from agent.errors import ImpoundError, UnreachableError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agent.delivery.bootstrap import Brought
    from agent.delivery.kubernetes.kubectl import Kubectl
    from agent.delivery.kubernetes.pods import Pod
    from agent.delivery.released import Agent
    from agent.delivery.remote import Reach, Reached
    from agent.delivery.through import Program

END_S = 2.0
MAX_HEARD = 20
_OWN = (
    "target",
    "selector",
    "namespace",
    "container_name",
    "context",
    "kubeconfig",
    "image",
    "agent_file",
    "places",
    "disks",
)


@click.command("kubectl")
@click.argument("target", required=False, metavar="node/NAME|pod/NAME")
@click.option(
    "--selector", "-l", default="", metavar="LABELS", help="Instead of a pod: all that run and have these labels."
)
@click.option(
    "--namespace", "-n", default="", metavar="NS", help="Of the pod, or for the Job on a node. Default: kubectl's."
)
@click.option(
    "-c", "container_name", default="", metavar="NAME", help="The container of the pod, where it has several."
)
@click.option("--context", default="", metavar="NAME", help="Of the kubeconfig. Default: kubectl's.")
@click.option("--kubeconfig", default="", metavar="FILE", help="Default: kubectl's.")
@click.option("--image", default="", metavar="REF@sha256:…", help="Node: the agent's image, by digest.")
@click.option(
    "--agent", "agent_file", default="", metavar="FILE", help="Pod: the agent's binary. Default: of this release."
)
@click.option("--place", "places", multiple=True, metavar="DIR", help="Pod: a tmpfs of the container to start it from.")
@click.option(
    "--place-on-disk",
    "disks",
    multiple=True,
    metavar="DIR",
    help="Pod: a directory that is no memory. It changes the container's writable layer, which is evidence.",
)
@job_options
def command(as_json: bool, **values: Any) -> int:
    """Deploy through kubectl. A node first: it sees everything, and the containers on it are not touched.

    On a node, a Job of its own runs the agent's image, privileged, with the node's root read-only and without a token;
    it is deleted at the end. In a pod, the agent goes through `kubectl exec` into the container's memory, and takes
    what is seen from there.

    \b
    Example:
      impound deploy kubectl node/ip-10-0-3-7 --image REF@sha256:... --case INC-42 --to s3://evidence/cases -r age1...
      impound deploy kubectl pod/web-7c5d -n shop -c app --case INC-42 --to s3://evidence/cases -r age1...
      impound deploy kubectl -l app=web -n shop --relay --case INC-42 --to ./evidence -r age1...

    \b
    Exit code: as for `acquire`, of the worst pod; 3, too, when the channel broke.
    """
    from agent.delivery.kubernetes.kubectl import Kubectl, check_name

    given = {name: values.pop(name) for name in _OWN}
    kind, _, name = (given["target"] or "").partition("/")
    if bool(given["target"]) == bool(given["selector"]):
        raise UsageError("name one of node/NAME, pod/NAME, or -l LABELS")
    if given["target"] and kind not in {"node", "pod"}:
        raise UsageError(f"{given['target'][:80]!r} is neither node/NAME nor pod/NAME")
    if given["namespace"]:
        check_name(given["namespace"], "a namespace")
    kubectl = Kubectl(given["namespace"], given["context"], given["kubeconfig"])
    if kind == "node":
        return perform_each([(given["target"], _node(kubectl, name, given, values))], values, as_json=as_json)
    if given["image"]:
        raise UsageError("--image is for a node: into a pod the binary itself is brought")
    check_agent(given["agent_file"])
    check_directories([*given["places"], *given["disks"]])
    pods = _pods(kubectl, name, given["selector"])
    targets = [(f"pod/{pod.metadata.name}", _pod(kubectl, pod, given)) for pod in pods]
    return perform_each(targets, values, as_json=as_json)


def _pods(kubectl: Kubectl, name: str, selector: str) -> list[Pod]:
    from agent.delivery.kubernetes.pods import one_pod, selected_pods

    return selected_pods(kubectl, selector) if selector else [one_pod(kubectl, name)]


def _pod(kubectl: Kubectl, pod: Pod, given: dict[str, Any]) -> Reach:
    from agent.delivery.lasting_remote import LastingRemote, new_name
    from agent.delivery.released import find
    from agent.delivery.remote import Reached

    def reach(on_line: Callable[[bytes], object]) -> Reached:
        container = pod.container(given["container_name"])
        name = new_name()
        agents: list[Agent] = []

        def choose(architecture: str) -> Agent:
            agents.append(find(architecture, given["agent_file"]))
            return agents[-1]

        def start(command: Sequence[str]) -> tuple[Program, Brought]:
            return _entered(kubectl, pod, container, command, given, choose, on_line)

        program, brought = start(lasting(name))
        how = {
            "transport": "kubectl exec",
            "namespace": pod.metadata.namespace,
            "pod": pod.metadata.name,
            "pod_uid": pod.metadata.uid,
            "node": pod.spec.node_name,
            "container": container,
            "image": pod.image(container),
            "agent_sha256": brought.sha256,
            "agent_way": brought.way,
            "agent_checked": "by the host" if brought.checked else "no",
            "agent_released": "yes" if agents[0].released else "no",
        }
        remote = LastingRemote(program, lambda: start([*ATTACH, name])[0], _warn)
        return Reached(remote, {key: value[:1000] for key, value in how.items()})

    return reach


def _entered(
    kubectl: Kubectl,
    pod: Pod,
    container: str,
    command: Sequence[str],
    given: dict[str, Any],
    choose: Callable[[str], Agent],
    on_line: Callable[[bytes], object],
) -> tuple[Program, Brought]:
    """An agent with these arguments, in a container's memory. Raises `ImpoundError`."""
    from agent.delivery import bootstrap
    from agent.delivery.through import Program

    ways = [*given["places"], *bootstrap.WAYS, *(bootstrap.ON_DISK + one for one in given["disks"])]
    heard: list[bytes] = []
    started = threading.Event()

    def line(text: bytes) -> None:
        if started.is_set():
            on_line(text)
        elif len(heard) < MAX_HEARD:
            heard.append(text)

    arguments = ["--stdin", pod.metadata.name, "--container", container, "--", *bootstrap.argv(command, ways)]
    program = Program(kubectl.argv("exec", *arguments), line)
    try:
        brought = bootstrap.bring(program.reads, program.writes, choose)
    except BaseException as error:
        program.end(END_S if isinstance(error, ImpoundError) else 0.0)
        if isinstance(error, UnreachableError):
            raise _explained(pod, container, heard, error) from error
        raise
    started.set()
    return program, brought


def _explained(pod: Pod, container: str, heard: list[bytes], error: UnreachableError) -> ImpoundError:
    """Why a container could not be entered, by what kubectl said."""
    said = b" ".join(heard).decode("utf-8", "replace")[:500]
    if any(why in text for text in (said, str(error)) for why in ("file not found", "no such file")):
        return UsageError(
            f"the container {container} of {pod.metadata.name} has no sh to be entered by. Its node sees all of it: "
            f"impound deploy kubectl node/{pod.spec.node_name or 'NAME'} --container {container}"
        )
    return UnreachableError(f"{Exception.__str__(error)}; kubectl says: {said!r}" if said else Exception.__str__(error))


def _node(kubectl: Kubectl, name: str, given: dict[str, Any], values: dict[str, Any]) -> Reach:
    import secrets

    from agent.delivery.kubernetes import nodes
    from agent.delivery.remote import Reached
    from agent.delivery.through import Program

    if not given["image"]:
        raise UsageError(
            "a node needs --image REF@sha256:…, the agent's image of the release in a registry that it reaches"
        )
    for option, what in (
        ("agent_file", "--agent"),
        ("places", "--place"),
        ("disks", "--place-on-disk"),
        ("container_name", "-c"),
    ):
        if given[option]:
            raise UsageError(f"{what} is for a pod: on a node the agent comes with its image")
    nodes.check_image(given["image"])
    if not values["resume"]:
        values["live_root"] = values["live_root"] or nodes.HOST

    def reach(on_line: Callable[[bytes], object]) -> Reached:
        job = f"impound-{secrets.token_hex(4)}"
        pod = nodes.start(kubectl, job, name, given["image"], list(ACQUIRE))
        there = [pod.metadata.name, "--container", nodes.CONTAINER]
        try:
            program = Program(kubectl.argv("attach", "--stdin", "--quiet", *there), on_line)
        except BaseException:
            nodes.delete(kubectl, job, _warn)
            raise
        how = {
            "transport": "kubectl attach",
            "namespace": pod.metadata.namespace,
            "job": job,
            "pod": pod.metadata.name,
            "pod_uid": pod.metadata.uid,
            "node": name,
            "image": pod.image(nodes.CONTAINER) or given["image"],
        }
        return Reached(_Job(program, lambda: nodes.delete(kubectl, job, _warn)), how)

    return reach


class _Job:
    """A program in a Job, which is deleted when it has ended."""

    def __init__(self, program: Any, delete: Callable[[], object]) -> None:
        self._program, self._delete = program, delete
        self._deleted = False

    @property
    def reads(self) -> int:
        return int(self._program.reads)

    @property
    def writes(self) -> int:
        return int(self._program.writes)

    def end(self, grace_s: float) -> int:
        try:
            return int(self._program.end(grace_s))
        finally:
            if not self._deleted:
                self._deleted = True
                self._delete()


def _warn(line: str) -> None:
    say(f"impound: {line}")
