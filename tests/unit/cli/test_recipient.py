"""`impound recipient` and the plugin's own command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from agent.cli import main, plugin
from agent.sealing import KmsIdentity, generate, generate_post_quantum, parse_identity_file, parse_recipient
from tests.support.kms import REGION, KmsDouble, RefusedError, arn, environment, kms_double
from tests.support.runs import impound, keygen
from tests.support.tagkeys import tag_identity, tagpq_identity

HOUSE = Path(__file__).resolve().parents[3]


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> Iterator[KmsDouble]:
    with kms_double() as found:
        for name, value in environment(found.url).items():
            monkeypatch.setenv(name, value)
        yield found


def refused(code: int, result: tuple[int, dict[str, object], str], *words: str) -> None:
    assert result[0] == code, result
    assert len(result[2].splitlines()) == 1, result
    assert all(word in result[2] for word in words), result


def test_a_recipient_is_made_of_a_key_in_kms(double: KmsDouble, tmp_path: Path) -> None:
    key = double.add()
    path = tmp_path / "kms.key"
    code, result, error = impound("recipient", "from-kms", key, "--identity-file", path)
    assert code == 0, error
    assert "not checked" in error
    assert (result["keys"], result["checked"], result["identity_file"]) == ([key], False, str(path))
    assert path.stat().st_mode & 0o777 == 0o600
    (identity,) = parse_identity_file(path.read_text())
    assert isinstance(identity, KmsIdentity)
    assert identity.recipient == parse_recipient(str(result["recipient"]))
    assert identity.text == result["identity"]
    assert double.calls == [("GetPublicKey", key)]


def test_an_alias_becomes_the_key_that_it_means_now(double: KmsDouble) -> None:
    key = double.add()
    double.aliases["alias/evidence"] = key
    code, result, error = impound("recipient", "from-kms", "alias/evidence", "--region", REGION, "--check", "--json")
    assert (code, error) == (0, "")
    assert (result["keys"], result["checked"]) == ([key], True)
    (identity,) = parse_identity_file(str(result["identity"]))
    assert isinstance(identity, KmsIdentity)
    assert identity.arns[0].text == key
    assert [action for action, _ in double.calls] == ["GetPublicKey", "DeriveSharedSecret"]


def test_the_check_fails_where_nobody_could_open(double: KmsDouble, tmp_path: Path) -> None:
    key, path = double.add(), tmp_path / "kms.key"
    made = ("recipient", "from-kms", key, "--check", "--identity-file", path)
    double.refuse["DeriveSharedSecret"] = RefusedError("AccessDeniedException", "no")
    refused(4, impound(*made), "kms:DeriveSharedSecret", key)
    double.refuse.clear()
    double.change["SharedSecret"] = "A" * 43 + "="
    refused(4, impound(*made), "does not open what is sealed to")
    assert not path.exists()


def test_two_keys_make_a_post_quantum_recipient(double: KmsDouble, tmp_path: Path) -> None:
    curve, pq = double.add(), double.add_ml_kem()
    key, public = tmp_path / "pq.key", tmp_path / "pq.pub"
    made = ("recipient", "from-kms", curve, "--ml-kem", pq, "--identity-file", key)
    refused(2, impound(*made), "--recipients-file")
    code, result, error = impound(*made, "--recipients-file", public, "--check")
    assert code == 0, error
    assert (result["keys"], result["recipients_file"]) == ([curve, pq], str(public))
    (identity,) = parse_identity_file(key.read_text())
    assert identity.recipient == parse_recipient(public.read_text())
    assert identity.recipient.post_quantum


def test_nothing_is_overwritten_and_nothing_asked_before_that_is_known(double: KmsDouble, tmp_path: Path) -> None:
    path = tmp_path / "kms.key"
    path.write_text("mine")
    refused(2, impound("recipient", "from-kms", double.add(), "--identity-file", path), "not overwritten")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    refused(2, impound("recipient", "from-kms", double.add(), "--identity-file", tmp_path / "link"), "not overwritten")
    assert path.read_text() == "mine"
    assert double.calls == []


def test_a_wrong_key_or_name_is_refused(double: KmsDouble) -> None:
    signing, larger, pq = double.add(usage="SIGN_VERIFY"), double.add(ec.SECP384R1()), double.add_ml_kem()
    refused(2, impound("recipient", "from-kms", signing), "SIGN_VERIFY", "KEY_AGREEMENT")
    refused(2, impound("recipient", "from-kms", larger), "ECC_NIST_P384")
    refused(2, impound("recipient", "from-kms", pq), "ML_KEM_768")
    refused(3, impound("recipient", "from-kms", arn(99)), "does not have the key", arn(99))
    refused(2, impound("recipient", "from-kms", "alias/x"), "--region")
    refused(2, impound("recipient", "from-kms", arn(1), "--region", "us-east-1"), "eu-central-1", "us-east-1")
    refused(2, impound("recipient", "from-kms", "alias/x", "--region", "../x"), "region")
    for name in ("arn:aws:s3:::bucket", "a b", "", "x" * 300, "arn:aws:kms:eu-central-1:1:key/x"):
        refused(2, impound("recipient", "from-kms", name, "--region", REGION), "ARN")
    double.refuse["GetPublicKey"] = RefusedError("AccessDeniedException", "\x1b[31mno")
    result = impound("recipient", "from-kms", signing)
    refused(3, result, "kms:GetPublicKey")
    assert "\x1b" not in result[2]


def shown(capsys: pytest.CaptureFixture[str], key: str | Path) -> list[dict[str, object]]:
    assert main(["recipient", "show", str(key), "--json"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert json.loads(last) == {"verdict": "done", "keys": len(lines), "exit": 0}
    return [json.loads(line) for line in lines]


def test_show_says_what_kind_a_recipient_is(capsys: pytest.CaptureFixture[str]) -> None:
    for recipient, kind in (
        (generate().recipient, "X25519"),
        (tag_identity().recipient, "P-256 tag"),
        (generate_post_quantum().recipient, "ML-KEM-768 and X25519"),
        (tagpq_identity().recipient, "ML-KEM-768 and P-256 tag"),
    ):
        (line,) = shown(capsys, recipient.text)
        assert line == {"kind": kind, "post_quantum": recipient.post_quantum, "recipient": recipient.text}


def test_show_says_what_an_identity_file_holds_and_no_private_part(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, double: KmsDouble
) -> None:
    path, recipient = keygen(tmp_path)
    assert impound("recipient", "from-kms", double.add(), "--identity-file", tmp_path / "kms.key")[0] == 0
    secret = generate_post_quantum()
    path.write_text(path.read_text() + secret.secret_text() + "\n" + (tmp_path / "kms.key").read_text())
    capsys.readouterr()
    calls = len(double.calls)
    assert main(["recipient", "show", str(path)]) == 0
    captured = capsys.readouterr()
    assert "SECRET" not in captured.out + captured.err
    assert [line["private"] for line in shown(capsys, path)] == ["in the file", "in the file", "in AWS KMS"]
    assert [line["recipient"] for line in shown(capsys, path)][:2] == [recipient, secret.recipient.text]
    assert len(double.calls) == calls  # showing asks nobody
    public = tmp_path / "case.pub"
    public.write_text(f"# case\n{recipient}\n{generate().recipient.text}\n")
    assert len(shown(capsys, public)) == 2


def test_show_refuses_a_private_key_and_does_not_repeat_it(tmp_path: Path) -> None:
    secret = generate().secret_text()
    result = impound("recipient", "show", secret)
    refused(2, result, "private key")
    assert secret not in result[2]
    refused(2, impound("recipient", "show", tmp_path / "none"), "recipient")
    (tmp_path / "empty").write_text("")
    refused(2, impound("recipient", "show", tmp_path / "empty"), "no identity")
    (tmp_path / "directory").mkdir()
    refused(2, impound("recipient", "show", tmp_path / "directory"), "cannot be read")


def test_a_post_quantum_recipient_is_shown_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert impound("keygen", "--post-quantum", "-o", tmp_path / "pq.key")[0] == 0
    capsys.readouterr()
    assert main(["keygen", "-y", str(tmp_path / "pq.key")]) == 0
    first, last = capsys.readouterr().out.splitlines()
    assert first == (tmp_path / "pq.key.pub").read_text().strip()
    assert json.loads(last) == {"verdict": "done", "exit": 0}


def test_a_key_that_countersigns_is_known_by_its_signer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "ir.sign"
    code, made, _ = impound("keygen", "--signing", "-o", path)
    assert code == 0
    capsys.readouterr()
    (line,) = shown(capsys, path)
    assert line == {"kind": "Ed25519, countersigns", "private": "in the file", "signer": made["signer"]}
    assert impound("keygen", "-y", path) == (0, {"verdict": "done", "signer": made["signer"], "exit": 0}, "")


def test_another_private_key_in_pem_is_refused_and_not_repeated(tmp_path: Path) -> None:
    pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    broken = b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"
    for number, (content, word) in enumerate(((pem, "Ed25519"), (broken, "signing key"))):
        path = tmp_path / str(number)
        path.write_bytes(content)
        for verb in (("recipient", "show"), ("keygen", "-y")):
            result = impound(*verb, path)
            refused(2, result, word)
            assert content.split()[3].decode() not in result[2]
    path.write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n")
    refused(2, impound("keygen", "-y", path), "SSH")


def run_plugin(*arguments: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "agent.cli.plugin", *arguments]
    environment = os.environ | {"PYTHONPATH": str(HOUSE)}
    return subprocess.run(command, input=data, capture_output=True, cwd="/", env=environment, timeout=60)


def test_the_plugin_refuses_what_it_does_not_do() -> None:
    for arguments in ([], ["--age-plugin=identity-v1", "x"], ["x"]):
        done = run_plugin(*arguments)
        assert (done.returncode, done.stdout) == (2, b"")
        assert b"age -d -i" in done.stderr
    for machine in ("recipient-v1", "identity-v2", ""):
        done = run_plugin(f"--age-plugin={machine}")
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, b"", 1)
    assert run_plugin("--help").returncode == 0


def test_the_plugin_ends_when_age_does() -> None:
    done = run_plugin("--age-plugin=identity-v1", data=b"-> add-iden")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == b"impound: age ended before it had said everything\n"
    assert run_plugin("--age-plugin=identity-v1", data=b"-> done\n\n").stdout == b"-> done\n\n"


def test_the_plugin_imports_no_aws_before_it_is_needed() -> None:
    code = (
        "import sys; from agent.cli import plugin; plugin.main(['--age-plugin=identity-v1']);"
        "sys.stderr.write(repr([name for name in sys.modules if 'boto' in name]))"
    )
    done = subprocess.run([sys.executable, "-c", code], input=b"-> done\n\n", cwd=HOUSE, capture_output=True)
    assert done.stderr == b"[]"


def test_the_script_is_named_as_age_looks_for_it() -> None:
    text = (HOUSE / "pyproject.toml").read_text("utf-8")
    assert '\nage-plugin-impoundkms = "agent.cli.plugin:main"\n' in text
    assert callable(plugin.main)
