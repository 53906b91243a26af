"""kubectl: short calls with deadlines, and the argument lists of those that become a channel.

It is the responder's own program, with the responder's own configuration; nothing of the cluster is trusted: what comes
back is JSON that is decoded strictly, as far as it is needed, and bounded.
"""

from __future__ import annotations

import io
import re
from typing import TypeVar

import msgspec

from agent.errors import AuthorityError, UnreachableError, UsageError

CALL_S = 60.0
MAX_ANSWER = 16 << 20
NAME = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?")
"""Of pods, nodes, containers, namespaces (RFC 1123)."""

T = TypeVar("T")


class Kubectl:
    """One cluster, as kubectl finds it."""

    def __init__(self, namespace: str = "", context: str = "", kubeconfig: str = "") -> None:
        self._options = [
            *(["--kubeconfig", kubeconfig] if kubeconfig else []),
            *(["--context", context] if context else []),
            *(["--namespace", namespace] if namespace else []),
        ]

    def argv(self, *arguments: str) -> list[str]:
        """A call as an argument list."""
        verb, *rest = arguments
        return ["kubectl", verb, *self._options, *rest]

    def run(self, *arguments: str, given: bytes = b"", timeout_s: float = CALL_S) -> bytes:
        """What a call prints. Raises `UsageError` where there is no kubectl, and `StoreError` for what goes wrong."""
        try:
            import sh
        except ImportError:  # the one file for hosts leaves it out
            raise UsageError(
                "deploying through kubectl needs impound as a Python package (pip install impound): this one is made "
                "for hosts"
            ) from None
        _, *rest = self.argv(*arguments)
        try:
            kubectl = sh.Command("kubectl")
        except sh.CommandNotFound:
            raise UsageError("there is no kubectl on the PATH: it is what reaches the cluster") from None
        out, error = io.BytesIO(), io.BytesIO()
        try:
            # Bytes as they come: no terminal in between.
            kubectl(*rest, _in=given or None, _out=out, _err=error, _timeout=timeout_s, _tty_in=False, _tty_out=False)
        except sh.TimeoutException:
            raise UnreachableError(f"`kubectl {arguments[0]}` gave no answer in {timeout_s:.0f} s") from None
        except sh.ErrorReturnCode:
            raise _explained(arguments[0], error.getvalue()) from None
        answer = out.getvalue()
        if len(answer) > MAX_ANSWER:
            raise UnreachableError(f"`kubectl {arguments[0]}` answered more than {MAX_ANSWER >> 20} MiB")
        return answer

    def get(self, kind: type[T], *arguments: str) -> T:
        """What `kubectl get … -o json` says, as far as `kind` asks. Raises as `run` does."""
        answer = self.run("get", *arguments, "--output", "json")
        try:
            return msgspec.json.decode(answer, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise UnreachableError(f"`kubectl get` answered what is no {kind.__name__.lower()}: {error}") from error


def _explained(verb: str, stderr: bytes) -> AuthorityError | UnreachableError | UsageError:
    """What kubectl says of itself, as what it means here."""
    text = " ".join(stderr.decode("utf-8", "replace").split())[:500]
    if "(NotFound)" in text:
        return UsageError(f"the cluster has no such thing: {text!r}")
    if "(Forbidden)" in text or "Unauthorized" in text:
        return AuthorityError(f"the cluster does not allow `kubectl {verb}`: {text!r}")
    return UnreachableError(f"`kubectl {verb}` failed: {text!r}")


def check_name(text: str, what: str) -> str:
    """Raises `UsageError` for what is no name in Kubernetes: it would be taken for an option, or for a path."""
    if not NAME.fullmatch(text):
        raise UsageError(f"{text[:80]!r} is no name of {what} in Kubernetes")
    return text
