"""`impound recipient`: recipients whose private half is in AWS KMS, and what kind of key something is."""

from __future__ import annotations

import os
from datetime import datetime
from typing import TYPE_CHECKING

import click

from agent.cli import options
from agent.cli.keyfiles import PRIVATE, PUBLIC, check_new, signer_of, write_new
from agent.cli.output import emit, json_line, say
from agent.errors import DamagedError, IdentityError, UsageError

if TYPE_CHECKING:
    from agent.sealing import KeyIdentity, KmsIdentity, Recipient
    from agent.sealing.kms import PublicHalf


@click.group("recipient")
def command() -> None:
    """Public keys to seal to: from AWS KMS, or what kind one is.

    \b
    Example:
      impound recipient from-kms arn:aws:kms:eu-central-1:111122223333:key/1234abcd-... --identity-file kms.key
      impound recipient from-kms alias/evidence --region eu-central-1 --check
      impound recipient from-kms ARN --ml-kem ARN --identity-file pq.key --recipients-file pq.pub
      impound recipient show case.key
    """


@command.command("from-kms")
@click.argument("arn", metavar="ARN")
@click.option("--ml-kem", metavar="ARN", help="An ML_KEM_768 key beside it: a post-quantum recipient, age1tagpq1….")
@click.option("--region", default="", metavar="NAME", help="Where the key is, when it is given by id or alias.")
@click.option("--identity-file", metavar="FILE", help="Write the identity there, mode 0600; never overwritten.")
@click.option("--recipients-file", metavar="FILE", help="Write the recipient there; never overwritten.")
@click.option("--check", is_flag=True, help="Prove that these credentials can open what is sealed to it.")
@options.json_option
def from_kms(
    arn: str,
    ml_kem: str | None,
    region: str,
    identity_file: str | None,
    recipients_file: str | None,
    check: bool,
    as_json: bool,
) -> int:
    """Make a recipient of a key in AWS KMS (ECC_NIST_P256 for KEY_AGREEMENT), whose private half never leaves it.

    Prints the recipient for --recipient, and the identity for --identity: it holds no secret, only where the key is.
    The machine that is examined never calls KMS. Opening takes kms:DeriveSharedSecret, once for each object, and
    CloudTrail records each.

    \b
    Example:
      aws kms create-key --key-spec ECC_NIST_P256 --key-usage KEY_AGREEMENT
      impound recipient from-kms arn:aws:kms:eu-central-1:111122223333:key/1234abcd-... --identity-file kms.key
      impound open ./evidence --identity kms.key --output ./opened
    """
    from agent.sealing import KmsIdentity, P256TagPQRecipient, P256TagRecipient, render_identity_file

    if ml_kem is not None and (identity_file is None or recipients_file is None):
        raise UsageError("a post-quantum recipient is too long for a line: give --identity-file and --recipients-file")
    check_new(identity_file, recipients_file)
    halves = [_ask(arn, region, "ECC_NIST_P256")]
    classic = P256TagRecipient(halves[0].key)
    recipient: P256TagRecipient | P256TagPQRecipient = classic
    if ml_kem is not None:
        halves.append(_ask(ml_kem, region, "ML_KEM_768"))
        recipient = P256TagPQRecipient(halves[1].key + classic.uncompressed)
    identity = KmsIdentity(recipient, [half.arn for half in halves])
    if check:
        _prove(identity)
    if identity_file is not None:
        write_new(identity_file, render_identity_file(identity, datetime.now().astimezone()), PRIVATE)
    if recipients_file is not None:
        write_new(recipients_file, f"{recipient.text}\n", PUBLIC)
    result: dict[str, object] = {
        "verdict": "done",
        "keys": [half.arn.text for half in halves],
        "checked": check,
        "exit": 0,
    }
    if identity_file is not None:
        result["identity_file"] = os.path.abspath(identity_file)
    if recipients_file is not None:
        result["recipients_file"] = os.path.abspath(recipients_file)
    if not recipient.post_quantum:
        result |= {"recipient": recipient.text, "identity": identity.text}
    if not as_json:
        for half in halves:
            say(f"key          {half.arn.text} ({half.spec}, {half.usage})")
        if not check:
            say("not checked  whether these credentials can open what is sealed to it: --check does")
    emit(result)
    return 0


@command.command("show")
@click.argument("key", metavar="FILE|KEY")
@options.json_option
def show(key: str, as_json: bool) -> int:
    """What kind of key it is, and its recipient: of an identity file, a recipients file, or a recipient itself.

    Of a key that countersigns (`keygen --signing`), its signer, for `verify --signer`. Never shows a private part. One
    JSON line for each key on standard output, then the result.

    \b
    Example:
      impound recipient show case.key
      impound recipient show age1tag1qt8lw0ual6avlwmwatk888yqnmdamm7xfd0wak53ut6elz5c4swx2yqdj4e
    """
    described: list[dict[str, object]]
    if os.path.exists(key) and (signer := signer_of(options.read_key_file(key, "key file"))):
        described = [{"kind": "Ed25519, countersigns", "private": "in the file", "signer": signer}]
    else:
        described = [_describe(recipient, identity) for recipient, identity in _keys(key)]
    if not as_json:
        for one in described:
            say(f"{one['kind']}{', ' + str(one['private']) if 'private' in one else ''}")
    for one in described:
        _line(one)
    emit({"verdict": "done", "keys": len(described), "exit": 0})
    return 0


def _ask(key: str, region: str, spec: str) -> PublicHalf:
    """The public half of a key that a person names. Raises `UsageError` for another kind than `spec`."""
    from agent.sealing.kms import KeyArn, Kms, check_key_id

    check_key_id(key)
    try:
        own = KeyArn(key).region
    except ValueError:
        own = ""
    if own and region and own != region:
        raise UsageError(f"the key is in {own}, and --region says {region}")
    if not own and not region:
        raise UsageError("a key that is named by id or alias needs --region: its ARN names the region by itself")
    half = Kms(own or region).public_half(key)
    if half.spec != spec:
        raise UsageError(f"the key {half.arn.text} is {half.spec}, and {spec} is wanted here")
    return half


def _prove(identity: KmsIdentity) -> None:
    """Seal a file key to the recipient and open it through KMS. Raises `IdentityError`."""
    file_key = os.urandom(16)
    try:
        opened = identity.unwrap([identity.recipient.wrap(file_key)])
    except DamagedError:
        opened = None
    if opened != file_key:
        raise IdentityError("KMS does not open what is sealed to the public key that it gave")


def _keys(text: str) -> list[tuple[Recipient, KeyIdentity | None]]:
    """The recipients, each with the private half where there is one."""
    from agent.sealing import parse_identity_file, parse_recipient, parse_recipients_file

    if not os.path.exists(text):
        # Also what is a private key by mistake: it is refused and not shown.
        if not text.lower().startswith("age"):
            raise UsageError("that is neither a file that is there nor a recipient, which begins with age1")
        return [(parse_recipient(text), None)]
    content = options.read_key_file(text, "key file")
    lines = [line.strip() for line in content.removeprefix("\ufeff").splitlines()]
    first = next((line for line in lines if line and not line.startswith("#")), "")
    if first.startswith("age1"):
        return [(recipient, None) for recipient in parse_recipients_file(content)]
    return [(identity.recipient, identity) for identity in parse_identity_file(content)]


def _describe(recipient: Recipient, identity: KeyIdentity | None) -> dict[str, object]:
    from agent.sealing import KmsIdentity, P256TagPQRecipient, P256TagRecipient, PostQuantumRecipient, X25519Recipient

    names: dict[type, str] = {
        X25519Recipient: "X25519",
        P256TagRecipient: "P-256 tag",
        PostQuantumRecipient: "ML-KEM-768 and X25519",
        P256TagPQRecipient: "ML-KEM-768 and P-256 tag",
    }
    described: dict[str, object] = {"kind": names[type(recipient)], "post_quantum": recipient.post_quantum}
    if isinstance(identity, KmsIdentity):
        described |= {"private": "in AWS KMS", "keys": [arn.text for arn in identity.arns]}
    elif identity is not None:
        described["private"] = "in the file"
    return described | {"recipient": recipient.text}


def _line(described: dict[str, object]) -> None:
    """A line before the result, of any length: a post-quantum recipient alone is longer than a result may be."""
    click.echo(json_line(described))
