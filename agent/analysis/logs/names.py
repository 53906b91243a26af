"""Which member of an archive is a log of which container, and where it stands among the rotated ones.

Sources: moby `daemon/logger/loggerutils/logfile.go` (`.1` is the youngest of the old, then `.gz`), kubernetes
`pkg/kubelet/logs/container_log_manager.go` (`0.log.20260102-030405.gz`), containers/podman and conmon (`ctr.log`),
nerdctl `pkg/logging/json_logger.go` (`<data root>/<hash of the address>/containers/<namespace>/<id>`, then `.1`).
"""

from __future__ import annotations

import enum
import re

import msgspec

_ROTATION = rb"(?:\.(?P<number>\d{1,6}))?(?P<gz>\.gz)?"
_DOCKER = re.compile(
    rb"(?P<above>.*)/containers/(?P<id>[0-9a-f]{64})/"
    rb"(?:(?P<json>(?P=id)-json)|(?P<local>local-logs/container|container-cached))\.log" + _ROTATION,
    re.DOTALL,
)
_NERDCTL = re.compile(
    rb"(?P<above>.*/[0-9a-f]{8}/containers/[^/]{1,255})/(?P<id>[0-9a-f]{64})/(?P<json>(?P=id)-json)\.log" + _ROTATION,
    re.DOTALL,
)
_CONMON = re.compile(
    rb"(?P<above>.*)/[a-z]{1,20}-containers/(?P<id>[0-9a-f]{64})/userdata/ctr\.log" + _ROTATION, re.DOTALL
)
_POD = re.compile(
    rb"(?P<above>.*/pods/)(?P<namespace>[a-z0-9.-]{1,63})_(?P<pod>[a-z0-9.-]{1,253})_(?P<uid>[0-9a-f-]{1,64})/"
    rb"(?P<container>[^/]{1,255})/(?P<restart>\d{1,9})\.log(?:\.(?P<when>\d{8}-\d{6}))?(?P<gz>\.gz)?",
    re.DOTALL,
)
ROOT = b"[root]"


class Format(enum.StrEnum):
    """How a log is written."""

    JSON_FILE = "json-file"
    LOCAL = "local"
    CRI = "cri"


class Form(enum.StrEnum):
    """Whose way of naming logs it is."""

    DOCKER = "docker"
    NERDCTL = "nerdctl"
    CONMON = "conmon"
    POD = "pod"


class LogFile(msgspec.Struct, frozen=True):
    """One file of what is called like a container's log. Whether it is one, its place tells (`belonging`)."""

    format: Format
    form: Form
    above: bytes
    """The directory that it claims to be kept in: of `docker` and `conmon` the data root."""
    key: bytes
    """The same for all files of one container, and of no other."""
    container: str
    """64 digits, or `namespace/pod/container`."""
    names: tuple[str, ...]
    """What else `--container` may call it."""
    rank: tuple[int, int, str]
    """Ascends with age, the oldest first."""
    compressed: bool


def classify(path: bytes, *, unlinked: bool = False) -> LogFile | None:
    """By a native path, or a name in an archive; None for what is no container's log.

    A file that was `unlinked` is older than the one that has its name now.
    """
    native = path.removeprefix(ROOT)
    if match := _DOCKER.fullmatch(native) or _NERDCTL.fullmatch(native) or _CONMON.fullmatch(native):
        identity = match["id"].decode()
        form = {_DOCKER: Form.DOCKER, _NERDCTL: Form.NERDCTL}.get(match.re, Form.CONMON)
        kind = Format.CRI if form is Form.CONMON else Format.JSON_FILE if match["json"] else Format.LOCAL
        rank = (0, -2 * int(match["number"] or 0) - unlinked, "")
        key = match["above"] + b"/" + match["id"]
        return LogFile(kind, form, match["above"], key, identity, (), rank, match["gz"] is not None)
    if match := _POD.fullmatch(native):
        namespace, pod = match["namespace"].decode(), match["pod"].decode()
        container = match["container"].decode("utf-8", "backslashreplace")
        when = (match["when"] or b"").decode()
        return LogFile(
            Format.CRI,
            Form.POD,
            match["above"],
            native[: match.end("container")],
            f"{namespace}/{pod}/{container}",
            (container, pod, f"{namespace}/{pod}", f"{namespace}/{pod}/{container}"),
            (int(match["restart"]), 0 if when else 1 if unlinked else 2, when),
            match["gz"] is not None,
        )
    return None
