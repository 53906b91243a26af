"""Recipients: what a person may give, and what they are told when it is something else."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from agent.errors import UsageError
from agent.sealing import (
    X25519Recipient,
    bech32,
    check_recipients,
    distinct,
    generate,
    generate_post_quantum,
    keywrap,
    parse_recipient,
    parse_recipients_file,
    seal_bytes,
)

if TYPE_CHECKING:
    from agent.sealing.recipients import Recipient

# The example keys of C2SP age.md.
SPEC_RECIPIENT = "age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj"
SPEC_IDENTITY = "AGE-SECRET-KEY-1GFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPQ4EGAEX"

LOW_ORDER = [
    bytes(32),
    (1).to_bytes(32, "little"),
    (2**255 - 20).to_bytes(32, "little"),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
]


def refusal(text: str) -> str:
    with pytest.raises(UsageError) as caught:
        parse_recipient(text)
    message = str(caught.value)
    assert "\n" not in message
    assert "impound keygen" in message
    return message


def test_the_recipient_of_the_specification_is_read_and_written_back() -> None:
    recipient = parse_recipient(f"  {SPEC_RECIPIENT}\r\n")
    assert recipient.text == SPEC_RECIPIENT
    assert recipient == parse_recipient(SPEC_RECIPIENT)


def test_a_stanza_wraps_the_file_key_anew_each_time() -> None:
    identity = generate()
    first, second = identity.recipient.wrap(b"k" * 16), identity.recipient.wrap(b"k" * 16)
    assert first.type == "X25519"
    assert len(first.body) == keywrap.WRAPPED_SIZE
    assert first.args != second.args
    assert identity.unwrap([first]) == identity.unwrap([second]) == b"k" * 16


@pytest.mark.parametrize(
    "secret",
    [
        SPEC_IDENTITY,
        SPEC_IDENTITY.lower(),
        f"'{SPEC_IDENTITY}'",
        f"age1x {SPEC_IDENTITY}",
        "AGE-SECRET-KEY-PQ-1XX76JRALNLXDMEW0CRK45QMCCH4X06SE84UN3VPM33W6HWDX0H3SK3ZQFR",
        "AGE-PLUGIN-YUBIKEY-1Q9Z0VYQCQQQQ",
        "AGE_SECRET_KEY".replace("_", "") + "-1GFPYYSJZ",
        "-----BEGIN OPENSSH PRIVATE KEY----- b3BlbnNzaC1rZXk",
    ],
)
def test_a_private_key_is_refused_and_not_shown(secret: str) -> None:
    message = refusal(secret)
    assert "private key" in message
    for part in ("GFPYY", "gfpyy", "XX76J", "Q9Z0V", "b3Blb"):
        assert part not in message


def test_a_private_key_in_a_file_is_refused_and_not_shown() -> None:
    with pytest.raises(UsageError, match="line 2 of the recipients file") as caught:
        parse_recipients_file(f"{SPEC_RECIPIENT}\n{SPEC_IDENTITY}\n")
    assert "private key" in str(caught.value)
    assert "GFPYY" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("   ", "empty"),
        ("alice", "does not begin with age1"),
        ("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI", "cannot seal to SSH keys"),
        ("ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAB", "cannot seal to SSH keys"),
        ("ecdsa-sha2-nistp256 AAAA", "cannot seal to SSH keys"),
        ("sk-ssh-ed25519@openssh.com AAAA", "cannot seal to SSH keys"),
        (bech32.encode("age1tag", bytes(32)), "32 bytes where a compressed point has 33"),
        (bech32.encode("age1tag", bytes(33)), "not a point"),
        (bech32.encode("age1tagpq", bytes(1249)), "not a point"),
        (bech32.encode("age1tagpq", bytes(1248)), "1248 bytes where a post-quantum tag key has 1249"),
        (bech32.encode("age1pq", bytes(1216)), "low order"),
        (bech32.encode("age1pq", bytes(1215)), "1215 bytes where a post-quantum key has 1216"),
        (bech32.encode("age1pq", b"\xff" * 1216), "ML-KEM half"),
        (bech32.encode("age1yubikey", bytes(33)), "plugin"),
        (SPEC_RECIPIENT.upper(), "upper case"),
        (SPEC_RECIPIENT[:-1], "checksum"),
        (SPEC_RECIPIENT[:20] + "q" + SPEC_RECIPIENT[21:], "checksum"),
        ("age1" + SPEC_RECIPIENT[4:].upper(), "mixes"),
        ("age1", "too short"),
        (bech32.encode("age", bytes(31)), "31 bytes"),
        (bech32.encode("age", bytes(33)), "33 bytes"),
    ],
)
def test_what_cannot_be_sealed_to_says_why(text: str, reason: str) -> None:
    assert reason in refusal(text)


@pytest.mark.parametrize("point", LOW_ORDER)
def test_a_point_of_low_order_is_refused(point: bytes) -> None:
    assert "low order" in refusal(bech32.encode("age", point))


@pytest.mark.parametrize("high_bit", [True, False])
def test_another_spelling_of_a_point_is_refused_because_nobody_could_open_it(high_bit: bool) -> None:
    number = int.from_bytes(generate().recipient.point, "little") | 1 << 255 if high_bit else 2**255 - 19 + 9
    assert "not a key that any private key has" in refusal(bech32.encode("age", number.to_bytes(32, "little")))


def test_a_recipients_file_has_comments_blank_lines_and_each_recipient_once() -> None:
    others = [generate().recipient.text for _ in range(2)]
    text = f"\ufeff# case INC-42\r\n\r\n{others[0]}\r\n  {SPEC_RECIPIENT}  \n#{others[1]}\n{others[0]}\n\n{others[1]}"
    assert [recipient.text for recipient in parse_recipients_file(text)] == [others[0], SPEC_RECIPIENT, others[1]]


@pytest.mark.parametrize("text", ["", "\n\n", "# nobody\n"])
def test_a_recipients_file_without_recipients_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="names no recipient"):
        parse_recipients_file(text)


def test_a_broken_line_of_a_recipients_file_is_named() -> None:
    with pytest.raises(UsageError, match=r"line 3 of the recipients file .*checksum"):
        parse_recipients_file(f"# one\n{SPEC_RECIPIENT}\n{SPEC_RECIPIENT[:-1]}q\n")


def test_distinct_keeps_the_order() -> None:
    one, two = generate().recipient, generate().recipient
    recipients: list[Recipient] = [one, two, X25519Recipient(one.point)]
    assert distinct(recipients) == [one, two]


def test_post_quantum_and_classic_recipients_are_never_mixed() -> None:
    classic, quantum = generate().recipient, generate_post_quantum().recipient
    check_recipients([classic, generate().recipient])
    check_recipients([quantum, generate_post_quantum().recipient])
    check_recipients([])
    mixes: list[list[Recipient]] = [[classic, quantum], [quantum, classic, quantum]]
    for mix in mixes:
        with pytest.raises(UsageError, match=r"post-quantum recipients \(age1pq1\S{9}…\) cannot be mixed"):
            check_recipients(mix)
        with pytest.raises(UsageError, match="cannot be mixed"):
            parse_recipients_file("\n".join(one.text for one in mix))
        with pytest.raises(UsageError, match="cannot be mixed"):
            seal_bytes(b"evidence", mix)


def test_stock_age_seals_to_exactly_what_is_accepted_here() -> None:
    for text, accepted in [(SPEC_RECIPIENT, True), (SPEC_RECIPIENT.upper(), False), (SPEC_RECIPIENT[:-1], False)]:
        done = subprocess.run(["age", "-r", text], input=b"", capture_output=True)
        assert (done.returncode == 0) is accepted
