"""`--layers changed`: image layers that are proved to be what somebody knows already are left out.

The proof reads the whole layer, as taking it would, but nothing of it is stored. What was proved, what was not and why
is an item of its own, before the layers.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

import msgspec

from acquirers.base import Flag, FlagKind, Gap, Reason
from acquirers.containers.docker.areas import COPIES
from acquirers.containers.docker.beside import FILES, strange
from acquirers.containers.paths import within
from acquirers.containers.records import MalformedError
from acquirers.layers import tarsplit
from acquirers.layers.disk import Directory
from acquirers.layers.proof import OPAQUE, Proof, Rules, prove

if TYPE_CHECKING:
    from collections.abc import Iterator

    from acquirers.base import Buffer, Report, Scope
    from acquirers.containers.docker.areas import Areas
    from acquirers.containers.docker.layers import Layer
    from acquirers.containers.docker.store import Store
    from acquirers.host import Host

MEDIA_TYPE = "application/x-ndjson"
SECONDS = 1800.0
"""For one layer: they are up to some ten GiB."""
SECONDS_IN_ALL = 7200.0
"""For all of one data root. What is not proved by then is taken."""
_MAX_RECORD = 1 << 30
"""Packed bytes of a tar-split record."""
_REMAPPED = re.compile(rb"/(\d{1,10})\.(\d{1,10})/?$")
_OPAQUE = {"fuse-overlayfs": (*OPAQUE, b"user.overlay.opaque", b"user.fuseoverlayfs.opaque")}
_encode = msgspec.json.Encoder().encode


class Proving:
    """Which layers of one data root need not be taken. Empty until its item was read."""

    def __init__(self, host: Host, scope: Scope, store: Store, areas: Areas) -> None:
        self._host, self._known, self._store, self._areas = host, scope.known_layers, store, areas
        self.left_out: set[tuple[str, str]] = set()

    def read(self, report: Report) -> Iterator[Buffer]:
        """One line for each layer that is wanted: what was expected, what was found, and what differs."""
        until = time.monotonic() + SECONDS_IN_ALL
        for key, layer in self._store.layers.items():
            if key not in self._store.wanted:
                continue
            where = self._areas.overlay_path(layer.driver) + b"/" + layer.id.encode()
            diff_id = digest_of(layer)
            line: dict[str, object] = {"layer": layer.id, "path": _text(where), "diff_id": diff_id}
            if diff_id not in self._known:
                yield _line({**line, "known": False, "left_out": False})
                continue
            proof = self._prove(layer, where, report, min(SECONDS, until - time.monotonic()))
            if proof.proved:
                self.left_out.add(key)
                report.flag(Flag(FlagKind.KNOWN, f"proved to be {diff_id}, which is known: not taken", where))
            elif proof.differences:
                first = proof.differences[0]
                detail = f"not as published: {_text(first.name)[:200]!r} {first.what}"
                report.flag(Flag(FlagKind.FINDING, f"{detail}; {len(proof.differences) + proof.more} in all", where))
            elif not proof.why:
                report.flag(Flag(FlagKind.FINDING, f"not as published: its tar is {proof.digest}", where))
            yield _line({**line, "known": True, "left_out": proof.proved, **_readable(proof)})

    def _prove(self, layer: Layer, where: bytes, report: Report, seconds: float) -> Proof:
        diff_id = digest_of(layer)
        image = self._areas.image
        if layer.driver in COPIES:
            return Proof(diff_id, why="its directory is a copy of all that is below it, too")
        if image is None or not layer.chain_id:
            return Proof(diff_id, why="the layer has no record in layerdb")
        record = (layer.driver, "layerdb", "sha256", layer.chain_id.removeprefix("sha256:"), "tar-split.json.gz")
        parts = [part.encode() for part in record]
        over = next((mount for mount in self._host.mounts if within(mount.point, where)), None)
        if over is not None:
            detail = (
                f"{_text(over.point)} is a mount: what containers see there may be another file than what is proved"
            )
            report.flag(Flag(FlagKind.FINDING, detail, where))
            return Proof(diff_id, why=detail)
        try:
            with Directory.open(self._host, where) as files:
                proof = prove(
                    lambda: tarsplit.read(image.chunks(*parts, limit=_MAX_RECORD)),
                    files.within(FILES),
                    diff_id,
                    rules=Rules(self._shift(), _OPAQUE.get(layer.driver, OPAQUE)),
                    seconds=seconds,
                    name=False,  # slow; what is not proved is taken, and named where it is opened
                )
                for name, what in strange(files):
                    proof.add(name, what)
                return proof
        except MalformedError as error:
            return Proof(diff_id, why=f"its record: {error}")
        except OSError as error:
            report.gap(Gap(Reason.IO_ERROR, f"the layer cannot be proved: {error.strerror or error}", where))
            return Proof(diff_id, why=error.strerror or str(error))

    def _shift(self) -> tuple[int, int]:
        """With userns-remap the data root is named after the ids of its containers' root."""
        ids = _REMAPPED.search(self._store.root.path)
        return (int(ids[1]), int(ids[2])) if ids else (0, 0)


def digest_of(layer: Layer) -> str:
    """`sha256:…`, or "" where layerdb does not say."""
    return f"sha256:{layer.diff_id.removeprefix('sha256:')}" if layer.diff_id else ""


def _readable(proof: Proof) -> dict[str, object]:
    about = proof.about()
    about["differences"] = [{"path": _text(one.name), "what": one.what} for one in proof.differences]
    return about


def _text(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")


def _line(record: dict[str, object]) -> bytes:
    return _encode(record) + b"\n"
