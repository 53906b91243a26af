"""What a containerd was told: `config.toml`, its arguments, as pure parsers.

Sources: containerd `cmd/containerd/command/main.go`, `cmd/containerd/server/config/config.go`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Sequence

import msgspec

from acquirers.containers.records import MalformedError

_FLAGS = {
    b"root": "root", b"state": "state", b"config": "config", b"c": "config", b"address": "address", b"a": "address",
}  # fmt: skip
_MAX_TEXT = 4096
_MAX_IMPORTS = 100
_MAX_PLUGINS = 200
_SNAPSHOTTER = "io.containerd.snapshotter.v1."


class Settings(msgspec.Struct, frozen=True):
    """Where a containerd was told to keep its data, as far as one source says so."""

    root: bytes | None = None
    state: bytes | None = None
    config_file: bytes | None = None
    imports: tuple[bytes, ...] = ()
    """Further configuration files; relative ones lie beside the one that names them, and `*` may stand in them."""
    snapshotters: tuple[tuple[str, bytes], ...] = ()
    """(name, directory) of those that were told to keep their data elsewhere."""


def parse_arguments(arguments: Sequence[bytes]) -> Settings:
    """The arguments of containerd, its own name first or not. Both `-root X` and `--root=X` are taken."""
    found: dict[str, bytes] = {}
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition(b"=")
        known = _FLAGS.get(name.lstrip(b"-")) if name.startswith(b"-") else None
        if known is not None:
            found[known] = value if equals else next(rest, b"")
    return Settings(found.get("root") or None, found.get("state") or None, found.get("config") or None)


def parse_config(data: bytes) -> Settings:
    """`config.toml`. Raises `MalformedError`."""
    try:
        document = tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"TOML: {str(error)[:200]}") from error
    imports = document.get("imports")
    return Settings(
        _path(document.get("root")),
        _path(document.get("state")),
        None,
        tuple(path for one in (imports if isinstance(imports, list) else [])[:_MAX_IMPORTS] if (path := _path(one))),
        tuple(_snapshotters(document.get("plugins"))),
    )


def _snapshotters(plugins: object) -> Iterator[tuple[str, bytes]]:
    """`[plugins."io.containerd.snapshotter.v1.<name>"] root_path = …`"""
    for key, value in list(plugins.items())[:_MAX_PLUGINS] if isinstance(plugins, dict) else ():
        path = _path(value.get("root_path")) if isinstance(value, dict) else None
        if key.startswith(_SNAPSHOTTER) and path is not None and path.startswith(b"/"):
            yield key.removeprefix(_SNAPSHOTTER)[:64], path


def _path(value: object) -> bytes | None:
    if not isinstance(value, str) or not value or len(value) > _MAX_TEXT or "\0" in value:
        return None
    return value.encode("utf-8", "surrogatepass")
