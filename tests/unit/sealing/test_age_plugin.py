"""The plugin's half of identity-v1: what it says to what age says, and that nothing age says can harm it."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import IdentityError
from agent.sealing import KmsIdentity, Stanza, ageplugin, generate
from agent.sealing.ageplugin import MAX_COMMANDS, MAX_FILES, MAX_INPUT, MAX_LINE, ProtocolError, serve
from agent.sealing.kms import KeyArn, Kms
from agent.sealing.stanzas import parse_stanza, render_stanza
from tests.support.kms import arn
from tests.support.tagkeys import exchange, golden_key, tag_identity

KEY = golden_key("tag")
RECIPIENT = tag_identity(KEY).recipient
IDENTITY = KmsIdentity(RECIPIENT, [KeyArn(arn(1))])
FILE_KEY = b"YELLOW SUBMARINE"
OK = b"-> ok\n\n"


@pytest.fixture(autouse=True)
def _software_kms(monkeypatch: pytest.MonkeyPatch) -> None:
    """The state machine is what is tested here; test_age_tag.py has a KMS."""
    monkeypatch.setattr(Kms, "derive_shared_secret", lambda _kms, _arn, point: exchange(KEY)(point))


def command(kind: str, *arguments: str, body: bytes = b"") -> bytes:
    return render_stanza(Stanza(kind, arguments, body))


def sent(file: int, stanza: Stanza) -> bytes:
    return command("recipient-stanza", str(file), stanza.type, *stanza.args, body=stanza.body)


ADD = command("add-identity", IDENTITY.text)
DONE = command("done")


def talk(asked: bytes, answers: bytes = OK * 100) -> list[Stanza]:
    """What the plugin says."""
    said = io.BytesIO()
    serve(io.BytesIO(asked + answers), said)
    lines = said.getvalue().split(b"\n")
    lines.pop()
    found = []
    while lines:
        found.append(parse_stanza(lambda: lines.pop(0)))
    return found


END = Stanza("done", (), b"")


def test_a_file_key_is_given() -> None:
    mine = RECIPIENT.wrap(FILE_KEY)
    asked = ADD + sent(0, generate().recipient.wrap(b"x" * 16)) + sent(0, mine) + DONE
    assert talk(asked) == [Stanza("file-key", ("0",), FILE_KEY), END]


def test_several_files_and_what_is_not_ours() -> None:
    asked = (
        sent(0, RECIPIENT.wrap(b"0" * 16))
        + ADD
        + sent(1, tag_identity().recipient.wrap(b"1" * 16))
        + sent(1, Stanza("unknown", ("\x21",), b""))
        + command("grease-7", "a", "b", body=b"\xff" * 70)
        + sent(7, RECIPIENT.wrap(b"7" * 16))
        + DONE
    )
    assert talk(asked) == [Stanza("file-key", ("0",), b"0" * 16), Stanza("file-key", ("7",), b"7" * 16), END]


@pytest.mark.parametrize("answer", ["ok", "fail", "unsupported"])
def test_whatever_age_answers_the_end_is_reached(answer: str) -> None:
    assert talk(ADD + sent(0, RECIPIENT.wrap(FILE_KEY)) + DONE, command(answer))[-1] == END


@pytest.mark.parametrize(
    "bad",
    [
        "AGE-PLUGIN-IMPOUNDKMS-1QQQQ",
        "AGE-PLUGIN-YUBIKEY-1Q9Z0VYQCQQQQ",
        generate().secret_text(),
        "x" * 5000,
    ],
)
def test_an_identity_that_cannot_be_used_is_an_error_before_anything_is_opened(bad: str) -> None:
    asked = ADD + command("add-identity", bad) + sent(0, RECIPIENT.wrap(FILE_KEY)) + DONE
    first, *rest = talk(asked)
    assert (first.type, first.args) == ("error", ("identity", "1"))
    assert rest == [END]
    assert bad[20:].encode() not in first.body


def test_a_malformed_stanza_of_ours_is_an_error_for_its_file_alone() -> None:
    mine = RECIPIENT.wrap(FILE_KEY)
    bad = Stanza(mine.type, mine.args, b"")
    first, *rest = talk(ADD + sent(0, Stanza("x", (), b"")) + sent(0, bad) + sent(0, mine) + sent(1, mine) + DONE)
    assert (first.type, first.args) == ("error", ("stanza", "0", "1"))
    assert rest == [Stanza("file-key", ("1",), FILE_KEY), END]


def test_what_kms_refuses_is_an_error_of_the_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Kms, key: KeyArn, point: bytes) -> bytes:
        raise IdentityError("not allowed, é")

    monkeypatch.setattr(Kms, "derive_shared_secret", refuse)
    asked = ADD + sent(0, RECIPIENT.wrap(FILE_KEY)) + DONE
    assert talk(asked) == [Stanza("error", ("identity", "0"), "not allowed, é".encode()), END]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (b"", "ended before"),
        (ADD, "ended before"),
        (ADD + b"-> done", "ended before"),
        (ADD + DONE[:-1], "ended before"),
        (b"hello\n", "malformed stanza"),
        (b"->\n\n", "malformed stanza"),
        (b"-> done \n\n", "malformed stanza"),
        (command("done", "now"), "malformed done"),
        (command("add-identity"), "malformed add-identity"),
        (command("add-identity", "a", "b"), "malformed add-identity"),
        (command("recipient-stanza", "0"), "malformed recipient-stanza"),
        (command("recipient-stanza", "-1", "x"), "file number"),
        (command("recipient-stanza", "00", "x"), "file number"),
        (command("recipient-stanza", "9999999", "x"), "file number"),
        (command("recipient-stanza", "x", "x"), "file number"),
        (command("recipient-stanza", "1", "x") + command("recipient-stanza", "0", "x"), "after those of the next"),
        (b"-> " + b"x" * MAX_LINE + b"\n\n", "too much"),
        (b"-> x\n" + (b"A" * 64 + b"\n") * (MAX_INPUT // 65 + 1), "too much"),
        (b"-> grease\n\n" * (MAX_COMMANDS + 1), "commands"),
        (b"".join(command("recipient-stanza", str(file), "x") for file in range(MAX_FILES + 1)), "files"),
        (b"-> x\nA=\n", "base64"),
        (b"-> x\n" + b"A" * 65 + b"\n", "columns"),
    ],
)
def test_what_is_not_the_protocol_ends_it(asked: bytes, words: str) -> None:
    said = io.BytesIO()
    with pytest.raises(ProtocolError, match=words):
        serve(io.BytesIO(asked), said)
    assert said.getvalue() == b""


def test_no_answer_or_another_ends_it() -> None:
    for answers in (b"", b"-> hello\n\n", b"ok\n"):
        with pytest.raises(ProtocolError):
            talk(ADD + sent(0, RECIPIENT.wrap(FILE_KEY)) + DONE, answers)


def test_age_that_has_gone_ends_it() -> None:
    class Gone(io.BytesIO):
        def write(self, data: object) -> int:
            raise BrokenPipeError

    with pytest.raises(ProtocolError, match="gone"):
        serve(io.BytesIO(DONE), Gone())


PIECES = st.sampled_from(
    [
        ADD,
        DONE,
        OK,
        sent(0, RECIPIENT.wrap(FILE_KEY)),
        sent(1, RECIPIENT.wrap(FILE_KEY)),
        b"-> add-identity ",
        b"-> recipient-stanza 0 p256tag ",
        b"-> recipient-stanza ",
        b"\n",
        b" ",
        b"A" * 64,
        b"\xff",
    ]
)


def quietly(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except ProtocolError as error:
        return str(error)
    return ""


@given(st.lists(PIECES | st.binary(max_size=20), max_size=12).map(b"".join))
@settings(deadline=None, max_examples=500)
def test_any_input(asked: bytes) -> None:
    assert "\n" not in quietly(lambda: serve(io.BytesIO(asked), io.BytesIO()))


def test_the_state_machine_has_the_name_of_the_specification() -> None:
    assert ageplugin.STATE_MACHINE == "identity-v1"
