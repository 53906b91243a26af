"""The papers of each way in which impound is shipped, held against what their readers publish of them."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import subprocess
import tarfile
import tomllib
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import botocore.session
import botocore.validate
import jsonschema
import kubernetes_validate
import pytest
import yaml

from agent.cli.acquire import command as acquire

PACKAGING = Path(__file__).resolve().parents[2] / "packaging"
OVERLAYS = ("one-node", "one-pod", "cluster")
KUBERNETES = ("1.28", "1.31", "1.33")
"""Versions whose schemas the manifests are held against."""
RUNBOOK_SCHEMA = (
    "https://registry.npmjs.org/aws-ssm-document-language-service/-/aws-ssm-document-language-service-1.0.0.tgz",
    "package/dist/schema.json",
    "d93aff07bb25de38e622ddd50ef7c622a4b4cd7b489da6d035a3c3a4fb59532b",
)
"""AWS's own, of the editor's extension: where, what, and its SHA-256."""


def document(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((PACKAGING / name).read_text("utf-8"))
    return found


# -- SSM ---------------------------------------------------------------------------------------------------------------


def test_the_command_document_is_of_schema_2_2() -> None:
    """As the user guide of Systems Manager has it: what is named, and nothing else."""
    told = document("ssm/ImpoundAcquire.yaml")
    assert told.keys() == {"schemaVersion", "description", "parameters", "mainSteps"}
    assert told["schemaVersion"] == "2.2"
    for name, parameter in told["parameters"].items():
        assert re.fullmatch(r"[A-Za-z0-9]+", name)
        assert parameter.keys() <= {"type", "description", "default", "allowedPattern", "interpolationType"}
        assert parameter["type"] == "String"
        assert isinstance(parameter.get("default", ""), str)
        assert re.fullmatch(parameter["allowedPattern"], parameter["default"]) if "default" in parameter else True
    (step,) = told["mainSteps"]
    assert step.keys() == {"action", "name", "precondition", "inputs"}
    assert step["action"] == "aws:runShellScript"
    (script,) = step["inputs"]["runCommand"]
    used = set(re.findall(r"\{\{ *(\w+) *\}\}", json.dumps(step)))
    assert used == set(told["parameters"])
    assert "{{" not in re.sub(r"\{\{ \w+ \}\}", "", script)


@pytest.mark.parametrize("name", ["ImpoundAcquire", "ImpoundRespond"])
def test_patterns_that_the_agent_of_ssm_compiles(name: str) -> None:
    """Go's `regexp` repeats at most 1000 times, and the agent checks the patterns once more."""
    for parameter in document(f"ssm/{name}.yaml")["parameters"].values():
        pattern = parameter["allowedPattern"]
        assert all(
            int(number) <= 1000 for pair in re.findall(r"\{(\d+),?(\d*)\}", pattern) for number in pair if number
        )
        assert pattern.startswith("^")
        assert pattern.endswith("$")
        assert not re.search(r"\(\?|\\[1-9]", pattern)


BAD = ("'", '"', "`", "$", ";", "&&", "|", "\n", "\\", "(", ">", "<", "*", "{", "}", "!", "\0", "\x1b")
GOOD = {
    "Sha256": "0" * 64, "Binary": "/opt/impound/bin/impound", "Url": "https://b.s3.amazonaws.com/impound",
    "CaseId": "INC-42", "Destination": "s3://evidence/x", "Recipients": "age1" + "q" * 58,
    "Options": "--profile triage",
    "TimeoutSeconds": "60", "InstanceId": "i-0123456789abcdef0", "DocumentName": "ImpoundAcquire",
    "AutomationAssumeRole": "arn:aws:iam::111122223333:role/a",
}  # fmt: skip


@pytest.mark.parametrize("name", ["ImpoundAcquire", "ImpoundRespond"])
def test_no_value_can_say_something_to_a_shell(name: str) -> None:
    for parameter, about in document(f"ssm/{name}.yaml")["parameters"].items():
        pattern, good = about["allowedPattern"], GOOD[parameter]
        assert re.fullmatch(pattern, good), parameter
        for bad in BAD:
            if bad == "&&" and parameter == "Url":
                continue  # in a query; the script has it in quotes
            for value in (good + bad, bad + good, good[:4] + bad + good[4:]):
                assert not re.fullmatch(pattern, value), (parameter, value)
        blank = good[:4] + " " + good[4:]
        assert bool(re.fullmatch(pattern, blank)) == (parameter == "Options"), parameter


@pytest.mark.slow
def test_the_runbook_is_valid_by_the_schema_that_aws_publishes() -> None:
    url, name, sha256 = RUNBOOK_SCHEMA
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310 - a constant
            packed = answer.read(10 << 20)
    except (urllib.error.URLError, TimeoutError) as error:
        pytest.skip(f"needs the network: {error}")
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        member = archive.extractfile(name)
        assert member is not None
        schema = member.read()
    assert hashlib.sha256(schema).hexdigest() == sha256
    told = document("ssm/ImpoundRespond.yaml")
    jsonschema.Draft7Validator(json.loads(schema)).validate(told)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft7Validator(json.loads(schema)).validate({**told, "mainSteps": [{"name": "x"}]})


def test_the_runbook_gives_the_document_what_it_asks_for() -> None:
    runbook, command = document("ssm/ImpoundRespond.yaml"), document("ssm/ImpoundAcquire.yaml")
    (step,) = [step for step in runbook["mainSteps"] if step["action"] == "aws:runCommand"]
    given = step["inputs"]["Parameters"]
    needed = {name for name, about in command["parameters"].items() if "default" not in about}
    assert needed <= given.keys() <= command["parameters"].keys()
    used = set(re.findall(r"\{\{ *(\w+) *\}\}", json.dumps(runbook["mainSteps"]) + runbook["assumeRole"]))
    assert used == set(runbook["parameters"])
    for name in given:
        assert runbook["parameters"][name]["allowedPattern"] == command["parameters"][name]["allowedPattern"]


class Template(yaml.SafeLoader):
    """Of CloudFormation: functions stay what they are written as."""


Template.add_multi_constructor("!", lambda loader, tag, node: {tag: loader.construct_scalar(node)})


def test_the_stack_deploys_these_very_documents() -> None:
    text = (PACKAGING / "aws/guardduty.yaml").read_text("utf-8")
    resources = yaml.load(text, Template)["Resources"]  # noqa: S506 - a safe loader, with CloudFormation's tags
    for resource, name in (("AcquireDocument", "ImpoundAcquire"), ("RespondDocument", "ImpoundRespond")):
        assert resources[resource]["Properties"]["Content"] == document(f"ssm/{name}.yaml")
    target = resources["Finding"]["Properties"]["Targets"][0]["InputTransformer"]["InputTemplate"]["Sub"]
    given = json.loads(target)
    runbook = document("ssm/ImpoundRespond.yaml")["parameters"]
    assert given.keys() == runbook.keys()
    assert all(isinstance(value, list) and len(value) == 1 for value in given.values())


@pytest.mark.parametrize("name", ["guardduty", "responder-ssh"])
def test_cloudformation_is_good(name: str) -> None:
    template = PACKAGING / f"aws/{name}.yaml"
    done = subprocess.run(["cfn-lint", template], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "")


# -- Kubernetes --------------------------------------------------------------------------------------------------------


def built(overlay: str) -> list[dict[str, Any]]:
    if shutil.which("kubectl") is None:
        pytest.skip("needs kubectl")
    command = ["kubectl", "kustomize", str(PACKAGING / "kubernetes/overlays" / overlay)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_manifests_are_valid_and_least(overlay: str) -> None:
    found = built(overlay)
    for one in found:
        for version in KUBERNETES:
            kubernetes_validate.validate(one, version, strict=True)
    kinds = sorted(one["kind"] for one in found)
    assert kinds == sorted(
        ["ConfigMap", "Namespace", "Role", "ServiceAccount", "DaemonSet" if overlay == "cluster" else "Job"]
    )  # nobody is bound to anything
    (work,) = [one for one in found if one["kind"] in {"Job", "DaemonSet"}]
    pod = work["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["automountServiceAccountToken"] is False
    assert "@sha256:" in container["image"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert all(mount["readOnly"] for mount in container["volumeMounts"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_their_arguments_are_those_of_the_command(overlay: str) -> None:
    (work,) = [one for one in built(overlay) if one["kind"] in {"Job", "DaemonSet"}]
    arguments = work["spec"]["template"]["spec"]["containers"][0]["args"]
    assert arguments[0] == "acquire"
    settings = {"$(CASE)": "INC-42", "$(DESTINATION)": "s3://evidence/x"}
    values = acquire.make_context("acquire", [settings.get(one, one) for one in arguments[1:]]).params
    assert (values["case"], values["to"], values["authority"]) == (*settings.values(), "ambient")
    assert values["live_root"] == "/host"
    assert values["stay"] == (overlay == "cluster")
    assert bool(values["containers"]) == (overlay == "one-pod")


def test_node_and_cluster_run_the_same_pod() -> None:
    specs = []
    for overlay in ("one-node", "cluster"):
        (work,) = [one for one in built(overlay) if one["kind"] in {"Job", "DaemonSet"}]
        spec = work["spec"]["template"]["spec"]
        for name in ("nodeName", "nodeSelector", "restartPolicy"):
            spec.pop(name, None)
        arguments = spec["containers"][0]["args"]
        spec["containers"][0]["args"] = [one for one in arguments if one != "--stay"]
        specs.append(spec)
    assert specs[0] == specs[1]


# -- images ------------------------------------------------------------------------------------------------------------


def test_the_task_definition_is_one_that_ecs_registers() -> None:
    told = json.loads((PACKAGING / "images/task-definition.json").read_text())
    model = botocore.session.get_session().get_service_model("ecs").operation_model("RegisterTaskDefinition")
    assert model.input_shape is not None
    report = botocore.validate.ParamValidator().validate(told, model.input_shape)
    assert not report.has_errors(), report.generate_report()
    sidecar = next(one for one in told["containerDefinitions"] if one["name"] == "impound")
    assert told["pidMode"] == "task"
    assert sidecar["linuxParameters"]["capabilities"]["add"] == ["SYS_PTRACE"]
    assert sidecar["essential"] is False


def test_bottlerocket_has_every_setting_that_a_host_container_needs() -> None:
    told = tomllib.loads((PACKAGING / "images/bottlerocket.toml").read_text())
    (container,) = told["settings"]["host-containers"].values()
    assert container.keys() == {"enabled", "superpowered", "source"}
    assert container["enabled"] is False
    assert "@sha256:" in container["source"]


def test_the_component_of_image_builder() -> None:
    told = document("images/image-builder.yaml")
    assert told["schemaVersion"] == 1.0
    assert [phase["name"] for phase in told["phases"]] == ["build", "validate", "test"]
    for phase in told["phases"]:
        for step in phase["steps"]:
            assert step.keys() == {"name", "action", "timeoutSeconds", "onFailure", "inputs"}
            assert (step["action"], step["onFailure"]) == ("ExecuteBash", "Abort")
    used = set(re.findall(r"\{\{ *(\w+) *\}\}", json.dumps(told["phases"])))
    assert used == {name for parameter in told["parameters"] for name in parameter}


def test_the_scripts_are_good_sh(tmp_path: Path) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("needs shellcheck")
    (step,) = document("ssm/ImpoundAcquire.yaml")["mainSteps"]
    ssm = re.sub(r"\{\{ \w+ \}\}", "value", step["inputs"]["runCommand"][0])
    (tmp_path / "ssm.sh").write_text("#!/bin/sh\n" + ssm)
    builder = document("images/image-builder.yaml")["phases"][0]["steps"][0]["inputs"]["commands"][0]
    (tmp_path / "builder.sh").write_text("#!/bin/bash\n" + re.sub(r"\{\{ \w+ \}\}", "value", builder))
    (tmp_path / "cloud.sh").write_text(document("images/cloud-init.yaml")["write_files"][0]["content"])
    files = [PACKAGING / "images/install.sh", *sorted(tmp_path.glob("*.sh"))]
    # 2050, 2194, 2043: what the values that SSM puts in look like once they are in.
    done = subprocess.run(
        ["shellcheck", "--exclude=SC2050,SC2194,SC2043", *files], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
