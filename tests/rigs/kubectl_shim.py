"""A `kubectl` for a cluster that is one private dockerd: pods are containers of it, by real `docker exec` and `attach`.

shim = KubectlShim(directory, docker)      # directory goes first on PATH
shim.add_pod("web", container_id, labels={"app": "web"})
shim.calls                                 # every argument list, for comparison with `kubectl --help`

What it is started with decides everything; what it does not know ends it with 90. A Job becomes a container with the
same arguments, mounts and rights; `hostPath: /` is `node_root`, never the machine's own.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.rigs.docker import PrivateDocker

_SCRIPT = r"""
import json, os, subprocess, sys
HERE = {here!r}
state = json.load(open(HERE + "/state.json"))
arguments = sys.argv[1:]
open(HERE + "/calls.jsonl", "a").write(json.dumps(arguments) + "\n")
DOCKER = ["docker", "-H", state["socket"]]

def docker(*more, given=None):
    done = subprocess.run([*DOCKER, *more], input=given, capture_output=True)
    if done.returncode:
        sys.stderr.buffer.write(done.stderr)
        sys.exit(1)
    return done.stdout.decode().strip()

verb, words, options, command = arguments[0], [], {{}}, []
flags = {{"--stdin", "--quiet", "--ignore-not-found"}}
rest = iter(arguments[1:])
for word in rest:
    if word == "--":
        command = list(rest)
    elif word.startswith("--") and "=" in word:
        options[word.partition("=")[0]] = word.partition("=")[2]
    elif word in flags:
        options[word] = "true"
    elif word.startswith("-"):
        options[word] = next(rest)
    else:
        words.append(word)

def refuse(text):
    sys.stderr.write(text + "\n")
    sys.exit(1)

def pod_of(name, one):
    inspected = json.loads(docker("inspect", one["id"]))[0]
    running = inspected["State"]["Running"]
    how = {{"running": {{"startedAt": inspected["State"]["StartedAt"]}}}} if running else (
        {{"terminated": {{"reason": "Error", "exitCode": inspected["State"]["ExitCode"]}}}})
    if one.get("waiting"):
        how = {{"waiting": one["waiting"]}}
    statuses = [{{"name": each, "state": how, "imageID": "docker.io/x@" + inspected["Image"], "ready": running,
                 "restartCount": 0, "image": "x", "lastState": {{}}}} for each in one["containers"]]
    return {{"apiVersion": "v1", "kind": "Pod",
            "metadata": {{"name": name, "namespace": "shop", "uid": one["id"][:36], "labels": one["labels"]}},
            "spec": {{"nodeName": "node-1", "containers": [{{"name": each}} for each in one["containers"]]}},
            "status": {{"phase": "Running" if running else "Failed", "containerStatuses": statuses, "conditions": []}}}}

def save():
    json.dump(state, open(HERE + "/state.json", "w"))

if state.get("refuses") == verb:
    refuse(state["says"])
if verb == "get" and words[0] == "node":
    if words[1] != "node-1":
        refuse('Error from server (NotFound): nodes "' + words[1] + '" not found')
    print(json.dumps({{"metadata": {{"name": words[1]}}}}))
elif verb == "get" and words[0] == "pod":
    if words[1] not in state["pods"]:
        refuse('Error from server (NotFound): pods "' + words[1] + '" not found')
    print(json.dumps(pod_of(words[1], state["pods"][words[1]])))
elif verb == "get" and words[0] == "pods":
    key, _, value = options["--selector"].partition("=")
    found = [pod_of(name, one) for name, one in state["pods"].items() if one["labels"].get(key) == value]
    if "--field-selector" in options:
        found = [one for one in found if one["status"]["phase"] == "Running"]
    print(json.dumps({{"apiVersion": "v1", "kind": "List", "items": found}}))
elif verb == "exec":
    one = state["pods"][words[0]]
    assert options["--container"] in one["containers"], options
    os.execvp("docker", [*DOCKER, "exec", "-i", one["id"], *command])
elif verb == "create":
    job = json.load(sys.stdin)
    open(HERE + "/job.json", "w").write(json.dumps(job))
    spec = job["spec"]["template"]["spec"]
    one = spec["containers"][0]
    # Not --privileged: root of a test machine may itself not be.
    rights = ["--pid", "host", "--read-only", "--user", "0:0"]
    mounts = ["--volume", state["node_root"] + ":/host:ro"]
    image = one["image"].rpartition("@")[2]
    made = docker("create", "--interactive", "--network", "none", *rights, *mounts, image, *one["args"])
    name = job["metadata"]["name"]
    labels = job["metadata"]["labels"]
    pod = {{"id": made, "containers": [one["name"]], "labels": labels, "job": name, "waiting": state.get("waiting")}}
    state["pods"][name + "-abcde"] = pod
    save()
    docker("start", made)
    print("job.batch/" + name + " created")
elif verb == "attach":
    one = state["pods"][words[0]]
    os.execvp("docker", [*DOCKER, "attach", "--sig-proxy=false", one["id"]])
elif verb == "delete":
    for name, one in list(state["pods"].items()):
        if one.get("job") == words[1]:
            docker("rm", "--force", one["id"])
            del state["pods"][name]
    save()
else:
    sys.stderr.write("the shim does not know " + repr(arguments) + "\n")
    sys.exit(90)
"""


class KubectlShim:
    def __init__(self, directory: Path, docker: PrivateDocker, node_root: Path) -> None:
        directory.mkdir()
        self.directory = directory
        program = directory / "kubectl"
        program.write_text(f"#!{sys.executable}\n" + _SCRIPT.format(here=str(directory)))
        program.chmod(0o755)
        self._save({"socket": f"unix://{docker.socket}", "pods": {}, "node_root": str(node_root)})

    def add_pod(
        self, name: str, container: str, *, labels: dict[str, str] | None = None, containers: tuple[str, ...] = ("app",)
    ) -> None:
        state = self.state
        state["pods"][name] = {"id": container, "labels": labels or {}, "containers": list(containers)}
        self._save(state)

    def set(self, **values: Any) -> None:
        self._save(self.state | values)

    @property
    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.directory / "state.json").read_text())
        return found

    @property
    def job(self) -> dict[str, Any]:
        """The Job that was made last."""
        found: dict[str, Any] = json.loads((self.directory / "job.json").read_text())
        return found

    @property
    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in (self.directory / "calls.jsonl").read_text().splitlines()]

    def _save(self, state: dict[str, Any]) -> None:
        (self.directory / "state.json").write_text(json.dumps(state))
