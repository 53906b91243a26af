"""packaging/aws/evidence-bucket.yaml: its policies are those that `impound` prints, for every choice of parameters."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agent.cli import main
from agent.stores.s3 import policies

TEMPLATE = Path(__file__).resolve().parents[3] / "packaging/aws/evidence-bucket.yaml"
ACCOUNT = "111122223333"
REGION = "eu-central-1"
ROLE = f"arn:aws:iam::{ACCOUNT}:role"
NO_VALUE = object()


def load() -> dict[str, Any]:
    """The template with its functions as {"Ref": …} and {"Fn::…": …}."""
    yaml: Any = importlib.import_module("yaml")

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        pass

    def function(loader: Any, suffix: str, node: Any) -> Any:
        if isinstance(node, yaml.ScalarNode):
            value: Any = loader.construct_scalar(node)
        elif isinstance(node, yaml.SequenceNode):
            value = loader.construct_sequence(node, deep=True)
        else:
            value = loader.construct_mapping(node, deep=True)
        if suffix == "GetAtt":
            value = value.split(".", 1)
        return {suffix if suffix in {"Ref", "Condition"} else f"Fn::{suffix}": value}

    Loader.add_multi_constructor("!", function)
    found: dict[str, Any] = yaml.load(TEMPLATE.read_text("utf-8"), Loader)
    return found


class Resolver:
    """What CloudFormation makes of the template: parameters, conditions, references to what it would create."""

    def __init__(self, template: dict[str, Any], parameters: dict[str, str]) -> None:
        self.template = template
        declared = template["Parameters"]
        assert set(parameters) <= set(declared)
        self.values: dict[str, Any] = {}
        for name, about in declared.items():
            value = str(parameters.get(name, about.get("Default", NO_VALUE)))
            if "AllowedPattern" in about:
                assert re.search(about["AllowedPattern"], value), (name, value)
            assert value in about.get("AllowedValues", [value])
            self.values[name] = value.split(",") if about["Type"] == "CommaDelimitedList" else value
        self.values |= {
            "AWS::Partition": "aws", "AWS::Region": REGION, "AWS::AccountId": ACCOUNT,
            "AWS::URLSuffix": "amazonaws.com", "AWS::NoValue": NO_VALUE,
        }  # fmt: skip

    def condition(self, name: str) -> bool:
        return bool(self(self.template["Conditions"][name]))

    def reference(self, name: str) -> Any:
        if name not in self.values:
            assert name in self.template["Resources"], name
            self.needs(name)
            return name
        return self.values[name]

    def attribute(self, name: str, attribute: str) -> str:
        self.needs(name)
        assert attribute == "Arn"
        kind = self.template["Resources"][name]["Type"]
        return {"AWS::IAM::Role": f"{ROLE}/{name}", "AWS::KMS::Key": f"arn:aws:kms:{REGION}:{ACCOUNT}:key/{name}"}[kind]

    def needs(self, name: str) -> None:
        condition = self.template["Resources"][name].get("Condition")
        assert condition is None or self.condition(condition), f"{name} is referred to, and is not made"

    def __call__(self, node: Any) -> Any:
        if isinstance(node, list):
            return [value for value in map(self, node) if value is not NO_VALUE]
        if not isinstance(node, dict):
            return node
        if len(node) == 1:
            ((name, value),) = node.items()
            if name == "Ref":
                return self.reference(value)
            if name.startswith("Fn::"):
                return getattr(self, f"_{name[4:].lower()}")(value)
        return {name: found for name, value in node.items() if (found := self(value)) is not NO_VALUE}

    def _getatt(self, value: list[str]) -> str:
        return self.attribute(*value)

    def _sub(self, text: str) -> str:
        def replace(match: re.Match[str]) -> str:
            name, _, attribute = match[1].partition(".")
            return self.attribute(name, attribute) if attribute else str(self.reference(name))

        return re.sub(r"\$\{([^}]+)\}", replace, text)

    def _if(self, value: list[Any]) -> Any:
        return self(value[1] if self.condition(value[0]) else value[2])

    def _equals(self, value: list[Any]) -> bool:
        return bool(self(value[0]) == self(value[1]))

    def _not(self, value: list[Any]) -> bool:
        return not self(value[0])

    def _join(self, value: list[Any]) -> str:
        return str(value[0]).join(self(value[1]))


PLAIN = {
    "BucketName": "evidence",
    "ResponderPrincipalArns": f"{ROLE}/ir-a,{ROLE}/ir-b",
    "AnalystPrincipalArns": f"{ROLE}/lab",
    "BreakGlassPrincipalArns": f"{ROLE}/chief",
}
CHOICES = [
    pytest.param(PLAIN, id="defaults"),
    pytest.param(
        PLAIN
        | {
            "Prefix": "a/b", "RetentionMode": "COMPLIANCE", "RetentionDays": "365", "CreateHostRole": "yes",
            "AdministratorArn": f"{ROLE}/deployer", "SourceVpceIds": "vpce-0123456789abcdef0,vpce-0123456789abcdef1",
            "BreakGlassMfa": "false",
        },
        id="everything",
    ),
    pytest.param(PLAIN | {"CreateSealingKey": "no", "CreateSigningKey": "no"}, id="no keys"),
]  # fmt: skip


@pytest.fixture(scope="module")
def template() -> dict[str, Any]:
    return load()


def _document(template: dict[str, Any], resolver: Resolver, name: str, word: str = "PolicyDocument") -> Any:
    return resolver(template["Resources"][name]["Properties"][word])


@pytest.mark.parametrize("parameters", CHOICES)
def test_the_bucket_s_policy_is_what_the_command_prints(
    template: dict[str, Any], parameters: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    resolver = Resolver(template, parameters)
    command = resolver(template["Outputs"]["Policy"]["Value"])
    assert main(command.split()[1:]) == 0, "an output is the very command"
    assert json.loads(capsys.readouterr().out) == _document(template, resolver, "EvidenceBucketPolicy")


@pytest.mark.parametrize("parameters", CHOICES)
def test_the_roles_policies_are_those_that_are_printed(template: dict[str, Any], parameters: dict[str, str]) -> None:
    resolver = Resolver(template, parameters)
    bucket, prefix = str(resolver.values["BucketName"]), str(resolver.values["Prefix"])
    key = resolver.attribute("EncryptionKey", "Arn")
    sealing = resolver.attribute("SealingKey", "Arn") if resolver.condition("HasSealingKey") else ""
    signing = resolver.attribute("SigningKey", "Arn") if resolver.condition("HasSigningKey") else ""
    expected = {
        "UploaderRolePolicy": policies.uploader_policy(bucket, prefix, key),
        "ResponderRolePolicy": policies.responder_policy(bucket, prefix, [f"{ROLE}/UploaderRole"], key, signing),
        "AnalystRolePolicy": policies.analyst_policy(bucket, prefix, key, sealing),
        "BreakGlassRolePolicy": policies.break_glass_policy(bucket),
    }
    if resolver.condition("HasHostRole"):
        expected["HostRolePolicy"] = policies.host_policy(bucket, prefix, key)
    for name, document in expected.items():
        assert _document(template, resolver, name) == document, name


@pytest.mark.parametrize("parameters", CHOICES)
def test_who_may_assume_the_roles_is_what_the_functions_say(
    template: dict[str, Any], parameters: dict[str, str]
) -> None:
    resolver = Resolver(template, parameters)
    expected = {
        "UploaderRole": policies.role_trust([f"{ROLE}/ResponderRole"]),
        "ResponderRole": policies.role_trust([f"{ROLE}/ir-a", f"{ROLE}/ir-b"]),
        "AnalystRole": policies.role_trust([f"{ROLE}/lab"]),
        "BreakGlassRole": policies.role_trust([f"{ROLE}/chief"], mfa=resolver.condition("AsksForMfa")),
    }
    if resolver.condition("HasHostRole"):
        expected["HostRole"] = policies.instance_trust()
    for name, document in expected.items():
        assert _document(template, resolver, name, "AssumeRolePolicyDocument") == document, name


@pytest.mark.parametrize("parameters", CHOICES)
def test_every_part_that_is_made_refers_only_to_what_is_made(
    template: dict[str, Any], parameters: dict[str, str]
) -> None:
    resolver = Resolver(template, parameters)
    for name, about in {**template["Resources"], **template["Outputs"]}.items():
        if "Condition" not in about or resolver.condition(about["Condition"]):
            assert resolver({word: value for word, value in about.items() if word != "Condition"}), name


def test_no_policy_of_the_account_can_give_away_the_sealing_key(template: dict[str, Any]) -> None:
    resolver = Resolver(template, PLAIN)
    statements = _document(template, resolver, "SealingKey", "KeyPolicy")["Statement"]
    users = {one["Principal"]["AWS"] for one in statements if "kms:DeriveSharedSecret" in one["Action"]}
    assert users == {f"{ROLE}/AnalystRole"}
    assert not any("*" in action for one in statements for action in one["Action"])


def test_the_evidence_bucket_is_as_the_check_wants_it(template: dict[str, Any]) -> None:
    resolver = Resolver(template, PLAIN)
    made = resolver(template["Resources"]["EvidenceBucket"])
    bucket = made["Properties"]
    assert (made["DeletionPolicy"], made["UpdateReplacePolicy"]) == ("Retain", "Retain")
    assert bucket["VersioningConfiguration"] == {"Status": "Enabled"}
    assert bucket["ObjectLockConfiguration"]["Rule"]["DefaultRetention"] == {"Mode": "GOVERNANCE", "Days": "30"}
    assert set(bucket["PublicAccessBlockConfiguration"].values()) == {True}
    assert bucket["OwnershipControls"]["Rules"] == [{"ObjectOwnership": "BucketOwnerEnforced"}]
    (rule,) = bucket["LifecycleConfiguration"]["Rules"]
    assert set(rule) == {"Id", "Status", "AbortIncompleteMultipartUpload"}
    (encryption,) = bucket["BucketEncryption"]["ServerSideEncryptionConfiguration"]
    assert encryption["BucketKeyEnabled"] is True
    assert encryption["ServerSideEncryptionByDefault"]["SSEAlgorithm"] == "aws:kms"


@pytest.mark.parametrize("name", ["Destination", "Check", "Recipient", "CountersignKey"])
def test_an_output_names_verbs_and_options_that_there_are(
    template: dict[str, Any], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = Resolver(template, PLAIN)(template["Outputs"][name]["Value"]).split()
    verbs = {"Destination": ["acquire"], "CountersignKey": ["finish"]}.get(name) or words[1:3]
    main([*verbs, "--help"])
    text = capsys.readouterr().out
    assert [word for word in words if word.startswith("--") and f"{word} " not in text] == []


def test_it_has_no_aliases_which_cloudformation_refuses() -> None:
    yaml: Any = importlib.import_module("yaml")
    events = yaml.parse(TEMPLATE.read_text("utf-8"))
    assert [event for event in events if isinstance(event, yaml.AliasEvent)] == []


def test_cfn_lint_finds_nothing_without_a_network() -> None:
    """It brings the specifications of all resources with it; `unshare` takes the network away where there is root."""
    lint = str(Path(sys.executable).with_name("cfn-lint"))
    command = [lint, "--non-zero-exit-code", "informational", "--", str(TEMPLATE)]
    if shutil.which("unshare") and subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode == 0:
        command = ["unshare", "--net", *command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
