"""What containers/storage, podman, buildah and CRI-O were told about where they keep things, as pure parsers.

They take bytes and return `Told`. Sources: containers/storage `types/options.go`, `pkg/config/config.go`; podman
`cmd/podman/root.go`; cri-o `internal/criocli/criocli.go`, `pkg/config/config.go`; conmon(8).
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence

import msgspec

from acquirers.containers.records import MalformedError

MAX_LINES = 10_000
"""Lines of passwd(5) that are looked at."""
_MAX_PATH = 4096
_MAX_STORES = 20

_CONMON, _CRIO, _PODMAN, _BUILDAH = b"conmon", b"crio", b"podman", b"buildah"
COMMANDS = (_CONMON, _CRIO, _PODMAN, _BUILDAH)
"""Programs whose arguments are of interest, by the name that the kernel shows."""

# Options that take a value, each as `--name value` and `--name=value`.
_OPTIONS = {
    b"--root": "graph_root", b"--runroot": "run_root", b"--tmpdir": "tmp_dir", b"--volumepath": "volume_path",
    b"--imagestore": "image_store", b"--storage-opt": "option", b"--storage-driver": "driver", b"--config": "config",
}  # fmt: skip
_SHORT = {_CRIO: {b"-r": "graph_root", b"-s": "driver", b"-c": "config"}}
_STORE_OPTION = re.compile(rb"(?:overlay2?|vfs)?\.?(?:imagestore|additionalimagestores?)")
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


class Told(msgspec.Struct, frozen=True):
    """What one source says. Empty is what it does not say. Paths may be relative: they are as they were written."""

    graph_root: bytes = b""
    run_root: bytes = b""
    image_store: bytes = b""
    more_stores: tuple[bytes, ...] = ()
    """Additional image stores, which are only read."""
    tmp_dir: bytes = b""
    """Of libpod: exits, events."""
    volume_path: bytes = b""
    rootless_root: str = ""
    """The graph root of everybody but root; with variables."""
    transient: bool = False
    """Containers and layers are recorded in the run root only."""
    configs: tuple[bytes, ...] = ()
    """Further files of configuration."""

    def __bool__(self) -> bool:
        return self != Told()


def parse_arguments(command: bytes, arguments: Sequence[bytes]) -> Told:
    """The arguments of a process, without its own name. What conmon is to start when the container ends counts, too."""
    if command == _CONMON:
        return _conmon(arguments)
    return _options(arguments, _SHORT.get(command, {}))


def _conmon(arguments: Sequence[bytes]) -> Told:
    rest = iter(arguments)
    return _options([next(rest, b"") for argument in rest if argument == b"--exit-command-arg"], {})


def _options(arguments: Sequence[bytes], short: Mapping[bytes, str]) -> Told:
    found: dict[str, bytes] = {}
    stores: list[bytes] = []
    rest = iter(arguments)
    for argument in rest:
        if argument == b"--":
            break
        name, equals, value = argument.partition(b"=")
        key = _OPTIONS.get(name) if equals or argument in _OPTIONS else short.get(argument)
        if key is None:
            continue
        value = value if equals else next(rest, b"")
        if key == "option":
            stores += _stores_of(value)
        elif value:
            found[key] = value
    return Told(
        graph_root=found.get("graph_root", b""),
        run_root=found.get("run_root", b""),
        image_store=found.get("image_store", b""),
        more_stores=tuple(stores[:_MAX_STORES]),
        tmp_dir=found.get("tmp_dir", b""),
        volume_path=found.get("volume_path", b""),
        configs=(found["config"],) if "config" in found else (),
    )


def _stores_of(option: bytes) -> list[bytes]:
    """`overlay.imagestore=/a,/b`: additional stores, in spite of the name."""
    name, _, value = option.partition(b"=")
    return [path for path in value.split(b",") if path] if _STORE_OPTION.fullmatch(name) else []


def parse_environment(pairs: Sequence[bytes]) -> tuple[Told, bytes, bytes]:
    """(what it names, home of the data, home of the configuration) of a process's environment."""
    environment = dict(pair.split(b"=", 1) for pair in pairs if b"=" in pair)
    home = environment.get(b"HOME", b"")
    data = environment.get(b"XDG_DATA_HOME") or (home + b"/.local/share" if home else b"")
    config = environment.get(b"XDG_CONFIG_HOME") or (home + b"/.config" if home else b"")
    named = tuple(
        environment[name] for name in (b"CONTAINERS_STORAGE_CONF", b"CONTAINERS_CONF") if environment.get(name)
    )
    return Told(configs=named), data, config


def parse_config(data: bytes) -> Told:
    """storage.conf, containers.conf or crio.conf: TOML, told apart by their tables. Raises `MalformedError`."""
    try:
        document = tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"TOML: {str(error)[:200]}") from error
    storage, engine, crio = (_table(document, name) for name in ("storage", "engine", "crio"))
    options = _table(storage, "options")
    stores = [
        *_texts(options.get("additionalimagestores")),
        *(path for text in _texts(crio.get("storage_option")) for path in _stores_of(text)),
    ]
    return Told(
        graph_root=_path(storage, "graphroot") or _path(crio, "root"),
        run_root=_path(storage, "runroot") or _path(crio, "runroot"),
        image_store=_path(storage, "imagestore") or _path(options, "imagestore") or _path(crio, "imagestore"),
        more_stores=tuple(stores[:_MAX_STORES]),
        tmp_dir=_path(engine, "tmp_dir"),
        volume_path=_path(engine, "volume_path"),
        rootless_root=_path(storage, "rootless_storage_path").decode("utf-8", "surrogateescape"),
        transient=storage.get("transient_store") is True,
    )


def _table(document: Mapping[str, object], name: str) -> Mapping[str, object]:
    found = document.get(name)
    return found if isinstance(found, dict) else {}


def _path(table: Mapping[str, object], name: str) -> bytes:
    found = table.get(name)
    if not isinstance(found, str):
        return b""
    if "\0" in found or len(found) > _MAX_PATH:
        raise MalformedError(f"{name}: a path that no kernel would take")
    return found.encode("utf-8", "surrogateescape")


def _texts(value: object) -> list[bytes]:
    if not isinstance(value, list):
        return []
    texts = [text for text in value if isinstance(text, str)]
    return [text.encode() for text in texts[: _MAX_STORES + 1] if text and "\0" not in text and len(text) <= _MAX_PATH]


class User(msgspec.Struct, frozen=True):
    """One line of passwd(5)."""

    name: bytes
    uid: int
    home: bytes


def is_cut(data: bytes) -> bool:
    """Whether `parse_users` looks at the beginning only."""
    return data.rstrip(b"\n").count(b"\n") >= MAX_LINES


def parse_users(data: bytes) -> list[User]:
    """The users of a passwd(5) file that have a home, each home once, in its order."""
    users: dict[bytes, User] = {}
    for line in data.split(b"\n", MAX_LINES)[:MAX_LINES]:
        fields = line.split(b":")
        if len(fields) != 7 or not fields[2].isdigit() or len(fields[2]) > 10:
            continue
        home = fields[5].rstrip(b"/") or b"/"
        if fields[5].startswith(b"/") and b"\0" not in home and len(home) <= _MAX_PATH:
            users.setdefault(home, User(fields[0][:256], int(fields[2]), home))
    return list(users.values())


def expand(text: str, user: User) -> bytes:
    """`$HOME`, `$USER` and `$UID` of a rootless storage path; what else it names is left as it stands."""
    values = {"HOME": user.home, "USER": user.name, "UID": str(user.uid).encode()}

    def value(match: re.Match[str]) -> str:
        found = values.get(match[1] or match[2])
        return match[0] if found is None else found.decode("utf-8", "surrogateescape")

    return _VARIABLE.sub(value, text).encode("utf-8", "surrogateescape")
